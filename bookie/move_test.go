package bookie

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// settle lets the upkeep work until it has nothing left to do.
func settle() { time.Sleep(30 * time.Second); synctest.Wait() }

// load stores n entries of 60 KiB in each of ledgers first to last, in turns as
// topics do.
func load(t *testing.T, b adder, first, last ledger.ID, from, n int) {
	t.Helper()
	for e := range n {
		for id := first; id <= last; id++ {
			fill(t, b, id, ledger.EntryID(from+e), ledger.EntryID(from+e), 60<<10)
		}
	}
}

// checkLoaded reads all of it back.
func checkLoaded(t *testing.T, n *Node, first, last ledger.ID, entries int) {
	t.Helper()
	for id := first; id <= last; id++ {
		for e := ledger.EntryID(0); e < ledger.EntryID(entries); {
			reply, err := n.Read(context.Background(), ledger.ReadRequest{Ledger: id, First: e, Last: ledger.EntryID(entries - 1)})
			if err != nil {
				t.Fatal(err)
			}
			for i, got := range reply.Entries {
				at := e + ledger.EntryID(i)
				if got.Status != ledger.Found {
					t.Fatalf("entry %d of ledger %d: status %d", at, id, got.Status)
				}
				if want := entryOf(id, at, 60<<10); string(got.Entry.Body) != string(want.Body) || got.Entry.Envelope != want.Envelope {
					t.Fatalf("entry %d of ledger %d reads otherwise than written", at, id)
				}
			}
			e += ledger.EntryID(len(reply.Entries))
		}
		info, err := n.Info(context.Background(), id)
		if err != nil || len(info.Ranges) != 1 || info.Ranges[0] != (ledger.EntryRange{First: 0, Last: ledger.EntryID(entries - 1)}) || info.LAC != ledger.EntryID(entries-2) {
			t.Fatalf("info of ledger %d: %+v, %v", id, info, err)
		}
	}
}

// TestRuleM27_RecordsOutliveTheirSegments shows that everything a segment of the
// log said is found after the segment is gone: moved entries, the fence of an idle
// ledger, the fence of one never written, tombstones; after a crash that keeps
// nothing unsynced; and once more after the index is lost, from the log's own
// copies and the footers.
func TestRuleM27_RecordsOutliveTheirSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := vfs.NewMem()
		n := openNode(t, testOptions(disk))
		load(t, n, 1, 3, 0, 4)
		ctx := context.Background()
		for _, id := range []ledger.ID{3, 50} { // written, and never seen
			if _, err := n.Fence(ctx, id, 4); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range []ledger.ID{60, 61 << 20} {
			if err := n.Delete(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		first := n.hot.Segments()[0].ID
		for round := range 2 { // two whole budgets of the log, so that copies of records move too
			load(t, n, 1, 2, 4+100*round, 100)
			settle()
		}
		if now := n.hot.Segments()[0].ID; now < first+15 {
			t.Fatalf("the log still begins at segment %d, began at %d", now, first)
		}
		check := func(when string, n *Node) {
			t.Helper()
			checkLoaded(t, n, 1, 2, 204)
			checkLoaded(t, n, 3, 3, 4)
			for id, want := range map[ledger.ID]error{3: ledger.ErrFenced, 50: ledger.ErrFenced, 60: ledger.ErrDeleted, 61 << 20: ledger.ErrDeleted} {
				a := entryOf(id, 999, 10)
				a.Create = true
				if err := add(t, n, a); !errors.Is(err, want) {
					t.Errorf("%s: add to ledger %d: %v, want %v", when, id, err, want)
				}
				a.RecoveryTerm = 3
				if err := add(t, n, a); !errors.Is(err, want) {
					t.Errorf("%s: recovery add below the term to ledger %d: %v, want %v", when, id, err, want)
				}
			}
			if got := statuses(t, n, ledger.ReadRequest{Ledger: 1, First: 203, Last: 205}); got != "FA" {
				t.Errorf("%s: read over the end: %s, want FA", when, got)
			}
		}
		check("in place", n)
		disk = crash(t, n, disk, vfs.ImageOptions{})
		n = openNode(t, testOptions(disk))
		check("after a crash", n)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		for _, name := range names(t, disk, "/data/index") {
			if strings.HasPrefix(name, "MANIFEST") {
				disk.Remove("/data/index/" + name)
			}
		}
		n = openNode(t, testOptions(disk))
		check("after the index was lost", n)
		if n.table.Limbo() {
			t.Error("the bookie is in limbo although nothing is lost")
		}
	})
}

