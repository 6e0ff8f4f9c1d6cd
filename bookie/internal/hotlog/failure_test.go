package hotlog

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

var errDisk = errors.New("the disk is broken")

// failing is a log on a disk where the write or sync that match names fails, once it is armed.
type failing struct {
	*Log
	mem   *vfs.Mem
	armed atomic.Bool
	fatal chan error
}

func openFailing(t *testing.T, match func(vfs.Op) bool) *failing {
	f := &failing{mem: vfs.NewMem(), fatal: make(chan error, 10)}
	opts := small(vfs.NewFaults(f.mem, func(op vfs.Op) error {
		if f.armed.Load() && match(op) {
			return &vfs.Fault{Err: errDisk, Bytes: op.Len / 2}
		}
		return nil
	}))
	opts.Fatal = func(err error) { f.fatal <- err }
	f.Log = mustOpen(t, opts)
	return f
}

// After a write, or a sync of anything, failed, every waiting append is answered as unknown,
// later ones are refused, nothing is answered with success any more although the disk works again,
// and the process is told to end, once.
func TestNothingIsAnsweredAfterAFailure(t *testing.T) {
	for name, match := range map[string]func(vfs.Op) bool{
		"group":      func(op vfs.Op) bool { return op.Kind == vfs.OpWrite && op.Name == logName(1) },
		"index file": func(op vfs.Op) bool { return op.Kind == vfs.OpSync && strings.HasSuffix(op.Name, ".tmp") },
		"folder":     func(op vfs.Op) bool { return op.Kind == vfs.OpSyncDir },
		"written ahead": func(op vfs.Op) bool {
			return op.Kind == vfs.OpWrite && op.Name == logName(2) && op.Offset >= blockBytes
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := openFailing(t, match)
			acked := mustAppend(t, l.Log, entries(3, 2000)...)
			l.armed.Store(true)
			var unknown, ok, refused int
			failedAt := -1
			for e := 3; e < 500 && refused == 0; e++ {
				switch r := appendAll(l.Log, entry(1, ledger.EntryID(e), 0, 2000))[0]; {
				case r.err == nil && failedAt >= 0:
					t.Fatalf("entry %d was answered after %d failed", e, failedAt)
				case r.err == nil:
					ok++
				case errors.Is(r.err, ledger.ErrUnknown) && errors.Is(r.err, errDisk):
					unknown++
					failedAt = e
				case errors.Is(r.err, ledger.ErrStopping):
					refused++
				default:
					t.Fatal(r.err)
				}
			}
			if refused == 0 {
				t.Fatal("the log did not fail")
			}
			l.armed.Store(false)
			if r := appendAll(l.Log, entry(1, 1000, 0, 10))[0]; !errors.Is(r.err, ledger.ErrStopping) || !errors.Is(r.err, errDisk) {
				t.Errorf("append to a failed log: %v", r.err)
			}
			if err := <-l.fatal; !errors.Is(err, errDisk) {
				t.Errorf("fatal: %v", err)
			}
			if _, err := l.Read(acked[0]); err != nil {
				t.Errorf("reads go on until the process ends: %v", err)
			}
			if err := l.Close(); !errors.Is(err, errDisk) {
				t.Errorf("close: %v", err)
			}
			if len(l.fatal) > 0 {
				t.Error("fatal was called twice")
			}
			l2 := mustOpen(t, small(snapshot(l.mem)))
			for e := range ledger.EntryID(3 + ok) {
				mustRead(t, l2, 1, e)
			}
			mustClose(t, l2)
		})
	}
}

// A sync that failed beside the log's own, while a group of its own was written well, counts:
// that group is unknown, too.
func TestGroupInFlightWhenTheKeeperFails(t *testing.T) {
	writing, failed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	mem := vfs.NewMem()
	var armed atomic.Bool
	opts := small(vfs.NewFaults(mem, func(op vfs.Op) error {
		if armed.Load() && op.Kind == vfs.OpWrite && strings.HasSuffix(op.Name, ".log") {
			once.Do(func() { close(writing) })
			<-failed
		}
		return nil
	}))
	fatal := make(chan error, 1)
	opts.NoSync = true // so that the one write is the group's
	opts.Fatal = func(err error) { fatal <- err }
	l := mustOpen(t, opts)
	waitFor(t, "the next segment", func() bool { return len(l.Segments()) == 2 })
	armed.Store(true)
	answer := make(chan error, 1)
	l.Append(entry(1, 0, 0, 100), func(_ Place, err error) { answer <- err })
	<-writing
	l.fail(errDisk)
	close(failed)
	if err := <-answer; !errors.Is(err, ledger.ErrUnknown) || !errors.Is(err, errDisk) {
		t.Errorf("answer %v", err)
	}
	if err := <-fatal; !errors.Is(err, errDisk) {
		t.Errorf("fatal %v", err)
	}
	if err := l.Close(); !errors.Is(err, errDisk) {
		t.Error(err)
	}
}

