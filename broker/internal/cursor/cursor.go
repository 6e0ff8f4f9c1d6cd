// Package cursor keeps what a subscription has acknowledged: a mark-delete
// position, the entries beyond it, and parts of batches. It is pure: it touches
// no clock, file or network, and it is told where the ledgers of the topic begin
// and end.
//
// Nothing is ever truncated. A cursor with millions of holes costs about a bit
// for each entry it spans; who wants a bound on that stops handing out entries
// when Bytes passes it.
package cursor

import (
	"maps"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Chain is the arithmetic of the ledgers behind a topic, as of now. A place that
// lies in ledgers trimmed away counts as the first place after them.
type Chain interface {
	// After returns the place of the first entry after p: where it stands or,
	// when p is the last, where the next one will.
	After(p position.Position) position.Position
	// Entries counts the entries in from <= position < to.
	Entries(from, to position.Position) int64
}

// Cursor is the progress of one subscription. Not safe for concurrent use.
//
// Invariants: everything up to and including mark is acknowledged; acked and
// partial hold only positions after mark, and none is in both; an entry in
// partial has at least one message that is not acknowledged. Within one epoch
// acknowledged never becomes unacknowledged.
type Cursor struct {
	mark     position.Position
	acked    position.Set
	partial  map[position.Position]Bits
	partials position.Set // the keys of partial
	words    int64        // in partial
	epoch    uint64
	changes  *changes // nil: none
}

// changes is what happened since the last TakeDelta. What mark covers by now
// need not be in acked and partial.
type changes struct {
	acked   position.Set
	partial position.Set
}

// changed is where to note a change.
func (c *Cursor) changed() *changes {
	if c.changes == nil {
		c.changes = &changes{}
	}
	return c.changes
}

// New returns a cursor for which everything up to and including mark is
// acknowledged.
func New(mark position.Position) *Cursor { return &Cursor{mark: mark} }

// Clone returns a cursor that stands where c does; it has nothing for TakeDelta.
func (c *Cursor) Clone() *Cursor {
	return &Cursor{
		mark: c.mark, epoch: c.epoch, acked: c.acked.Clone(),
		partial: maps.Clone(c.partial), partials: c.partials.Clone(), words: c.words, // no Bits are altered in place
	}
}

// MarkDelete is the position up to which, itself included, all is acknowledged.
func (c *Cursor) MarkDelete() position.Position { return c.mark }

// Last is the last position of which the cursor knows anything.
func (c *Cursor) Last() position.Position {
	last := c.mark
	if p, ok := c.acked.Max(); ok {
		last = position.Max(last, p)
	}
	if p, ok := c.partials.Max(); ok {
		last = position.Max(last, p)
	}
	return last
}

// Epoch rises with each seek. What was delivered in an earlier epoch says nothing
// about this one.
func (c *Cursor) Epoch() uint64 { return c.epoch }

// Holes counts the entries acknowledged beyond the mark-delete position.
func (c *Cursor) Holes() int64 { return c.acked.Len() }

// Acked reports whether the whole entry at p is acknowledged.
func (c *Cursor) Acked(p position.Position) bool {
	return p.Compare(c.mark) <= 0 || c.acked.Contains(p)
}

// Remaining returns which messages of the entry at p are still unacknowledged;
// nil: all of them, if the entry is not Acked. The caller does not alter it.
func (c *Cursor) Remaining(p position.Position) Bits { return c.partial[p] }

// Ack acknowledges the entry at p and reports whether it was not before.
func (c *Cursor) Ack(chain Chain, p position.Position) bool {
	if c.Acked(p) || p.Entry < 0 || p.Ledger < 1 {
		return false
	}
	ch := c.changed()
	if p == chain.After(c.mark) {
		c.mark = p
		c.advance(chain)
		return true
	}
	c.acked.Add(p)
	ch.acked.Add(p)
	c.forgetPartial(p)
	return true
}

// AckPart acknowledges the messages of the entry at p whose bits in remaining
// are 0. It reports whether that changed anything, and whether the entry is
// whole now.
func (c *Cursor) AckPart(chain Chain, p position.Position, remaining Bits) (changed, whole bool) {
	if c.Acked(p) {
		return false, true
	}
	old, known := c.partial[p]
	left := remaining.trimmed()
	if known {
		left = old.and(remaining)
	}
	if len(left) == 0 {
		c.Ack(chain, p)
		return true, true
	}
	if known && left.equal(old) || p.Entry < 0 || p.Ledger < 1 {
		return false, false
	}
	c.setPartial(p, left.clone())
	c.changed().partial.Add(p)
	return true, false
}

// AckCumulative acknowledges everything up to and including p and reports
// whether any of it was not before.
func (c *Cursor) AckCumulative(chain Chain, p position.Position) bool {
	if p.Compare(c.mark) <= 0 {
		return false
	}
	c.mark = p
	c.changed()
	c.advance(chain)
	return true
}

// AckCumulativePart acknowledges everything before p, and of the entry at p the
// messages whose bits in remaining are 0.
func (c *Cursor) AckCumulativePart(chain Chain, p position.Position, remaining Bits) bool {
	before := c.AckCumulative(chain, p.Prev())
	changed, _ := c.AckPart(chain, p, remaining)
	return before || changed
}

// Seek forgets everything acknowledged after mark and acknowledges everything up
// to it; of the entry after mark, first, the messages whose bits in remaining
// are 0 are acknowledged too, unless remaining is nil. It begins a new epoch.
func (c *Cursor) Seek(mark, first position.Position, remaining Bits) {
	*c = Cursor{mark: mark, epoch: c.epoch + 1}
	if left := remaining.trimmed(); len(left) > 0 {
		c.setPartial(first, left.clone())
	}
}

// Settle lets the cursor take note that the chain has changed: that ledgers were
// trimmed, or that one ended where everything in it is acknowledged.
func (c *Cursor) Settle(chain Chain) { c.advance(chain) }

// Backlog counts the entries up to and including last that are not wholly
// acknowledged.
func (c *Cursor) Backlog(chain Chain, last position.Position) int64 {
	c.advance(chain)
	return max(0, chain.Entries(chain.After(c.mark), last.Next())-c.acked.Len())
}

// NextUnacked returns the first place at or after p where an entry that is not
// wholly acknowledged stands, or will stand.
func (c *Cursor) NextUnacked(chain Chain, p position.Position) position.Position {
	p = position.Max(p, chain.After(c.mark))
	for {
		first, last, ok := c.acked.RunFrom(p)
		if !ok || first != p {
			return p
		}
		p = chain.After(position.Position{Ledger: p.Ledger, Entry: last})
	}
}

// UnackedBefore returns the entries before end that are not wholly acknowledged.
func (c *Cursor) UnackedBefore(chain Chain, end position.Position) position.Set {
	var out position.Set
	for p := chain.After(c.mark); p.Before(end); {
		last := end.Entry - 1
		if p.Ledger != end.Ledger {
			n := chain.Entries(p, position.BeforeLedger(p.Ledger+1))
			last = p.Entry + ledger.EntryID(n) - 1
		}
		if last < p.Entry {
			break
		}
		out.AddRange(p.Ledger, p.Entry, last)
		p = chain.After(position.Position{Ledger: p.Ledger, Entry: last})
	}
	out.Subtract(&c.acked)
	return out
}

// Bytes is about what the cursor takes in memory beyond its fixed size.
func (c *Cursor) Bytes() int64 {
	const mapEntry = 80
	changed := int64(0)
	if c.changes != nil {
		changed = c.changes.acked.Bytes()
	}
	return c.acked.Bytes() + changed + c.partials.Bytes() + c.words*8 + int64(len(c.partial))*mapEntry
}

// Exceeds reports whether Bytes is above limit, at next to no cost while it is
// far below.
func (c *Cursor) Exceeds(limit int64) bool {
	const mostPerEntry = 512 // where each stands in a ledger of its own, and is news as well
	if (c.acked.Len()+int64(len(c.partial)))*mostPerEntry+c.words*8 <= limit {
		return false
	}
	return c.Bytes() > limit
}

// advance moves mark over the entries that follow it and are acknowledged, and
// forgets what lies behind it.
func (c *Cursor) advance(chain Chain) {
	next := c.mark
	if c.acked.Len() > 0 || c.partials.Len() > 0 {
		next = chain.After(c.mark)
		for {
			first, last, ok := c.acked.RunFrom(next)
			if !ok || first != next {
				break
			}
			c.mark = position.Position{Ledger: first.Ledger, Entry: last}
			next = chain.After(c.mark)
		}
		next = next.Prev() // more than mark where ledgers were trimmed
	}
	c.forgetThrough(next)
}

// forgetThrough drops what is known of entries up to and including p.
func (c *Cursor) forgetThrough(p position.Position) {
	if first, ok := c.acked.Min(); ok && first.Compare(p) <= 0 {
		c.acked.RemoveThrough(p)
	}
	for {
		first, ok := c.partials.Min()
		if !ok || first.Compare(p) > 0 {
			return
		}
		c.forgetPartial(first)
	}
}

func (c *Cursor) setPartial(p position.Position, left Bits) {
	if c.partial == nil {
		c.partial = map[position.Position]Bits{}
	}
	c.words += int64(len(left) - len(c.partial[p]))
	c.partial[p] = left
	c.partials.Add(p)
}

func (c *Cursor) forgetPartial(p position.Position) {
	old, known := c.partial[p]
	if !known {
		return
	}
	c.words -= int64(len(old))
	delete(c.partial, p)
	if c.changes != nil {
		c.changes.partial.Remove(p)
	}
	c.partials.Remove(p)
	if len(c.partial) == 0 {
		c.partial = nil
	}
}