// TestRuleM27_UnrecordedLedgersAreInLimbo shows that where index and log are lost and
// only cold segments are left, their entries are served, absences are unknown and
// ordinary adds are refused: the ledger may have been fenced. That is so after the next
// restart too, when the index is whole again and nobody looks into the footers.
func TestRuleM27_UnrecordedLedgersAreInLimbo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := vfs.NewMem()
		n, err := Open(testOptions(disk))
		if err != nil {
			t.Fatal(err)
		}
		load(t, n, 1, 2, 0, 100)
		settle()
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		for _, folder := range []string{"/data/hot", "/data/index"} {
			if err := disk.RemoveAll(folder); err != nil {
				t.Fatal(err)
			}
		}
		for start := range 3 {
			n = openNode(t, testOptions(disk))
			if got := statuses(t, n, ledger.ReadRequest{Ledger: 1, First: 0, Last: 3}); got != "FFFF" {
				t.Errorf("start %d: what is in cold segments reads %s", start, got)
			}
			if got := statuses(t, n, ledger.ReadRequest{Ledger: 1, First: 500, Last: 500}); got != "U" {
				t.Errorf("start %d: absence reads %s, want U", start, got)
			}
			if err := add(t, n, entryOf(1, 500, 10)); !errors.Is(err, ledger.ErrUnknown) {
				t.Errorf("start %d: ordinary add: %v, want ErrUnknown", start, err)
			}
			disk = crash(t, n, disk, vfs.ImageOptions{})
		}
	})
}

// TestRuleM28_FillConsumeTrimWritable shows the life of a full disk: data is refused
// while control goes on, deletions give whole segments back without a copy, and
// data is taken again, with nobody's help; also across a restart while full.
func TestRuleM28_FillConsumeTrimWritable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := vfs.NewMem()
		o := testOptions(disk)
		o.DiskBytes, o.ReserveBytes = 32<<20, 6<<20
		n := openNode(t, o)
		// full adds to a ledger until data is refused for good.
		full := func(id ledger.ID, from ledger.EntryID) ledger.EntryID {
			for stored := from; stored < 2000; {
				a := entryOf(id, stored, 60<<10)
				a.Create = true
				err := add(t, n, a)
				switch {
				case err == nil:
					stored++
				case errors.Is(err, ledger.ErrTooBusy):
					time.Sleep(100 * time.Millisecond)
				case errors.Is(err, ledger.ErrReadOnly):
					if settle(); n.Describe().ReadOnly {
						return stored
					}
				default:
					t.Fatal(err)
				}
			}
			t.Fatal("the disk never fills up")
			return 0
		}
		stored := full(1, 0)
		if d := n.Describe(); !d.ReadOnly || !strings.Contains(d.ReadOnlyReason, "reserve") {
			t.Errorf("describes itself as %+v", d)
		}
		for restart := range 2 {
			control := entryOf(2, ledger.EntryID(restart), 1000)
			control.Create, control.Envelope.Class = true, ledger.Control
			if err := add(t, n, control); err != nil {
				t.Errorf("control on a full disk: %v", err)
			}
			repair := entryOf(3, ledger.EntryID(restart), 1000)
			repair.Create, repair.RecoveryTerm = true, 1
			if err := add(t, n, repair); err != nil {
				t.Errorf("recovery add on a full disk: %v", err)
			}
			if _, err := n.Fence(context.Background(), 4, int64(2+restart)); err != nil {
				t.Errorf("fence on a full disk: %v", err)
			}
			a := entryOf(1, stored, 10)
			if err := add(t, n, a); !errors.Is(err, ledger.ErrReadOnly) {
				t.Errorf("data on a full disk: %v, want ErrReadOnly", err)
			}
			if restart == 0 {
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
				n = openNode(t, o)
				stored = full(1, stored) // a restart may give a little back
			}
		}
		settle()
		if err := n.Delete(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		settle()
		if d := n.Describe(); d.ReadOnly {
			t.Fatalf("still read-only after the trim: %s", d.ReadOnlyReason)
		}
		if again := full(5, 0); again < stored/2 {
			t.Errorf("%d entries fit after the trim, %d before", again, stored)
		}
	})
}

