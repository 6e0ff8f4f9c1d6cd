package index

import (
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// history applies batches 0, 1, 2 … to x, with a Flush after every third, until
// something fails. It returns how many batches were applied before the last Flush
// that returned. Batch i puts the record of ledger i+1 and an extent for it, and
// deletes a ledger of its own.
func history(x *Index, batches int) (flushed int, err error) {
	for i := range batches {
		var b Batch
		id := ledger.ID(i + 1)
		b.PutRecord(Record{Ledger: id, Term: int64(i)})
		b.PutExtent(run(id, 0, 9, uint32(i)))
		b.Delete(id + 1000)
		if err := x.Apply(&b); err != nil {
			return flushed, err
		}
		if i%3 == 2 {
			if err := x.Flush(); err != nil {
				return flushed, err
			}
			flushed = i + 1
		}
	}
	return flushed, nil
}

// survivors counts the batches of history that x holds and fails if they are
// not a prefix of it, each whole.
func survivors(t *testing.T, x *Index, batches int) int {
	t.Helper()
	n, ended := 0, false
	for i := range batches {
		id := ledger.ID(i + 1)
		_, hasRecord, err := x.Record(id)
		must(t, err)
		_, hasExtent, err := x.Extent(id, 5)
		must(t, err)
		if hasTombstone := x.Deleted(id + 1000); hasRecord != hasExtent || hasRecord != hasTombstone {
			t.Fatalf("batch %d is torn: record %v, extent %v, tombstone %v", i, hasRecord, hasExtent, hasTombstone)
		}
		if hasRecord && ended {
			t.Fatalf("batch %d is there, one before it is not", i)
		}
		if hasRecord {
			n++
		} else {
			ended = true
		}
	}
	return n
}

// TestCrashKeepsAFlushedPrefix cuts the power at every change the index makes to
// the disk, and shows that what comes back is a prefix of the batches that reaches
// at least to the last Flush that returned.
func TestCrashKeepsAFlushedPrefix(t *testing.T) {
	const batches = 8
	for k := int64(0); ; k++ {
		mem := vfs.NewMem()
		must(t, vfs.MkdirAllSync(mem, "/data"))
		faults := vfs.NewFaults(mem, vfs.CrashAt(mem, k))
		x, err := Open(Options{FS: faults, Dir: "/data/index", Fatal: func(error) {}})
		flushed := 0
		if err == nil {
			flushed, err = history(x, batches)
			err = errors.Join(err, x.Close())
		}
		if err != nil && !mem.Crashed() { // a crash that only loses a clean-up may go unnoticed
			t.Fatalf("crash at %d: %v", k, err)
		}
		for seed := range uint64(3) {
			disk := mem.Image(vfs.ImageOptions{Rand: rand.New(rand.NewPCG(seed, uint64(k))).Uint64,
				KeepUnsynced: float64(seed) * 0.4, TornSectors: true, OrderedNames: true})
			y, err := Open(Options{FS: disk, Dir: "/data/index", Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
			if err != nil {
				t.Fatalf("crash at %d, seed %d: %v", k, seed, err)
			}
			if n := survivors(t, y, batches); n < flushed {
				t.Fatalf("crash at %d, seed %d: %d batches survived, %d were flushed", k, seed, n, flushed)
			}
			must(t, y.Close())
		}
		if !mem.Crashed() {
			if k < 20 {
				t.Fatalf("only %d crash points", k)
			}
			return
		}
	}
}

// TestFailedSyncIsFatalOnce shows that after a failed sync the process is told to
// end, once, that Flush answers instead of waiting, and that nothing is applied
// any more.
func TestFailedSyncIsFatalOnce(t *testing.T) {
	broken := errors.New("disk is broken")
	var mu sync.Mutex
	var failing bool
	var told []error
	faults := vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if failing && op.Kind == vfs.OpSync {
			return broken
		}
		return nil
	})
	x, err := Open(Options{FS: faults, Dir: "/index", Fatal: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, err)
	}})
	must(t, err)
	_, err = history(x, 3)
	must(t, err)
	mu.Lock()
	failing = true
	mu.Unlock()
	if _, err := history(x, 3); !errors.Is(err, broken) {
		t.Fatalf("flush: %v", err)
	}
	if err := x.Flush(); !errors.Is(err, broken) {
		t.Fatalf("second flush: %v", err)
	}
	if err := x.Apply(new(Batch)); !errors.Is(err, broken) {
		t.Fatalf("apply: %v", err)
	}
	if err := x.Close(); !errors.Is(err, broken) {
		t.Fatalf("close: %v", err)
	}
	if len(told) != 1 || !errors.Is(told[0], broken) {
		t.Fatalf("told %v", told)
	}
}

