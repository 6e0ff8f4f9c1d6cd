package coldstore

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// readAheadBytes is the least that is read from disk at once when the entries
// asked for go on so far.
const readAheadBytes = 256 << 10

// defaultRunBytes is how much ReadRun gives when no bound is asked for.
const defaultRunBytes = 1 << 20

// Read returns one entry. ErrNoEntry: the index surely has it in no segment.
// ErrCorrupt: it is here and damaged. Any other error means unknown: ErrUnknown that
// the disk does not give it.
func (s *Store) Read(id ledger.ID, e ledger.EntryID) (ledger.Entry, error) {
	var entry ledger.Entry
	err := s.locate(id, e, func(seg *segment, r *run, _ ledger.EntryID) error {
		i := seg.file.table.blockOf(r, e)
		b, err := s.block(seg, r, i)
		if err != nil {
			return err
		}
		b, err = skipTo(b, r.first+ledger.EntryID(seg.file.table.blocks[i].skip), e)
		if err != nil {
			return err
		}
		stored, _, err := splitEntry(b)
		if err != nil {
			return err
		}
		// Whoever keeps the entry must not keep a block for it.
		entry, err = decodeEntry(bytes.Clone(stored), id, e)
		return err
	})
	if err != nil {
		return ledger.Entry{}, fmt.Errorf("entry %d of ledger %d: %w", e, id, err)
	}
	s.metrics.readEntries.Inc()
	return entry, nil
}

// ReadRun returns entry first and those that follow it without a gap, up to last
// and up to maxBytes of envelopes and bodies (0: 1 MiB), but at least one. It stops
// early before an entry that is not here or cannot be read; errors, as for Read,
// are about first. A long run is read with few large reads, and what is read too
// much is kept for the next call. Bodies may share memory with each other.
func (s *Store) ReadRun(id ledger.ID, first, last ledger.EntryID, maxBytes int) ([]ledger.Entry, error) {
	if maxBytes <= 0 {
		maxBytes = defaultRunBytes
	}
	out := runBuilder{left: maxBytes}
	for e := first; e <= last && !out.full; e = first + ledger.EntryID(len(out.entries)) {
		err := s.locate(id, e, func(seg *segment, r *run, end ledger.EntryID) error {
			return s.readRun(seg, r, e, min(last, end), &out)
		})
		if err != nil {
			if len(out.entries) > 0 {
				break
			}
			return nil, fmt.Errorf("entry %d of ledger %d: %w", first, id, err)
		}
	}
	s.metrics.readEntries.Add(float64(len(out.entries)))
	return out.entries, nil
}

// runBuilder gathers entries up to a number of bytes.
type runBuilder struct {
	entries []ledger.Entry
	left    int // bytes that may still be added
	full    bool
}

// add takes an entry, or notes that there is no room.
func (o *runBuilder) add(e ledger.Entry) {
	size := ledger.EnvelopeBytes + len(e.Body)
	if size > o.left && len(o.entries) > 0 {
		o.full = true
		return
	}
	o.entries = append(o.entries, e)
	o.left -= size
	o.full = o.left <= 0
}

// locate finds where entry e rests and calls use with the run that holds it, and
// with the last entry up to which the run counts.
//
// A compaction may remove the segment between the look into the index and the
// look into the set. By then the index names the new place, so the second look
// finds it. The index naming the same missing segment twice is damage.
func (s *Store) locate(id ledger.ID, e ledger.EntryID, use func(seg *segment, r *run, end ledger.EntryID) error) error {
	for missing := uint32(0); ; {
		x, ok, err := s.index.Extent(id, e)
		if err != nil {
			return err
		}
		if !ok {
			return ledger.ErrNoEntry
		}
		seg, err := s.acquire(x.Segment)
		switch {
		case errors.Is(err, errGone) && x.Segment != missing:
			missing = x.Segment
			continue
		case errors.Is(err, errGone):
			return corrupt("segment %d is missing", x.Segment)
		case err != nil:
			return err
		}
		defer s.release(seg)
		r, err := runOf(seg, x)
		if err != nil {
			return err
		}
		return use(seg, r, x.Last)
	}
}

// runOf finds the run an extent names, and checks that it holds the extent.
func runOf(seg *segment, x index.Extent) (*run, error) {
	r, ok := seg.file.table.runAt(x.Offset)
	if !ok || r.ledger != x.Ledger || x.First < r.first || r.last() < x.Last {
		return nil, corrupt("segment %d has no entries %d to %d of ledger %d at %d", seg.id, x.First, x.Last, x.Ledger, x.Offset)
	}
	return r, nil
}