// TestRuleM28_TombstonesFreeWithoutACopy shows that what is deleted while in the log
// never reaches a cold segment.
func TestRuleM28_TombstonesFreeWithoutACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := openNode(t, testOptions(vfs.NewMem()))
		for id := ledger.ID(1); id <= 10; id++ {
			load(t, n, id, id, 0, 50) // 3 MiB; the log holds 8
			if err := n.Delete(context.Background(), id); err != nil {
				t.Fatal(err)
			}
			settle()
		}
		if u := n.cold.Usage(); u.FileBytes != 0 {
			t.Errorf("%d bytes were moved of ledgers that were deleted", u.FileBytes)
		}
		if used := n.hotBytes(); used > n.opts.HotBytes+n.opts.SegmentBytes {
			t.Errorf("the log takes %d bytes, more than its budget", used)
		}
	})
}

// TestRuleM28_MovesLeaveTheReserve shows which segments are chosen as log and disk
// fill: copies of survivors leave control its part of the reserve, a segment that
// there is no room to copy keeps back none that fits, and a log over its budget always
// finds something while there is anything that may go.
func TestRuleM28_MovesLeaveTheReserve(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name  string
		live  []int64 // bytes of segments of 1 MiB
		log   int64   // bytes of a log of 8 MiB
		level diskLevel
		free  int64 // of a disk with a reserve of 4 MiB
		want  []uint32
	}{
		{"all is well", []int64{0, mib}, 7 * mib, levelOpen, 8 * mib, nil},
		{"the oldest, down to a quarter below the budget", []int64{mib, mib, 0, mib}, 9 * mib, levelOpen, 100 * mib, []uint32{0, 1, 2}},
		{"as many as leave control its half", []int64{mib, mib, mib}, 9 * mib, levelOpen, 4 * mib, []uint32{0, 1}},
		{"the oldest does not fit: the dead", []int64{mib, 0, mib, 0}, 9 * mib, levelOpen, 2 * mib, []uint32{1, 3}},
		{"nor with twice the reserve free: the dead", []int64{7 * mib, 0}, 9 * mib, levelOpen, 8 * mib, []uint32{1}},
		{"a disk filling up: the dead alone", []int64{mib / 4, 0, mib, 0}, 7 * mib, levelOpen, 7 * mib, []uint32{1, 3}},
		{"none is dead: those with little", []int64{mib, mib / 4, mib / 2, mib / 8}, 7 * mib, levelNoData, 3 * mib, []uint32{1, 3}},
		{"each that fits", []int64{mib * 3 / 8, mib * 3 / 8, mib / 16}, 7 * mib, levelNoData, mib, []uint32{0, 2}},
		{"over its budget and read-only: the same", []int64{mib * 3 / 8, mib, mib / 16}, 9 * mib, levelNoData, mib, []uint32{0, 2}},
	} {
		var sealed []hotlog.SegmentInfo
		for i, live := range c.live {
			sealed = append(sealed, hotlog.SegmentInfo{ID: uint32(i), Sealed: true, Bytes: mib, LiveBytes: live, LiveEntries: live / 1024})
		}
		hot := hotlog.Usage{DiskBytes: c.log, MaxDiskBytes: 8 * mib, MaxIndexBytes: 1}
		var got []uint32
		for _, s := range dispensable(sealed, hot, diskState{level: c.level, freeBytes: uint64(c.free), totalBytes: 100 * mib}, 4*mib) {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: segments %v, want %v", c.name, got, c.want)
		}
	}
}

