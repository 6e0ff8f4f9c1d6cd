package index

import (
	"encoding/binary"
	"math"

	"github.com/RoaringBitmap/roaring/v2"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// tombstones are the ids of deleted ledgers, kept for ever: a paused creator's
// first add may come at any time. By chunk of 65,536 ids, each a compressed bitmap
// of the low 16 bits: runs cost nothing, scattered ids two bytes each.
type tombstones map[int64]*roaring.Bitmap

func chunkOf(id ledger.ID) (chunk int64, low uint32) { return int64(id) >> 16, uint32(id) & 0xffff }

func (t tombstones) has(id ledger.ID) bool {
	chunk, low := chunkOf(id)
	b := t[chunk]
	return b != nil && b.Contains(low)
}

func (t tombstones) load(key, value []byte) error {
	if len(key) != 9 {
		return corrupt("tombstones", key, value)
	}
	chunk := int64(binary.BigEndian.Uint64(key[1:]))
	b := roaring.New()
	if err := b.UnmarshalBinary(value); err != nil {
		return corrupt("tombstones", key, value)
	}
	if b.Validate() != nil || b.IsEmpty() || b.Maximum() > math.MaxUint16 {
		return corrupt("tombstones", key, value)
	}
	t[chunk] = b
	return nil
}

// Deleted tells whether a ledger has a tombstone.
func (x *Index) Deleted(id ledger.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.tombstones.has(id)
}

// DeletedCount is the number of tombstones.
func (x *Index) DeletedCount() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var n uint64
	for _, b := range x.tombstones {
		n += b.GetCardinality()
	}
	return n
}

// DeletedLedgers calls fn for every ledger that has a tombstone, in no order.
// Apply waits until it is done.
func (x *Index) DeletedLedgers(fn func(ledger.ID)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for chunk, b := range x.tombstones {
		for it := b.Iterator(); it.HasNext(); {
			fn(ledger.ID(chunk<<16 | int64(it.Next())))
		}
	}
}
