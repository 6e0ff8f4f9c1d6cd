package entry

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// Messages walks over the messages of a producer part. It is for one goroutine.
type Messages struct {
	Header Header

	rest    []byte // framed messages, or the value of the only one
	single  *Message
	next    int
	lastKey string // of the message before: messages in a row often share it
}

// Open checks the producer part's checksum, parses its header and decompresses
// its payload, to at most limit bytes. Values of messages are parts of what it
// decompressed or, without compression, of p, which nobody may alter.
func Open(p []byte, limit int) (*Messages, error) {
	if _, err := VerifyProducerPart(p); err != nil {
		return nil, err
	}
	h, at, err := ParseHeader(p)
	if err != nil {
		return nil, err
	}
	payload, err := decompress(&h, p[at:], limit)
	if err != nil {
		return nil, err
	}
	m := &Messages{Header: h, rest: payload}
	if !h.Batched {
		m.single, err = onlyMessage(&h, p[ProducerPrefixBytes:at], payload)
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Next decodes the next message into m, and reports false after the last one.
// Bytes of the payload beyond the messages the header announced are ErrCorrupt.
func (b *Messages) Next(m *Message) (ok bool, err error) {
	if b.next == b.Header.Messages {
		if b.single == nil && len(b.rest) > 0 {
			return false, fmt.Errorf("%d bytes after the last message: %w", len(b.rest), ErrCorrupt)
		}
		return false, nil
	}
	b.next++
	if b.single != nil {
		*m = *b.single
		return true, nil
	}
	*m = Message{}
	if len(b.rest) < 4 {
		return false, fmt.Errorf("message %d of %d: cut off: %w", b.next, b.Header.Messages, ErrCorrupt)
	}
	n := binary.BigEndian.Uint32(b.rest)
	if uint64(n) > uint64(len(b.rest)-4) {
		return false, fmt.Errorf("message %d of %d: metadata of %d bytes in %d: %w", b.next, b.Header.Messages, n, len(b.rest)-4, ErrCorrupt)
	}
	valueBytes, err := b.decode(m, b.rest[4:4+n])
	if err != nil {
		return false, fmt.Errorf("message %d of %d: %w", b.next, b.Header.Messages, err)
	}
	value := b.rest[4+n:]
	if valueBytes < 0 || int64(valueBytes) > int64(len(value)) {
		return false, fmt.Errorf("message %d of %d: value of %d bytes in %d: %w", b.next, b.Header.Messages, valueBytes, len(value), ErrCorrupt)
	}
	m.Value, b.rest = value[:valueBytes:valueBytes], value[valueBytes:]
	return true, nil
}

// decode reads one SingleMessageMetadata.
func (b *Messages) decode(m *Message, p []byte) (valueBytes int32, err error) {
	m.SequenceID = b.Header.SequenceID + uint64(b.next-1)
	var key []byte
	var keyIsBase64 bool
	for len(p) > 0 {
		num, typ, n := protowire.ConsumeTag(p)
		if n < 0 {
			return 0, fmt.Errorf("%w: %w", protowire.ParseError(n), ErrCorrupt)
		}
		p = p[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(p)
			if n < 0 {
				return 0, fmt.Errorf("%w: %w", protowire.ParseError(n), ErrCorrupt)
			}
			p = p[n:]
			switch num {
			case singlePayload:
				valueBytes = int32(v)
			case singleEventTime:
				m.EventTime = v
			case singleKeyIsBase64:
				keyIsBase64 = v != 0
			case singleSequence:
				m.SequenceID = v
			case singleNullValue:
				m.NullValue = v != 0
			}
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(p)
			if n < 0 {
				return 0, fmt.Errorf("%w: %w", protowire.ParseError(n), ErrCorrupt)
			}
			p = p[n:]
			switch num {
			case singleProperties:
				if err := addProperty(m, v); err != nil {
					return 0, err
				}
			case singleKey:
				m.HasKey, key = true, v
			case singleOrderingKey:
				m.OrderingKey = v[:len(v):len(v)]
			}
		default:
			n := protowire.ConsumeFieldValue(num, typ, p)
			if n < 0 {
				return 0, fmt.Errorf("%w: %w", protowire.ParseError(n), ErrCorrupt)
			}
			p = p[n:]
		}
	}
	if !m.HasKey {
		return valueBytes, nil
	}
	switch {
	case keyIsBase64:
		m.Key, err = plainKey(string(key))
	case string(key) == b.lastKey:
		m.Key = b.lastKey
	case !utf8.Valid(key):
		err = fmt.Errorf("key is not UTF-8: %w", ErrCorrupt)
	default:
		m.Key = string(key)
		b.lastKey = m.Key
	}
	return valueBytes, err
}

func addProperty(m *Message, p []byte) error {
	var key, value string
	for len(p) > 0 {
		num, typ, tag := protowire.ConsumeTag(p)
		if tag < 0 {
			return fmt.Errorf("property: %w: %w", protowire.ParseError(tag), ErrCorrupt)
		}
		n := protowire.ConsumeFieldValue(num, typ, p[tag:])
		if n < 0 {
			return fmt.Errorf("property: %w: %w", protowire.ParseError(n), ErrCorrupt)
		}
		if typ == protowire.BytesType && (num == 1 || num == 2) {
			v, _ := protowire.ConsumeBytes(p[tag:])
			if !utf8.Valid(v) {
				return fmt.Errorf("property is not UTF-8: %w", ErrCorrupt)
			}
			if num == 1 {
				key = string(v)
			} else {
				value = string(v)
			}
		}
		p = p[tag+n:]
	}
	if m.Properties == nil {
		m.Properties = make(map[string]string)
	}
	m.Properties[key] = value
	return nil
}

// onlyMessage makes the message of an entry that is not framed as a batch: its
// header is that of the entry.
func onlyMessage(h *Header, metadata, payload []byte) (*Message, error) {
	var md entryv1.MessageMetadata
	if err := proto.Unmarshal(metadata, &md); err != nil {
		return nil, fmt.Errorf("header: %w: %w", err, ErrCorrupt)
	}
	m := &Message{
		SequenceID: h.SequenceID, EventTime: h.EventTime, HasKey: h.HasPartitionKey, Key: h.PartitionKey,
		OrderingKey: md.GetOrderingKey(), Value: payload[:len(payload):len(payload)], NullValue: h.NullValue,
	}
	if h.KeyIsBase64 {
		key, err := plainKey(h.PartitionKey)
		if err != nil {
			return nil, err
		}
		m.Key = key
	}
	if kvs := md.GetProperties(); len(kvs) > 0 {
		m.Properties = make(map[string]string, len(kvs))
		for _, kv := range kvs {
			m.Properties[kv.GetKey()] = kv.GetValue()
		}
	}
	return m, nil
}

func plainKey(s string) (string, error) {
	key, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", fmt.Errorf("key: %w: %w", err, ErrCorrupt)
	}
	return string(key), nil
}
