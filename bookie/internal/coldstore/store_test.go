package coldstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// TestWriteThenRead shows that what was written is read back, singly and in
// runs, across blocks and segments, with gaps, empty and huge bodies, before and
// after a restart; and that what was not written is absent.
func TestWriteThenRead(t *testing.T) {
	for name, opts := range map[string]Options{"default": {}, "small": small, "no cache": {SegmentBytes: 4096, BlockBytes: 512, CacheBytes: -1}} {
		t.Run(name, func(t *testing.T) {
			disk := vfs.NewMem()
			n := open(t, disk, opts)
			all := [][]ledger.Entry{
				entries(3, 0, 40, 100),
				entries(3, 43, 43, 0), // 41 and 42 are not here
				entries(4, 7, 9, 3000),
				entries(4, 10, 10, 600<<10),
				entries(9, 0, 0, 1),
			}
			n.write(t, all...)
			for range 2 {
				for _, list := range all {
					n.wantEntries(t, list)
				}
				for _, absent := range []struct {
					id ledger.ID
					e  ledger.EntryID
				}{{2, 0}, {3, 41}, {3, 42}, {3, 44}, {4, 6}, {4, 11}, {5, 0}, {9, 1}} {
					n.wantAbsent(t, absent.id, absent.e)
				}
				must(t, n.close())
				n = open(t, disk, opts)
			}
			if u := n.Usage(); u.Segments == 0 || u.LiveBytes > u.FileBytes || u.LiveBytes < 600<<10 {
				t.Errorf("usage %+v", u)
			}
			must(t, n.close())
		})
	}
}

// TestOnRealDisk shows the same against the machine's own file system.
func TestOnRealDisk(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		x, err := index.Open(index.Options{FS: vfs.OS(), Dir: filepath.Join(dir, "index")})
		must(t, err)
		s, err := Open(Options{FS: vfs.OS(), Dir: filepath.Join(dir, "cold"), Index: x})
		must(t, err)
		n := node{Store: s, index: x}
		n.write(t, entries(1, 0, 99, 5000)) // the second time in place of the first
		n.wantEntries(t, entries(1, 0, 99, 5000))
		_, err = n.Compact(context.Background())
		must(t, err)
		if u := n.Usage(); u.Segments != 1 {
			t.Fatalf("usage %+v", u)
		}
		must(t, n.close())
	}
}

// TestRunIsOneLargeRead shows that a long run is read with one pread a MiB, that a
// short request reads ahead 256 KiB, and that the next one is then served from memory.
func TestRunIsOneLargeRead(t *testing.T) {
	var reads atomic.Int64
	var largest atomic.Int64
	disk := vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && strings.HasSuffix(op.Name, fileSuffix) {
			reads.Add(1)
			largest.Store(max(largest.Load(), int64(op.Len)))
		}
		return nil
	})
	n := open(t, disk, Options{})
	defer n.close()
	list := entries(1, 0, 3999, 1000) // 4 MB
	n.write(t, list)
	n.wantEntries(t, list[:1]) // the file is open now, block 0 in memory

	reads.Store(0)
	run, err := n.ReadRun(1, 1000, 3999, 900<<10)
	must(t, err)
	if got := reads.Load(); got != 1 || len(run) < 800 {
		t.Errorf("%d entries with %d reads", len(run), got)
	}
	if largest.Load() > maxPreadBytes {
		t.Errorf("a read of %d bytes", largest.Load())
	}

	reads.Store(0)
	for first := ledger.EntryID(3000); first < 3200; first += 20 {
		run, err := n.ReadRun(1, first, 3999, 20*1048)
		must(t, err)
		if len(run) != 20 || run[0].Envelope.Entry != first {
			t.Fatalf("%d entries from %d", len(run), run[0].Envelope.Entry)
		}
	}
	if got := reads.Load(); got != 1 {
		t.Errorf("200 KB in small runs took %d reads", got)
	}
}

