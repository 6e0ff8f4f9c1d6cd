package coldstore

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// TestDeadSegmentsGoWithoutACopy shows that a segment whose ledgers are all
// deleted is removed without anything being read or written of it.
func TestDeadSegmentsGoWithoutACopy(t *testing.T) {
	var touched atomic.Int64
	disk := vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		if strings.Contains(op.Name, "/cold/") && (op.Kind == vfs.OpRead || op.Kind == vfs.OpWrite) {
			touched.Add(1)
		}
		return nil
	})
	n := open(t, disk, Options{})
	defer n.close()
	n.write(t, entries(1, 0, 9, 100), entries(2, 0, 9, 100))
	n.write(t, entries(3, 0, 9, 100))
	n.delete(t, 1, 2)
	touched.Store(0)
	c, err := n.Compact(context.Background())
	must(t, err)
	if c.Dropped != 1 || c.Copied != 0 || c.More || touched.Load() != 0 {
		t.Fatalf("compaction %+v, %d reads and writes", c, touched.Load())
	}
	names, err := disk.ReadDir("/data/cold")
	must(t, err)
	if len(names) != 1 {
		t.Fatalf("left: %v", names)
	}
	n.wantEntries(t, entries(3, 0, 9, 100))
	n.wantAbsent(t, 1, 0)
}

// TestCompactByLiveRatio shows that segments in which less than half lives are
// copied, those of one lifetime together, and that others stay.
func TestCompactByLiveRatio(t *testing.T) {
	n := open(t, vfs.NewMem(), Options{})
	defer n.close()
	put := func(lifetime index.Lifetime, lists ...[]ledger.Entry) {
		_, err := n.Write(context.Background(), lifetime, sequence(lists...))
		must(t, err)
	}
	put(0, entries(1, 0, 3, 1000), entries(2, 0, 9, 1000))  // 1: 4 of 14 will live
	put(0, entries(3, 0, 9, 1000), entries(4, 0, 3, 1000))  // 2: 10 of 14
	put(0, entries(5, 0, 1, 1000), entries(6, 0, 9, 1000))  // 3: 2 of 12
	put(7, entries(7, 0, 0, 1000), entries(8, 0, 2, 1000))  // 4: 1 of 4
	put(7, entries(9, 0, 0, 1000), entries(10, 0, 2, 1000)) // 5: 1 of 4
	n.delete(t, 2, 4, 6, 8, 10)
	live := [][]ledger.Entry{entries(1, 0, 3, 1000), entries(3, 0, 9, 1000), entries(5, 0, 1, 1000), entries(7, 0, 0, 1000), entries(9, 0, 0, 1000)}

	c, err := n.Compact(context.Background())
	must(t, err)
	if c.Copied != 2 || !c.More || c.Freed < 15000 {
		t.Fatalf("first: %+v", c)
	}
	c, err = n.Compact(context.Background())
	must(t, err)
	if c.Copied != 2 || c.More {
		t.Fatalf("second: %+v", c)
	}
	c, err = n.Compact(context.Background())
	must(t, err)
	if c != (Compaction{}) {
		t.Fatalf("third: %+v", c)
	}
	var lifetimes []index.Lifetime
	for _, i := range n.Segments() {
		lifetimes = append(lifetimes, i.Lifetime)
	}
	if len(lifetimes) != 3 || lifetimes[0] != 0 || lifetimes[1] != 0 || lifetimes[2] != 7 {
		t.Fatalf("segments %+v", n.Segments())
	}
	for _, list := range live {
		n.wantEntries(t, list)
	}
	c, err = n.Compact(context.Background(), 2, 6) // by name, however full
	must(t, err)
	if c.Copied != 2 || n.Usage().Segments != 2 {
		t.Fatalf("by name: %+v", c)
	}
	for _, list := range live {
		n.wantEntries(t, list)
	}
}

// TestReaderMeetsARemoval shows that a read whose segment is compacted away under
// it, just before it opens the file, finds the entry in its new place.
func TestReaderMeetsARemoval(t *testing.T) {
	var n *node
	var once sync.Once
	disk := vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		if op.Kind == vfs.OpOpen && strings.HasSuffix(op.Name, "00000001.cold") && n != nil {
			once.Do(func() { must(t, compactBeside(n)) })
		}
		return nil
	})
	m := open(t, disk, Options{})
	defer m.close()
	m.write(t, entries(1, 0, 9, 100), entries(2, 0, 99, 100))
	m.delete(t, 2)
	n = m
	m.wantEntries(t, entries(1, 0, 9, 100))
	if infos := m.Segments(); len(infos) != 1 || infos[0].ID != 2 {
		t.Fatalf("segments %+v", infos)
	}
}

