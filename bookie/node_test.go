package bookie

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

var _ ensemble.Bookie = (*Node)(nil)

// TestStoreAndRead shows the ordinary life of a ledger: add, read a run, one
// entry, the heads of entries, info and list, the same after a restart.
func TestStoreAndRead(t *testing.T) {
	files := vfs.NewMem()
	n, err := Open(testOptions(files))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, n, 7, 0, 9, 1000)
	fill(t, n, 8, 0, 0, 100)
	for _, when := range []string{"before", "after"} {
		t.Run(when+" a restart", func(t *testing.T) {
			for _, test := range []struct {
				request ledger.ReadRequest
				want    string
			}{
				{ledger.ReadRequest{Ledger: 7, First: 0, Last: 9}, "FFFFFFFFFF"},
				{ledger.ReadRequest{Ledger: 7, First: 4, Last: 4}, "F"},
				{ledger.ReadRequest{Ledger: 7, First: 8, Last: 20}, "FFA"},
				{ledger.ReadRequest{Ledger: 7, First: 0, Last: 9, MaxBytes: 1}, "F"},
				{ledger.ReadRequest{Ledger: 7, First: 0, Last: 9, MaxBytes: 3500}, "FFFF"},
				{ledger.ReadRequest{Ledger: 7, First: 0, Last: 2, HeadBytes: 5}, "FFF"},
				{ledger.ReadRequest{Ledger: 99, First: 0, Last: 5}, "A"},
			} {
				if got := statuses(t, n, test.request); got != test.want {
					t.Errorf("read %+v: %s, want %s", test.request, got, test.want)
				}
			}
			info, err := n.Info(testContext(t), 7)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ledger.Info{Ranges: []ledger.EntryRange{{First: 0, Last: 9}}, LAC: 8}, info); diff != "" {
				t.Errorf("info (-want +got):\n%s", diff)
			}
			if _, err := n.Info(testContext(t), 99); !errors.Is(err, ledger.ErrNoLedger) {
				t.Errorf("info of a ledger never seen: %v", err)
			}
			ids, more, err := n.List(testContext(t), 7, 10)
			if diff := cmp.Diff([]ledger.ID{8}, ids); diff != "" || more || err != nil {
				t.Errorf("list: %v %v %v", ids, more, err)
			}
		})
		if when == "before" {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			n = openNode(t, testOptions(files))
		}
	}
}

// TestRuleA2_DamagedAddIsRefused shows that nothing reaches the disk whose
// checksum, size or ids do not match.
func TestRuleA2_DamagedAddIsRefused(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	for name, damage := range map[string]func(*ledger.Add){
		"flipped bit": func(a *ledger.Add) { a.Body[3] ^= 1 },
		"cut body":    func(a *ledger.Add) { a.Body = a.Body[:5] },
		"ledger 0":    func(a *ledger.Add) { a.Envelope.Ledger = 0 },
		"entry -1":    func(a *ledger.Add) { a.Envelope.Entry = -1 },
		"entry 1<<62": func(a *ledger.Add) { a.Envelope.Entry = ledger.MaxEntry + 1 },
		"own LAC":     func(a *ledger.Add) { a.Envelope.LAC = a.Envelope.Entry },
	} {
		a := entryOf(7, 3, 100)
		a.Create = true
		damage(&a)
		if err := add(t, n, a); !errors.Is(err, ledger.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, First: 3, Last: 3}); got != "A" {
		t.Errorf("the refused entry reads %s", got)
	}
}

// TestLastEntryID shows that an entry with the highest id is read like any other,
// to the end of what was asked, and that nothing is looked for beyond it.
func TestLastEntryID(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	a := entryOf(7, ledger.MaxEntry, 100)
	a.Envelope.TotalBytes, a.Create = 1<<40, true
	if err := add(t, n, a); err != nil {
		t.Fatal(err)
	}
	for _, fence := range []int64{0, 1} {
		if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, First: ledger.MaxEntry, Last: math.MaxInt64, FenceTerm: fence}); !strings.HasPrefix(got, "FA") {
			t.Errorf("with fence %d: %.10s, want found, then absent", fence, got)
		}
		_, err := n.Read(testContext(t), ledger.ReadRequest{Ledger: 7, First: math.MaxInt64, Last: math.MaxInt64, FenceTerm: fence})
		if !errors.Is(err, wire.ErrInvalid) {
			t.Errorf("beyond the highest id, with fence %d: %v, want ErrInvalid", fence, err)
		}
	}
}

