package hotlog

import (
	"errors"
	"fmt"
	"io"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// window reads a file forward through a buffer that grows to the largest piece
// asked for.
type window struct {
	file  vfs.File
	size  int64
	buf   []byte
	start int64 // of buf in the file
}

const windowBytes = 1 << 20

// at returns n bytes from off, fewer at the end of the file; valid until the next call.
func (w *window) at(off int64, n int) ([]byte, error) {
	if left := w.size - off; int64(n) > left {
		n = int(max(left, 0))
	}
	if off >= w.start && off+int64(n) <= w.start+int64(len(w.buf)) {
		return w.buf[off-w.start:][:n], nil
	}
	length := int(min(int64(max(n, windowBytes)), w.size-off))
	if length <= 0 {
		return nil, nil
	}
	if cap(w.buf) < length {
		w.buf = make([]byte, length)
	}
	w.buf, w.start = w.buf[:length], off
	if m, err := w.file.ReadAt(w.buf, off); err != nil && (m < length || !errors.Is(err, io.EOF)) {
		w.buf = w.buf[:0]
		return nil, fmt.Errorf("hotlog: read at %d: %w", off, err)
	}
	return w.buf[:n], nil
}

// scanner rebuilds the summary of a segment from its groups.
type scanner struct {
	segment uint32
	seed    uint32
	w       window
	s       summary
	next    uint32 // sequence of the group expected next
	ended   bool   // the last group was an end group

	items []scanned // of the group being looked at
}

type scanned struct {
	record Record
	place  Place
}

// scan reads all groups of the segment in f. What comes after the last good group
// is left to the caller to judge: end tells where that is.
func scan(f vfs.File, segment, seed uint32) (*scanner, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	sc := &scanner{segment: segment, seed: seed, w: window{file: f, size: min(size, maxSegmentBytes)}, s: newSummary(), next: 1}
	for !sc.ended {
		ok, err := sc.group()
		if err != nil {
			return nil, err
		}
		if ok {
			continue
		}
		at, sequence, err := sc.later()
		if err != nil {
			return nil, err
		}
		if sequence == 0 {
			return sc, nil // torn, or simply the end
		}
		if err := sc.salvage(at); err != nil {
			return nil, err
		}
		sc.next = sequence
	}
	return sc, nil
}

// empty reports that the segment holds nothing at all.
func (sc *scanner) empty() bool { return sc.s.records == 0 && len(sc.s.damages) == 0 }

// group reads the group at s.end. It is taken whole or not at all.
func (sc *scanner) group() (ok bool, err error) {
	sc.items = sc.items[:0]
	start, off, crc, ended := sc.s.end, sc.s.end, sc.seed, false
	for frames := 0; ; frames++ {
		h, b, err := sc.frame(off)
		if err != nil || b == nil || h.sequence != sc.next || !h.payloadOK(b) {
			return false, err
		}
		if h.kind == kindCommit {
			if frames == 0 || !h.commitOK(b, start, frames, crc) {
				return false, nil
			}
			break
		}
		crc = checksum(crc, b[:h.headBytes()])
		if h.kind == KindEnd {
			ended = true
		} else if !sc.take(&h, b, off) {
			return false, nil
		}
		off += int64(h.paddedBytes())
	}
	for i := range sc.items {
		sc.s.add(&sc.items[i].record, sc.items[i].place)
	}
	sc.s.end = int64(alignBlock(int(off) + commitBytes))
	sc.next++
	sc.ended = ended
	return true, nil
}

// frame reads the frame at off; b is nil if there is none.
func (sc *scanner) frame(off int64) (h frameHeader, b []byte, err error) {
	b, err = sc.w.at(off, frameHeaderBytes)
	if err != nil {
		return h, nil, err
	}
	h, ok := decodeFrameHeader(b, sc.segment, sc.seed)
	if !ok || off+int64(h.paddedBytes()) > sc.w.size {
		return h, nil, nil
	}
	b, err = sc.w.at(off, frameHeaderBytes+h.payloadBytes)
	return h, b, err
}

// take notes the record of frame b in items; false if it cannot be told which it is.
func (sc *scanner) take(h *frameHeader, b []byte, off int64) bool {
	it := scanned{place: Place{Segment: sc.segment, Offset: uint32(off), Length: uint32(frameHeaderBytes + h.payloadBytes)}}
	it.record = Record{Kind: h.kind, Ledger: h.ledger}
	if h.kind == KindEntry {
		e, ok := h.envelope(b)
		if !ok {
			return false
		}
		it.record.Entry, it.record.Envelope = e.Entry, e
	} else {
		it.record.Data = append([]byte(nil), b[frameHeaderBytes:]...)
	}
	sc.items = append(sc.items, it)
	return true
}

// later looks for a frame of a later group than the one expected at a block boundary
// behind the end. Its sequence is 0 if there is none. A frame of the expected
// group itself proves nothing: the disk may have kept its later blocks alone.
func (sc *scanner) later() (at int64, sequence uint32, err error) {
	for off := sc.s.end + blockBytes; off < sc.w.size; off += blockBytes {
		b, err := sc.w.at(off, frameHeaderBytes)
		if err != nil {
			return 0, 0, err
		}
		if h, ok := decodeFrameHeader(b, sc.segment, sc.seed); ok && h.sequence > sc.next {
			return off, h.sequence, nil
		}
	}
	return 0, 0, nil
}

// tail tells how far bytes that are not zero go behind the end, and whether a frame of
// this segment is among them. Behind an end group nothing is ever written.
func (sc *scanner) tail() (bytes int64, ours bool, err error) {
	if sc.ended {
		return 0, false, nil
	}
	for off := sc.s.end; off < sc.w.size; off += blockBytes {
		b, err := sc.w.at(off, blockBytes+frameHeaderBytes)
		if err != nil {
			return 0, false, err
		}
		for i := min(len(b), blockBytes); i > 0; i-- {
			if b[i-1] != 0 {
				bytes = off + int64(i) - sc.s.end
				break
			}
		}
		for i := 0; i < min(len(b), blockBytes) && !ours; i += 8 {
			_, ours = decodeFrameHeader(b[i:], sc.segment, sc.seed)
		}
	}
	return bytes, ours, nil
}

// salvage goes through the damaged bytes from the end to limit, all of which was
// synced once. Frames whose identity is intact are kept: a rotten body then reads as
// ErrCorrupt, never as absent. What is left is noted as damage.
func (sc *scanner) salvage(limit int64) error {
	sc.items = sc.items[:0]
	lost := int64(-1) // where the present unreadable stretch began
	stretchEnds := func(off int64) {
		if lost >= 0 {
			sc.damaged(lost, off, 0)
			lost = -1
		}
	}
	off := sc.s.end
	for off < limit {
		h, b, err := sc.frame(off)
		if err != nil {
			return err
		}
		if b == nil || h.sequence < sc.next || off+int64(h.paddedBytes()) > limit {
			if lost < 0 {
				lost = off
			}
			off += 8
			continue
		}
		stretchEnds(off)
		next := off + int64(h.paddedBytes())
		switch {
		case h.kind == KindEnd:
		case h.kind == kindCommit:
			next = int64(alignBlock(int(next)))
		case h.kind == KindEntry && !sc.take(&h, b, off),
			h.kind != KindEntry && !(h.payloadOK(b) && sc.take(&h, b, off)):
			sc.damaged(off, next, h.ledger)
		}
		off = next
	}
	stretchEnds(limit)
	for i := range sc.items {
		sc.s.add(&sc.items[i].record, sc.items[i].place)
	}
	sc.s.end = limit
	return nil
}

func (sc *scanner) damaged(start, end int64, id ledger.ID) {
	sc.s.damages = append(sc.s.damages, Damage{Segment: sc.segment, Offset: uint32(start), Length: uint32(end - start), Ledger: id})
}
