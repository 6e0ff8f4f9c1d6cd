package hotlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// A segment file, little-endian throughout:
//
//	| header block 4096 | group | group | …   each group a multiple of 4096
//
// Header block: two copies, at 0 and at 2048, in sectors of their own:
//
//	| magic 8 | version 4 | segment 4 | seed 4 | crc 4 |
//
// with crc over the 20 bytes before it. These 24 bytes keep their form in every
// version, so that an older build can name a newer one.
//
// A group is what one sync covers, frames back to back, then zeros:
//
//	| frame | frame | … | commit frame | zeros to the next multiple of 4096 |
//
// A frame starts at a multiple of 8 and is padded with zeros to one:
//
//	| crc 4 | kind 1 | zero 3 | payloadBytes 4 | payloadCRC 4 | segment 4 | sequence 4 | ledger 8 | payload |
//
// crc is CRC-32C of the 28 bytes after it, started from the segment's seed, a
// random number that producers cannot know: no payload can pass for a frame.
// sequence counts the groups of a segment from 1; all frames of a group bear it.
// The payload of an entry is its envelope and body, and payloadCRC is the body's
// CRC out of the envelope, so bodies are not summed twice; for the other kinds it
// is the CRC of the payload. The commit frame's payload is
//
//	| group's offset 4 | frames before it 4 | crc 4 | zero 4 |
//
// with crc over the headers (and envelopes) of all frames of the group, seeded
// too; bodies come in through payloadCRC. The commit point is the return of the
// write that carries it.
//
// Replay takes groups in order of sequence. A group that does not check out is
// damage if a frame with a later sequence starts at a later block boundary (M29:
// that one was written only after this group's sync had returned); else it is a
// torn tail, never answered, and the segment ends before it. An end frame is the
// last one of a full segment and of a clean stop. No byte of a group is written
// twice in the life of a segment.
const (
	blockBytes       = vfs.Alignment
	headerCopyOffset = 2048
	headerCopyBytes  = 24
	frameHeaderBytes = 32
	commitBytes      = frameHeaderBytes + 16
	segmentVersion   = 1

	maxPayloadBytes = ledger.EnvelopeBytes + ledger.MaxBodyBytes
	entryHeadBytes  = frameHeaderBytes + ledger.EnvelopeBytes
)

var (
	segmentMagic = [8]byte{'M', 'G', 'N', 'H', 'L', 'O', 'G', '\n'}

	// ErrVersion reports a file written by a newer build. It is intact.
	ErrVersion = errors.New("hotlog: file of a newer version")
)

// align8 and alignBlock round up.
func align8(n int) int     { return (n + 7) &^ 7 }
func alignBlock(n int) int { return (n + blockBytes - 1) &^ (blockBytes - 1) }

// checksum is CRC-32C of b, going on from seed.
func checksum(seed uint32, b []byte) uint32 { return crc32.Update(seed, ledger.Castagnoli, b) }

// encodeHeader fills the first block of a segment file.
func encodeHeader(block []byte, segment, seed uint32) {
	clear(block[:blockBytes])
	for _, off := range []int{0, headerCopyOffset} {
		h := block[off : off+headerCopyBytes]
		copy(h, segmentMagic[:])
		binary.LittleEndian.PutUint32(h[8:], segmentVersion)
		binary.LittleEndian.PutUint32(h[12:], segment)
		binary.LittleEndian.PutUint32(h[16:], seed)
		binary.LittleEndian.PutUint32(h[20:], checksum(0, h[:20]))
	}
}

// decodeHeader reads the seed out of the first block of the file of segment;
// either copy will do. ErrVersion: a newer build wrote it. ErrCorrupt: neither
// copy is this segment's header.
func decodeHeader(block []byte, segment uint32) (seed uint32, err error) {
	err = fmt.Errorf("hotlog: header of segment %d: %w", segment, ledger.ErrCorrupt)
	for _, off := range []int{0, headerCopyOffset} {
		if len(block) < off+headerCopyBytes {
			break
		}
		h := block[off : off+headerCopyBytes]
		if [8]byte(h[:8]) != segmentMagic {
			continue
		}
		if checksum(0, h[:20]) == binary.LittleEndian.Uint32(h[20:]) {
			if v := binary.LittleEndian.Uint32(h[8:]); v != segmentVersion {
				return 0, versionError("segment", segment, v, segmentVersion)
			}
			if binary.LittleEndian.Uint32(h[12:]) == segment {
				return binary.LittleEndian.Uint32(h[16:]), nil
			}
		}
	}
	return 0, err
}

func versionError(what string, segment, got, reads uint32) error {
	return fmt.Errorf("%w: %s %d has version %d, this build reads up to %d", ErrVersion, what, segment, got, reads)
}

// frameHeader is a decoded frame header whose checksum was right.
type frameHeader struct {
	kind         Kind
	payloadBytes int
	payloadCRC   uint32
	sequence     uint32
	ledger       ledger.ID
}

// paddedBytes is what the frame takes in the file.
func (h *frameHeader) paddedBytes() int { return align8(frameHeaderBytes + h.payloadBytes) }

