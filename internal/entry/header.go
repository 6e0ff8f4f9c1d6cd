package entry

import (
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// Header is what a broker needs to know of a producer part: the fields of
// MessageMetadata that decide about acceptance, order and dispatch. It is
// decoded by hand, in one pass, without allocating more than its strings.
//
// A field the producer left out is zero; where absence means something else
// than zero a Has field tells.
type Header struct {
	ProducerName    string
	SequenceID      uint64 // of the first message
	HighestSequence uint64 // of the last message; SequenceID where absent
	PublishTime     uint64 // milliseconds since the Unix epoch
	EventTime       uint64 // milliseconds since the Unix epoch; 0: none
	DeliverAt       int64  // milliseconds since the Unix epoch; 0: at once

	// Chain: the batch follows PreviousSequence, or is its producer's first.
	HasPrevious      bool
	PreviousSequence uint64
	ProducerEpoch    uint64

	// Messages is how many messages the payload holds, at least 1. Batched: the
	// payload is framed as a batch, even of 1.
	Messages int
	Batched  bool

	Compression       entryv1.CompressionType
	UncompressedBytes uint32 // of the payload; counts where Compression is not NONE

	HasPartitionKey bool
	PartitionKey    string
	KeyIsBase64     bool
	OrderingKey     []byte // part of the argument of ParseHeader, not a copy
	HasKeyHash      bool
	KeyHashFirst    uint32
	KeyHashLast     uint32

	HasTxn         bool
	TxnLeast       uint64
	TxnMost        uint64
	MarkerType     int32
	ReplicatedFrom string
	RoutingVersion uint64
	NullValue      bool

	// Chunks above 1: this is chunk ChunkID of Chunks of a message of ChunkedBytes.
	Chunks       int32
	ChunkID      int32
	ChunkedBytes int32
	UUID         string
}

// Numbers of the fields of MessageMetadata that a Header keeps.
const (
	fieldProducerName   = 1
	fieldSequence       = 2
	fieldPublishTime    = 3
	fieldReplicatedFrom = 5
	fieldPartitionKey   = 6
	fieldCompression    = 8
	fieldUncompressed   = 9
	fieldMessages       = 11
	fieldEventTime      = 12
	fieldKeyIsBase64    = 17
	fieldOrderingKey    = 18
	fieldDeliverAt      = 19
	fieldMarkerType     = 20
	fieldTxnLeast       = 22
	fieldTxnMost        = 23
	fieldHighest        = 24
	fieldNullValue      = 25
	fieldUUID           = 26
	fieldChunks         = 27
	fieldChunkedBytes   = 28
	fieldChunkID        = 29
	fieldPrevious       = 1000
	fieldEpoch          = 1001
	fieldKeyHashFirst   = 1002
	fieldKeyHashLast    = 1003
	fieldRoutingVersion = 1005

	// maxMessages bounds num_messages_in_batch; a message takes at least 4 bytes
	// of an uncompressed payload of at most 64 MiB.
	maxMessages = 16 << 20
)

// ParseHeader decodes the header of a producer part and says where its payload
// begins. It does not look at the payload or the checksum, so p may be cut off
// anywhere behind the header. It returns ErrCorrupt for broken bytes and for
// fields that contradict each other, ErrTooLarge for a header above
// MaxHeaderBytes.
func ParseHeader(p []byte) (h Header, payload int, err error) {
	metadata, payload, err := splitProducerPart(p)
	if err != nil {
		return Header{}, 0, err
	}
	if err := h.decode(metadata); err != nil {
		return Header{}, 0, err
	}
	return h, payload, nil
}

func (h *Header) decode(b []byte) error {
	h.Messages = 1
	var hasHighest bool
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("header: %w: %w", protowire.ParseError(n), ErrCorrupt)
		}
		b = b[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return fmt.Errorf("header field %d: %w: %w", num, protowire.ParseError(n), ErrCorrupt)
			}
			b = b[n:]
			hasHighest = hasHighest || num == fieldHighest
			if err := h.setNumber(num, v); err != nil {
				return err
			}
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return fmt.Errorf("header field %d: %w: %w", num, protowire.ParseError(n), ErrCorrupt)
			}
			b = b[n:]
			if err := h.setBytes(num, v); err != nil {
				return err
			}
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return fmt.Errorf("header field %d: %w: %w", num, protowire.ParseError(n), ErrCorrupt)
			}
			b = b[n:]
		}
	}
	if !hasHighest {
		h.HighestSequence = h.SequenceID
	}
	return h.check()
}

