package index

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func must(t tb, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t tb, fsys vfs.FS) *Index {
	t.Helper()
	x, err := Open(Options{FS: fsys, Dir: "/data/index", Fatal: func(err error) { t.Fatalf("fatal: %v", err) }})
	must(t, err)
	return x
}

func apply(t tb, x *Index, fill func(*Batch)) {
	t.Helper()
	var b Batch
	fill(&b)
	must(t, x.Apply(&b))
}

// run is an extent of a segment whose blocks start at 1000·segment.
func run(id ledger.ID, first, last ledger.EntryID, segment uint32) Extent {
	n := uint32(last - first + 1)
	return Extent{Ledger: id, First: first, Last: last, Segment: segment, Offset: 1000 * segment, Length: 100 * n, Count: n}
}

// TestExtentLookup shows that an entry is found in the extent that covers it and
// nowhere else, at both ends of the ledger and of its neighbours.
func TestExtentLookup(t *testing.T) {
	x := open(t, vfs.NewMem())
	defer x.Close()
	apply(t, x, func(b *Batch) {
		b.PutExtent(run(7, 10, 19, 1))
		b.PutExtent(run(7, 30, 30, 1))
		b.PutExtent(run(8, 0, 4, 1))
		b.PutExtent(run(math.MaxInt64, 5, 6, 2))
	})
	for _, c := range []struct {
		id   ledger.ID
		e    ledger.EntryID
		want ledger.EntryID // First of the extent, or -1
	}{
		{7, -1, -1}, {7, 9, -1}, {7, 10, 10}, {7, 19, 10}, {7, 20, -1}, {7, 29, -1}, {7, 30, 30}, {7, 31, -1},
		{7, math.MaxInt64, -1}, {6, 10, -1}, {8, 0, 0}, {8, 4, 0}, {8, 5, -1}, {9, 0, -1},
		{math.MaxInt64, 6, 5}, {math.MaxInt64, 7, -1},
	} {
		e, ok, err := x.Extent(c.id, c.e)
		must(t, err)
		if ok != (c.want >= 0) || ok && (e.First != c.want || e.Ledger != c.id) {
			t.Errorf("ledger %d entry %d: got %+v %v", c.id, c.e, e, ok)
		}
	}
	last, ok, err := x.LastExtent(7)
	must(t, err)
	if !ok || last != run(7, 30, 30, 1) {
		t.Errorf("last extent %+v %v", last, ok)
	}
	ranges, err := x.Ranges(7)
	must(t, err)
	if diff := cmp.Diff([]ledger.EntryRange{{First: 10, Last: 19}, {First: 30, Last: 30}}, ranges); diff != "" {
		t.Error(diff)
	}
	list, err := x.Extents(7, 15, 30)
	must(t, err)
	if len(list) != 2 {
		t.Errorf("extents of 15 to 30: %+v", list)
	}
}

// TestRecordsAndNotes shows that records and notes come back as put, in order,
// after a restart too, and that deletion removes a record for good.
func TestRecordsAndNotes(t *testing.T) {
	disk := vfs.NewMem()
	x := open(t, disk)
	want := []Record{
		{Ledger: 1, LastEntry: ledger.NoEntry, LAC: ledger.NoEntry},
		{Ledger: 300, Term: 9, LastEntry: 77, LAC: 76, Class: ledger.Control, Lifetime: 3, Limbo: true, Created: 1234567},
		{Ledger: math.MaxInt64, Term: math.MaxInt64, LastEntry: math.MaxInt64, LAC: 5},
	}
	apply(t, x, func(b *Batch) {
		for _, i := range []int{2, 0, 1} {
			b.PutRecord(want[i])
		}
		b.PutRecord(Record{Ledger: 50, LastEntry: 1})
		b.Delete(50)
		b.PutRecord(Record{Ledger: 50, LastEntry: 2})
		b.SetNote("mover", []byte("segment 9"))
		b.SetNote("gone", []byte("x"))
		b.SetNote("gone", nil)
	})
	for range 2 {
		var got []Record
		must(t, x.Records(func(r Record) error { got = append(got, r); return nil }))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		r, ok, err := x.Record(300)
		if err != nil || !ok || r != want[1] {
			t.Fatalf("record 300: %+v %v %v", r, ok, err)
		}
		if _, ok, err := x.Record(50); ok || err != nil {
			t.Fatalf("record of a deleted ledger: %v %v", ok, err)
		}
		note, err := x.Note("mover")
		gone, err2 := x.Note("gone")
		if string(note) != "segment 9" || gone != nil || err != nil || err2 != nil {
			t.Fatalf("notes %q %q %v %v", note, gone, err, err2)
		}
		must(t, x.Close())
		x = open(t, disk)
	}
	must(t, x.Close())
}

