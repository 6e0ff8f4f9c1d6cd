// Package entry is the codec of entry bodies: what a producer closes, what the
// broker sets in front of it, and what a consumer opens again.
//
// A body is, big-endian:
//
//	broker part    | 0x0e02 2 | size 4 | BrokerEntryMetadata size |
//	producer part  | 0x0e01 2 | crc 4 | metadataBytes 4 | MessageMetadata | payload |
//
// crc is CRC-32C of everything from metadataBytes to the end. The producer
// writes its part once and nobody alters it afterwards, so the checksum that a
// consumer verifies is the one the producer computed. Where the metadata has
// num_messages_in_batch, the payload, once decompressed, is a run of
//
//	| size 4 | SingleMessageMetadata size | bytes payload_size |
//
// Every decoder here checks a length before it uses it, and allocates no more
// than a stated multiple of what it was given. All functions are safe for
// concurrent use; none keeps a reference to its arguments unless it says so.
package entry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/proto"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

var (
	// ErrCorrupt reports bytes that are not what this package writes.
	ErrCorrupt = errors.New("entry: corrupt")
	// ErrChecksum reports a producer part whose CRC-32C does not match. It wraps
	// ErrCorrupt.
	ErrChecksum = fmt.Errorf("%w: checksum does not match", ErrCorrupt)
	// ErrTooLarge reports a header or an uncompressed payload above its limit.
	ErrTooLarge = errors.New("entry: too large")
)

const (
	// MaxHeaderBytes bounds the encoded MessageMetadata of a producer part, and
	// the encoded BrokerEntryMetadata of a broker part.
	MaxHeaderBytes = 64 << 10
	// ProducerPrefixBytes stand before the metadata of a producer part.
	ProducerPrefixBytes = 2 + 4 + 4
	// BrokerPrefixBytes stand before the metadata of a broker part.
	BrokerPrefixBytes = 2 + 4

	magicProducer = 0x0e01
	magicBroker   = 0x0e02
	checkedFrom   = 6 // the checksum of a producer part covers what follows here
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendProducerPart appends one closed producer part to dst. The payload is
// already framed and compressed as md says.
func AppendProducerPart(dst []byte, md *entryv1.MessageMetadata, payload []byte) []byte {
	at := len(dst)
	dst = append(dst, magicProducer>>8, magicProducer&0xff, 0, 0, 0, 0, 0, 0, 0, 0)
	dst, err := proto.MarshalOptions{}.MarshalAppend(dst, md)
	if err != nil {
		// Only a string that is not UTF-8 can get here; those who fill in the
		// metadata check their strings first.
		panic(fmt.Sprintf("entry: marshal metadata: %v", err))
	}
	binary.BigEndian.PutUint32(dst[at+checkedFrom:], uint32(len(dst)-at-ProducerPrefixBytes))
	dst = append(dst, payload...)
	binary.BigEndian.PutUint32(dst[at+2:], crc32.Checksum(dst[at+checkedFrom:], castagnoli))
	return dst
}

// Follow returns a copy of a producer part that names another predecessor: the
// highest sequence id sent before it, or none. It is for batches that were surely
// not stored.
func Follow(p []byte, hasPrevious bool, previous uint64) ([]byte, error) {
	return withHeader(p, func(md *entryv1.MessageMetadata) {
		md.ClearPreviousSequenceId()
		if hasPrevious {
			md.SetPreviousSequenceId(previous)
		}
	})
}

// Reroute returns a copy of a producer part made for another version of the
// topic's partitions. It is for batches that were surely not stored.
func Reroute(p []byte, version uint64) ([]byte, error) {
	return withHeader(p, func(md *entryv1.MessageMetadata) { md.SetRoutingVersion(version) })
}

func withHeader(p []byte, change func(*entryv1.MessageMetadata)) ([]byte, error) {
	metadata, payload, err := splitProducerPart(p)
	if err != nil {
		return nil, err
	}
	var md entryv1.MessageMetadata
	if err := proto.Unmarshal(metadata, &md); err != nil {
		return nil, fmt.Errorf("header: %w: %w", err, ErrCorrupt)
	}
	change(&md)
	return AppendProducerPart(make([]byte, 0, len(p)+16), &md, p[payload:]), nil
}

// VerifyProducerPart checks the frame and the checksum of a producer part, in
// one pass over its bytes. It returns CRC-32C of the whole part, prefix
// included, from which BodyCRC makes that of the body.
func VerifyProducerPart(p []byte) (partCRC uint32, err error) {
	if _, _, err := splitProducerPart(p); err != nil {
		return 0, err
	}
	sum := crc32.Checksum(p[checkedFrom:], castagnoli)
	if want := binary.BigEndian.Uint32(p[2:]); sum != want {
		return 0, fmt.Errorf("producer part of %d bytes has %08x, states %08x: %w", len(p), sum, want, ErrChecksum)
	}
	prefix := crc32.Checksum(p[:checkedFrom], castagnoli)
	return CombineCRC(prefix, sum, int64(len(p)-checkedFrom)), nil
}

// splitProducerPart returns the metadata of p and where the payload begins.
func splitProducerPart(p []byte) (metadata []byte, payload int, err error) {
	if len(p) < ProducerPrefixBytes {
		return nil, 0, fmt.Errorf("producer part of %d bytes, want at least %d: %w", len(p), ProducerPrefixBytes, ErrCorrupt)
	}
	if magic := binary.BigEndian.Uint16(p); magic != magicProducer {
		return nil, 0, fmt.Errorf("producer part starts with %04x, want %04x: %w", magic, magicProducer, ErrCorrupt)
	}
	n := binary.BigEndian.Uint32(p[checkedFrom:])
	if n > MaxHeaderBytes {
		return nil, 0, fmt.Errorf("header of %d bytes, at most %d: %w", n, MaxHeaderBytes, ErrTooLarge)
	}
	payload = ProducerPrefixBytes + int(n)
	if payload > len(p) {
		return nil, 0, fmt.Errorf("header of %d bytes in a producer part of %d: %w", n, len(p), ErrCorrupt)
	}
	return p[ProducerPrefixBytes:payload], payload, nil
}
