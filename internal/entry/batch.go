package entry

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// Message is one message of a batch.
type Message struct {
	SequenceID  uint64
	EventTime   uint64 // milliseconds since the Unix epoch; 0: none
	HasKey      bool
	Key         string // any bytes; those that are not UTF-8 travel as base64
	OrderingKey []byte
	Properties  map[string]string
	Value       []byte
	NullValue   bool // the message says its key has no value
}

// BatchHeader is what Builder.Close writes of the batch as a whole.
type BatchHeader struct {
	Producer       string
	Epoch          uint64
	PublishTime    uint64 // milliseconds since the Unix epoch
	HasPrevious    bool
	Previous       uint64 // highest sequence id the producer sent before
	RoutingVersion uint64
	DeliverAt      int64 // milliseconds since the Unix epoch; 0: at once
	Compression    entryv1.CompressionType
}

// Builder gathers messages into a batch and closes it as a producer part. The
// zero Builder is ready for use, and again after each Close. It is for one
// goroutine at a time.
//
// Messages are framed straight into the buffer that becomes the producer part,
// behind room for its header, so that without compression a value is copied
// once.
type Builder struct {
	buf         []byte // headerRoom bytes, then the framed messages
	count       int
	first, last uint64 // sequence ids

	keyed       int // messages with a key
	key         string
	oneKey      bool // all messages have the key key
	orderingKey []byte
	oneOrdering bool
	hashFirst   uint32
	hashLast    uint32

	lastBytes int // of the batch before: a guess at this one's size
}

// headerRoom is enough for the header of most batches; a longer one costs a copy.
const headerRoom = 256

// Numbers of the fields of SingleMessageMetadata.
const (
	singleProperties  = 1
	singleKey         = 2
	singlePayload     = 3
	singleEventTime   = 5
	singleKeyIsBase64 = 6
	singleOrderingKey = 7
	singleSequence    = 8
	singleNullValue   = 9
)

// Bytes is how many bytes of a batch's payload the message takes, at most.
func (m *Message) Bytes() int {
	const fixed = 4 + 2*11 + 3*6 + 2*2
	n := fixed + len(m.Value) + base64.StdEncoding.EncodedLen(len(m.Key)) + len(m.OrderingKey)
	if len(m.Properties) > 0 { // a loop over no map costs more than the rest
		for k, v := range m.Properties {
			n += 24 + len(k) + len(v)
		}
	}
	return n
}

// Check reports what of a message cannot be written: a property that is not
// UTF-8.
func (m *Message) Check() error {
	if len(m.Properties) == 0 {
		return nil
	}
	for k, v := range m.Properties {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("property %q is not UTF-8", k)
		}
	}
	return nil
}

// Len is how many messages the batch holds.
func (b *Builder) Len() int { return b.count }

// Bytes is the size of the batch's payload before compression.
func (b *Builder) Bytes() int { return max(0, len(b.buf)-headerRoom) }

// Sequences are the sequence ids of the first and the last message; they have a
// meaning only after Add.
func (b *Builder) Sequences() (first, last uint64) { return b.first, b.last }

// Add appends m, copying all of it. Sequence ids rise along a batch. keyHash is
// that of the key, where the message has one; m passed Check.
func (b *Builder) Add(m *Message, keyHash uint32) {
	if b.buf == nil {
		b.buf = make([]byte, headerRoom, headerRoom+max(m.Bytes(), b.lastBytes+b.lastBytes/8))
	}
	b.note(m, keyHash)
	at := len(b.buf)
	dst := append(b.buf, 0, 0, 0, 0)
	for _, k := range sortedKeys(m.Properties) {
		v := m.Properties[k]
		dst = protowire.AppendTag(dst, singleProperties, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(2+protowire.SizeBytes(len(k))+protowire.SizeBytes(len(v))))
		dst = protowire.AppendString(protowire.AppendTag(dst, 1, protowire.BytesType), k)
		dst = protowire.AppendString(protowire.AppendTag(dst, 2, protowire.BytesType), v)
	}
	if m.HasKey {
		key, encoded := wireKey(m.Key)
		dst = protowire.AppendString(protowire.AppendTag(dst, singleKey, protowire.BytesType), key)
		if encoded {
			dst = appendNumber(dst, singleKeyIsBase64, 1)
		}
	}
	dst = appendNumber(dst, singlePayload, uint64(len(m.Value)))
	if m.EventTime != 0 {
		dst = appendNumber(dst, singleEventTime, m.EventTime)
	}
	if m.OrderingKey != nil {
		dst = protowire.AppendBytes(protowire.AppendTag(dst, singleOrderingKey, protowire.BytesType), m.OrderingKey)
	}
	dst = appendNumber(dst, singleSequence, m.SequenceID)
	if m.NullValue {
		dst = appendNumber(dst, singleNullValue, 1)
	}
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	b.buf = append(dst, m.Value...)
}

