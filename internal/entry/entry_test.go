package entry

import (
	"bytes"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

func fullMetadata() *entryv1.MessageMetadata {
	return entryv1.MessageMetadata_builder{
		ProducerName:           proto.String("producer-1"),
		SequenceId:             proto.Uint64(100),
		PublishTime:            proto.Uint64(1700000000000),
		Properties:             []*entryv1.KeyValue{entryv1.KeyValue_builder{Key: proto.String("k"), Value: proto.String("v")}.Build()},
		PartitionKey:           proto.String("key"),
		Compression:            entryv1.CompressionType_COMPRESSION_TYPE_ZSTD.Enum(),
		UncompressedSize:       proto.Uint32(12345),
		NumMessagesInBatch:     proto.Int32(3),
		EventTime:              proto.Uint64(1600000000000),
		OrderingKey:            []byte("order"),
		DeliverAtTime:          proto.Int64(1700000001000),
		TxnidLeastBits:         proto.Uint64(7),
		TxnidMostBits:          proto.Uint64(8),
		HighestSequenceId:      proto.Uint64(102),
		PreviousSequenceId:     proto.Uint64(99),
		ProducerEpoch:          proto.Uint64(4),
		KeyHashFirst:           proto.Uint32(10),
		KeyHashLast:            proto.Uint32(20),
		RoutingVersion:         proto.Uint64(2),
		MarkerType:             proto.Int32(5),
		ReplicatedFrom:         proto.String("west"),
		Uuid:                   proto.String("u"),
		NumChunksFromMsg:       proto.Int32(2),
		TotalChunkMsgSize:      proto.Int32(1000),
		ChunkId:                proto.Int32(1),
		NullValue:              proto.Bool(true),
		PartitionKeyB64Encoded: proto.Bool(true),
	}.Build()
}

// Shows that the header decoded by hand is what the generated code would say.
func TestHeaderSaysWhatProtobufSays(t *testing.T) {
	md := fullMetadata()
	p := AppendProducerPart([]byte("before"), md, []byte("payload"))[len("before"):]
	h, off, err := ParseHeader(p)
	if err != nil {
		t.Fatal(err)
	}
	if string(p[off:]) != "payload" {
		t.Errorf("payload %q", p[off:])
	}
	order := h.OrderingKey
	h.OrderingKey = nil
	want := Header{
		ProducerName: "producer-1", SequenceID: 100, HighestSequence: 102, PublishTime: 1700000000000,
		EventTime: 1600000000000, DeliverAt: 1700000001000, HasPrevious: true, PreviousSequence: 99,
		ProducerEpoch: 4, Messages: 3, Batched: true, Compression: entryv1.CompressionType_COMPRESSION_TYPE_ZSTD,
		UncompressedBytes: 12345, HasPartitionKey: true, PartitionKey: "key", KeyIsBase64: true, HasKeyHash: true,
		KeyHashFirst: 10, KeyHashLast: 20, HasTxn: true, TxnLeast: 7, TxnMost: 8, MarkerType: 5,
		ReplicatedFrom: "west", RoutingVersion: 2, NullValue: true, Chunks: 2, ChunkID: 1, ChunkedBytes: 1000, UUID: "u",
	}
	if got := headerString(h); got != headerString(want) || string(order) != "order" {
		t.Errorf("got  %s\nwant %s\nordering key %q", got, headerString(want), order)
	}
}

// Shows that a field left out is told from one that is zero.
func TestHeaderOfAlmostNothing(t *testing.T) {
	p := AppendProducerPart(nil, entryv1.MessageMetadata_builder{SequenceId: proto.Uint64(9)}.Build(), nil)
	h, off, err := ParseHeader(p)
	if err != nil || off != len(p) {
		t.Fatal(off, err)
	}
	if h.HighestSequence != 9 || h.Messages != 1 || h.Batched || h.HasPrevious || h.HasPartitionKey || h.HasTxn || h.HasKeyHash {
		t.Errorf("%+v", h)
	}
}

// Shows that a header is read without allocating more than its two strings.
func TestParseHeaderAllocatesOnlyStrings(t *testing.T) {
	p := AppendProducerPart(nil, entryv1.MessageMetadata_builder{
		ProducerName: proto.String("producer-1"), SequenceId: proto.Uint64(9), PartitionKey: proto.String("key"),
		OrderingKey: []byte("order"), NumMessagesInBatch: proto.Int32(3), PreviousSequenceId: proto.Uint64(8),
	}.Build(), make([]byte, 1000))
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := ParseHeader(p); err != nil {
			t.Fatal(err)
		}
	}); n > 2 {
		t.Errorf("%v allocations for two strings", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := VerifyProducerPart(p); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations to verify", n)
	}
}