// TestRuleM30_BackPressureWhenTheLogFills shows that windows shrink while the log is
// over its budget, that data, not control, is refused at half as much again, and that
// both are as before once survivors have been moved.
func TestRuleM30_BackPressureWhenTheLogFills(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	n.upkeep.stop()
	wide := n.window()
	shrunk := false
	var err error
	for e := ledger.EntryID(0); e < 1000 && err == nil; e++ {
		a := entryOf(1, e, 60<<10)
		a.Create = true
		err = add(t, n, a)
		n.measure()
		shrunk = shrunk || err == nil && n.window() < wide
	}
	if !errors.Is(err, ledger.ErrTooBusy) || !shrunk {
		t.Fatalf("filling the log ended with %v, windows shrunk before: %v", err, shrunk)
	}
	if used := n.hotBytes(); used < n.opts.HotBytes || used > 2*n.opts.HotBytes {
		t.Errorf("data was refused with %d bytes in a log of %d", used, n.opts.HotBytes)
	}
	control := entryOf(2, 0, 1000)
	control.Create, control.Envelope.Class = true, ledger.Control
	if err := add(t, n, control); err != nil {
		t.Errorf("control: %v", err)
	}
	for n.maintain(testContext(t)) {
	}
	a := entryOf(3, 0, 1000)
	a.Create = true
	if err := add(t, n, a); err != nil || n.window() != wide {
		t.Errorf("after the move: %v, window %d, was %d", err, n.window(), wide)
	}
}

// TestRuleM30_FullIndexEndsItsSegment shows that the memory of the log's index bounds
// it as its disk does: many small ledgers use it up long before the first segment is
// full, and the log goes on, for what is in that segment moves away.
func TestRuleM30_FullIndexEndsItsSegment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
			if op.Kind == vfs.OpWrite && filepath.Ext(op.Name) == ".log" {
				time.Sleep(time.Millisecond) // so that groups are large
			}
			return nil
		}))
		o.SegmentBytes, o.HotBytes = 16<<20, 64<<20
		n := openNode(t, o)
		first := n.hot.Segments()[0].ID
		const ledgers, together = 40_000, 1000
		for from := ledger.ID(1); from <= ledgers; from += together {
			var left []ledger.ID
			for id := from; id < from+together; id++ {
				left = append(left, id)
			}
			for try := 0; len(left) > 0; try++ {
				if try == 10 {
					t.Fatalf("%d ledgers from %d on are refused for good: %+v", len(left), left[0], n.hot.Usage())
				}
				if try > 0 {
					settle()
				}
				left = addFirst(t, n, left)
			}
		}
		settle()
		if u := n.hot.Usage(); u.IndexBytes > u.MaxIndexBytes || n.hot.Segments()[0].ID == first {
			t.Errorf("the log begins at segment %d, began at %d: %+v", n.hot.Segments()[0].ID, first, u)
		}
		for id := ledger.ID(1); id <= ledgers; id += 997 {
			if got := statuses(t, n, ledger.ReadRequest{Ledger: id, First: 0, Last: 1}); got != "FA" {
				t.Errorf("ledger %d reads %s, want FA", id, got)
			}
		}
	})
}

// addFirst adds the first entry of each ledger, all at a time, and returns those for
// which the node was too busy.
func addFirst(t *testing.T, n *Node, ids []ledger.ID) (busy []ledger.ID) {
	t.Helper()
	errs := make([]error, len(ids))
	var answers sync.WaitGroup
	answers.Add(len(ids))
	for i, id := range ids {
		a := entryOf(id, 0, 20)
		a.Create = true
		n.Add(a, func(err error) { errs[i] = err; answers.Done() })
	}
	answers.Wait()
	for i, err := range errs {
		switch {
		case errors.Is(err, ledger.ErrTooBusy):
			busy = append(busy, ids[i])
		case err != nil:
			t.Fatalf("add to ledger %d: %v", ids[i], err)
		}
	}
	return busy
}

// TestMetricsOfTwoNodes shows that nodes of one process share a registry.
func TestMetricsOfTwoNodes(t *testing.T) {
	registry := prometheus.NewRegistry()
	for _, id := range []string{"bookie-1", "bookie-2"} {
		o := testOptions(vfs.NewMem())
		o.ID, o.Metrics = id, registry
		fill(t, openNode(t, o), 1, 0, 0, 10)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "magnetar_bookie_ledgers" && len(f.GetMetric()) == 2 {
			return
		}
	}
	t.Error("magnetar_bookie_ledgers is not there once for each")
}

// TestColdSegmentsAreCompacted shows that deletions give cold segments back: those
// without anything live at once, those with little by a copy that reads the same.
func TestColdSegmentsAreCompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := openNode(t, testOptions(vfs.NewMem()))
		load(t, n, 1, 4, 0, 100) // 24 MiB
		settle()
		before := n.cold.Usage().FileBytes
		if before < 10<<20 {
			t.Fatalf("only %d bytes were moved", before)
		}
		for _, id := range []ledger.ID{1, 2, 3} {
			if err := n.Delete(context.Background(), id); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if after := n.cold.Usage(); after.FileBytes > before/2 {
			t.Errorf("%d of %d bytes of cold segments are left, %d of them live", after.FileBytes, before, after.LiveBytes)
		}
		checkLoaded(t, n, 4, 4, 100)
	})
}