// TestRunBounds shows that a run gives at least one entry, never more bytes than
// asked for beside that, and stops at last and at gaps.
func TestRunBounds(t *testing.T) {
	n := open(t, vfs.NewMem(), small)
	defer n.close()
	n.write(t, entries(1, 0, 30, 100), entries(1, 32, 40, 100))
	for _, c := range []struct {
		first, last ledger.EntryID
		maxBytes    int
		want        int
	}{
		{0, 30, 1, 1}, {0, 30, 148, 1}, {0, 30, 295, 1}, {0, 30, 296, 2}, {5, 5, 0, 1}, {5, 9, 0, 5},
		{0, 100, 0, 31}, {32, 100, 0, 9}, {28, 33, 0, 3},
	} {
		run, err := n.ReadRun(1, c.first, c.last, c.maxBytes)
		must(t, err)
		if len(run) != c.want {
			t.Errorf("%d to %d, %d bytes: %d entries, want %d", c.first, c.last, c.maxBytes, len(run), c.want)
		}
		for i, e := range run {
			wantSame(t, e, entry(1, c.first+ledger.EntryID(i), 100))
		}
	}
}

// TestWriteRefuses shows that entries out of order, doubled or not matching their
// checksums are refused, and leave no file.
func TestWriteRefuses(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{})
	defer n.close()
	rotten := entry(1, 1, 10)
	rotten.Body[3] ^= 1
	boom := errors.New("source failed")
	for name, source := range map[string]Entries{
		"order":  sequence(entries(2, 0, 0, 10), entries(1, 0, 0, 10)),
		"double": sequence(entries(2, 0, 0, 10), entries(2, 0, 0, 10)),
		"rotten": sequence(entries(1, 0, 0, 10), []ledger.Entry{rotten}),
		"failing": func(yield func(ledger.Entry, error) bool) {
			_ = yield(entry(1, 0, 10), nil) && yield(ledger.Entry{}, boom)
		},
	} {
		if _, err := n.Write(context.Background(), 0, source); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := n.Write(ctx, 0, sequence(entries(1, 0, 0, 10))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	names, err := disk.ReadDir("/data/cold")
	must(t, err)
	if len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
	if w := n.write(t); w != (Written{}) {
		t.Errorf("nothing written: %+v", w)
	}
}

// TestNewCopyTakesOver shows that an entry written again is read from the new
// segment, and that the old one then counts for less, until it goes.
func TestNewCopyTakesOver(t *testing.T) {
	n := open(t, vfs.NewMem(), Options{})
	defer n.close()
	n.write(t, entries(1, 0, 9, 100))
	again := entry(1, 4, 100)
	again.Envelope.LAC = 2 // repair may write another envelope around the same body
	n.write(t, []ledger.Entry{again})
	got, err := n.Read(1, 4)
	must(t, err)
	wantSame(t, got, again)
	n.wantEntries(t, entries(1, 5, 9, 100))
	if infos := n.Segments(); len(infos) != 2 || infos[0].LiveExtents != 2 || infos[1].LiveExtents != 1 {
		t.Fatalf("segments %+v", infos)
	}
	n.write(t, entries(1, 0, 9, 100))
	c, err := n.Compact(context.Background())
	must(t, err)
	if c.Dropped != 2 || c.Copied != 0 || c.Freed <= 0 {
		t.Fatalf("compaction %+v", c)
	}
	n.wantEntries(t, entries(1, 0, 9, 100))
}

// TestFewFilesStayOpen shows that no more than MaxOpen segments stay open, however
// many are read from, also at once.
func TestFewFilesStayOpen(t *testing.T) {
	var open64, most atomic.Int64
	disk := vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		if strings.HasSuffix(op.Name, fileSuffix) {
			switch op.Kind {
			case vfs.OpOpen:
				most.Store(max(most.Load(), open64.Add(1)))
			case vfs.OpClose:
				open64.Add(-1)
			}
		}
		return nil
	})
	opts := small
	opts.MaxOpen = 3
	n := open(t, disk, opts)
	for id := range ledger.ID(20) {
		n.write(t, entries(id+1, 0, 3, 50))
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for id := range ledger.ID(20) {
				if _, err := n.Read(id+1, 2); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if open64.Load() > 3 || most.Load() > 3+4+1 {
		t.Errorf("%d open, at most %d", open64.Load(), most.Load())
	}
	must(t, n.close())
	if open64.Load() != 0 {
		t.Errorf("%d left open", open64.Load())
	}
}

// TestFullDisk shows that Write answers ErrNoSpace, leaves no file behind, and
// succeeds once there is room.
func TestFullDisk(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{})
	defer n.close()
	u, err := disk.Usage("/")
	must(t, err)
	disk.SetCapacity(int64(u.TotalBytes-u.FreeBytes) + 64<<10)
	if _, err := n.Write(context.Background(), 0, sequence(entries(1, 0, 99, 1000))); !errors.Is(err, vfs.ErrNoSpace) {
		t.Fatalf("full disk: %v", err)
	}
	if names, _ := disk.ReadDir("/data/cold"); len(names) != 0 {
		t.Fatalf("left behind: %v", names)
	}
	n.wantAbsent(t, 1, 0)
	disk.SetCapacity(0)
	n.write(t, entries(1, 0, 99, 1000))
	n.wantEntries(t, entries(1, 0, 99, 1000))
}

