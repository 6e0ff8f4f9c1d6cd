package hotlog

import (
	"errors"
	"fmt"
	"io"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

const (
	// maxSpanBytes bounds what one read of several entries takes, unless one entry is larger.
	maxSpanBytes = 1 << 20
	// maxGapBytes is read for nothing between two entries rather than reading twice. It
	// spans the end of a group.
	maxGapBytes = 8 << 10
)

// located is an entry and where it is.
type located struct {
	id    ledger.ID
	entry ledger.EntryID
	place Place
}

// Lookup tells where an entry is. False is no proof of absence: the caller also asks
// the cold store and Damages.
func (l *Log) Lookup(id ledger.ID, e ledger.EntryID) (Place, bool) {
	l.segments.mu.RLock()
	defer l.segments.mu.RUnlock()
	return l.segments.index.find(id, e)
}

// Read reads the entry at p, from memory while it is recent, and checks the
// checksums of frame, envelope and body. Which entry it is the caller compares.
// ErrRecycled: look it up again. ErrCorrupt: it is lost here. ErrUnknown: the disk
// did not answer.
func (l *Log) Read(p Place) (ledger.Entry, error) {
	s, err := l.segments.acquire(p.Segment)
	if err != nil {
		return ledger.Entry{}, err
	}
	defer s.readers.Done()
	b, ok := l.tail.copyOut(p, int(p.Length))
	if !ok {
		if b, err = s.read(p.Offset, int(p.Length)); err != nil {
			return ledger.Entry{}, err
		}
	}
	return decodeEntry(b, s.id, s.seed, false)
}

// ReadEntry reads entry e of id, and checks that it is that one. ErrNoEntry: not in
// the index. Else as Read.
func (l *Log) ReadEntry(id ledger.ID, e ledger.EntryID) (ledger.Entry, error) {
	got, err := l.ReadRun(id, e, e, 0, 0, nil)
	if err != nil {
		return ledger.Entry{}, err
	}
	return got[0], nil
}

// ReadRun appends entries first, first+1 … of id to dst: up to last, to the first one
// that is not in the index or cannot be read, or until their bodies reach maxBytes;
// at least one. Neighbours on disk are read together. headBytes above 0: only so much
// of each body, whose checksum is then not checked; 0: all.
//
// An error is about first, as for ReadEntry; dst is then returned as it came.
func (l *Log) ReadRun(id ledger.ID, first, last ledger.EntryID, maxBytes, headBytes int, dst []ledger.Entry) ([]ledger.Entry, error) {
	list := l.locate(id, first, last, maxBytes, headBytes)
	if len(list) == 0 {
		return dst, fmt.Errorf("hotlog: entry %d of ledger %d: %w", first, id, ledger.ErrNoEntry)
	}
	had := len(dst)
	err := l.readAll(list, headBytes, func(_ located, e ledger.Entry, err error) error {
		if err == nil {
			dst = append(dst, e)
		}
		return err
	})
	if err != nil && len(dst) == had {
		return dst, err
	}
	return dst, nil
}

// locate lists where a run of entries is, as far as it goes.
func (l *Log) locate(id ledger.ID, first, last ledger.EntryID, maxBytes, headBytes int) []located {
	l.segments.mu.RLock()
	defer l.segments.mu.RUnlock()
	var list []located
	for e, bytes := first, 0; e <= last; e++ {
		p, ok := l.segments.index.find(id, e)
		if !ok {
			break
		}
		n := wanted(p, headBytes) - entryHeadBytes
		if len(list) > 0 && bytes+n > maxBytes {
			break
		}
		bytes += n
		list = append(list, located{id, e, p})
	}
	return list
}

// wanted is how much of a frame has to be read.
func wanted(p Place, headBytes int) int {
	if headBytes > 0 {
		return min(int(p.Length), entryHeadBytes+headBytes)
	}
	return int(p.Length)
}

// readAll reads the entries of list in its order and yields each, or the error it
// has; an error that yield returns ends it.
func (l *Log) readAll(list []located, headBytes int, yield func(located, ledger.Entry, error) error) error {
	for len(list) > 0 {
		n := spanLength(list, headBytes)
		if err := l.readSpan(list[:n], headBytes, yield); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// spanLength is how many entries at the start of list are worth reading at once.
func spanLength(list []located, headBytes int) int {
	first, gaps := list[0].place, 0
	end := int(first.Offset) + wanted(first, headBytes)
	for i := 1; i < len(list); i++ {
		p := list[i].place
		gap := int(p.Offset) - end
		if p.Segment != first.Segment || gap < 0 || gap > maxGapBytes {
			return i
		}
		next := int(p.Offset) + wanted(p, headBytes)
		// The gaps stay in memory as long as any of the bodies: at most a third of it.
		if gaps += gap; next-int(first.Offset) > maxSpanBytes || gaps > max(maxGapBytes, (next-int(first.Offset))/3) {
			return i
		}
		end = next
	}
	return len(list)
}

// readSpan reads neighbours of one segment: each from the tail, or all with one read.
func (l *Log) readSpan(span []located, headBytes int, yield func(located, ledger.Entry, error) error) error {
	s, err := l.segments.acquire(span[0].place.Segment)
	if err != nil {
		return yield(span[0], ledger.Entry{}, err)
	}
	defer s.readers.Done()
	base := span[0].place.Offset
	var buf []byte
	for _, at := range span {
		n := wanted(at.place, headBytes)
		b, ok := l.tail.copyOut(at.place, n)
		if !ok && buf == nil {
			end := span[len(span)-1].place
			length := int(end.Offset-base) + wanted(end, headBytes)
			if buf, err = s.read(base, length); err != nil {
				buf = nil
				if b, err = s.read(at.place.Offset, n); err != nil {
					if err := yield(at, ledger.Entry{}, err); err != nil {
						return err
					}
					continue
				}
				ok = true
			}
		}
		if !ok {
			start := int(at.place.Offset - base)
			b = buf[start : start+n : start+n]
		}
		e, err := decodeEntry(b, s.id, s.seed, headBytes > 0)
		if err == nil && (e.Envelope.Ledger != at.id || e.Envelope.Entry != at.entry) {
			err = fmt.Errorf("hotlog: segment %d: entry %d of ledger %d where entry %d of ledger %d should be: %w",
				s.id, e.Envelope.Entry, e.Envelope.Ledger, at.entry, at.id, ledger.ErrCorrupt)
		}
		if err := yield(at, e, err); err != nil {
			return err
		}
	}
	return nil
}

// read reads n bytes of the segment from the disk. The caller has acquired it.
func (s *segmentFile) read(offset uint32, n int) ([]byte, error) {
	b := make([]byte, n)
	m, err := s.file.ReadAt(b, int64(offset))
	switch {
	case m == n:
		return b, nil
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("hotlog: segment %d ends before %d: %w", s.id, int64(offset)+int64(n), ledger.ErrCorrupt)
	}
	return nil, fmt.Errorf("hotlog: read segment %d at %d: %w: %w", s.id, offset, ledger.ErrUnknown, err)
}

// UnreadableBlocks lists the blocks under the frame at p that the disk does not give, by
// their offset in the segment, up to limit of them. ErrRecycled, ErrStopping.
func (l *Log) UnreadableBlocks(p Place, limit int) ([]int64, error) {
	s, err := l.segments.acquire(p.Segment)
	if err != nil {
		return nil, err
	}
	defer s.readers.Done()
	var bad []int64
	end := int64(p.Offset) + int64(p.Length)
	for off := int64(p.Offset) &^ (blockBytes - 1); off < end && len(bad) < limit; off += blockBytes {
		start := max(off, int64(p.Offset))
		if _, err := s.read(uint32(start), int(min(off+blockBytes, end)-start)); err != nil {
			bad = append(bad, off)
		}
	}
	return bad, nil
}