// TestDamagedSurvivorPutsItsLedgerInLimbo shows that an entry that rotted in the log
// is not forgotten when its segment goes: its absence stays unknown, also after a
// restart.
func TestDamagedSurvivorPutsItsLedgerInLimbo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := vfs.NewMem()
		n, err := Open(testOptions(disk))
		if err != nil {
			t.Fatal(err)
		}
		load(t, n, 1, 2, 0, 5)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		rot(t, disk, bodyOf(1, 2, 60<<10))
		n = openNode(t, testOptions(disk))
		first := n.hot.Segments()[0].ID
		load(t, n, 3, 3, 0, 200)
		settle()
		for range 2 {
			if n.hot.Segments()[0].ID == first {
				t.Fatal("the segment is still there")
			}
			for request, want := range map[ledger.ReadRequest]string{
				{Ledger: 1, First: 0, Last: 9}: "FFU", {Ledger: 1, First: 3, Last: 9}: "FFU", {Ledger: 2, First: 0, Last: 9}: "FFFFFA",
			} {
				if got := statuses(t, n, request); got != want {
					t.Errorf("read %+v: %s, want %s", request, got, want)
				}
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			n = openNode(t, testOptions(disk))
		}
	})
}

// TestLimboOutlivesACopyMadeBefore shows that limbo is durable although the log
// already holds, behind the damaged segment, a copy of the ledger's record that knows
// nothing of it: what is damaged is still unknown after two restarts.
func TestLimboOutlivesACopyMadeBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := vfs.NewMem()
		n, err := Open(testOptions(disk))
		if err != nil {
			t.Fatal(err)
		}
		load(t, n, 1, 2, 0, 60) // seven segments, within the budget
		const bad = 40
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		rot(t, disk, bodyOf(1, bad, 60<<10))
		n = openNode(t, testOptions(disk))
		at, ok := n.hot.Lookup(1, bad)
		if !ok || n.hot.Segments()[0].ID == at.Segment {
			t.Fatalf("the damaged entry is in %+v, which is not behind another segment", at)
		}
		for e := 0; n.hot.Segments()[0].ID <= at.Segment; e += 10 {
			load(t, n, 3, 3, e, 10)
			settle()
			if e == 200 {
				t.Fatal("the damaged segment stays")
			}
		}
		for start := range 3 {
			for request, want := range map[ledger.ReadRequest]string{
				{Ledger: 1, First: bad - 1, Last: 99}: "FU", {Ledger: 1, First: bad + 1, Last: bad + 1}: "F", {Ledger: 1, First: 60, Last: 60}: "U", {Ledger: 2, First: 59, Last: 60}: "FA",
			} {
				if got := statuses(t, n, request); got != want {
					t.Errorf("start %d: read %+v: %s, want %s", start, request, got, want)
				}
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			n = openNode(t, testOptions(disk))
		}
	})
}

// TestReadMeetsLimboThatBeginsMeanwhile shows that an absence found after the ledger
// was put in limbo is unknown, also in a read that began before.
func TestReadMeetsLimboThatBeginsMeanwhile(t *testing.T) {
	disk := vfs.NewMem()
	n, err := Open(testOptions(disk))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, n, 1, 0, 1, 100)
	fill(t, n, 1, 3, 3, 100)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	var reading atomic.Bool
	n = openNode(t, testOptions(vfs.NewFaults(disk, func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && strings.Contains(op.Name, "/hot/") && reading.Load() {
			g := n.table.Lock(1)
			g.SetLimbo()
			g.Unlock()
		}
		return nil
	})))
	if got := statuses(t, n, ledger.ReadRequest{Ledger: 1, First: 2, Last: 2}); got != "A" {
		t.Fatalf("before: %s, want A", got)
	}
	reading.Store(true)
	if got := statuses(t, n, ledger.ReadRequest{Ledger: 1, First: 0, Last: 3}); got != "FFU" {
		t.Errorf("limbo from within the read: %s, want FFU", got)
	}
}
