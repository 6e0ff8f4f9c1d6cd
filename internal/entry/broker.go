package entry

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// BrokerPartRoom is enough for the broker part of every entry that was first
// published here: one without a source cluster and unknown fields.
const BrokerPartRoom = 40

// BrokerPart is what the broker sets in front of a producer part. It is outside
// the producer's checksum.
type BrokerPart struct {
	Kind entryv1.Kind
	// Index is that of the last message in the entry, counted from 0 along the
	// topic. HALF and RESOLVE have none: it is neither written nor read there.
	Index uint64
	Time  int64 // milliseconds since the Unix epoch; never falls along a topic
	// Where the entry was first published, when that was another cluster.
	SourceCluster string
	SourceLedger  int64
	SourceEntry   int64

	unknown []byte // fields this build does not know, kept as they came
}

// Numbers of the fields of BrokerEntryMetadata.
const (
	fieldBrokerTime    = 1
	fieldIndex         = 2
	fieldKind          = 1000
	fieldSourceCluster = 1001
	fieldSourceLedger  = 1002
	fieldSourceEntry   = 1003
)

func (b BrokerPart) hasIndex() bool {
	return b.Kind != entryv1.Kind_KIND_HALF && b.Kind != entryv1.Kind_KIND_RESOLVE
}

// Size is how many bytes AppendTo appends.
func (b BrokerPart) Size() int {
	n := BrokerPrefixBytes + protowire.SizeTag(fieldBrokerTime) + protowire.SizeVarint(uint64(b.Time))
	if b.hasIndex() {
		n += protowire.SizeTag(fieldIndex) + protowire.SizeVarint(b.Index)
	}
	if b.Kind != entryv1.Kind_KIND_DATA {
		n += protowire.SizeTag(fieldKind) + protowire.SizeVarint(uint64(b.Kind))
	}
	if b.SourceCluster != "" {
		n += protowire.SizeTag(fieldSourceCluster) + protowire.SizeBytes(len(b.SourceCluster)) +
			protowire.SizeTag(fieldSourceLedger) + protowire.SizeVarint(uint64(b.SourceLedger)) +
			protowire.SizeTag(fieldSourceEntry) + protowire.SizeVarint(uint64(b.SourceEntry))
	}
	return n + len(b.unknown)
}

// AppendTo appends the encoded broker part to dst.
func (b BrokerPart) AppendTo(dst []byte) []byte {
	dst = append(dst, magicBroker>>8, magicBroker&0xff)
	dst = binary.BigEndian.AppendUint32(dst, uint32(b.Size()-BrokerPrefixBytes))
	dst = appendNumber(dst, fieldBrokerTime, uint64(b.Time))
	if b.hasIndex() {
		dst = appendNumber(dst, fieldIndex, b.Index)
	}
	if b.Kind != entryv1.Kind_KIND_DATA {
		dst = appendNumber(dst, fieldKind, uint64(b.Kind))
	}
	if b.SourceCluster != "" {
		dst = protowire.AppendString(protowire.AppendTag(dst, fieldSourceCluster, protowire.BytesType), b.SourceCluster)
		dst = appendNumber(dst, fieldSourceLedger, uint64(b.SourceLedger))
		dst = appendNumber(dst, fieldSourceEntry, uint64(b.SourceEntry))
	}
	return append(dst, b.unknown...)
}

// PutBefore writes the broker part so that it ends where buf[end:], the producer
// part, begins, and returns where it starts: buf[start:] is the body. The caller
// left at least Size bytes of room before end.
func (b BrokerPart) PutBefore(buf []byte, end int) (start int) {
	start = end - b.Size()
	b.AppendTo(buf[start:start:end])
	return start
}

func appendNumber(dst []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), v)
}

// ParseBody splits a body into its broker part and its producer part. It does
// not look into the producer part, which may be cut off or, for kinds other than
// DATA, empty. producerPart is a part of body, not a copy.
func ParseBody(body []byte) (b BrokerPart, producerPart []byte, err error) {
	if len(body) < BrokerPrefixBytes {
		return BrokerPart{}, nil, fmt.Errorf("body of %d bytes, want at least %d: %w", len(body), BrokerPrefixBytes, ErrCorrupt)
	}
	if magic := binary.BigEndian.Uint16(body); magic != magicBroker {
		return BrokerPart{}, nil, fmt.Errorf("body starts with %04x, want %04x: %w", magic, magicBroker, ErrCorrupt)
	}
	n := binary.BigEndian.Uint32(body[2:])
	if n > MaxHeaderBytes || BrokerPrefixBytes+int(n) > len(body) {
		return BrokerPart{}, nil, fmt.Errorf("broker part of %d bytes in a body of %d: %w", n, len(body), ErrCorrupt)
	}
	end := BrokerPrefixBytes + int(n)
	if err := b.decode(body[BrokerPrefixBytes:end]); err != nil {
		return BrokerPart{}, nil, err
	}
	return b, body[end:], nil
}

func (b *BrokerPart) decode(p []byte) error {
	for len(p) > 0 {
		num, typ, tag := protowire.ConsumeTag(p)
		if tag < 0 {
			return fmt.Errorf("broker part: %w: %w", protowire.ParseError(tag), ErrCorrupt)
		}
		n := protowire.ConsumeFieldValue(num, typ, p[tag:])
		if n < 0 {
			return fmt.Errorf("broker part field %d: %w: %w", num, protowire.ParseError(n), ErrCorrupt)
		}
		known, err := b.set(num, typ, p[tag:])
		if err != nil {
			return err
		}
		if !known {
			b.unknown = slices.Concat(b.unknown, p[:tag+n])
		}
		p = p[tag+n:]
	}
	return nil
}

// set takes one field whose value, known to be whole, starts v.
func (b *BrokerPart) set(num protowire.Number, typ protowire.Type, v []byte) (known bool, err error) {
	if num == fieldSourceCluster && typ == protowire.BytesType {
		s, _ := protowire.ConsumeBytes(v)
		if !utf8.Valid(s) {
			return false, fmt.Errorf("broker part: source cluster is not UTF-8: %w", ErrCorrupt)
		}
		b.SourceCluster = string(s)
		return true, nil
	}
	if typ != protowire.VarintType {
		return false, nil
	}
	x, _ := protowire.ConsumeVarint(v)
	switch num {
	case fieldBrokerTime:
		if x > math.MaxInt64 {
			return false, fmt.Errorf("broker part: time %d: %w", x, ErrCorrupt)
		}
		b.Time = int64(x)
	case fieldIndex:
		b.Index = x
	case fieldKind:
		if x > uint64(entryv1.Kind_KIND_RESOLVE) {
			return false, fmt.Errorf("broker part: kind %d: %w", x, ErrCorrupt)
		}
		b.Kind = entryv1.Kind(x)
	case fieldSourceLedger:
		b.SourceLedger = int64(x)
	case fieldSourceEntry:
		b.SourceEntry = int64(x)
	default:
		return false, nil
	}
	return true, nil
}
