package position

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/RoaringBitmap/roaring/v2"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// ErrCorrupt reports bytes that are no encoded position or set.
var ErrCorrupt = errors.New("position: corrupt")

// An encoded position is two unsigned varints: the ledger, and the entry plus
// one, so that NoEntry is 0. Start is ledger 0 and entry 0.
//
// An encoded set is a varint count of chunks, then for each of them, in rising
// order: ledger, upper 32 bits of the entry ids, byte count, and the lower 32
// bits of the ids as a roaring bitmap in the portable format.

// Append encodes p.
func Append(dst []byte, p Position) []byte {
	if p.IsStart() {
		return append(dst, 0, 0)
	}
	dst = binary.AppendUvarint(dst, uint64(p.Ledger))
	return binary.AppendUvarint(dst, uint64(p.Entry+1))
}

// Cut decodes a position at the start of b and returns what follows it.
func Cut(b []byte) (Position, []byte, error) {
	id, b, err := CutUvarint(b)
	if err != nil {
		return Start, nil, err
	}
	entry, b, err := CutUvarint(b)
	switch {
	case err != nil:
		return Start, nil, err
	case id == 0 && entry == 0:
		return Start, b, nil
	case id == 0 || id > math.MaxInt64 || entry > math.MaxInt64:
		return Start, nil, fmt.Errorf("ledger %d, entry %d: %w", id, entry, ErrCorrupt)
	}
	return Position{Ledger: ledger.ID(id), Entry: ledger.EntryID(entry) - 1}, b, nil
}

// CutUvarint decodes an unsigned varint at the start of b and returns what
// follows it.
func CutUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, fmt.Errorf("varint in %d bytes: %w", len(b), ErrCorrupt)
	}
	return v, b[n:], nil
}

// Append encodes s. It may reorganise s to make it smaller.
func (s *Set) Append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s.chunks)))
	for i := range s.chunks {
		c := &s.chunks[i]
		c.low.RunOptimize()
		dst = binary.AppendUvarint(dst, uint64(c.ledger))
		dst = binary.AppendUvarint(dst, uint64(c.high))
		dst = binary.AppendUvarint(dst, c.low.GetSerializedSizeInBytes())
		buf := bytes.NewBuffer(dst)
		if _, err := c.low.WriteTo(buf); err != nil {
			panic(fmt.Sprintf("position: encode to memory: %v", err)) // a Buffer never fails
		}
		dst = buf.Bytes()
	}
	return dst
}

// CutSet decodes a set at the start of b and returns what follows it. It keeps
// no reference to b.
func CutSet(b []byte) (s Set, rest []byte, err error) {
	count, b, err := CutUvarint(b)
	if err != nil {
		return Set{}, nil, err
	}
	for ; count > 0; count-- {
		var fields [3]uint64
		for i := range fields {
			if fields[i], b, err = CutUvarint(b); err != nil {
				return Set{}, nil, err
			}
		}
		id, high, size := fields[0], fields[1], fields[2]
		if id < 1 || id > math.MaxInt64 || high > math.MaxInt32 || size > uint64(len(b)) {
			return Set{}, nil, fmt.Errorf("chunk of %d bytes for ledger %d: %w", size, id, ErrCorrupt)
		}
		low, err := decodeBitmap(b[:size])
		if err != nil {
			return Set{}, nil, err
		}
		b = b[size:]
		c := chunk{ledger: ledger.ID(id), high: uint32(high), low: low}
		if n := len(s.chunks); n > 0 && s.chunks[n-1].at(0).Compare(c.at(0)) >= 0 {
			return Set{}, nil, fmt.Errorf("chunk of ledger %d out of order: %w", id, ErrCorrupt)
		}
		s.chunks = append(s.chunks, c)
		s.n += int64(low.GetCardinality())
	}
	return s, b, nil
}

func decodeBitmap(b []byte) (*roaring.Bitmap, error) {
	low := roaring.New()
	n, err := low.ReadFrom(bytes.NewReader(b))
	if err == nil {
		err = low.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("bitmap of %d bytes: %v: %w", len(b), err, ErrCorrupt)
	}
	if n != int64(len(b)) || low.IsEmpty() {
		return nil, fmt.Errorf("bitmap of %d bytes, used %d: %w", len(b), n, ErrCorrupt)
	}
	return low, nil
}