// Shows the bytes of a body, field by field: they are on disks and never change.
func TestGoldenBody(t *testing.T) {
	producer := AppendProducerPart(nil, entryv1.MessageMetadata_builder{
		ProducerName: proto.String("p"), SequenceId: proto.Uint64(5), PublishTime: proto.Uint64(1000),
		PreviousSequenceId: proto.Uint64(4),
	}.Build(), []byte("hi"))
	body := BrokerPart{Kind: entryv1.Kind_KIND_REF, Index: 300, Time: 2000, SourceCluster: "w", SourceLedger: 3, SourceEntry: 1}.AppendTo(nil)
	body = append(body, producer...)
	const want = "0e02" + "00000013" + // magic, size
		"08d00f" + "10ac02" + "c03e02" + "ca3e0177" + "d03e03" + "d83e01" + // time, index, kind, source cluster, ledger, entry
		"0e01" + "1fcf6b22" + "0000000b" + // magic, checksum, metadata size
		"0a0170" + "1005" + "18e807" + "c03e04" + // producer, sequence, publish time, previous sequence
		"6869"
	if got := hex.EncodeToString(body); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestRuleM8_BodyChecksumWithoutReadingThePayloadTwice shows that the body's
// checksum, combined from the broker part and the verified producer part, is the
// one that a reader of the whole body computes.
func TestRuleM8_BodyChecksumWithoutReadingThePayloadTwice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 7, 1000, 128 << 10, 5 << 20} {
		payload := make([]byte, n)
		for i := range payload {
			payload[i] = byte(rng.Uint32())
		}
		part := AppendProducerPart(nil, fullMetadata(), payload)
		partCRC, err := VerifyProducerPart(part)
		if err != nil {
			t.Fatal(err)
		}
		if want := crc32.Checksum(part, castagnoli); partCRC != want {
			t.Errorf("%d bytes: part checksum %08x, want %08x", n, partCRC, want)
		}
		broker := BrokerPart{Index: rng.Uint64(), Time: 1700000000000}.AppendTo(nil)
		body := append(bytes.Clone(broker), part...)
		if got, want := BodyCRC(broker, partCRC, len(part)), crc32.Checksum(body, castagnoli); got != want {
			t.Errorf("%d bytes: body checksum %08x, want %08x", n, got, want)
		}
	}
	if CombineCRC(5, 0, 0) != 5 {
		t.Error("appending nothing changes the checksum")
	}
}

// TestRuleM9_EveryFlippedBitIsRefused shows that no single damaged bit of a
// producer part passes verification.
func TestRuleM9_EveryFlippedBitIsRefused(t *testing.T) {
	p := AppendProducerPart(nil, fullMetadata(), []byte("a payload"))
	for i := range len(p) * 8 {
		p[i/8] ^= 1 << (i % 8)
		if _, err := VerifyProducerPart(p); err == nil {
			t.Fatalf("bit %d flipped and not noticed", i)
		}
		p[i/8] ^= 1 << (i % 8)
	}
	for n := range p {
		if _, err := VerifyProducerPart(p[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(p), err)
		}
	}
}