// TestRuleR4_FenceIsDurableBeforeReply shows that a fence survives a power cut at
// the moment of its reply: on a ledger with entries, on one never seen, on an
// idle bookie, set by a fence or by a recovery read, whatever that finds.
func TestRuleR4_FenceIsDurableBeforeReply(t *testing.T) {
	for name, fence := range map[string]func(*Node) error{
		"fence": func(n *Node) error { _, err := n.Fence(context.Background(), 7, 2); return err },
		"recovery read": func(n *Node) error {
			_, err := n.Read(context.Background(), ledger.ReadRequest{Ledger: 7, First: 50, Last: 60, FenceTerm: 2})
			return err
		},
	} {
		for _, seen := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, ledger seen %v", name, seen), func(t *testing.T) {
				disk := vfs.NewMem()
				n := openNode(t, testOptions(disk))
				if seen {
					fill(t, n, 7, 0, 3, 100)
				}
				if err := fence(n); err != nil {
					t.Fatal(err)
				}
				disk = crash(t, n, disk, vfs.ImageOptions{})
				n = openNode(t, testOptions(disk))
				a := entryOf(7, 4, 100)
				a.Create = true
				if err := add(t, n, a); !errors.Is(err, ledger.ErrFenced) {
					t.Errorf("ordinary add after the crash: %v, want ErrFenced", err)
				}
				if _, err := n.Fence(testContext(t), 7, 1); !errors.Is(err, ledger.ErrFenced) {
					t.Errorf("lower fence after the crash: %v, want ErrFenced", err)
				}
			})
		}
	}
}

// TestRuleR4_NoReplyBeforeTheSync shows that neither a fence nor a recovery read is
// answered while the fence is on its way to the disk, and that ordinary adds are
// refused from that moment on.
func TestRuleR4_NoReplyBeforeTheSync(t *testing.T) {
	disk := newSlowDisk()
	n := openNode(t, testOptions(disk.files))
	fill(t, n, 7, 0, 3, 100)
	disk.stop()
	replies := make(chan error, 3)
	go func() {
		_, err := n.Fence(context.Background(), 7, 2)
		replies <- err
		// Known by then: the term is durable, the disk is not asked again.
		disk.stop()
		_, err = n.Fence(context.Background(), 7, 2)
		disk.resume()
		replies <- err
	}()
	<-disk.waiting
	go func() {
		_, err := n.Read(context.Background(), ledger.ReadRequest{Ledger: 7, First: 0, Last: 9, FenceTerm: 2})
		replies <- err
	}()
	if err := add(t, n, entryOf(7, 4, 100)); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("ordinary add while the fence is on its way: %v, want ErrFenced", err)
	}
	select {
	case err := <-replies:
		t.Errorf("answered before the sync: %v", err)
	default:
	}
	disk.resume()
	for range 3 {
		if err := <-replies; err != nil {
			t.Error(err)
		}
	}
}

// TestRuleM13_RecoveryBelowTheTermIsRefused shows that recovery reads and adds pass
// a fence of their term, and none higher.
func TestRuleM13_RecoveryBelowTheTermIsRefused(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	fill(t, n, 7, 0, 3, 100)
	reply, err := n.Fence(testContext(t), 7, 3)
	if diff := cmp.Diff(ledger.FenceReply{LastEntry: 3, LAC: 2}, reply); diff != "" || err != nil {
		t.Fatalf("fence: %v (-want +got):\n%s", err, diff)
	}
	if _, err := n.Read(testContext(t), ledger.ReadRequest{Ledger: 7, First: 0, Last: 3, FenceTerm: 2}); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("recovery read below the term: %v", err)
	}
	low, high := entryOf(7, 4, 100), entryOf(7, 4, 100)
	low.RecoveryTerm, high.RecoveryTerm = 2, 3
	if err := add(t, n, low); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("recovery add below the term: %v", err)
	}
	if err := add(t, n, high); err != nil {
		t.Errorf("recovery add at the term: %v", err)
	}
	if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, First: 2, Last: 8, FenceTerm: 4}); got != "FFFAAAA" {
		t.Errorf("recovery read goes %s, want FFFAAAA: on past absences", got)
	}
	if err := add(t, n, high); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("recovery add after a recovery read fenced higher: %v", err)
	}
}

