package index

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/cockroachdb/pebble/v2"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Apply makes the changes of b visible, all or, with an error, none. They are
// durable once a Flush that began afterwards has returned. The batch is not to
// be used again.
func (x *Index) Apply(b *Batch) error {
	x.apply.Lock()
	defer x.apply.Unlock()
	if err := x.flush.failure(); err != nil {
		return err
	}
	c := change{
		x:          x,
		batch:      x.db.NewIndexedBatch(),
		live:       make(map[uint32]Live),
		segments:   make(map[uint32]*Segment),
		damaged:    make(map[ledger.ID][]ledger.EntryRange),
		tombstones: make(tombstones),
	}
	for _, op := range b.ops {
		if err := op(&c); err != nil {
			return errors.Join(x.wrap("apply", err), c.batch.Close())
		}
	}
	if err := c.writeTombstones(); err != nil {
		return errors.Join(x.wrap("apply", err), c.batch.Close())
	}
	if err := c.batch.Commit(pebble.NoSync); err != nil {
		return x.wrap("apply", err)
	}
	x.flush.touch() // not before: a Flush in between would have taken the mark and not the batch
	x.publish(&c)
	return x.wrap("apply", c.batch.Close())
}

// change is a batch being resolved against the index: what goes to the engine,
// and what will change in memory once that has succeeded. Guarded by x.apply.
type change struct {
	x          *Index
	batch      *pebble.Batch
	live       map[uint32]Live // differences
	segments   map[uint32]*Segment
	damaged    map[ledger.ID][]ledger.EntryRange // new lists, nil: none left
	tombstones tombstones                        // chunks that changed, whole
}

// publish lets readers see what is kept in memory.
func (x *Index) publish(c *change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, d := range c.live {
		if l := x.live[id].plus(d.Bytes, d.Extents); l.Extents == 0 {
			delete(x.live, id)
		} else {
			x.live[id] = l
		}
	}
	for id, s := range c.segments {
		if s == nil {
			delete(x.segments, id)
		} else {
			x.segments[id] = *s
		}
	}
	for id, ranges := range c.damaged {
		if len(ranges) == 0 {
			delete(x.damaged, id)
		} else {
			x.damaged[id] = ranges
		}
	}
	maps.Copy(x.tombstones, c.tombstones)
}

// Readers of x's maps below need no lock: only publish writes them, under x.apply.

func (c *change) deleted(id ledger.ID) bool {
	return c.tombstones.has(id) || c.x.tombstones.has(id)
}

func (c *change) putRecord(r Record) error {
	if c.deleted(r.Ledger) {
		return nil
	}
	value := r.AppendTo(nil)
	if _, err := DecodeRecord(r.Ledger, value); err != nil {
		return err
	}
	return c.batch.Set(idKey(prefixRecord, int64(r.Ledger)), value, nil)
}

func (c *change) delete(id ledger.ID) error {
	if id < 1 {
		return fmt.Errorf("delete ledger %d: out of range", id)
	}
	extents, err := c.x.extents(c.batch, id, 0, math.MaxInt64)
	if err != nil {
		return err
	}
	for _, e := range extents {
		c.count(e, -1)
	}
	start, end := keysOf(prefixExtent, id)
	if len(extents) > 0 {
		if err := c.batch.DeleteRange(start, end, nil); err != nil {
			return err
		}
	}
	if err := c.setDamage(id, nil); err != nil {
		return err
	}
	chunk, low := chunkOf(id)
	b := c.tombstones[chunk]
	if b == nil {
		if old := c.x.tombstones[chunk]; old != nil {
			b = old.Clone()
		} else {
			b = roaring.New()
		}
		c.tombstones[chunk] = b
	}
	b.Add(low)
	return c.batch.Delete(idKey(prefixRecord, int64(id)), nil)
}

func (c *change) writeTombstones() error {
	for chunk, b := range c.tombstones {
		b.RunOptimize()
		value, err := b.ToBytes()
		if err != nil {
			return err
		}
		if err := c.batch.Set(idKey(prefixTombstones, chunk), value, nil); err != nil {
			return err
		}
	}
	return nil
}

// count notes that an extent came (+1) or went (−1).
func (c *change) count(e Extent, n int) {
	c.live[e.Segment] = c.live[e.Segment].plus(int64(n)*e.live(), n)
}

func (c *change) setExtent(e Extent) error {
	c.count(e, 1)
	return c.batch.Set(entryKey(prefixExtent, e.Ledger, e.First), encodeExtent(e), nil)
}

