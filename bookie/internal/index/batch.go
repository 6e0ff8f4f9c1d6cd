package index

import (
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Batch gathers changes that Apply makes visible at once, and that a crash
// keeps or loses together. They take effect in the order of the calls. The zero
// Batch is empty; not safe for concurrent use.
type Batch struct {
	ops []func(*change) error
}

// Empty reports a batch without changes.
func (b *Batch) Empty() bool { return len(b.ops) == 0 }

func (b *Batch) do(op func(*change) error) { b.ops = append(b.ops, op) }

// PutRecord sets the record of a ledger. A deleted ledger gets none.
func (b *Batch) PutRecord(r Record) { b.do(func(c *change) error { return c.putRecord(r) }) }

// Delete sets the tombstone of a ledger and removes its record, its extents and
// its damage. There is no way back: what later batches say of it is dropped.
func (b *Batch) Delete(id ledger.ID) { b.do(func(c *change) error { return c.delete(id) }) }

// PutExtent says that entries rest in a new place. It takes them over from any
// extent that had them, and they are no longer damaged.
func (b *Batch) PutExtent(e Extent) {
	b.do(func(c *change) error {
		return c.placeExtent(e, func(Extent) bool { return true }, true)
	})
}

// AddExtent says where entries rest, as far as no extent has them yet. For
// segments found on disk that the index did not know.
func (b *Batch) AddExtent(e Extent) {
	b.do(func(c *change) error {
		return c.placeExtent(e, func(Extent) bool { return false }, true)
	})
}

// MoveExtent says that entries were copied, as far as they still rest in one of
// the segments from. Entries that were deleted or put elsewhere since stay so.
func (b *Batch) MoveExtent(e Extent, from map[uint32]bool) {
	b.do(func(c *change) error {
		return c.placeExtent(e, func(old Extent) bool { return from[old.Segment] }, false)
	})
}

// PutSegment registers a segment. It belongs in the batch with its extents.
func (b *Batch) PutSegment(s Segment) { b.do(func(c *change) error { return c.putSegment(s) }) }

// DropSegment takes a segment out of the register, if no extent is left in it.
func (b *Batch) DropSegment(id uint32) { b.do(func(c *change) error { return c.dropSegment(id) }) }

// Damage notes entries that are here but cannot be read.
func (b *Batch) Damage(id ledger.ID, r ledger.EntryRange) {
	b.do(func(c *change) error { return c.damage(id, r) })
}

// Repaired takes back what Damage noted.
func (b *Batch) Repaired(id ledger.ID, r ledger.EntryRange) {
	b.do(func(c *change) error { return c.repaired(id, r) })
}

// SetNote sets a small named value; nil removes it.
func (b *Batch) SetNote(name string, value []byte) {
	value = append([]byte(nil), value...)
	b.do(func(c *change) error {
		key := append([]byte{prefixNote}, name...)
		if len(value) == 0 {
			return c.batch.Delete(key, nil)
		}
		return c.batch.Set(key, value, nil)
	})
}