// compactBeside does what Compact does to segment 1, without opening its file,
// which the reader under test is doing.
func compactBeside(n *node) error {
	_, err := n.Store.write(context.Background(), 0, sequence(entries(1, 0, 9, 100)), func(b *index.Batch, x index.Extent) {
		b.MoveExtent(x, map[uint32]bool{1: true})
	})
	if err != nil {
		return err
	}
	_, _, err = n.drop([]Info{{ID: 1}})
	return err
}

// TestReadersBesideCompaction shows that while segments are rewritten again and
// again, and neighbours deleted, no read of what lives ever fails.
func TestReadersBesideCompaction(t *testing.T) {
	opts := small
	opts.MaxOpen = 2
	n := open(t, vfs.NewMem(), opts)
	defer n.close()
	n.write(t, entries(1, 0, 49, 100))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for r := range ledger.EntryID(2) {
		wg.Go(func() {
			for e := r; ; e = (e + 7) % 50 {
				select {
				case <-stop:
					return
				default:
				}
				if got, err := n.Read(1, e); err != nil || got.Envelope.Entry != e {
					t.Errorf("entry %d: %v", e, err)
				}
				if run, err := n.ReadRun(1, e, 49, 2000); err != nil || run[0].Envelope.Entry != e {
					t.Errorf("run from %d: %v", e, err)
				}
			}
		})
	}
	for id := ledger.ID(2); id < 30; id++ {
		n.write(t, entries(id, 0, 9, 100))
		n.delete(t, id)
		var ids []uint32
		for _, i := range n.Segments() {
			ids = append(ids, i.ID)
		}
		_, err := n.Compact(context.Background(), ids...)
		must(t, err)
	}
	close(stop)
	wg.Wait()
	n.wantEntries(t, entries(1, 0, 49, 100))
}

// TestUnfinishedWriteIsNotDead shows that a segment whose extents are not in the
// index yet, which looks dead, is left alone by Compact.
func TestUnfinishedWriteIsNotDead(t *testing.T) {
	n := open(t, vfs.NewMem(), Options{})
	defer n.close()
	w, err := newWriter(n.fs, n.opts.Dir, n.newID(), 0, 512)
	must(t, err)
	for _, e := range entries(1, 0, 9, 100) {
		must(t, w.add(&e))
	}
	must(t, w.finish())
	n.enter(newSegment(index.Segment{ID: w.id}))
	c, err := n.Compact(context.Background())
	must(t, err)
	if c.Dropped != 0 {
		t.Fatal("a segment was dropped that was about to be entered")
	}
	must(t, n.publish(w, func(b *index.Batch, x index.Extent) { b.PutExtent(x) }))
	n.wantEntries(t, entries(1, 0, 9, 100))
}

// TestDamagedSegmentIsNotCompacted shows that compaction never drops a damaged
// entry: the segment stays, whole, and the rest goes on without it; once the
// damaged entries were written anew it can go.
func TestDamagedSegmentIsNotCompacted(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{BlockBytes: 512, CacheBytes: -1})
	defer n.close()
	n.write(t, entries(1, 0, 19, 100), entries(2, 0, 99, 100))
	n.write(t, entries(3, 0, 19, 100), entries(4, 0, 99, 100))
	n.delete(t, 2, 4)
	flip(t, disk, fileName("/data/cold", 1), headerBytes+blockHeaderBytes+60)
	if _, err := n.Compact(context.Background()); !errors.Is(err, ledger.ErrCorrupt) {
		t.Fatalf("first: %v", err)
	}
	c, err := n.Compact(context.Background())
	must(t, err)
	if c.Copied != 1 {
		t.Fatalf("second: %+v", c)
	}
	if _, err := n.Read(1, 0); !errors.Is(err, ledger.ErrCorrupt) {
		t.Fatalf("damaged entry: %v", err)
	}
	n.wantEntries(t, entries(1, 5, 19, 100))
	n.wantEntries(t, entries(3, 0, 19, 100))
	n.write(t, entries(1, 0, 4, 100)) // repaired
	c, err = n.Compact(context.Background(), 1)
	must(t, err)
	if c.Copied != 1 {
		t.Fatalf("after repair: %+v", c)
	}
	n.wantEntries(t, entries(1, 0, 19, 100))
}

