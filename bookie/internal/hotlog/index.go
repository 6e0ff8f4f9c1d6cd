package hotlog

import (
	"slices"
	"sort"
	"unsafe"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// index tells where the entries of each ledger are: eight bytes an entry, plus
// one run per ledger and segment. Not safe for concurrent use; segments guards it.
type index struct {
	ledgers map[ledger.ID]*book
	bytes   int64 // of memory, near enough
}

// book is the index of one ledger.
//
// Invariant: runs are in order of first and do not overlap. A writer appends in
// order, so a book normally has one run per segment; recovery, repair and damage
// make more of them.
type book struct{ runs []run }

// run is a row of consecutive entries in one segment.
type run struct {
	first   ledger.EntryID
	segment uint32
	slots   []slot
}

func (r *run) end() ledger.EntryID { return r.first + ledger.EntryID(len(r.slots)) }

// slot is where a frame is in its segment.
type slot struct{ offset, length uint32 }

const (
	slotBytes = int64(unsafe.Sizeof(slot{}))
	runBytes  = int64(unsafe.Sizeof(run{}))
	bookBytes = int64(unsafe.Sizeof(book{})) + 32 // with its place in the map

	// prependSlots bounds what is moved to put an entry in front of a run.
	prependSlots = 64
)

func newIndex() index { return index{ledgers: make(map[ledger.ID]*book)} }

// put enters entry e of id at p. A copy that was known before gives way to this
// one and is returned. opened tells that a new run for p.Segment was begun.
func (x *index) put(id ledger.ID, e ledger.EntryID, p Place) (old Place, replaced, opened bool) {
	b := x.ledgers[id]
	if b == nil {
		b = &book{}
		x.ledgers[id] = b
		x.bytes += bookBytes
	}
	s := slot{p.Offset, p.Length}
	// i is the last run that begins at e or before; -1 if none does.
	i := len(b.runs) - 1
	if i >= 0 && b.runs[i].first > e {
		i = sort.Search(len(b.runs), func(k int) bool { return b.runs[k].first > e }) - 1
	}
	if i >= 0 && e < b.runs[i].end() {
		r := &b.runs[i]
		k := int(e - r.first)
		old = Place{r.segment, r.slots[k].offset, r.slots[k].length}
		if r.segment == p.Segment {
			r.slots[k] = s
			return old, true, false
		}
		// The parts before and after share the old memory; only the last may grow into it.
		parts := make([]run, 0, 3)
		if k > 0 {
			parts = append(parts, run{r.first, r.segment, r.slots[:k:k]})
		}
		parts = append(parts, run{e, p.Segment, []slot{s}})
		if k+1 < len(r.slots) {
			parts = append(parts, run{e + 1, r.segment, r.slots[k+1:]})
		}
		x.replace(b, i, i+1, parts...)
		return old, true, true
	}
	if i >= 0 && e == b.runs[i].end() && b.runs[i].segment == p.Segment {
		r := &b.runs[i]
		before := cap(r.slots)
		r.slots = append(r.slots, s)
		x.bytes += int64(cap(r.slots)-before) * slotBytes
		return old, false, false
	}
	if next := i + 1; next < len(b.runs) && b.runs[next].first == e+1 && b.runs[next].segment == p.Segment &&
		len(b.runs[next].slots) < prependSlots {
		r := &b.runs[next]
		before := cap(r.slots)
		r.first, r.slots = e, slices.Insert(r.slots, 0, s)
		x.bytes += int64(cap(r.slots)-before) * slotBytes
		return old, false, false
	}
	if i >= 0 {
		x.clip(&b.runs[i])
	}
	x.replace(b, i+1, i+1, run{e, p.Segment, []slot{s}})
	return old, false, true
}

// replace puts runs in the place of b's runs [i, j).
func (x *index) replace(b *book, i, j int, runs ...run) {
	for _, r := range b.runs[i:j] {
		x.bytes -= runBytes + int64(cap(r.slots))*slotBytes
	}
	for _, r := range runs {
		x.bytes += runBytes + int64(cap(r.slots))*slotBytes
	}
	b.runs = slices.Replace(b.runs, i, j, runs...)
}

// clip gives back the memory a run kept for growing, if it is much.
func (x *index) clip(r *run) {
	if spare := cap(r.slots) - len(r.slots); spare > len(r.slots)/8 {
		r.slots = append(make([]slot, 0, len(r.slots)), r.slots...)
		x.bytes -= int64(spare) * slotBytes
	}
}

// find returns where entry e of id is.
func (x *index) find(id ledger.ID, e ledger.EntryID) (Place, bool) {
	b := x.ledgers[id]
	if b == nil {
		return Place{}, false
	}
	i := sort.Search(len(b.runs), func(k int) bool { return b.runs[k].first > e }) - 1
	if i < 0 || e >= b.runs[i].end() {
		return Place{}, false
	}
	r := &b.runs[i]
	s := r.slots[e-r.first]
	return Place{r.segment, s.offset, s.length}, true
}

// last returns the highest entry of id.
func (x *index) last(id ledger.ID) (ledger.EntryID, bool) {
	b := x.ledgers[id]
	if b == nil {
		return ledger.NoEntry, false
	}
	return b.runs[len(b.runs)-1].end() - 1, true
}

// ranges lists the entries of id.
func (x *index) ranges(id ledger.ID) []ledger.EntryRange {
	b := x.ledgers[id]
	if b == nil {
		return nil
	}
	var list []ledger.EntryRange
	for i := range b.runs {
		r := &b.runs[i]
		if n := len(list); n > 0 && list[n-1].Last+1 == r.first {
			list[n-1].Last = r.end() - 1
			continue
		}
		list = append(list, ledger.EntryRange{First: r.first, Last: r.end() - 1})
	}
	return list
}

// drop takes out the runs of id for which gone says so, and calls it once for each run.
// A book without runs goes too.
func (x *index) drop(id ledger.ID, gone func(*run) bool) {
	b := x.ledgers[id]
	if b == nil {
		return
	}
	kept := b.runs[:0]
	for i := range b.runs {
		r := b.runs[i]
		if gone(&r) {
			x.bytes -= runBytes + int64(cap(r.slots))*slotBytes
			continue
		}
		kept = append(kept, r)
	}
	clear(b.runs[len(kept):])
	b.runs = kept
	if len(kept) == 0 {
		delete(x.ledgers, id)
		x.bytes -= bookBytes
	}
}