// TestFullDiskIsNotFatal shows that Flush answers ErrNoSpace on a full disk, that
// nothing is lost, and that it succeeds once there is room.
func TestFullDiskIsNotFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		x := open(t, mem)
		apply(t, x, func(b *Batch) { b.PutRecord(Record{Ledger: 1}) })
		mem.SetCapacity(1)
		for range 2 {
			if err := x.Flush(); !errors.Is(err, vfs.ErrNoSpace) {
				t.Fatalf("flush on a full disk: %v", err)
			}
		}
		apply(t, x, func(b *Batch) { b.PutRecord(Record{Ledger: 2}) })
		mem.SetCapacity(0)
		for err := x.Flush(); err != nil; err = x.Flush() {
			if !errors.Is(err, vfs.ErrNoSpace) { // the try that was under way
				t.Fatal(err)
			}
		}
		y := open(t, mem.Image(vfs.ImageOptions{}))
		n := 0
		must(t, y.Records(func(Record) error { n++; return nil }))
		if n != 2 {
			t.Fatalf("%d records survived", n)
		}
		must(t, y.Close())
		must(t, x.Close())
	})
}

// TestDamagedTableIsCorrupt shows that rotten bytes are ErrCorrupt, never "absent".
func TestDamagedTableIsCorrupt(t *testing.T) {
	mem := vfs.NewMem()
	x := open(t, mem)
	_, err := history(x, 300)
	must(t, err)
	must(t, x.Close())
	names, err := mem.ReadDir("/data/index")
	must(t, err)
	for _, name := range names {
		if len(name) < 4 || name[len(name)-4:] != ".sst" {
			continue
		}
		f, err := mem.OpenReadWrite("/data/index/" + name)
		must(t, err)
		_, err = f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, 20)
		must(t, err)
		must(t, f.Close())
	}
	x, err = Open(Options{FS: mem, Dir: "/data/index", Fatal: func(error) {}})
	if err == nil {
		_, _, err = x.Extent(1, 5)
		must(t, x.Close())
	}
	if !errors.Is(err, ledger.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

// FuzzValues shows that no stored value makes a decoder panic, and that what one
// takes survives being written again.
func FuzzValues(f *testing.F) {
	e := run(5, 10, 19, 3)
	f.Add(entryKey(prefixExtent, 5, 10), encodeExtent(e))
	f.Add(segmentKey(9), encodeSegment(Segment{ID: 9, FileBytes: 10, DataBytes: 9}))
	f.Add(entryKey(prefixDamage, 5, 10), encodeDamage(12))
	r := Record{Ledger: 1, Term: 3, LastEntry: 4, LAC: 3, Limbo: true}
	f.Add(idKey(prefixRecord, 1), r.AppendTo(nil))
	f.Add(idKey(prefixTombstones, 0), []byte{0x3a, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if e, err := decodeExtent(key, value); err == nil {
			if again, err := decodeExtent(entryKey(prefixExtent, e.Ledger, e.First), encodeExtent(e)); err != nil || again != e {
				t.Fatalf("extent %+v became %+v, %v", e, again, err)
			}
			if _, ok := e.within(0, math.MaxInt64); !ok || e.live() < 0 || e.live() > int64(e.Length) {
				t.Fatalf("extent %+v", e)
			}
		}
		if s, err := decodeSegment(key, value); err == nil {
			if again, err := decodeSegment(segmentKey(s.ID), encodeSegment(s)); err != nil || again != s {
				t.Fatalf("segment %+v became %+v, %v", s, again, err)
			}
		}
		if r, err := DecodeRecord(1, value); err == nil {
			if again, err := DecodeRecord(1, r.AppendTo(nil)); err != nil || again != r {
				t.Fatalf("record %+v became %+v, %v", r, again, err)
			}
		}
		decodeDamage(key, value)
		make(tombstones).load(key, value)
	})
}