// TestCompactionGoesPastABadSector shows that a segment of which the disk does not give
// a part, its footer too, stays as it is and holds up no other.
func TestCompactionGoesPastABadSector(t *testing.T) {
	for _, footer := range []bool{false, true} {
		disk := vfs.NewMem()
		n := open(t, disk, Options{})
		n.write(t, entries(1, 0, 19, 100), entries(2, 0, 99, 100))
		n.write(t, entries(3, 0, 19, 100), entries(4, 0, 99, 100))
		n.write(t, entries(5, 0, 1, 100))
		n.delete(t, 2, 4)
		must(t, n.close())
		name := fileName("/data/cold", 1)
		at := int64(headerBytes + blockHeaderBytes + 60)
		if footer {
			fi, err := disk.Stat(name)
			must(t, err)
			at = fi.Size() - trailerBytes
		}
		n = open(t, badSector(disk, name, at, at+10), Options{CacheBytes: -1})
		defer n.close()
		if _, err := n.Compact(context.Background()); !errors.Is(err, ledger.ErrUnknown) {
			t.Errorf("first: %v", err)
		}
		c, err := n.Compact(context.Background())
		must(t, err)
		if c.Copied != 1 {
			t.Errorf("second: %+v", c)
		}
		n.wantEntries(t, entries(3, 0, 19, 100))
		if _, err := disk.Stat(name); err != nil {
			t.Error(err)
		}
	}
}

// TestScrub shows that scrubbing tells exactly the damaged entries that live, and
// nothing when all is well.
func TestScrub(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{BlockBytes: 512, CacheBytes: -1})
	defer n.close()
	n.write(t, entries(1, 0, 19, 100), entries(2, 0, 19, 100))
	scrub := func() (bad []ledger.EntryRange) {
		must(t, n.Scrub(context.Background(), 1, func(id ledger.ID, r ledger.EntryRange, err error) {
			if id != 1 || !errors.Is(err, ledger.ErrCorrupt) {
				t.Errorf("ledger %d %+v: %v", id, r, err)
			}
			bad = append(bad, r)
		}))
		return bad
	}
	if bad := scrub(); bad != nil {
		t.Fatalf("sound segment: %+v", bad)
	}
	f, err := OpenFile(disk, fileName("/data/cold", 1))
	must(t, err)
	second, dead := f.table.blocks[1], f.table.blocks[f.table.runs[1].firstBlock]
	must(t, f.Close())
	n.delete(t, 2)
	flip(t, disk, fileName("/data/cold", 1), int64(second.offset)+40)
	flip(t, disk, fileName("/data/cold", 1), int64(dead.offset)+40) // nobody asks for it
	want := ledger.EntryRange{First: ledger.EntryID(second.skip), Last: ledger.EntryID(second.skip + second.count - 1)}
	if bad := scrub(); len(bad) != 1 || bad[0] != want {
		t.Fatalf("damaged: %+v, want %+v", bad, want)
	}
	if infos := n.Segments(); !infos[0].Damaged {
		t.Fatalf("segment %+v", infos[0])
	}
	must(t, n.Scrub(context.Background(), 77, nil)) // gone
}

// TestBackgroundRate shows that compaction keeps to its rate and can be cancelled
// while it waits.
func TestBackgroundRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, vfs.NewMem(), Options{BackgroundBytesPerSecond: 1 << 20})
		defer n.close()
		n.write(t, entries(1, 0, 99, 100<<10)) // 10 MB
		start := time.Now()
		_, err := n.Compact(context.Background(), 1)
		must(t, err)
		if took := time.Since(start); took < 8*time.Second || took > 11*time.Second {
			t.Errorf("10 MB at 1 MiB/s took %v", took)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := n.Compact(ctx, 2); err == nil {
			t.Error("not cancelled")
		}
		n.wantEntries(t, entries(1, 0, 99, 100<<10))
	})
}
