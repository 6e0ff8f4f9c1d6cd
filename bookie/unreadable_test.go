package bookie

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// badDisk fails reads of the log that touch what it is told, and remembers when.
// Safe for concurrent use.
type badDisk struct {
	mu     sync.Mutex
	bad    func(file string, start, end int64) bool // nil: nothing
	failed []time.Time
}

func (d *badDisk) set(bad func(file string, start, end int64) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad = bad
}

func (d *badDisk) hook(op vfs.Op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if op.Kind != vfs.OpRead || filepath.Ext(op.Name) != ".log" || d.bad == nil || !d.bad(filepath.Base(op.Name), op.Offset, op.Offset+int64(op.Len)) {
		return nil
	}
	d.failed = append(d.failed, time.Now())
	return syscall.EIO
}

// times counts the seconds in which a read failed.
func (d *badDisk) times() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	seconds := make(map[int64]bool)
	for _, at := range d.failed {
		seconds[at.Unix()] = true
	}
	return len(seconds)
}

// sector is a bad one, of 4 KiB, in the middle of an entry that is in the log of n.
func sector(t *testing.T, n *Node, id ledger.ID, e ledger.EntryID) func(file string, start, end int64) bool {
	t.Helper()
	p, ok := n.hot.Lookup(id, e)
	if !ok {
		t.Fatalf("entry %d of ledger %d is not in the log", e, id)
	}
	at := (int64(p.Offset) + int64(p.Length)/2) &^ 4095
	name := fmt.Sprintf("%010d.log", p.Segment)
	return func(file string, start, end int64) bool { return file == name && start < at+4096 && at < end }
}

// counted is what a counter has counted.
func counted(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}

// reopened stores 5 entries in ledgers 1 and 2 and returns a node that has them from
// disk, not from memory.
func reopened(t *testing.T, mem *vfs.Mem, d *badDisk) *Node {
	t.Helper()
	n, err := Open(testOptions(mem))
	if err != nil {
		t.Fatal(err)
	}
	load(t, n, 1, 2, 0, 5)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	return openNode(t, testOptions(vfs.NewFaults(mem, d.hook)))
}

// press adds entries of 60 KiB to a ledger, up to last, until the log has refused them
// for 30 seconds, and returns how many it took.
func press(t *testing.T, n *Node, id ledger.ID, last ledger.EntryID) (stored ledger.EntryID) {
	t.Helper()
	for refused := 0; stored <= last && refused < 30; {
		a := entryOf(id, stored, 60<<10)
		a.Create = true
		switch err := add(t, n, a); {
		case err == nil:
			stored, refused = stored+1, 0
		case errors.Is(err, ledger.ErrTooBusy):
			refused++
			time.Sleep(time.Second)
		default:
			t.Fatal(err)
		}
	}
	return stored
}

// TestBadSectorIsWrittenOff shows that a sector of the log that cannot be read keeps its
// segment from being given back only for some tries: then its ledger is in limbo, and
// the entry is unknown before and after, also after a restart, never absent.
func TestBadSectorIsWrittenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem, d := vfs.NewMem(), &badDisk{}
		n := reopened(t, mem, d)
		first := n.hot.Segments()[0].ID
		d.set(sector(t, n, 1, 2))
		if got := statuses(t, n, ledger.ReadRequest{Ledger: 1, First: 2, Last: 2}); got != "U" {
			t.Errorf("the bad sector reads %s, want U", got)
		}
		if stored := press(t, n, 3, 199); stored != 200 {
			t.Fatalf("data is refused after %d entries", stored)
		}
		settle()
		if n.hot.Segments()[0].ID == first {
			t.Fatal("the segment is still there")
		}
		if got := counted(t, n.metrics.writtenOff); got != 1 {
			t.Errorf("%v entries are counted as written off, want 1", got)
		}
		if n := d.times(); n < readTries {
			t.Errorf("written off after failing in %d different seconds, want %d tries", n, readTries)
		}
		for range 2 {
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
			n = openNode(t, testOptions(mem))
		}
	})
}

// TestReadErrorThatPasses shows that nothing is written off that can be read again a
// moment later.
func TestReadErrorThatPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &badDisk{}
		n := reopened(t, vfs.NewMem(), d)
		first := n.hot.Segments()[0].ID
		bad := sector(t, n, 1, 2)
		d.set(func(file string, start, end int64) bool {
			return bad(file, start, end) && (len(d.failed) == 0 || time.Since(d.failed[0]) < 3*time.Second)
		})
		if stored := press(t, n, 3, 199); stored != 200 {
			t.Fatalf("data is refused after %d entries", stored)
		}
		settle()
		if n.hot.Segments()[0].ID == first {
			t.Fatal("the segment is still there")
		}
		if d.times() == 0 {
			t.Error("the sector was not read while it was bad")
		}
		checkLoaded(t, n, 1, 2, 5)
		checkLoaded(t, n, 3, 3, 200)
		if info, err := n.Info(context.Background(), 1); err != nil || info.Limbo {
			t.Errorf("info: %+v, %v", info, err)
		}
	})
}

// TestDeadDiskIsNotWrittenOff shows that a log of which nothing can be read is not taken
// for bad sectors: nothing is in limbo, data is refused once the log is full, cold
// segments are compacted all the same, and when the disk is back all is there.
func TestDeadDiskIsNotWrittenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &badDisk{}
		n := reopened(t, vfs.NewMem(), d)
		load(t, n, 3, 3, 0, 100) // alone, so that whole cold segments hold nothing else
		load(t, n, 4, 4, 0, 100)
		settle()
		cold := n.cold.Usage().FileBytes
		if cold < 2<<20 {
			t.Fatalf("only %d bytes were moved", cold)
		}
		d.set(func(string, int64, int64) bool { return true })
		oldest := n.hot.Segments()[0].ID
		stored := press(t, n, 5, 999)
		if now := n.hot.Segments()[0].ID; now != oldest {
			t.Fatalf("the log begins at segment %d, began at %d", now, oldest)
		}
		n.upkeep.stop()
		time.Sleep(time.Second)
		if err := n.Delete(context.Background(), 3); err != nil {
			t.Fatal(err)
		}
		n.maintain(testContext(t)) // one round, in which the log cannot be emptied
		n.upkeep.start(n)
		if now := n.cold.Usage().FileBytes; now >= cold {
			t.Errorf("%d of %d bytes of cold segments are left after a deletion", now, cold)
		}
		for _, id := range []ledger.ID{1, 2, 4, 5} {
			if info, err := n.Info(context.Background(), id); err != nil || info.Limbo {
				t.Errorf("info of ledger %d: %+v, %v", id, info, err)
			}
		}
		d.set(nil)
		settle()
		if now := n.hot.Segments()[0].ID; now == oldest {
			t.Error("the log is not emptied although the disk is back")
		}
		checkLoaded(t, n, 1, 2, 5)
		checkLoaded(t, n, 4, 4, 100)
		checkLoaded(t, n, 5, 5, int(stored))
	})
}