// TestRuleB9_FenceSeesEveryAddLetIn shows that whatever races with a fence, each
// add is either refused or found by whoever fenced: the check and the add are one.
func TestRuleB9_FenceSeesEveryAddLetIn(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	for round := ledger.ID(1); round <= 20; round++ {
		var stored sync.Map
		var wait sync.WaitGroup
		var next atomic.Int64
		for range 4 {
			wait.Go(func() {
				for {
					a := entryOf(round, ledger.EntryID(next.Add(1)-1), 50)
					a.Create = true
					if add(t, n, a) != nil {
						return
					}
					stored.Store(a.Envelope.Entry, true)
				}
			})
		}
		for next.Load() < 20 {
			runtime.Gosched()
		}
		reply, err := n.Fence(testContext(t), round, 2)
		if err != nil {
			t.Fatal(err)
		}
		seen := statuses(t, n, ledger.ReadRequest{Ledger: round, First: 0, Last: reply.LastEntry, FenceTerm: 2})
		wait.Wait()
		stored.Range(func(e, _ any) bool {
			i := int(e.(ledger.EntryID))
			if i >= len(seen) || seen[i] != 'F' {
				t.Errorf("round %d: entry %d was stored, the fence saw %s", round, i, seen)
			}
			return true
		})
		if t.Failed() {
			return
		}
	}
}

// TestRuleM14_CreateAndTombstone shows that an add without CREATE makes no ledger,
// and that a deleted one is never made again: not by a zombie's first add, not
// after a power cut, not if it was never here.
func TestRuleM14_CreateAndTombstone(t *testing.T) {
	disk := vfs.NewMem()
	n := openNode(t, testOptions(disk))
	if err := add(t, n, entryOf(7, 0, 100)); !errors.Is(err, ledger.ErrNoLedger) {
		t.Errorf("add without create: %v, want ErrNoLedger", err)
	}
	fill(t, n, 7, 0, 3, 100)
	if err := add(t, n, entryOf(7, 4, 100)); err != nil {
		t.Errorf("add without create to a known ledger: %v", err)
	}
	for _, id := range []ledger.ID{7, 8} {
		if err := n.Delete(testContext(t), id); err != nil {
			t.Fatal(err)
		}
	}
	for _, when := range []string{"at once", "after a crash"} {
		for _, id := range []ledger.ID{7, 8} {
			zombie := entryOf(id, 0, 100)
			zombie.Create = true
			if err := add(t, n, zombie); !errors.Is(err, ledger.ErrDeleted) {
				t.Errorf("%s: zombie's add to ledger %d: %v, want ErrDeleted", when, id, err)
			}
			zombie.RecoveryTerm = 9
			if err := add(t, n, zombie); !errors.Is(err, ledger.ErrDeleted) {
				t.Errorf("%s: recovery add to ledger %d: %v, want ErrDeleted", when, id, err)
			}
			if _, err := n.Fence(testContext(t), id, 5); !errors.Is(err, ledger.ErrDeleted) {
				t.Errorf("%s: fence of ledger %d: %v, want ErrDeleted", when, id, err)
			}
			if _, err := n.Read(testContext(t), ledger.ReadRequest{Ledger: id, First: 0, Last: 1}); !errors.Is(err, ledger.ErrDeleted) {
				t.Errorf("%s: read of ledger %d: %v, want ErrDeleted", when, id, err)
			}
		}
		if ids, _, _ := n.List(testContext(t), 0, 0); len(ids) != 0 {
			t.Errorf("%s: ledgers %v are listed", when, ids)
		}
		if when == "at once" {
			disk = crash(t, n, disk, vfs.ImageOptions{})
			n = openNode(t, testOptions(disk))
		}
	}
}

