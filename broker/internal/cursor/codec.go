package cursor

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/broker/internal/position"
)

var (
	// ErrCorrupt reports bytes that are no encoded cursor.
	ErrCorrupt = errors.New("cursor: corrupt")
	// ErrVersion reports a cursor written by a newer build.
	ErrVersion = errors.New("cursor: unknown version")
)

// An encoded cursor or change of one:
//
//	| version 1 | form 1 | epoch | mark | acked | parts | part … |
//	part    | position | words | word 8 … |
//
// Integers are unsigned varints, words little-endian; positions and the set
// acked are encoded as package position does.
//
// Whole states a cursor and replaces what was known. Delta adds to the cursor of
// the same epoch: everything up to mark, the entries in acked, and of each part
// the messages whose bits are 0. Adding a delta twice, or deltas in another
// order, gives the same cursor.
const (
	formatVersion = 1

	formDelta = 1
	formWhole = 2
)

// Dirty reports whether TakeDelta has something to say.
func (c *Cursor) Dirty() bool { return c.changes != nil }

// deltaPartBytes is about how much of one delta parts of batches take; what is
// left goes into the next.
const deltaPartBytes = 1 << 20

// TakeDelta appends what changed since the last TakeDelta, or since the cursor
// was made, decoded or sought, and begins to collect anew. While Dirty says so
// afterwards there is more to take.
func (c *Cursor) TakeDelta(dst []byte) []byte {
	ch := c.changed()
	c.changes = nil
	ch.acked.RemoveThrough(c.mark)
	dst = append(dst, formatVersion, formDelta)
	dst = binary.AppendUvarint(dst, c.epoch)
	dst = position.Append(dst, c.mark)
	dst = ch.acked.Append(dst)
	bytes := 0
	var now position.Set
	for p := range ch.partial.All() {
		if bytes += 16 + 8*len(c.partial[p]); bytes > deltaPartBytes && now.Len() > 0 {
			break
		}
		now.Add(p)
	}
	if ch.partial.Subtract(&now); ch.partial.Len() > 0 {
		c.changes = &changes{partial: ch.partial}
	}
	return c.appendParts(dst, &now)
}

// AppendWhole appends the whole cursor.
func (c *Cursor) AppendWhole(dst []byte) []byte {
	dst = append(dst, formatVersion, formWhole)
	dst = binary.AppendUvarint(dst, c.epoch)
	dst = position.Append(dst, c.mark)
	dst = c.acked.Append(dst)
	return c.appendParts(dst, &c.partials)
}

func (c *Cursor) appendParts(dst []byte, which *position.Set) []byte {
	dst = binary.AppendUvarint(dst, uint64(which.Len()))
	for p := range which.All() {
		left := c.partial[p]
		dst = position.Append(dst, p)
		dst = binary.AppendUvarint(dst, uint64(len(left)))
		for _, w := range left {
			dst = binary.LittleEndian.AppendUint64(dst, w)
		}
	}
	return dst
}

// Apply takes over what TakeDelta or AppendWhole encoded. After the last Apply
// and before anything else, call Settle.
//
// The cursor is unchanged when an error is returned: ErrCorrupt or ErrVersion.
func (c *Cursor) Apply(b []byte) error {
	r, err := decode(b)
	if err != nil {
		return err
	}
	switch {
	case r.whole:
		*c = Cursor{mark: r.mark, epoch: r.epoch}
	case r.epoch > c.epoch:
		return fmt.Errorf("delta of epoch %d for a cursor of epoch %d: %w", r.epoch, c.epoch, ErrCorrupt)
	case r.epoch < c.epoch:
		return nil // from before a seek
	}
	c.mark = position.Max(c.mark, r.mark)
	c.acked.Union(&r.acked)
	for _, part := range r.parts {
		left := part.left
		if old, known := c.partial[part.at]; known {
			left = old.and(left)
		}
		if len(left) == 0 {
			c.acked.Add(part.at)
		} else {
			c.setPartial(part.at, left)
		}
	}
	c.forgetThrough(c.mark)
	common := c.partials.Common(&c.acked)
	for p, ok := common.Min(); ok; p, ok = common.Min() {
		c.forgetPartial(p)
		common.Remove(p)
	}
	return nil
}

// record is an encoded cursor, read and checked.
type record struct {
	whole bool
	epoch uint64
	mark  position.Position
	acked position.Set
	parts []part
}

type part struct {
	at   position.Position
	left Bits
}

func decode(b []byte) (record, error) {
	if len(b) < 2 {
		return record{}, fmt.Errorf("%d bytes: %w", len(b), ErrCorrupt)
	}
	if b[0] != formatVersion {
		return record{}, fmt.Errorf("cursor of version %d, this build reads up to %d: %w", b[0], formatVersion, ErrVersion)
	}
	r := record{whole: b[1] == formWhole}
	if !r.whole && b[1] != formDelta {
		return record{}, fmt.Errorf("form %d: %w", b[1], ErrCorrupt)
	}
	count, err := uint64(0), error(nil)
	b = b[2:]
	if r.epoch, b, err = position.CutUvarint(b); err != nil {
		return record{}, corrupt(err)
	}
	if r.mark, b, err = position.Cut(b); err != nil {
		return record{}, corrupt(err)
	}
	if r.acked, b, err = position.CutSet(b); err != nil {
		return record{}, corrupt(err)
	}
	if count, b, err = position.CutUvarint(b); err != nil {
		return record{}, corrupt(err)
	}
	for ; count > 0; count-- {
		var p part
		if p, b, err = cutPart(b); err != nil {
			return record{}, err
		}
		r.parts = append(r.parts, p)
	}
	if len(b) != 0 {
		return record{}, fmt.Errorf("%d bytes left over: %w", len(b), ErrCorrupt)
	}
	return r, nil
}

func cutPart(b []byte) (p part, rest []byte, err error) {
	if p.at, b, err = position.Cut(b); err != nil {
		return part{}, nil, corrupt(err)
	}
	words, b, err := position.CutUvarint(b)
	if err != nil {
		return part{}, nil, corrupt(err)
	}
	if words > maxWords || words*8 > uint64(len(b)) || p.at.Entry < 0 || p.at.Ledger < 1 {
		return part{}, nil, fmt.Errorf("part of %d words at %v: %w", words, p.at, ErrCorrupt)
	}
	p.left = make(Bits, words)
	for i := range p.left {
		p.left[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	p.left = p.left.trimmed()
	return p, b[8*words:], nil
}

func corrupt(err error) error { return fmt.Errorf("%w: %w", ErrCorrupt, err) }
