package ledgertable

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

func add(t *Table, id ledger.ID, entry ledger.EntryID, create bool, term int64) error {
	g := t.Lock(id)
	defer g.Unlock()
	if err := g.CheckAdd(create, term); err != nil {
		return err
	}
	g.Added(&ledger.Envelope{Ledger: id, Entry: entry, LAC: entry - 1})
	return nil
}

func fence(t *Table, id ledger.ID, term int64) error {
	g := t.Lock(id)
	defer g.Unlock()
	if _, err := g.CheckFence(term); err != nil {
		return err
	}
	g.Fenced(term)
	g.FenceDurable(term)
	return nil
}

func remove(t *Table, id ledger.ID) {
	g := t.Lock(id)
	defer g.Unlock()
	g.Delete()
}

func record(t *Table, id ledger.ID) (Record, bool) {
	g := t.Lock(id)
	defer g.Unlock()
	return g.Record()
}

// TestAdmission shows, for each state a ledger can be in, which adds and fences
// are let in.
func TestAdmission(t *testing.T) {
	const id = 7
	states := map[string]func(*Table){
		"unseen":     func(*Table) {},
		"open":       func(l *Table) { add(l, id, 0, true, 0) },
		"fenced 3":   func(l *Table) { fence(l, id, 3) },
		"deleted":    func(l *Table) { add(l, id, 0, true, 0); remove(l, id) },
		"limbo":      func(l *Table) { g := l.Lock(id); g.SetLimbo(); g.Unlock() },
		"node limbo": func(l *Table) { l.SetLimbo() },
	}
	requests := []struct {
		name string
		do   func(*Table) error
		want map[string]error
	}{
		{"add", func(l *Table) error { return add(l, id, 5, false, 0) }, map[string]error{
			"unseen": ledger.ErrNoLedger, "open": nil, "fenced 3": ledger.ErrFenced,
			"deleted": ledger.ErrDeleted, "limbo": ledger.ErrUnknown, "node limbo": ledger.ErrUnknown}},
		{"add with create", func(l *Table) error { return add(l, id, 5, true, 0) }, map[string]error{
			"unseen": nil, "open": nil, "fenced 3": ledger.ErrFenced,
			"deleted": ledger.ErrDeleted, "limbo": ledger.ErrUnknown, "node limbo": ledger.ErrUnknown}},
		{"recovery add at 2", func(l *Table) error { return add(l, id, 5, false, 2) }, map[string]error{
			"unseen": ledger.ErrNoLedger, "open": nil, "fenced 3": ledger.ErrFenced,
			"deleted": ledger.ErrDeleted, "limbo": nil, "node limbo": ledger.ErrUnknown}},
		{"recovery add at 3 with create", func(l *Table) error { return add(l, id, 5, true, 3) }, map[string]error{
			"unseen": nil, "open": nil, "fenced 3": nil,
			"deleted": ledger.ErrDeleted, "limbo": nil, "node limbo": nil}},
		{"fence at 2", func(l *Table) error { return fence(l, id, 2) }, map[string]error{
			"unseen": nil, "open": nil, "fenced 3": ledger.ErrFenced,
			"deleted": ledger.ErrDeleted, "limbo": nil, "node limbo": nil}},
		{"fence at 3 again", func(l *Table) error { return fence(l, id, 3) }, map[string]error{
			"unseen": nil, "open": nil, "fenced 3": nil,
			"deleted": ledger.ErrDeleted, "limbo": nil, "node limbo": nil}},
	}
	for _, r := range requests {
		for state, prepare := range states {
			t.Run(r.name+"/"+state, func(t *testing.T) {
				table := new(Table)
				prepare(table)
				if got, want := r.do(table), r.want[state]; !errors.Is(got, want) || (want == nil) != (got == nil) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
	}
}

// TestRuleM13_TermRefusesLowerWriters shows that a term once seen shuts out the
// writer and every lower recoverer, and that a recovery add raises no term.
func TestRuleM13_TermRefusesLowerWriters(t *testing.T) {
	table := new(Table)
	if err := add(table, 1, 0, true, 0); err != nil {
		t.Fatal(err)
	}
	if err := add(table, 1, 1, false, 9); err != nil {
		t.Fatalf("repair add at term 9: %v", err)
	}
	if err := add(table, 1, 2, false, 0); err != nil {
		t.Fatalf("a repair add shut the writer out: %v", err)
	}
	if err := fence(table, 1, 2); err != nil {
		t.Fatal(err)
	}
	if err := add(table, 1, 3, true, 0); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("ordinary add after a fence: %v", err)
	}
	if err := fence(table, 1, 4); err != nil {
		t.Fatal(err)
	}
	if err := add(table, 1, 3, false, 3); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("recovery add below the highest term: %v", err)
	}
	if err := fence(table, 1, 3); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("fence below the highest term: %v", err)
	}
	if err := add(table, 1, 3, false, 4); err != nil {
		t.Errorf("recovery add at the highest term: %v", err)
	}
}