func (c *change) removeExtent(e Extent) error {
	c.count(e, -1)
	return c.batch.Delete(entryKey(prefixExtent, e.Ledger, e.First), nil)
}

// placeExtent enters the parts of e that it wins: from old extents where takes
// says so, and, with gaps, where there is none.
func (c *change) placeExtent(e Extent, takes func(old Extent) bool, gaps bool) error {
	if _, err := decodeExtent(entryKey(prefixExtent, e.Ledger, e.First), encodeExtent(e)); err != nil {
		return err
	}
	if c.deleted(e.Ledger) {
		return nil
	}
	olds, err := c.x.extents(c.batch, e.Ledger, e.First, e.Last)
	if err != nil {
		return err
	}
	var won []Extent
	at := e.First // up to here all is decided
	for _, old := range olds {
		if gap, ok := e.within(at, old.First-1); ok && gaps {
			won = append(won, gap)
		}
		shared, _ := e.within(old.First, old.Last)
		at = shared.Last + 1
		if !takes(old) {
			continue
		}
		won = append(won, shared)
		if err := c.removeExtent(old); err != nil {
			return err
		}
		for _, rest := range old.without(e.First, e.Last) {
			if err := c.setExtent(rest); err != nil {
				return err
			}
		}
	}
	if gap, ok := e.within(at, e.Last); ok && gaps {
		won = append(won, gap)
	}
	for _, part := range joined(won) {
		if err := c.setExtent(part); err != nil {
			return err
		}
	}
	if len(c.damageOf(e.Ledger)) > 0 && gaps {
		for _, part := range won {
			if err := c.repaired(e.Ledger, ledger.EntryRange{First: part.First, Last: part.Last}); err != nil {
				return err
			}
		}
	}
	return nil
}

// joined merges neighbouring parts of one extent.
func joined(parts []Extent) []Extent {
	var out []Extent
	for _, p := range parts {
		if n := len(out); n > 0 && out[n-1].Last+1 == p.First {
			out[n-1].Last = p.Last
			continue
		}
		out = append(out, p)
	}
	return out
}

func (c *change) putSegment(s Segment) error {
	value := encodeSegment(s)
	if _, err := decodeSegment(segmentKey(s.ID), value); err != nil {
		return err
	}
	c.segments[s.ID] = &s
	return c.batch.Set(segmentKey(s.ID), value, nil)
}

func (c *change) dropSegment(id uint32) error {
	if c.x.live[id].Extents+c.live[id].Extents > 0 {
		return nil
	}
	c.segments[id] = nil
	return c.batch.Delete(segmentKey(id), nil)
}

func (c *change) damageOf(id ledger.ID) []ledger.EntryRange {
	if ranges, ok := c.damaged[id]; ok {
		return ranges
	}
	return c.x.damaged[id]
}

func (c *change) damage(id ledger.ID, r ledger.EntryRange) error {
	if id < 1 || r.First < 0 || r.Last < r.First {
		return fmt.Errorf("damage of entries %d to %d of ledger %d: out of range", r.First, r.Last, id)
	}
	if c.deleted(id) {
		return nil
	}
	var list []ledger.EntryRange
	for _, old := range c.damageOf(id) {
		if old.Last+1 < r.First || r.Last+1 < old.First {
			list = append(list, old)
			continue
		}
		r = ledger.EntryRange{First: min(r.First, old.First), Last: max(r.Last, old.Last)}
	}
	return c.setDamage(id, append(list, r))
}

func (c *change) repaired(id ledger.ID, r ledger.EntryRange) error {
	var list []ledger.EntryRange
	for _, old := range c.damageOf(id) {
		if before := (ledger.EntryRange{First: old.First, Last: min(old.Last, r.First-1)}); before.First <= before.Last {
			list = append(list, before)
		}
		if after := (ledger.EntryRange{First: max(old.First, r.Last+1), Last: old.Last}); after.First <= after.Last {
			list = append(list, after)
		}
	}
	return c.setDamage(id, list)
}

// setDamage replaces the damage of a ledger.
func (c *change) setDamage(id ledger.ID, list []ledger.EntryRange) error {
	for _, old := range c.damageOf(id) {
		if err := c.batch.Delete(entryKey(prefixDamage, id, old.First), nil); err != nil {
			return err
		}
	}
	slices.SortFunc(list, func(a, b ledger.EntryRange) int {
		return bytes.Compare(entryKey(0, id, a.First), entryKey(0, id, b.First))
	})
	for _, r := range list {
		if err := c.batch.Set(entryKey(prefixDamage, id, r.First), encodeDamage(r.Last), nil); err != nil {
			return err
		}
	}
	c.damaged[id] = list
	return nil
}