// TestRuleB1_AcknowledgedSurvivesEveryCrash cuts the power at every change of the
// disk during a small life and shows that whatever was answered holds after it:
// entries, fences and deletions.
func TestRuleB1_AcknowledgedSurvivesEveryCrash(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	step := int64(1)
	if testing.Short() {
		step = 5
	}
	for k := int64(0); ; k += step {
		disk := vfs.NewMem()
		o := testOptions(vfs.NewFaults(disk, vfs.CrashAt(disk, k)))
		o.Fatal = func(error) {}
		told := live(t, o)
		if !disk.Crashed() {
			if k < 20 {
				t.Fatalf("the life has %d changes only", k)
			}
			return
		}
		image := vfs.ImageOptions{Rand: random.Uint64, KeepUnsynced: float64(k%3) / 2, TornSectors: true}
		n, err := Open(testOptions(disk.Image(image)))
		if err != nil {
			t.Fatalf("crash at change %d: %v", k, err)
		}
		told.check(t, k, n)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// told is what a node answered with success, each in order.
type told struct {
	entries []ledger.EntryID // of ledger 7
	fenced  bool             // ledger 8, at term 2
	deleted bool             // ledger 9
	swept   bool             // entry 0 of ledger 9 was stored
}

// live does a little of everything until the power goes.
func live(t *testing.T, o Options) (d told) {
	n, err := Open(o)
	if err != nil {
		return d
	}
	defer n.Close()
	for e := ledger.EntryID(0); e < 5; e++ {
		a := entryOf(7, e, 3000)
		a.Create = true
		if add(t, n, a) == nil {
			d.entries = append(d.entries, e)
		}
		switch e {
		case 1:
			_, err := n.Fence(context.Background(), 8, 2)
			d.fenced = err == nil
		case 2:
			a := entryOf(9, 0, 100)
			a.Create = true
			d.swept = add(t, n, a) == nil
		case 3:
			d.deleted = n.Delete(context.Background(), 9) == nil
		}
	}
	return d
}

func (d told) check(t *testing.T, k int64, n *Node) {
	t.Helper()
	for _, e := range d.entries {
		if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, First: e, Last: e}); got != "F" {
			t.Errorf("crash at change %d: entry %d reads %s", k, e, got)
		}
	}
	a := entryOf(8, 0, 10)
	a.Create = true
	if err := add(t, n, a); d.fenced && !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("crash at change %d: add to the fenced ledger: %v", k, err)
	}
	a = entryOf(9, 0, 10)
	a.Create = true
	if err := add(t, n, a); d.deleted && !errors.Is(err, ledger.ErrDeleted) {
		t.Errorf("crash at change %d: add to the deleted ledger: %v", k, err)
	}
}

// TestTooBusyByBytes shows that what is in flight is bounded by its bytes, that
// control goes on where data is refused, and that it comes back.
func TestTooBusyByBytes(t *testing.T) {
	disk := newSlowDisk()
	o := testOptions(disk.files) // 16 MiB of memory: 2 MiB in flight, 3 MiB for control
	o.ReserveBytes = 8 << 20
	n := openNode(t, o)
	fill(t, n, 7, 0, 0, 10)
	disk.stop()
	results := make(chan error, 10)
	send := func(id ledger.ID, e ledger.EntryID, class ledger.Class) {
		a := entryOf(id, e, 900<<10)
		a.Create, a.Envelope.Class = true, class
		n.Add(a, func(err error) { results <- err })
	}
	send(7, 1, ledger.Data)
	send(7, 2, ledger.Data)
	send(7, 3, ledger.Data)
	if err := <-results; !errors.Is(err, ledger.ErrTooBusy) {
		t.Errorf("third add of 900 KiB: %v, want ErrTooBusy", err)
	}
	send(8, 0, ledger.Control)
	select {
	case err := <-results:
		t.Errorf("control was refused with data: %v", err)
	default:
	}
	disk.resume()
	for range 3 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if err := add(t, n, entryOf(7, 3, 900<<10)); err != nil {
		t.Errorf("add after the others were answered: %v", err)
	}
	if got := n.inFlight.bytes.Load(); got != 0 {
		t.Errorf("%d bytes in flight with nothing in flight", got)
	}
}