// A waiting append is answered even if it is queued behind the group that fails.
func TestQueuedAppendsAreAnsweredOnFailure(t *testing.T) {
	writing, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	l := openFailing(t, func(op vfs.Op) bool {
		if op.Kind != vfs.OpWrite || op.Name != logName(1) {
			return false
		}
		once.Do(func() { close(writing) })
		<-release
		return true
	})
	l.armed.Store(true)
	answers := make(chan int, 50)
	for i := range 50 {
		l.Append(entry(1, ledger.EntryID(i), 0, 1000), func(_ Place, err error) {
			if !errors.Is(err, ledger.ErrUnknown) {
				t.Errorf("append %d: %v", i, err)
			}
			answers <- i
		})
		if i == 0 {
			<-writing
		}
	}
	close(release)
	for want := range 50 {
		if got := <-answers; got != want {
			t.Fatalf("answer %d came as number %d", got, want)
		}
	}
	<-l.fatal
	_ = l.Close()
}

// On a disk so full that not even a new file's first block can be written, the next
// segment is tried again once in a while, and not over and over.
func TestFullDiskIsNotHurried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		tries, hurried := 0, errors.New("tried over and over")
		opts := small(vfs.NewFaults(mem, func(op vfs.Op) error {
			if op.Kind == vfs.OpWrite && strings.HasSuffix(op.Name, spareSuffix) {
				if tries++; tries > 100 {
					return hurried
				}
			}
			return nil
		}))
		opts.Fatal = func(err error) { t.Error(err) }
		l := mustOpen(t, opts)
		for e := range ledger.EntryID(14) { // a block each: the segment is full but for one
			mustAppend(t, l, entry(1, e, 0, 2000))
			synctest.Wait()
		}
		tries = 0
		usage, err := mem.Usage(testDir)
		if err != nil {
			t.Fatal(err)
		}
		mem.SetCapacity(int64(usage.TotalBytes - usage.FreeBytes))
		mustAppend(t, l, entry(1, 14, 0, 2000)) // goes into the next one, which is written ahead
		synctest.Wait()
		time.Sleep(10*noSpaceRetry + noSpaceRetry/2)
		synctest.Wait()
		if tries < 10 || tries > 12 {
			t.Errorf("tried %d times in ten intervals", tries)
		}
		mem.SetCapacity(0)
		time.Sleep(2 * noSpaceRetry)
		for e := range ledger.EntryID(50) {
			mustAppend(t, l, entry(1, 15+e, 0, 2000))
			synctest.Wait()
		}
		mustClose(t, l)
	})
}

// A full disk is no failure: appends are refused as read-only once the files cannot grow, what was
// answered stays, and when a segment is recycled, or the disk has space again, the log goes on.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		opts := small(mem)
		opts.Fatal = func(err error) { t.Errorf("fatal: %v", err) }
		l := mustOpen(t, opts)
		mem.SetCapacity(6 * minSegmentBytes)
		acked := ledger.EntryID(0)
		fill := func() {
			t.Helper()
			for ; acked < 1000; acked++ {
				r := appendAll(l, entry(1, acked, 0, 3000))[0]
				if errors.Is(r.err, ledger.ErrReadOnly) && errors.Is(r.err, vfs.ErrNoSpace) {
					return
				}
				if r.err != nil {
					t.Fatalf("entry %d: %v", acked, r.err)
				}
				synctest.Wait() // let the keeper find out
			}
			t.Fatal("the disk was never full")
		}
		fill()
		if acked < 50 {
			t.Errorf("full after %d entries", acked)
		}
		if err := l.Recycle(l.Segments()[0].ID); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := acked
		fill()
		if acked < before+10 {
			t.Errorf("%d entries after a segment was recycled", acked-before)
		}
		mem.SetCapacity(0)
		time.Sleep(2 * noSpaceRetry)
		synctest.Wait()
		for range 50 {
			mustAppend(t, l, entry(1, acked, 0, 3000))
			acked++
			synctest.Wait()
		}
		mustClose(t, l)
		l = mustOpen(t, opts)
		first := l.Ranges(1)[0].First
		for e := first; e < acked; e++ {
			mustRead(t, l, 1, e)
		}
		if d := l.Damages(); len(d) > 0 {
			t.Errorf("damages %v", d)
		}
		mustClose(t, l)
	})
}
