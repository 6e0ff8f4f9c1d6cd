package position

import (
	"iter"
	"math"
	"sort"

	"github.com/RoaringBitmap/roaring/v2"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Set is a set of entries of a topic. It costs at most about a bit for each
// entry between its first and its last in a ledger, and two bytes for each of
// its entries, whichever is less; runs cost next to nothing.
//
// The zero Set is empty and costs nothing but itself. Not safe for concurrent
// use. Positions that name no entry (Start, {L, NoEntry}) are never in a Set.
type Set struct {
	chunks []chunk // by ledger, then high; none is empty
	n      int64
}

// chunk holds the entries of one ledger whose ids share their upper 32 bits.
type chunk struct {
	ledger ledger.ID
	high   uint32
	low    *roaring.Bitmap
}

func split(p Position) (high, low uint32) { return uint32(uint64(p.Entry) >> 32), uint32(p.Entry) }

func (c *chunk) at(low uint32) Position {
	return Position{Ledger: c.ledger, Entry: ledger.EntryID(uint64(c.high)<<32 | uint64(low))}
}

// find returns the index of the first chunk that could hold p or later entries.
func (s *Set) find(p Position) int {
	high, _ := split(p)
	return sort.Search(len(s.chunks), func(i int) bool {
		c := &s.chunks[i]
		return c.ledger > p.Ledger || c.ledger == p.Ledger && c.high >= high
	})
}

// holding returns the chunk in which p belongs, or nil.
func (s *Set) holding(p Position) *chunk {
	if p.Entry < 0 {
		return nil
	}
	i := s.find(p)
	high, _ := split(p)
	if i == len(s.chunks) || s.chunks[i].ledger != p.Ledger || s.chunks[i].high != high {
		return nil
	}
	return &s.chunks[i]
}

func (s *Set) makeChunk(id ledger.ID, high uint32) *chunk {
	p := Position{Ledger: id, Entry: ledger.EntryID(uint64(high) << 32)}
	if c := s.holding(p); c != nil {
		return c
	}
	i := s.find(p)
	s.chunks = append(s.chunks, chunk{})
	copy(s.chunks[i+1:], s.chunks[i:])
	s.chunks[i] = chunk{ledger: id, high: high, low: roaring.New()}
	return &s.chunks[i]
}

// Len counts the entries in s.
func (s *Set) Len() int64 { return s.n }

// Contains reports whether the entry at p is in s.
func (s *Set) Contains(p Position) bool {
	c := s.holding(p)
	if c == nil {
		return false
	}
	_, low := split(p)
	return c.low.Contains(low)
}

// Add puts the entry at p in s and reports whether it was not there.
func (s *Set) Add(p Position) bool {
	if p.Entry < 0 || p.Ledger < 1 {
		return false
	}
	high, low := split(p)
	if !s.makeChunk(p.Ledger, high).low.CheckedAdd(low) {
		return false
	}
	s.n++
	return true
}

// AddRange adds the entries first to last of ledger id.
func (s *Set) AddRange(id ledger.ID, first, last ledger.EntryID) {
	for first = max(first, 0); first <= last && id >= 1; {
		high, low := split(Position{Entry: first})
		end := min(uint64(last), uint64(high)<<32|math.MaxUint32)
		c := s.makeChunk(id, high)
		before := c.low.GetCardinality()
		c.low.AddRange(uint64(low), uint64(uint32(end))+1)
		s.n += int64(c.low.GetCardinality() - before)
		if end == math.MaxInt64 {
			return
		}
		first = ledger.EntryID(end + 1)
	}
}

// Remove takes the entry at p out of s and reports whether it was there.
func (s *Set) Remove(p Position) bool {
	c := s.holding(p)
	if c == nil {
		return false
	}
	_, low := split(p)
	if !c.low.CheckedRemove(low) {
		return false
	}
	s.n--
	s.dropEmpty()
	return true
}

// RemoveThrough takes out every entry up to and including p.
func (s *Set) RemoveThrough(p Position) {
	for i := range s.chunks {
		c := &s.chunks[i]
		if c.at(c.low.Minimum()).Compare(p) > 0 {
			break
		}
		before := c.low.GetCardinality()
		if c.at(c.low.Maximum()).Compare(p) <= 0 {
			c.low.Clear()
		} else {
			_, low := split(p)
			c.low.RemoveRange(0, uint64(low)+1)
		}
		s.n -= int64(before - c.low.GetCardinality())
	}
	s.dropEmpty()
}

func (s *Set) dropEmpty() {
	kept := s.chunks[:0]
	for _, c := range s.chunks {
		if !c.low.IsEmpty() {
			kept = append(kept, c)
		}
	}
	clear(s.chunks[len(kept):])
	if s.chunks = kept; len(kept) == 0 {
		s.chunks = nil
	}
}

// Clear empties s.
func (s *Set) Clear() { *s = Set{} }

// Min returns the first entry of s; ok is false when s is empty.
func (s *Set) Min() (p Position, ok bool) {
	if len(s.chunks) == 0 {
		return Start, false
	}
	c := &s.chunks[0]
	return c.at(c.low.Minimum()), true
}

// Max returns the last entry of s; ok is false when s is empty.
func (s *Set) Max() (p Position, ok bool) {
	if len(s.chunks) == 0 {
		return Start, false
	}
	c := &s.chunks[len(s.chunks)-1]
	return c.at(c.low.Maximum()), true
}

// RunFrom returns the first run of neighbouring entries of s at or after p, cut
// off on its left at p: first, and the id of its last entry in the same ledger.
// A run may be reported in parts; ok is false when nothing of s is at or after p.
func (s *Set) RunFrom(p Position) (first Position, last ledger.EntryID, ok bool) {
	if p.Entry < 0 {
		p.Entry = 0
	}
	for i := s.find(p); i < len(s.chunks); i++ {
		c := &s.chunks[i]
		from := uint32(0)
		if high, low := split(p); c.ledger == p.Ledger && c.high == high {
			from = low
		}
		if from > c.low.Maximum() {
			continue
		}
		it := c.low.Iterator()
		it.AdvanceIfNeeded(from)
		next := it.Next()
		return c.at(next), c.at(c.runEnd(next)).Entry, true
	}
	return Start, ledger.NoEntry, false
}

// runEnd returns the last value of the run in c that holds low. In a run of k
// values after low, the rank rises by k; a gallop and a bisection find the
// longest. (NextAbsentValue of the library is wrong beyond the first container.)
func (c *chunk) runEnd(low uint32) uint32 {
	base, room := c.low.Rank(low), uint64(math.MaxUint32-low)
	unbroken := func(k uint64) bool { return k <= room && c.low.Rank(low+uint32(k))-base == k }
	good, bad := uint64(0), uint64(1)
	for unbroken(bad) {
		good, bad = bad, 2*bad
	}
	for bad-good > 1 {
		if mid := good + (bad-good)/2; unbroken(mid) {
			good = mid
		} else {
			bad = mid
		}
	}
	return low + uint32(good)
}

// All yields the entries of s in order. s is not altered meanwhile.
func (s *Set) All() iter.Seq[Position] {
	return func(yield func(Position) bool) {
		for i := range s.chunks {
			c := &s.chunks[i]
			for it := c.low.Iterator(); it.HasNext(); {
				if !yield(c.at(it.Next())) {
					return
				}
			}
		}
	}
}

// Union adds all entries of o.
func (s *Set) Union(o *Set) {
	for i := range o.chunks {
		from := &o.chunks[i]
		c := s.makeChunk(from.ledger, from.high)
		before := c.low.GetCardinality()
		c.low.Or(from.low)
		s.n += int64(c.low.GetCardinality() - before)
	}
}

// Subtract takes all entries of o out of s.
func (s *Set) Subtract(o *Set) {
	for i := range s.chunks {
		c := &s.chunks[i]
		if from := o.holding(c.at(0)); from != nil {
			before := c.low.GetCardinality()
			c.low.AndNot(from.low)
			s.n -= int64(before - c.low.GetCardinality())
		}
	}
	s.dropEmpty()
}

// Common returns a new set of the entries that are in s and in o.
func (s *Set) Common(o *Set) Set {
	var both Set
	for i := range s.chunks {
		c := &s.chunks[i]
		from := o.holding(c.at(0))
		if from == nil {
			continue
		}
		if low := roaring.And(c.low, from.low); !low.IsEmpty() {
			both.chunks = append(both.chunks, chunk{ledger: c.ledger, high: c.high, low: low})
			both.n += int64(low.GetCardinality())
		}
	}
	return both
}

// Clone returns a copy that shares nothing with s.
func (s *Set) Clone() Set {
	c := Set{n: s.n}
	for _, from := range s.chunks {
		c.chunks = append(c.chunks, chunk{ledger: from.ledger, high: from.high, low: from.low.Clone()})
	}
	return c
}

// Bytes is about what s takes in memory.
func (s *Set) Bytes() int64 {
	const chunkOverhead = 128
	sum := int64(0)
	for i := range s.chunks {
		sum += int64(s.chunks[i].low.GetSizeInBytes()) + chunkOverhead
	}
	return sum
}