// put writes h to the start of b.
func (h *frameHeader) put(b []byte, segment, seed uint32) {
	_ = b[frameHeaderBytes-1]
	binary.LittleEndian.PutUint32(b[4:], uint32(h.kind))
	binary.LittleEndian.PutUint32(b[8:], uint32(h.payloadBytes))
	binary.LittleEndian.PutUint32(b[12:], h.payloadCRC)
	binary.LittleEndian.PutUint32(b[16:], segment)
	binary.LittleEndian.PutUint32(b[20:], h.sequence)
	binary.LittleEndian.PutUint64(b[24:], uint64(h.ledger))
	binary.LittleEndian.PutUint32(b[0:], checksum(seed, b[4:frameHeaderBytes]))
}

// decodeFrameHeader reads the frame header at the start of b. It is not ok unless the
// checksum is right, the segment is this one and all fields are in range.
func decodeFrameHeader(b []byte, segment, seed uint32) (h frameHeader, ok bool) {
	if len(b) < frameHeaderBytes || binary.LittleEndian.Uint32(b[16:]) != segment ||
		checksum(seed, b[4:frameHeaderBytes]) != binary.LittleEndian.Uint32(b) {
		return h, false
	}
	n := binary.LittleEndian.Uint32(b[8:])
	h = frameHeader{
		kind:       Kind(b[4]),
		payloadCRC: binary.LittleEndian.Uint32(b[12:]),
		sequence:   binary.LittleEndian.Uint32(b[20:]),
		ledger:     ledger.ID(binary.LittleEndian.Uint64(b[24:])),
	}
	if n > maxPayloadBytes || b[5]|b[6]|b[7] != 0 || h.sequence == 0 || h.ledger < 0 {
		return h, false
	}
	h.payloadBytes = int(n)
	switch h.kind {
	case KindEntry:
		ok = n >= ledger.EnvelopeBytes && h.ledger > 0
	case KindFence, KindTombstone, KindLedger:
		ok = true
	case KindEnd:
		ok = n == 0
	case kindCommit:
		ok = n == commitBytes-frameHeaderBytes
	}
	return h, ok
}

// headBytes is how much of a frame the commit frame's checksum covers.
func (h *frameHeader) headBytes() int {
	if h.kind == KindEntry {
		return entryHeadBytes
	}
	return frameHeaderBytes
}

// envelope decodes the envelope of an entry's frame b and checks that it is the
// one the header was written for.
func (h *frameHeader) envelope(b []byte) (ledger.Envelope, bool) {
	if len(b) < entryHeadBytes {
		return ledger.Envelope{}, false
	}
	e, err := ledger.DecodeEnvelope(b[frameHeaderBytes:entryHeadBytes])
	ok := err == nil && e.Ledger == h.ledger && e.BodyCRC == h.payloadCRC &&
		int(e.BodyBytes) == h.payloadBytes-ledger.EnvelopeBytes
	return e, ok
}

// payloadOK checks the checksum of the body, or of the data, of the frame b.
func (h *frameHeader) payloadOK(b []byte) bool {
	end := frameHeaderBytes + h.payloadBytes
	return len(b) >= end && checksum(0, b[h.headBytes():end]) == h.payloadCRC
}

// putCommit writes the commit frame of a group.
func putCommit(b []byte, segment, seed, sequence, offset uint32, frames int, crc uint32) {
	p := b[frameHeaderBytes:commitBytes]
	binary.LittleEndian.PutUint32(p[0:], offset)
	binary.LittleEndian.PutUint32(p[4:], uint32(frames))
	binary.LittleEndian.PutUint32(p[8:], crc)
	binary.LittleEndian.PutUint32(p[12:], 0)
	h := frameHeader{kind: kindCommit, payloadBytes: len(p), payloadCRC: checksum(0, p), sequence: sequence}
	h.put(b, segment, seed)
}

// commitOK checks that the commit frame b closes the group at offset with so many frames.
func (h *frameHeader) commitOK(b []byte, offset int64, frames int, crc uint32) bool {
	if !h.payloadOK(b) {
		return false
	}
	p := b[frameHeaderBytes:commitBytes]
	return int64(binary.LittleEndian.Uint32(p)) == offset && binary.LittleEndian.Uint32(p[4:]) == uint32(frames) &&
		binary.LittleEndian.Uint32(p[8:]) == crc && binary.LittleEndian.Uint32(p[12:]) == 0
}

// decodeEntry makes the entry of a frame read from segment, all checksums checked. With
// head true, frame may be cut short anywhere in the body, which is not checked then.
// Body shares memory with frame.
func decodeEntry(frame []byte, segment, seed uint32, head bool) (ledger.Entry, error) {
	h, ok := decodeFrameHeader(frame, segment, seed)
	if !ok || h.kind != KindEntry {
		return ledger.Entry{}, fmt.Errorf("hotlog: frame in segment %d: %w", segment, ledger.ErrCorrupt)
	}
	e, ok := h.envelope(frame)
	if !ok {
		return ledger.Entry{}, fmt.Errorf("hotlog: envelope in segment %d, ledger %d: %w", segment, h.ledger, ledger.ErrCorrupt)
	}
	end := min(len(frame), frameHeaderBytes+h.payloadBytes)
	entry := ledger.Entry{Envelope: e, Body: frame[entryHeadBytes:end:end]}
	if head {
		return entry, nil
	}
	if err := entry.Check(e.Ledger, e.Entry); err != nil {
		return ledger.Entry{}, fmt.Errorf("hotlog: segment %d: %w", segment, err)
	}
	return entry, nil
}