// TestRuleM28_WhatIsInFlightLeavesTheReserve shows that entries that were taken
// before the disk was found full are too few to use up the reserve.
func TestRuleM28_WhatIsInFlightLeavesTheReserve(t *testing.T) {
	disk := newSlowDisk()
	o := testOptions(disk.files) // 16 MiB of memory, of which 2 MiB could be in flight
	o.ReserveBytes = 2 << 20
	n := openNode(t, o)
	fill(t, n, 7, 0, 0, 10)
	disk.stop()
	results := make(chan error, 100)
	taken := 0
	for e := range ledger.EntryID(100) {
		a := entryOf(7, 1+e, 40<<10)
		n.Add(a, func(err error) { results <- err })
		select {
		case err := <-results:
			if !errors.Is(err, ledger.ErrTooBusy) {
				t.Fatal(err)
			}
		default:
			taken++
		}
	}
	if taken == 0 || int64(taken)*40<<10 > o.ReserveBytes/4 {
		t.Errorf("%d entries of 40 KiB are in flight, the reserve is %d bytes", taken, o.ReserveBytes)
	}
	disk.resume()
	for range taken {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestReadsAreBounded shows that requests no bookie could answer are refused, and
// that what is read at a time is bounded by its bytes.
func TestReadsAreBounded(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	fill(t, n, 7, 0, 3, 100)
	for _, r := range []ledger.ReadRequest{
		{Ledger: 0, Last: 1}, {Ledger: 7, First: -1}, {Ledger: 7, First: 3, Last: 2},
		{Ledger: 7, MaxBytes: -1}, {Ledger: 7, HeadBytes: -1}, {Ledger: 7, FenceTerm: -1},
	} {
		if _, err := n.Read(testContext(t), r); !errors.Is(err, wire.ErrInvalid) {
			t.Errorf("read %+v: %v, want ErrInvalid", r, err)
		}
	}
	if _, err := n.Fence(testContext(t), 7, 0); !errors.Is(err, wire.ErrInvalid) {
		t.Errorf("fence at term 0: %v, want ErrInvalid", err)
	}
	reply, err := n.Read(testContext(t), ledger.ReadRequest{Ledger: 7, First: 0, Last: 1 << 62, FenceTerm: 1})
	if err != nil || len(reply.Entries) != maxReadEntries {
		t.Errorf("endless recovery read: %d answers, %v; want %d", len(reply.Entries), err, maxReadEntries)
	}
	release, err := n.reading.acquire(testContext(t), n.reading.limit, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := n.Read(ctx, ledger.ReadRequest{Ledger: 7, Last: 3}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read with the budget used up: %v, want it to wait until its context ends", err)
	}
	if _, err := n.Read(testContext(t), ledger.ReadRequest{Ledger: 7, Last: 3, FenceTerm: 1}); err != nil {
		t.Errorf("recovery read with the budget of others used up: %v", err)
	}
	release()
	if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, Last: 3}); got != "FFFF" {
		t.Errorf("read with the budget back: %s", got)
	}
}

// TestHeadsAreReadWithinTheBudget shows that a read of heads counts what it may have to
// read for them, which is whole entries, and not the little that it gives.
func TestHeadsAreReadWithinTheBudget(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	fill(t, n, 7, 0, 3, 100)
	release, err := n.reading.acquire(testContext(t), n.reading.limit-n.maxRead()/2, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	heads := ledger.ReadRequest{Ledger: 7, Last: 3, MaxBytes: 1000, HeadBytes: 10}
	if _, err := n.Read(ctx, heads); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read of heads with little of the budget left: %v, want it to wait until its context ends", err)
	}
	whole := heads
	whole.HeadBytes = 0
	if got := statuses(t, n, whole); got != "FFFF" {
		t.Errorf("read of as many bytes of whole entries: %s", got)
	}
	release()
	if got := statuses(t, n, heads); got != "FFFF" {
		t.Errorf("read of heads with the budget back: %s", got)
	}
}

// TestRuleB2_DamageIsUnknown shows that an entry whose bytes rotted is answered
// unknown, and that a log that lost records it cannot name answers unknown for
// every absence and takes no ordinary adds.
func TestRuleB2_DamageIsUnknown(t *testing.T) {
	disk := vfs.NewMem()
	n, err := Open(testOptions(disk))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, n, 7, 0, 5, 9000)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("one entry", func(t *testing.T) {
		disk := disk.Image(vfs.ImageOptions{KeepUnsynced: 1})
		rot(t, disk, bodyOf(7, 2, 9000))
		n := openNode(t, testOptions(disk))
		if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, First: 0, Last: 9}); got != "FFU" {
			t.Errorf("read over a rotten entry: %s, want FFU", got)
		}
		if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, First: 3, Last: 9}); got != "FFFA" {
			t.Errorf("read behind a rotten entry: %s, want FFFA", got)
		}
	})
	t.Run("whole segment", func(t *testing.T) {
		disk := disk.Image(vfs.ImageOptions{KeepUnsynced: 1})
		for _, name := range names(t, disk, "/data/hot") {
			f, err := disk.OpenReadWrite("/data/hot/" + name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil { // headers of segments and index files
				t.Fatal(err)
			}
			f.Close()
		}
		n := openNode(t, testOptions(disk))
		if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, First: 0, Last: 9}); got != "U" {
			t.Errorf("absence after damage: %s, want U", got)
		}
		a := entryOf(99, 0, 10)
		a.Create = true
		if err := add(t, n, a); !errors.Is(err, ledger.ErrUnknown) {
			t.Errorf("add of a new ledger after damage: %v, want ErrUnknown", err)
		}
		if _, err := n.Fence(testContext(t), 7, 2); !errors.Is(err, ledger.ErrUnknown) {
			t.Errorf("fence after damage: %v, want ErrUnknown beside the reply", err)
		}
		if d := n.Describe(); !d.ReadOnly || !strings.Contains(d.ReadOnlyReason, "replace") {
			t.Errorf("describes itself as %+v", d)
		}
	})
}