// TestRuleM14_TombstonesAreForEver shows that a deleted ledger stays deleted
// against every add, fence and record that comes later, also through the encoded
// set.
func TestRuleM14_TombstonesAreForEver(t *testing.T) {
	table := new(Table)
	ids := []ledger.ID{1, 2, 3, 1 << 20, 1<<20 + 1, 1 << 40, 1<<63 - 1}
	for _, id := range ids {
		remove(table, id)
	}
	again := new(Table)
	again.MergeRecord(2, Record{Term: 5}, 3) // an older copy, met before the set
	for _, key := range table.UnsavedTombstones(0) {
		if err := again.MergeTombstones(table.EncodeTombstones(key), 4); err != nil {
			t.Fatal(err)
		}
	}
	again.DropDeleted()
	again.MergeRecord(3, Record{Term: 5}, 3) // and one met after it
	all := 0
	again.DeletedLedgers(func(id ledger.ID) {
		if all++; !slices.Contains(ids, id) {
			t.Errorf("ledger %d is listed as deleted", id)
		}
	})
	if all != len(ids) {
		t.Errorf("%d deleted ledgers listed, want %d", all, len(ids))
	}
	for _, id := range ids {
		if err := add(again, id, 0, true, 0); !errors.Is(err, ledger.ErrDeleted) {
			t.Errorf("add to deleted ledger %d: %v", id, err)
		}
		if _, known := record(again, id); known {
			t.Errorf("deleted ledger %d still has a record", id)
		}
	}
	if got, want := again.DeletedCount(), uint64(len(ids)); got != want {
		t.Errorf("%d deleted ledgers remembered, want %d", got, want)
	}
	if again.Deleted(4) {
		t.Error("a ledger nobody deleted is deleted")
	}
	if left := again.UnsavedTombstones(3); len(left) != 0 {
		t.Errorf("chunks saved in segment 4 count as unsaved up to segment 3: %v", left)
	}
	if left := again.UnsavedTombstones(4); len(left) != 4 {
		t.Errorf("%d chunks to save before segment 4 goes, want 4", len(left))
	}
}

// TestRuleB2_LimboAnswersUnknown shows that an absence is sure only where nothing
// may have been lost.
func TestRuleB2_LimboAnswersUnknown(t *testing.T) {
	table := new(Table)
	g := table.Lock(1)
	if got := g.Absence(); got != ledger.Absent {
		t.Errorf("unseen ledger: %v, want Absent", got)
	}
	g.SetLimbo()
	if got := g.Absence(); got != ledger.Unknown {
		t.Errorf("ledger in limbo: %v, want Unknown", got)
	}
	g.Unlock()
	table.SetLimbo()
	g = table.Lock(2)
	if got := g.Absence(); got != ledger.Unknown {
		t.Errorf("unseen ledger of a bookie in limbo: %v, want Unknown", got)
	}
	g.Unlock()
}