// note keeps what the header will say of all messages.
func (b *Builder) note(m *Message, keyHash uint32) {
	if b.count == 0 {
		b.first = m.SequenceID
		b.key, b.oneKey = m.Key, m.HasKey
		b.orderingKey, b.oneOrdering = m.OrderingKey, m.OrderingKey != nil
	}
	b.oneKey = b.oneKey && m.HasKey && m.Key == b.key
	b.oneOrdering = b.oneOrdering && m.OrderingKey != nil && string(m.OrderingKey) == string(b.orderingKey)
	if m.HasKey {
		if b.keyed == 0 {
			b.hashFirst, b.hashLast = keyHash, keyHash
		}
		b.hashFirst, b.hashLast = min(b.hashFirst, keyHash), max(b.hashLast, keyHash)
		b.keyed++
	}
	b.last = m.SequenceID
	b.count++
}

// Close returns the batch as a producer part, whose bytes are the caller's from
// then on, and leaves the Builder empty. The batch is not empty.
func (b *Builder) Close(h BatchHeader) []byte {
	md := entryv1.MessageMetadata_builder{
		ProducerName:       proto.String(h.Producer),
		SequenceId:         proto.Uint64(b.first),
		PublishTime:        proto.Uint64(h.PublishTime),
		NumMessagesInBatch: proto.Int32(int32(b.count)),
		HighestSequenceId:  proto.Uint64(b.last),
		ProducerEpoch:      proto.Uint64(h.Epoch),
	}
	if h.HasPrevious {
		md.PreviousSequenceId = proto.Uint64(h.Previous)
	}
	if h.RoutingVersion != 0 {
		md.RoutingVersion = proto.Uint64(h.RoutingVersion)
	}
	if h.DeliverAt != 0 {
		md.DeliverAtTime = proto.Int64(h.DeliverAt)
	}
	if b.oneKey && len(b.key) <= maxHeaderKey {
		key, encoded := wireKey(b.key)
		md.PartitionKey = proto.String(key)
		if encoded {
			md.PartitionKeyB64Encoded = proto.Bool(true)
		}
	}
	if b.oneOrdering && len(b.orderingKey) <= maxHeaderKey {
		md.OrderingKey = b.orderingKey
	}
	// A message without a key may go anywhere, so a range would say too little.
	if b.keyed == b.count {
		md.KeyHashFirst, md.KeyHashLast = proto.Uint32(b.hashFirst), proto.Uint32(b.hashLast)
	}
	part := b.buf
	payload := part[headerRoom:]
	b.lastBytes = len(payload)
	if h.Compression != entryv1.CompressionType_COMPRESSION_TYPE_NONE {
		if out, ok := compress(make([]byte, headerRoom, headerRoom+len(payload)/2), payload, h.Compression); ok {
			md.Compression = h.Compression.Enum()
			md.UncompressedSize = proto.Uint32(uint32(len(payload)))
			part = out
		}
	}
	*b = Builder{lastBytes: b.lastBytes}
	return headIn(part, md.Build())
}

// maxHeaderKey bounds the keys that a header repeats.
const maxHeaderKey = 8 << 10

// headIn writes the prefix and md into the room at the start of part, right
// before the payload, and returns the producer part.
func headIn(part []byte, md *entryv1.MessageMetadata) []byte {
	size := proto.Size(md)
	start := headerRoom - ProducerPrefixBytes - size
	if start < 0 {
		return AppendProducerPart(make([]byte, 0, ProducerPrefixBytes+size+len(part)-headerRoom), md, part[headerRoom:])
	}
	part = part[start:]
	binary.BigEndian.PutUint16(part, magicProducer)
	binary.BigEndian.PutUint32(part[checkedFrom:], uint32(size))
	if _, err := (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(part[:ProducerPrefixBytes:headerRoom-start], md); err != nil {
		panic(fmt.Sprintf("entry: marshal metadata: %v", err))
	}
	binary.BigEndian.PutUint32(part[2:], crc32.Checksum(part[checkedFrom:], castagnoli))
	return part
}

// wireKey returns the key as a protobuf string can carry it.
func wireKey(key string) (s string, encoded bool) {
	if utf8.ValidString(key) {
		return key, false
	}
	return base64.StdEncoding.EncodeToString([]byte(key)), true
}

func sortedKeys(m map[string]string) []string {
	if len(m) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(m))
}