func (h *Header) setNumber(num protowire.Number, v uint64) error {
	switch num {
	case fieldSequence:
		h.SequenceID = v
	case fieldPublishTime:
		h.PublishTime = v
	case fieldCompression:
		h.Compression = entryv1.CompressionType(int32(v))
	case fieldUncompressed:
		h.UncompressedBytes = uint32(v)
	case fieldMessages:
		if v == 0 || v > maxMessages {
			return fmt.Errorf("header: batch of %d messages: %w", int32(v), ErrCorrupt)
		}
		h.Messages, h.Batched = int(v), true
	case fieldEventTime:
		h.EventTime = v
	case fieldKeyIsBase64:
		h.KeyIsBase64 = v != 0
	case fieldDeliverAt:
		h.DeliverAt = int64(v)
	case fieldMarkerType:
		h.MarkerType = int32(v)
	case fieldTxnLeast:
		h.TxnLeast, h.HasTxn = v, true
	case fieldTxnMost:
		h.TxnMost, h.HasTxn = v, true
	case fieldHighest:
		h.HighestSequence = v
	case fieldNullValue:
		h.NullValue = v != 0
	case fieldChunks:
		h.Chunks = int32(v)
	case fieldChunkedBytes:
		h.ChunkedBytes = int32(v)
	case fieldChunkID:
		h.ChunkID = int32(v)
	case fieldPrevious:
		h.PreviousSequence, h.HasPrevious = v, true
	case fieldEpoch:
		h.ProducerEpoch = v
	case fieldKeyHashFirst:
		h.KeyHashFirst, h.HasKeyHash = uint32(v), true
	case fieldKeyHashLast:
		h.KeyHashLast, h.HasKeyHash = uint32(v), true
	case fieldRoutingVersion:
		h.RoutingVersion = v
	}
	return nil
}

func (h *Header) setBytes(num protowire.Number, v []byte) error {
	switch num {
	case fieldOrderingKey:
		h.OrderingKey = v
		return nil
	case fieldProducerName, fieldReplicatedFrom, fieldPartitionKey, fieldUUID:
	default:
		return nil
	}
	if !utf8.Valid(v) {
		return fmt.Errorf("header field %d is not UTF-8: %w", num, ErrCorrupt)
	}
	switch num {
	case fieldProducerName:
		h.ProducerName = string(v)
	case fieldReplicatedFrom:
		h.ReplicatedFrom = string(v)
	case fieldPartitionKey:
		h.PartitionKey, h.HasPartitionKey = string(v), true
	case fieldUUID:
		h.UUID = string(v)
	}
	return nil
}

func (h *Header) check() error {
	switch {
	case h.HighestSequence < h.SequenceID:
		return fmt.Errorf("header: last sequence id %d before first %d: %w", h.HighestSequence, h.SequenceID, ErrCorrupt)
	case h.HasPrevious && h.PreviousSequence >= h.SequenceID:
		return fmt.Errorf("header: sequence id %d does not follow %d: %w", h.SequenceID, h.PreviousSequence, ErrCorrupt)
	case h.KeyHashLast < h.KeyHashFirst:
		return fmt.Errorf("header: key hashes %d to %d: %w", h.KeyHashFirst, h.KeyHashLast, ErrCorrupt)
	case h.Compression < entryv1.CompressionType_COMPRESSION_TYPE_NONE || h.Compression > entryv1.CompressionType_COMPRESSION_TYPE_SNAPPY:
		return fmt.Errorf("header: compression %d: %w", h.Compression, ErrCorrupt)
	}
	return nil
}