// TestRuleM14_TombstonesStay shows that tombstones survive a restart, cost little
// when they form runs, and keep out whatever is said of the ledger later.
func TestRuleM14_TombstonesStay(t *testing.T) {
	disk := vfs.NewMem()
	x := open(t, disk)
	apply(t, x, func(b *Batch) {
		b.PutExtent(run(70000, 0, 9, 1))
		b.PutExtent(run(70001, 0, 9, 1))
		b.Damage(70000, ledger.EntryRange{First: 3, Last: 3})
		for id := ledger.ID(1); id <= 70000; id++ {
			b.Delete(id)
		}
		b.Delete(math.MaxInt64)
	})
	if live := x.Live(1); live != (Live{Extents: 1, Bytes: 1000}) {
		t.Fatalf("live %+v", live)
	}
	apply(t, x, func(b *Batch) {
		b.PutExtent(run(70000, 0, 9, 2))
		b.AddExtent(run(70000, 0, 9, 2))
		b.Damage(70000, ledger.EntryRange{First: 3, Last: 3})
		b.PutRecord(Record{Ledger: 70000})
	})
	for range 2 {
		if n := x.DeletedCount(); n != 70001 {
			t.Fatalf("%d tombstones", n)
		}
		for id, want := range map[ledger.ID]bool{1: true, 65535: true, 65536: true, 70000: true, 70001: false, math.MaxInt64: true} {
			if x.Deleted(id) != want {
				t.Errorf("ledger %d deleted: %v", id, !want)
			}
		}
		extents, err := x.Extents(70000, 0, math.MaxInt64)
		if err != nil || len(extents) != 0 || len(x.Damaged(70000)) != 0 {
			t.Fatalf("deleted ledger has %+v %v", extents, err)
		}
		value, ok, err := x.get(idKey(prefixTombstones, 0))
		if err != nil || !ok || len(value) > 64 {
			t.Fatalf("a run of tombstones takes %d bytes, %v", len(value), err)
		}
		must(t, x.Close())
		x = open(t, disk)
	}
	must(t, x.Close())
}

// place is where the model of TestBatchesAgainstModel has an entry.
type place map[ledger.ID]map[ledger.EntryID]uint32

// TestBatchesAgainstModel plays random batches against a map from entry to
// segment: who has an entry, what is damaged, which segments still count, and
// that no two extents share an entry; before and after a restart.
func TestBatchesAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := vfs.NewMem()
		x := open(t, disk)
		model := place{1: {}, 2: {}, 3: {}}
		damaged := place{1: {}, 2: {}, 3: {}}
		dead := make(map[ledger.ID]bool)
		for range rapid.IntRange(1, 6).Draw(t, "batches") {
			var b Batch
			for range rapid.IntRange(1, 5).Draw(t, "ops") {
				id := ledger.ID(rapid.IntRange(1, 3).Draw(t, "ledger"))
				first := ledger.EntryID(rapid.IntRange(0, 20).Draw(t, "first"))
				last := first + ledger.EntryID(rapid.IntRange(0, 8).Draw(t, "more"))
				segment := uint32(rapid.IntRange(1, 4).Draw(t, "segment"))
				from := map[uint32]bool{1: true, 3: true}
				op := rapid.SampledFrom([]string{"put", "put", "add", "move", "damage", "delete"}).Draw(t, "op")
				switch op {
				case "put":
					b.PutExtent(run(id, first, last, segment))
				case "add":
					b.AddExtent(run(id, first, last, segment))
				case "move":
					b.MoveExtent(run(id, first, last, segment), from)
				case "damage":
					b.Damage(id, ledger.EntryRange{First: first, Last: last})
				case "delete":
					b.Delete(id)
					dead[id], model[id], damaged[id] = true, nil, nil
				}
				for e := first; e <= last && !dead[id]; e++ {
					old, has := model[id][e]
					switch {
					case op == "damage":
						damaged[id][e] = 1
					case op == "put", op == "add" && !has, op == "move" && from[old]:
						model[id][e] = segment
						if op != "move" {
							delete(damaged[id], e)
						}
					}
				}
			}
			must(t, x.Apply(&b))
			check(t, x, model, damaged)
		}
		must(t, x.Close())
		x = open(t, disk)
		check(t, x, model, damaged)
		must(t, x.Close())
	})
}