// block returns the entries of block i, checked, from the cache or the disk.
func (s *Store) block(seg *segment, r *run, i int) ([]byte, error) {
	k := seg.file.table.blocks[i]
	key := blockKey{seg.id, k.offset}
	if b, ok := s.cache.get(key); ok {
		s.metrics.cacheHits.Inc()
		return b, nil
	}
	b, err := s.read(seg, i, i+1)
	if err != nil {
		return nil, err
	}
	if err := checkBlock(b, seg.id, r, k); err != nil {
		s.setDamaged(seg, err)
		return nil, err
	}
	b = b[blockHeaderBytes:]
	s.cache.put(key, b)
	return b, nil
}

// read is the only way reads reach the disk; scan goes beside it, for background work.
func (s *Store) read(seg *segment, start, end int) ([]byte, error) {
	b, err := seg.file.read(start, end)
	s.metrics.reads.Inc()
	s.metrics.readBytes.Add(float64(len(b)))
	if errors.Is(err, ledger.ErrCorrupt) {
		s.setDamaged(seg, err)
	}
	return b, err
}

// readRun adds entries first to last, all of r, to out until it is full. An
// error that is not about the first entry added ends the run.
func (s *Store) readRun(seg *segment, r *run, first, last ledger.EntryID, out *runBuilder) error {
	t := seg.file.table
	end := t.blockOf(r, last) + 1
	for i := t.blockOf(r, first); i < end && !out.full; {
		if b, ok := s.cache.get(blockKey{seg.id, t.blocks[i].offset}); ok {
			s.metrics.cacheHits.Inc()
			if _, err := addEntries(b, r, t.blocks[i], first, last, out); err != nil {
				return err
			}
			i++
			continue
		}
		n := s.uncached(seg, i, end, max(out.left, readAheadBytes))
		b, err := s.read(seg, i, i+n)
		if err != nil && n > 1 { // perhaps what is behind is at fault
			n = 1
			b, err = s.read(seg, i, i+1)
		}
		if err != nil {
			return err
		}
		for ; n > 0; i, n = i+1, n-1 {
			k := t.blocks[i]
			data := b[:k.bytes:k.bytes]
			b = b[k.bytes:]
			if err := checkBlock(data, seg.id, r, k); err != nil {
				s.setDamaged(seg, err)
				if out.full {
					return nil // only read ahead
				}
				return err
			}
			data = data[blockHeaderBytes:]
			whole := false
			if !out.full {
				if whole, err = addEntries(data, r, k, first, last, out); err != nil {
					return err
				}
			}
			if !whole && s.cache.fits(len(data)) { // the next call will want it
				s.cache.put(blockKey{seg.id, k.offset}, bytes.Clone(data))
			}
		}
	}
	return nil
}

// uncached is how many blocks to read at once from i on, up to one in the cache.
func (s *Store) uncached(seg *segment, i, end, want int) int {
	n := seg.file.neighbours(i, end, want)
	for j := 1; j < n; j++ {
		if s.cache.has(blockKey{seg.id, seg.file.table.blocks[i+j].offset}) {
			return j
		}
	}
	return n
}

// addEntries adds those entries of a block that are within first to last. It
// reports whether the last one of the block was among them.
func addEntries(b []byte, r *run, k block, first, last ledger.EntryID, out *runBuilder) (whole bool, err error) {
	start := r.first + ledger.EntryID(k.skip)
	end := start + ledger.EntryID(k.count) - 1
	if b, err = skipTo(b, start, max(start, first)); err != nil {
		return false, err
	}
	err = eachEntry(b, r.ledger, max(start, first), min(end, last), func(e ledger.Entry, err error) error {
		if err != nil {
			return err
		}
		before := len(out.entries)
		out.add(e)
		whole = len(out.entries) > before && e.Envelope.Entry == end
		if out.full {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return whole, err
}

// skipTo cuts the entries before e off b, which starts with entry first.
func skipTo(b []byte, first, e ledger.EntryID) ([]byte, error) {
	for ; first < e; first++ {
		var err error
		if _, b, err = splitEntry(b); err != nil {
			return nil, err
		}
	}
	return b, nil
}
