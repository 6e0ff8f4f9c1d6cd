package index

import (
	"errors"
	"math"

	"github.com/cockroachdb/pebble/v2"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Extent says where a run of entries rests: entries First to Last of Ledger,
// all of them, stand in cold segment Segment, in the blocks that fill
// [Offset, Offset+Length). Those blocks hold Count entries; Last−First+1 is less
// when another extent has taken over some of them.
//
// Invariant of the index: no two extents of a ledger share an entry.
type Extent struct {
	Ledger  ledger.ID
	First   ledger.EntryID
	Last    ledger.EntryID
	Segment uint32
	Offset  uint32
	Length  uint32
	Count   uint32
}

// entries is how many entries the extent stands for.
func (e Extent) entries() uint32 { return uint32(e.Last - e.First + 1) }

// live is the share of Length that the extent's entries take, in bytes.
func (e Extent) live() int64 { return int64(e.Length) * int64(e.entries()) / int64(e.Count) }

func (e Extent) covers(id ledger.EntryID) bool { return e.First <= id && id <= e.Last }

// within is the part of e in [first, last]; false if there is none.
func (e Extent) within(first, last ledger.EntryID) (Extent, bool) {
	e.First, e.Last = max(e.First, first), min(e.Last, last)
	return e, e.First <= e.Last
}

// without are the parts of e outside [first, last], none, one or two.
func (e Extent) without(first, last ledger.EntryID) []Extent {
	var parts []Extent
	if before, ok := e.within(0, first-1); ok {
		parts = append(parts, before)
	}
	if last < math.MaxInt64 {
		if after, ok := e.within(last+1, math.MaxInt64); ok {
			parts = append(parts, after)
		}
	}
	return parts
}

// Live is what still counts in a segment.
type Live struct {
	Extents int   // 0: the segment can go
	Bytes   int64 // of blocks, boundary blocks in proportion
}

func (l Live) plus(bytes int64, extents int) Live {
	return Live{Extents: l.Extents + extents, Bytes: l.Bytes + bytes}
}

// Lifetime groups ledgers that are expected to die together. Its numbers are
// the bookie's to give.
type Lifetime uint8

// Segment is a cold segment that the index knows: all its extents have been
// applied.
type Segment struct {
	ID        uint32
	Lifetime  Lifetime
	FileBytes int64
	DataBytes int64 // of its blocks
}

// Extent finds the extent that holds entry e; false if there surely is none.
func (x *Index) Extent(id ledger.ID, e ledger.EntryID) (Extent, bool, error) {
	if e < 0 {
		return Extent{}, false, nil
	}
	found, ok, err := x.extentUpTo(x.db, id, e)
	return found, ok && found.covers(e), err
}

// LastExtent finds the extent with the highest entry of a ledger.
func (x *Index) LastExtent(id ledger.ID) (Extent, bool, error) {
	return x.extentUpTo(x.db, id, math.MaxInt64)
}

// extentUpTo finds the extent with the highest First not above e.
func (x *Index) extentUpTo(from pebble.Reader, id ledger.ID, e ledger.EntryID) (found Extent, ok bool, err error) {
	start, end := keysOf(prefixExtent, id)
	if e < math.MaxInt64 {
		end = entryKey(prefixExtent, id, e+1)
	}
	it, err := from.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return Extent{}, false, x.wrap("extent", err)
	}
	if it.Last() {
		var value []byte
		if value, err = it.ValueAndErr(); err == nil {
			found, err = decodeExtent(it.Key(), value)
		}
		ok = err == nil
	}
	return found, ok, x.wrap("extent", errors.Join(err, it.Close()))
}

// Extents lists the extents of a ledger that hold any of [first, last], in order.
func (x *Index) Extents(id ledger.ID, first, last ledger.EntryID) ([]Extent, error) {
	return x.extents(x.db, id, first, last)
}

func (x *Index) extents(from pebble.Reader, id ledger.ID, first, last ledger.EntryID) ([]Extent, error) {
	var list []Extent
	if first > 0 { // one that starts before may reach in
		e, ok, err := x.extentUpTo(from, id, first-1)
		if err != nil {
			return nil, err
		}
		if ok && e.covers(first) {
			list = append(list, e)
		}
	}
	start, end := entryKey(prefixExtent, id, max(first, 0)), []byte(nil)
	if last < math.MaxInt64 {
		end = entryKey(prefixExtent, id, last+1)
	} else {
		_, end = keysOf(prefixExtent, id)
	}
	it, err := from.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return nil, x.wrap("extents", err)
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var value []byte
		var e Extent
		if value, err = it.ValueAndErr(); err == nil {
			e, err = decodeExtent(it.Key(), value)
			list = append(list, e)
		}
	}
	if err := errors.Join(err, it.Close()); err != nil {
		return nil, x.wrap("extents", err)
	}
	return list, nil
}

// Ranges lists the entries of a ledger that extents hold, neighbours joined.
func (x *Index) Ranges(id ledger.ID) ([]ledger.EntryRange, error) {
	extents, err := x.Extents(id, 0, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	var ranges []ledger.EntryRange
	for _, e := range extents {
		if n := len(ranges); n > 0 && ranges[n-1].Last+1 == e.First {
			ranges[n-1].Last = e.Last
			continue
		}
		ranges = append(ranges, ledger.EntryRange{First: e.First, Last: e.Last})
	}
	return ranges, nil
}

// Segments lists the registered segments, in no order.
func (x *Index) Segments() []Segment {
	x.mu.RLock()
	defer x.mu.RUnlock()
	list := make([]Segment, 0, len(x.segments))
	for _, s := range x.segments {
		list = append(list, s)
	}
	return list
}

// Registered tells whether the index knows a segment.
func (x *Index) Registered(segment uint32) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.segments[segment]
	return ok
}

// Live tells what still counts in a segment.
func (x *Index) Live(segment uint32) Live {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.live[segment]
}

// HighestSegment is the highest segment number that anything here names.
func (x *Index) HighestSegment() uint32 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var highest uint32
	for id := range x.segments {
		highest = max(highest, id)
	}
	for id := range x.live {
		highest = max(highest, id)
	}
	return highest
}