func check(t tb, x *Index, model, damaged place) {
	t.Helper()
	live := make(map[uint32]Live)
	for id := range model {
		var list []ledger.EntryID
		for _, r := range x.Damaged(id) {
			for e := r.First; e <= r.Last; e++ {
				list = append(list, e)
			}
		}
		if len(list) != len(damaged[id]) || slices.ContainsFunc(list, func(e ledger.EntryID) bool { return damaged[id][e] == 0 }) {
			t.Fatalf("ledger %d: damaged %v, want %v", id, list, damaged[id])
		}
		extents, err := x.Extents(id, 0, math.MaxInt64)
		must(t, err)
		end := ledger.EntryID(0)
		for _, e := range extents {
			if e.First < end {
				t.Fatalf("extents overlap: %+v", extents)
			}
			end = e.Last + 1
			live[e.Segment] = live[e.Segment].plus(e.live(), 1)
		}
		for e := range ledger.EntryID(30) {
			got, ok, err := x.Extent(id, e)
			must(t, err)
			want, has := model[id][e]
			if ok != has || got.Segment != want && ok {
				t.Fatalf("ledger %d entry %d: segment %d (%v), want %d (%v)", id, e, got.Segment, ok, want, has)
			}
		}
	}
	for s := range uint32(5) {
		if got := x.Live(s); got != live[s] {
			t.Fatalf("segment %d: live %+v, want %+v", s, got, live[s])
		}
	}
}

// TestSegments shows that a segment is registered until it is dropped, and that
// one with an extent left cannot be.
func TestSegments(t *testing.T) {
	disk := vfs.NewMem()
	x := open(t, disk)
	seg := Segment{ID: 5, Lifetime: 2, FileBytes: 900, DataBytes: 800}
	apply(t, x, func(b *Batch) {
		b.PutSegment(seg)
		b.PutExtent(run(1, 0, 3, 5))
		b.PutExtent(run(1, 4, 5, 9))
		b.DropSegment(5)
	})
	must(t, x.Close())
	x = open(t, disk)
	if got := x.Segments(); len(got) != 1 || got[0] != seg || x.HighestSegment() != 9 {
		t.Fatalf("segments %+v, highest %d", got, x.HighestSegment())
	}
	apply(t, x, func(b *Batch) { b.Delete(1); b.DropSegment(5) })
	if x.Registered(5) || x.Live(9) != (Live{}) {
		t.Fatal("segment stayed")
	}
	must(t, x.Close())
}

// TestVersionFromTheFuture shows that a newer index is told apart from a damaged one.
func TestVersionFromTheFuture(t *testing.T) {
	disk := vfs.NewMem()
	x := open(t, disk)
	must(t, x.db.Set(keyVersion, []byte{formatVersion + 1}, pebble.NoSync))
	x.flush.touch()
	must(t, x.Close())
	_, err := Open(Options{FS: disk, Dir: "/data/index"})
	if err == nil || errors.Is(err, ledger.ErrCorrupt) || err.Error() != fmt.Sprintf("index: version %d, this build reads up to %d", formatVersion+1, formatVersion) {
		t.Fatalf("got %v", err)
	}
	must(t, Destroy(disk, "/data/index"))
	must(t, open(t, disk).Close())
}

// TestOptionsTellAllFaults shows that Validate reports every fault at once.
func TestOptionsTellAllFaults(t *testing.T) {
	err := (&Options{CacheBytes: -1}).Validate()
	if joined, ok := err.(interface{ Unwrap() []error }); !ok || len(joined.Unwrap()) != 3 {
		t.Fatalf("got %v", err)
	}
}