// rot alters one byte in the middle of the first place under /data that holds body.
func rot(t *testing.T, disk vfs.FS, body []byte) {
	t.Helper()
	for _, folder := range []string{"/data/hot", "/data/cold"} {
		if _, err := disk.Stat(folder); err != nil {
			continue
		}
		for _, name := range names(t, disk, folder) {
			if i := bytes.Index(contents(t, disk, folder+"/"+name), body); i >= 0 {
				flip(t, disk, folder+"/"+name, int64(i+len(body)/2))
				return
			}
		}
	}
	t.Fatal("the entry is nowhere on disk")
}

// TestClosedNodeRefuses shows that a closed node answers everything with
// ErrStopping and closes once.
func TestClosedNodeRefuses(t *testing.T) {
	n, err := Open(testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Close(), n.Close()); err != nil {
		t.Fatal(err)
	}
	if err := add(t, n, entryOf(7, 0, 10)); !errors.Is(err, ledger.ErrStopping) {
		t.Errorf("add: %v", err)
	}
	if _, err := n.Fence(testContext(t), 7, 2); !errors.Is(err, ledger.ErrStopping) {
		t.Errorf("fence: %v", err)
	}
	if _, err := n.Read(testContext(t), ledger.ReadRequest{Ledger: 7}); !errors.Is(err, ledger.ErrStopping) {
		t.Errorf("read: %v", err)
	}
	if err := n.Delete(testContext(t), 7); !errors.Is(err, ledger.ErrStopping) {
		t.Errorf("delete: %v", err)
	}
}

// FuzzDecodeTerm shows that only what encodeTerm writes is taken for a fence.
func FuzzDecodeTerm(f *testing.F) {
	f.Add(encodeTerm(1))
	f.Add(encodeTerm(1<<63 - 1))
	f.Add([]byte{})
	f.Add(make([]byte, 8))
	f.Fuzz(func(t *testing.T, data []byte) {
		term, err := decodeTerm(data)
		switch {
		case err != nil && !errors.Is(err, ledger.ErrCorrupt):
			t.Fatalf("error %v is not ErrCorrupt", err)
		case err == nil && (term < 1 || !bytes.Equal(encodeTerm(term), data)):
			t.Fatalf("% x was taken for term %d", data, term)
		}
	})
}