// TestRuleM10_BrokerPart shows which kinds carry an index, that the size is
// known beforehand, that fields of a newer build survive, and that the part can
// be set in front of a producer part in place.
func TestRuleM10_BrokerPart(t *testing.T) {
	for _, b := range []BrokerPart{
		{Index: 0, Time: 0},
		{Index: 1<<64 - 1, Time: 1<<63 - 1},
		{Kind: entryv1.Kind_KIND_HALF, Time: 5},
		{Kind: entryv1.Kind_KIND_RESOLVE, Time: 5},
		{Kind: entryv1.Kind_KIND_REF, Index: 4, Time: 5},
		{Index: 4, Time: 5, SourceCluster: "west", SourceLedger: 1 << 62, SourceEntry: 0},
		{Index: 4, Time: 5, unknown: []byte{0xe2, 0x3e, 1, 'x'}},
	} {
		enc := b.AppendTo([]byte("x"))[1:]
		if len(enc) != b.Size() {
			t.Errorf("%+v takes %d bytes, said %d", b, len(enc), b.Size())
		}
		if b.SourceCluster == "" && b.unknown == nil && len(enc) > BrokerPartRoom {
			t.Errorf("%+v takes %d bytes, more than BrokerPartRoom", b, len(enc))
		}
		buf := append(make([]byte, 100), "producer part"...)
		start := b.PutBefore(buf, 100)
		got, rest, err := ParseBody(buf[start:])
		if err != nil || string(rest) != "producer part" || !bytes.Equal(got.AppendTo(nil), enc) {
			t.Errorf("%+v came back as %+v, %q, %v", b, got, rest, err)
		}
		var stock entryv1.BrokerEntryMetadata
		if err := proto.Unmarshal(enc[BrokerPrefixBytes:], &stock); err != nil {
			t.Fatal(err)
		}
		if stock.GetIndex() != b.Index || stock.HasIndex() != b.hasIndex() || stock.GetKind() != b.Kind ||
			int64(stock.GetBrokerTimestamp()) != b.Time || stock.GetSourceLedger() != b.SourceLedger {
			t.Errorf("%+v reads as %v", b, &stock)
		}
	}
}

// Shows that headers above their limit, or whose fields contradict each other,
// are refused.
func TestHeaderRefuses(t *testing.T) {
	md := func(change func(*entryv1.MessageMetadata)) []byte {
		m := fullMetadata()
		change(m)
		return AppendProducerPart(nil, m, nil)
	}
	for name, c := range map[string]struct {
		part []byte
		want error
	}{
		"too long":            {md(func(m *entryv1.MessageMetadata) { m.SetReplicatedFrom(strings.Repeat("x", MaxHeaderBytes)) }), ErrTooLarge},
		"sequence backwards":  {md(func(m *entryv1.MessageMetadata) { m.SetHighestSequenceId(99) }), ErrCorrupt},
		"follows itself":      {md(func(m *entryv1.MessageMetadata) { m.SetPreviousSequenceId(100) }), ErrCorrupt},
		"empty batch":         {md(func(m *entryv1.MessageMetadata) { m.SetNumMessagesInBatch(0) }), ErrCorrupt},
		"negative batch":      {md(func(m *entryv1.MessageMetadata) { m.SetNumMessagesInBatch(-1) }), ErrCorrupt},
		"hash range":          {md(func(m *entryv1.MessageMetadata) { m.SetKeyHashFirst(21) }), ErrCorrupt},
		"unknown compression": {md(func(m *entryv1.MessageMetadata) { m.SetCompression(9) }), ErrCorrupt},
		"magic":               {[]byte("\x0e\x03\x00\x00\x00\x00\x00\x00\x00\x00"), ErrCorrupt},
		"length":              {[]byte("\x0e\x01\x00\x00\x00\x00\x00\x00\x00\x01"), ErrCorrupt},
		"not UTF-8":           {[]byte("\x0e\x01\x00\x00\x00\x00\x00\x00\x00\x03\x0a\x01\xff"), ErrCorrupt},
	} {
		if _, _, err := ParseHeader(c.part); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