// TestFailedSyncIsFatal shows that after a failed sync the process is told to end,
// and that nothing more is written.
func TestFailedSyncIsFatal(t *testing.T) {
	broken := errors.New("disk is broken")
	var failing atomic.Bool
	disk := vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		if failing.Load() && op.Kind == vfs.OpSync && strings.Contains(op.Name, "cold") {
			return broken
		}
		return nil
	})
	var told []error
	n := open(t, disk, Options{Fatal: func(err error) { told = append(told, err) }})
	defer n.close()
	failing.Store(true)
	for range 2 {
		if _, err := n.Write(context.Background(), 0, sequence(entries(1, 0, 9, 10))); !errors.Is(err, broken) {
			t.Fatalf("write: %v", err)
		}
	}
	if _, err := n.Compact(context.Background()); !errors.Is(err, broken) {
		t.Fatalf("compact: %v", err)
	}
	if len(told) != 1 || !errors.Is(told[0], broken) {
		t.Fatalf("told %v", told)
	}
}

// TestOptionsTellAllFaults shows that Validate reports every fault at once.
func TestOptionsTellAllFaults(t *testing.T) {
	err := (&Options{SegmentBytes: -1, BlockBytes: -1, MaxLive: 2, MaxOpen: -1, BackgroundBytesPerSecond: -1}).Validate()
	if joined, ok := err.(interface{ Unwrap() []error }); !ok || len(joined.Unwrap()) != 8 {
		t.Fatalf("got %v", err)
	}
	if _, err := Open(Options{}); err == nil {
		t.Fatal("opened without a folder")
	}
}

// TestCacheKeepsItsBudget shows that the cache holds the blocks used last, never
// more bytes than it may, and none that would drive out too much.
func TestCacheKeepsItsBudget(t *testing.T) {
	c := newBlockCache(1000)
	for i := range uint32(20) {
		c.put(blockKey{1, i}, make([]byte, 100))
		if _, ok := c.get(blockKey{1, 0}); !ok {
			t.Fatalf("block in use was dropped at %d", i)
		}
	}
	c.put(blockKey{2, 0}, make([]byte, 126))
	c.put(blockKey{1, 19}, make([]byte, 100))
	held := ""
	for i := range uint32(20) {
		if c.has(blockKey{1, i}) {
			held += fmt.Sprint(i, " ")
		}
	}
	if held != "0 11 12 13 14 15 16 17 18 19 " || c.bytes != 1000 || c.has(blockKey{2, 0}) {
		t.Fatalf("held %s, %d bytes", held, c.bytes)
	}
}
