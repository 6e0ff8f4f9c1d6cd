package producer

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/magnetar-io/magnetar/broker/internal/position"
)

var (
	// ErrCorrupt reports bytes that are no checkpoint.
	ErrCorrupt = errors.New("producer: corrupt checkpoint")
	// ErrVersion reports a checkpoint written by a newer build.
	ErrVersion = errors.New("producer: unknown version of a checkpoint")
)

// A checkpoint says what was stored by the producers up to a position; what came
// after is replayed from the topic's entries. Integers are unsigned varints.
//
//	checkpoint | version 1 | flags 1 | position | count | producer … |
//	producer   | nameBytes | name | epoch | last | spans | span … |
//	span       | first | last−first | position |
//
// flags: 1 = producers have been forgotten. Producers stand in the order in which
// they are to be forgotten, the longest silent first; spans are oldest first.
const (
	checkpointVersion = 1
	flagForgetful     = 1
)

// AppendCheckpoint encodes what is stored, as of the entry at p: all entries up
// to p, and none after it, have been passed to Stored or Replay.
func (r *Registry) AppendCheckpoint(dst []byte, p position.Position) []byte {
	flags := byte(0)
	if r.forgetful {
		flags |= flagForgetful
	}
	dst = append(dst, checkpointVersion, flags)
	dst = position.Append(dst, p)
	names := slices.Collect(maps.Keys(r.byName))
	names = slices.DeleteFunc(names, func(n string) bool { return !r.byName[n].stored })
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(r.byName[a].touched, r.byName[b].touched) })
	dst = binary.AppendUvarint(dst, uint64(len(names)))
	for _, name := range names {
		s := r.byName[name]
		dst = binary.AppendUvarint(dst, uint64(len(name)))
		dst = append(dst, name...)
		dst = binary.AppendUvarint(dst, s.epoch)
		dst = binary.AppendUvarint(dst, s.last)
		dst = binary.AppendUvarint(dst, uint64(len(s.recent)))
		for _, sp := range s.recent {
			dst = binary.AppendUvarint(dst, sp.first)
			dst = binary.AppendUvarint(dst, sp.last-sp.first)
			dst = position.Append(dst, sp.at)
		}
	}
	return dst
}

// CheckpointAt returns the position a checkpoint stands at, from its first bytes.
func CheckpointAt(b []byte) (position.Position, error) {
	at, _, err := cutHead(b)
	return at, err
}

// cutHead reads the position of a checkpoint and returns what follows it.
func cutHead(b []byte) (at position.Position, rest []byte, err error) {
	if len(b) < 2 {
		return at, nil, fmt.Errorf("%d bytes: %w", len(b), ErrCorrupt)
	}
	if b[0] != checkpointVersion {
		return at, nil, fmt.Errorf("version %d, this build reads %d: %w", b[0], checkpointVersion, ErrVersion)
	}
	if at, rest, err = position.Cut(b[2:]); err != nil {
		return at, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return at, rest, nil
}

// Restore fills an empty Registry from a checkpoint and returns the position it
// stands at.
func (r *Registry) Restore(b []byte) (position.Position, error) {
	at, rest, err := cutHead(b)
	if err != nil {
		return at, err
	}
	r.forgetful = b[1]&flagForgetful != 0
	d := decoder{b: rest}
	for n := d.count(4); n > 0 && d.err == nil; n-- {
		name := string(d.bytes(d.uvarint()))
		s := &state{epoch: d.uvarint(), has: true, stored: true}
		s.last = d.uvarint()
		s.accepted = s.last
		spans := d.count(4)
		if spans > Window {
			d.fail("%d spans", spans)
		}
		for range min(spans, Window) {
			sp := span{first: d.uvarint()}
			sp.last = sp.first + d.uvarint()
			sp.at = d.position()
			if sp.last < sp.first || sp.last > s.last || len(s.recent) > 0 && sp.first <= s.recent[len(s.recent)-1].last {
				d.fail("spans of %q do not rise", name)
			}
			s.recent = append(s.recent, sp)
		}
		if r.byName[name] != nil {
			d.fail("producer %q comes twice", name)
			break
		}
		r.touch(s)
		r.byName[name] = s
		r.spans += len(s.recent)
	}
	r.boundSpans() // an older build kept more
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	return at, d.err
}

// decoder reads the parts of a checkpoint; after an error it reads zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrCorrupt)
	}
	d.b = nil
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("cut off")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads how many items of at least size bytes follow.
func (d *decoder) count(size uint64) uint64 {
	n := d.uvarint()
	if n > uint64(len(d.b))/size {
		d.fail("%d items in %d bytes", n, len(d.b))
		return 0
	}
	return n
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail("%d bytes where %d are left", n, len(d.b))
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) position() position.Position {
	p, rest, err := position.Cut(d.b)
	if err != nil {
		d.fail("%v", err)
		return p
	}
	d.b = rest
	return p
}