// TestRuleM27_UnsavedRecordsAreFound shows that a record counts as saved exactly
// while its newest whole copy lies behind the segment to be recycled.
func TestRuleM27_UnsavedRecordsAreFound(t *testing.T) {
	table := new(Table)
	for id := ledger.ID(1); id <= 4; id++ {
		if err := add(table, id, 0, true, 0); err != nil {
			t.Fatal(err)
		}
	}
	table.Saved(1, 5)
	table.Saved(2, 6)
	table.MergeRecord(3, Record{LastEntry: 4}, 7)
	if diff := cmp.Diff([]ledger.ID{1, 4}, table.Unsaved(5)); diff != "" {
		t.Errorf("unsaved up to segment 5 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]ledger.ID{1, 2, 3, 4}, table.Unsaved(7)); diff != "" {
		t.Errorf("unsaved up to segment 7 (-want +got):\n%s", diff)
	}
	g := table.Lock(3)
	g.SetLimbo() // which the copy in segment 7 does not say
	g.Unlock()
	if diff := cmp.Diff([]ledger.ID{3, 4}, table.Unsaved(4)); diff != "" {
		t.Errorf("unsaved up to segment 4, one in limbo (-want +got):\n%s", diff)
	}
}

// TestListPages shows that pages are in order and cover every ledger once.
func TestListPages(t *testing.T) {
	table := new(Table)
	var want []ledger.ID
	for id := ledger.ID(1); id < 1000; id += 7 {
		if err := add(table, id, 0, true, 0); err != nil {
			t.Fatal(err)
		}
		want = append(want, id)
	}
	var got []ledger.ID
	for after, more := ledger.ID(0), true; more; {
		var page []ledger.ID
		page, more = table.List(after, 10)
		got = append(got, page...)
		after = page[len(page)-1]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
	if table.Len() != len(want) {
		t.Errorf("Len %d, want %d", table.Len(), len(want))
	}
}

// TestAgainstModel shows that a table, and the one rebuilt from its saved records
// and tombstones at any moment, answer like a plain model of M13 and M14.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type model struct {
			known, deleted bool
			term           int64
			last           ledger.EntryID
		}
		table := new(Table)
		models := map[ledger.ID]*model{}
		id := rapid.Int64Range(1, 4)
		pick := func(t *rapid.T) (ledger.ID, *model) {
			l := ledger.ID(id.Draw(t, "ledger"))
			if models[l] == nil {
				models[l] = &model{last: ledger.NoEntry}
			}
			return l, models[l]
		}
		expect := func(t *rapid.T, what string, got, want error) {
			if !errors.Is(got, want) || (got == nil) != (want == nil) {
				t.Fatalf("%s: got %v, want %v", what, got, want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				l, m := pick(t)
				create := rapid.Bool().Draw(t, "create")
				term := rapid.Int64Range(0, 4).Draw(t, "term")
				e := ledger.EntryID(rapid.Int64Range(0, 9).Draw(t, "entry"))
				var want error
				switch {
				case m.deleted:
					want = ledger.ErrDeleted
				case m.term > 0 && term < m.term:
					want = ledger.ErrFenced
				case !m.known && !create:
					want = ledger.ErrNoLedger
				default:
					m.known, m.last = true, max(m.last, e)
				}
				expect(t, fmt.Sprintf("add at term %d", term), add(table, l, e, create, term), want)
			},
			"fence": func(t *rapid.T) {
				l, m := pick(t)
				term := rapid.Int64Range(1, 4).Draw(t, "term")
				var want error
				switch {
				case m.deleted:
					want = ledger.ErrDeleted
				case term < m.term:
					want = ledger.ErrFenced
				default:
					m.known, m.term = true, term
				}
				expect(t, fmt.Sprintf("fence at %d", term), fence(table, l, term), want)
			},
			"delete": func(t *rapid.T) {
				l, m := pick(t)
				*m = model{deleted: true}
				remove(table, l)
			},
			"rebuild": func(t *rapid.T) {
				next := new(Table)
				for _, l := range table.Unsaved(1) {
					r, _ := record(table, l)
					next.MergeRecord(l, r, 1)
				}
				for _, key := range table.UnsavedTombstones(1) {
					if err := next.MergeTombstones(table.EncodeTombstones(key), 1); err != nil {
						t.Fatal(err)
					}
				}
				table = next
			},
			"": func(t *rapid.T) {
				for l, m := range models {
					r, known := record(table, l)
					if known != m.known || table.Deleted(l) != m.deleted {
						t.Fatalf("ledger %d: known %v deleted %v, want %v %v", l, known, table.Deleted(l), m.known, m.deleted)
					}
					if known && (r.Term != m.term || r.LastEntry != m.last) {
						t.Fatalf("ledger %d: term %d last %d, want %d %d", l, r.Term, r.LastEntry, m.term, m.last)
					}
				}
			},
		})
	})
}

// TestRecordMerge shows that merging is commutative, associative and idempotent,
// which is what makes replay in any order right.
func TestRecordMerge(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) Record {
		return Record{
			Term:      rapid.Int64Range(0, 5).Draw(t, "term"),
			LastEntry: ledger.EntryID(rapid.Int64Range(-1, 5).Draw(t, "last")),
			LAC:       ledger.EntryID(rapid.Int64Range(-1, 5).Draw(t, "lac")),
			Class:     ledger.Class(rapid.IntRange(0, 1).Draw(t, "class")),
			Limbo:     rapid.Bool().Draw(t, "limbo"),
			Created:   rapid.Int64Range(0, 3).Draw(t, "created"),
		}
	})
	merge := func(rs ...Record) Record {
		m := NewRecord()
		for _, r := range rs {
			m.Merge(r)
		}
		return m
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := gen.Draw(t, "a"), gen.Draw(t, "b"), gen.Draw(t, "c")
		for _, order := range [][]Record{{a, c, b}, {b, a, c}, {c, b, a}, {merge(a, b), c}, {a, b, c, a, b}} {
			if got, want := merge(order...), merge(a, b, c); got != want {
				t.Fatalf("merge %v: %v, want %v", order, got, want)
			}
		}
	})
}

// TestGoldenChunk shows that an encoded set of version 1 is written as it always was
// and that one written long ago is read.
func TestGoldenChunk(t *testing.T) {
	table := new(Table)
	for _, id := range []ledger.ID{1, 2, 3, 1000, 70000, 1<<20 - 1} {
		remove(table, id)
	}
	golden, err := os.ReadFile("testdata/v1.tombstones")
	if err != nil {
		t.Fatal(err)
	}
	if got := table.EncodeTombstones(0); !bytes.Equal(got, golden) {
		t.Errorf("written as %x, was %x", got, golden)
	}
	again := new(Table)
	if err := again.MergeTombstones(golden, 1); err != nil {
		t.Fatal(err)
	}
	if again.DeletedCount() != 6 || !again.Deleted(70000) {
		t.Errorf("%d ledgers read, want 6", again.DeletedCount())
	}
}

// FuzzDecodeChunk shows that no bytes make the decoder of sets of deleted
// ledgers panic or give a set that does not encode back.
func FuzzDecodeChunk(f *testing.F) {
	table := new(Table)
	for id := ledger.ID(1); id < 3000; id += 1 + id%3 {
		remove(table, id)
	}
	for _, key := range table.UnsavedTombstones(0) {
		f.Add(table.EncodeTombstones(key))
	}
	f.Add([]byte{})
	f.Add(make([]byte, chunkHeadBytes))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, ids, err := decodeChunk(data)
		if err != nil {
			if !errors.Is(err, ledger.ErrCorrupt) {
				t.Fatalf("error %v is not ErrCorrupt", err)
			}
			return
		}
		againKey, again, err := decodeChunk(encodeChunk(key, ids))
		if err != nil || againKey != key || !slices.Equal(again.ToArray(), ids.ToArray()) {
			t.Fatalf("chunk %d came back different: %v", key, err)
		}
	})
}

// TestListHoldsOnePage shows that a page of the list of ledgers takes memory by its own
// size and not by the number of ledgers, and that pages put together are all of them.
func TestListHoldsOnePage(t *testing.T) {
	const ledgers, page = 20_000, 100
	var table Table
	for i := range ledgers {
		g := table.Lock(ledger.ID(1 + i*7919%ledgers)) // in no order
		g.Added(&ledger.Envelope{Ledger: g.id})
		g.Unlock()
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ids, more := table.List(5, page)
	runtime.ReadMemStats(&after)
	if len(ids) != page || !more || ids[0] != 6 || ids[page-1] != 5+page {
		t.Errorf("%d ids from %d on, more: %v", len(ids), ids[0], more)
	}
	if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 64<<10 {
		t.Errorf("a page of %d ids took %d bytes", page, bytes)
	}
	next := ledger.ID(1)
	for after, more := ledger.ID(0), true; more; {
		ids, more = table.List(after, 3333)
		for _, id := range ids {
			if id != next {
				t.Fatalf("ledger %d is listed, want %d", id, next)
			}
			after, next = id, next+1
		}
	}
	if next != ledgers+1 {
		t.Errorf("the list ends before %d", next)
	}
}
