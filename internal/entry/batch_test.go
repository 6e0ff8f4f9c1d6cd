package entry

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

var compressions = []entryv1.CompressionType{
	entryv1.CompressionType_COMPRESSION_TYPE_NONE, entryv1.CompressionType_COMPRESSION_TYPE_LZ4,
	entryv1.CompressionType_COMPRESSION_TYPE_ZLIB, entryv1.CompressionType_COMPRESSION_TYPE_ZSTD,
	entryv1.CompressionType_COMPRESSION_TYPE_SNAPPY,
}

const testLimit = 8 << 20

func readAll(t testing.TB, part []byte) (Header, []Message) {
	t.Helper()
	b, err := Open(part, testLimit)
	if err != nil {
		t.Fatal(err)
	}
	var got []Message
	for {
		var m Message
		ok, err := b.Next(&m)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return b.Header, got
		}
		got = append(got, m)
	}
}

// Shows that messages come back as they were, under every compression, whatever
// their keys, properties and values, and that the frame reads with generated code.
func TestBatchRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seq := rapid.Uint64Range(0, 1<<62).Draw(t, "first")
		var in []Message
		for range rapid.IntRange(1, 20).Draw(t, "messages") {
			m := Message{SequenceID: seq, Value: rapid.SliceOf(rapid.Byte()).Draw(t, "value")}
			if rapid.Bool().Draw(t, "compressible") {
				m.Value = bytes.Repeat([]byte("abc"), rapid.IntRange(0, 1000).Draw(t, "repeats"))
			}
			if m.HasKey = rapid.Bool().Draw(t, "keyed"); m.HasKey {
				m.Key = rapid.SampledFrom([]string{"", "a", "key-2", "\xff\xfe", "ü"}).Draw(t, "key")
			}
			if rapid.Bool().Draw(t, "props") {
				m.Properties = rapid.MapOfN(rapid.String(), rapid.String(), 1, 4).Draw(t, "properties")
			}
			if rapid.Bool().Draw(t, "ordering") {
				m.OrderingKey = []byte("o")
			}
			m.EventTime = rapid.Uint64Range(0, 1<<40).Draw(t, "event time")
			m.NullValue = rapid.Bool().Draw(t, "null")
			seq += 1 + rapid.Uint64Range(0, 3).Draw(t, "gap")
			in = append(in, m)
		}
		h := BatchHeader{Producer: "p", Epoch: 3, PublishTime: 1000, HasPrevious: in[0].SequenceID > 0,
			Previous: max(in[0].SequenceID, 1) - 1, RoutingVersion: 2, Compression: rapid.SampledFrom(compressions).Draw(t, "compression")}
		var b Builder
		bound := 0
		for i := range in {
			b.Add(&in[i], uint32(i))
			bound += in[i].Bytes()
		}
		if b.Len() != len(in) || b.Bytes() > bound || lastOf(&b) != in[len(in)-1].SequenceID {
			t.Fatalf("builder holds %d messages, %d bytes (announced %d), last %d", b.Len(), b.Bytes(), bound, lastOf(&b))
		}
		part := b.Close(h)
		if b.Len() != 0 || b.Bytes() != 0 {
			t.Fatal("builder is not empty after Close")
		}

		r, err := Open(part, testLimit)
		if err != nil {
			t.Fatal(err)
		}
		if r.Header.Messages != len(in) || r.Header.SequenceID != in[0].SequenceID || r.Header.HighestSequence != in[len(in)-1].SequenceID ||
			r.Header.ProducerName != "p" || r.Header.HasPrevious != h.HasPrevious || r.Header.PreviousSequence != h.Previous && h.HasPrevious {
			t.Fatalf("header %+v", r.Header)
		}
		for i := range in {
			var m Message
			if ok, err := r.Next(&m); !ok || err != nil {
				t.Fatal(ok, err)
			}
			if diff := cmp.Diff(in[i], m, cmp.Transformer("nil", func(b []byte) string { return string(b) })); diff != "" {
				t.Fatalf("message %d: %s", i, diff)
			}
		}
		if ok, err := r.Next(new(Message)); ok || err != nil {
			t.Fatal(ok, err)
		}
		checkWithGeneratedCode(t, part, in)
	})
}

func lastOf(b *Builder) uint64 {
	_, last := b.Sequences()
	return last
}

// checkWithGeneratedCode decodes an uncompressed batch as any other program would.
func checkWithGeneratedCode(t *rapid.T, part []byte, in []Message) {
	h, at, err := ParseHeader(part)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := decompress(&h, part[at:], testLimit)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range in {
		n := binary.BigEndian.Uint32(payload)
		var single entryv1.SingleMessageMetadata
		if err := proto.Unmarshal(payload[4:4+n], &single); err != nil {
			t.Fatal(err)
		}
		value := payload[4+n:][:single.GetPayloadSize()]
		payload = payload[4+int(n)+len(value):]
		if !bytes.Equal(value, m.Value) || single.GetSequenceId() != m.SequenceID || single.HasPartitionKey() != m.HasKey ||
			len(single.GetProperties()) != len(m.Properties) || single.GetNullValue() != m.NullValue {
			t.Fatalf("message %d reads as %v", i, &single)
		}
	}
}

// Shows what the header of a batch tells a broker about its keys.
func TestBatchHeaderTellsKeys(t *testing.T) {
	build := func(ms ...Message) Header {
		var b Builder
		for i := range ms {
			ms[i].SequenceID = uint64(i)
			b.Add(&ms[i], uint32(len(ms[i].Key)))
		}
		h, _ := readAll(t, b.Close(BatchHeader{Producer: "p"}))
		return h
	}
	one := build(Message{HasKey: true, Key: "k"}, Message{HasKey: true, Key: "k"})
	if !one.HasPartitionKey || one.PartitionKey != "k" || !one.HasKeyHash || one.KeyHashFirst != 1 || one.KeyHashLast != 1 {
		t.Errorf("one key: %+v", one)
	}
	two := build(Message{HasKey: true, Key: "kkk"}, Message{HasKey: true, Key: "k"})
	if two.HasPartitionKey || two.KeyHashFirst != 1 || two.KeyHashLast != 3 {
		t.Errorf("two keys: %+v", two)
	}
	some := build(Message{HasKey: true, Key: "k"}, Message{})
	if some.HasPartitionKey || some.HasKeyHash {
		t.Errorf("a message without key: %+v", some)
	}
	binary := build(Message{HasKey: true, Key: "\xff"})
	if !binary.KeyIsBase64 || binary.PartitionKey != "/w==" {
		t.Errorf("key that is not UTF-8: %+v", binary)
	}
	ordered := build(Message{OrderingKey: []byte("o")}, Message{OrderingKey: []byte("o")})
	if string(ordered.OrderingKey) != "o" {
		t.Errorf("ordering key: %+v", ordered)
	}
	long := build(Message{HasKey: true, Key: strings.Repeat("k", 7000)})
	if len(long.PartitionKey) != 7000 {
		t.Error("a header beyond the room for it lost its key")
	}
}

// Shows an entry that is not framed as a batch, as other programs write it.
func TestUnbatchedEntry(t *testing.T) {
	md := fullMetadata()
	md.ClearNumMessagesInBatch()
	md.ClearCompression()
	md.SetPartitionKey("/w==")
	_, got := readAll(t, AppendProducerPart(nil, md, []byte("value")))
	want := []Message{{SequenceID: 100, EventTime: 1600000000000, HasKey: true, Key: "\xff", OrderingKey: []byte("order"),
		Properties: map[string]string{"k": "v"}, Value: []byte("value"), NullValue: true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Shows the bytes of a framed message, field by field.
func TestGoldenBatch(t *testing.T) {
	var b Builder
	b.Add(&Message{SequenceID: 5, EventTime: 1, HasKey: true, Key: "k", OrderingKey: []byte("o"), Properties: map[string]string{"a": "b"}, Value: []byte("hi"), NullValue: true}, 7)
	part := b.Close(BatchHeader{Producer: "p", Epoch: 1, PublishTime: 2, HasPrevious: true, Previous: 4})
	_, at, err := ParseHeader(part)
	if err != nil {
		t.Fatal(err)
	}
	const wantHeader = "0a0170" + "1005" + "1802" + "32016b" + "5801" + "9201016f" + "c00105" + "c03e04" + "c83e01" + "d03e07" + "d83e07"
	const wantPayload = "00000016" + "0a060a0161120162" + "12016b" + "1802" + "2801" + "3a016f" + "4005" + "4801" + "6869"
	if got := hex.EncodeToString(part[ProducerPrefixBytes:at]); got != wantHeader {
		t.Errorf("header  %s\nwant    %s", got, wantHeader)
	}
	if got := hex.EncodeToString(part[at:]); got != wantPayload {
		t.Errorf("payload %s\nwant    %s", got, wantPayload)
	}
}

// Shows that a payload that does not get smaller is sent as it is.
func TestIncompressiblePayload(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, 10_000)
	for i := range value {
		value[i] = byte(rng.Uint32())
	}
	for _, c := range compressions {
		var b Builder
		b.Add(&Message{Value: value}, 0)
		h, got := readAll(t, b.Close(BatchHeader{Producer: "p", Compression: c}))
		if h.Compression != entryv1.CompressionType_COMPRESSION_TYPE_NONE || !bytes.Equal(got[0].Value, value) {
			t.Errorf("%v: sent as %v, %d bytes", c, h.Compression, len(got[0].Value))
		}
	}
}

// Shows that a header cannot make a reader allocate more than the payload could
// hold, nor more than the reader's limit, and that a wrong size is noticed.
func TestHostilePayloads(t *testing.T) {
	plain := bytes.Repeat([]byte("abcdefgh"), 1000)
	for _, c := range compressions[1:] {
		small, ok := compress(nil, plain, c)
		if !ok {
			t.Fatalf("%v does not compress", c)
		}
		for _, x := range []struct {
			name    string
			payload []byte
			size    uint32
			limit   int
			want    error
		}{
			{"stated right", small, 8000, testLimit, nil},
			{"stated too small", small, 7999, testLimit, ErrCorrupt},
			{"stated too large", small, 8001, testLimit, ErrCorrupt},
			{"stated 4 GiB", small, 1<<32 - 1, testLimit, ErrTooLarge},
			{"beyond the reader's limit", small, 8000, 7999, ErrTooLarge},
			{"7 MiB in a few bytes", small[:8], 7 << 20, testLimit, ErrCorrupt},
			{"cut off", small[:len(small)-1], 8000, testLimit, ErrCorrupt},
			{"empty", nil, 8000, testLimit, ErrCorrupt},
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := decompress(&Header{Compression: c, UncompressedBytes: x.size}, x.payload, x.limit)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, x.want) || err == nil && !bytes.Equal(got, plain) {
				t.Errorf("%v, %s: %d bytes, %v; want %v", c, x.name, len(got), err, x.want)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > testLimit {
				t.Errorf("%v, %s: %d bytes allocated", c, x.name, grown)
			}
		}
	}
	if _, err := decompress(&Header{}, plain, 100); !errors.Is(err, ErrTooLarge) {
		t.Errorf("uncompressed payload beyond the limit: %v", err)
	}
}

// Shows that broken frames inside a payload are refused.
func TestBrokenFrames(t *testing.T) {
	for name, payload := range map[string]string{
		"empty":              "",
		"half a size":        "\x00\x00",
		"size beyond":        "\x00\x00\x00\x09\x18\x00",
		"size of 4 GiB":      "\xff\xff\xff\xff",
		"value beyond":       "\x00\x00\x00\x02\x18\x7f",
		"negative value":     "\x00\x00\x00\x0b\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"trailing bytes":     "\x00\x00\x00\x02\x18\x00x",
		"cut-off field":      "\x00\x00\x00\x01\x12",
		"key is not UTF-8":   "\x00\x00\x00\x03\x12\x01\xff",
		"key is not base64":  "\x00\x00\x00\x05\x12\x01!\x30\x01",
		"property not UTF-8": "\x00\x00\x00\x05\x0a\x03\x0a\x01\xff",
		"property cut off":   "\x00\x00\x00\x03\x0a\x01\x0a",
	} {
		part := AppendProducerPart(nil, entryv1.MessageMetadata_builder{NumMessagesInBatch: proto.Int32(1)}.Build(), []byte(payload))
		b, err := Open(part, testLimit)
		for ok := true; ok && err == nil; {
			ok, err = b.Next(new(Message))
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Shows that reading a batch allocates nothing per message but its own strings.
func TestMessagesAllocateNothingEach(t *testing.T) {
	var b Builder
	for i := range 1000 {
		b.Add(&Message{SequenceID: uint64(i), HasKey: true, Key: "key", Value: []byte("value")}, 1)
	}
	part := b.Close(BatchHeader{Producer: "p"})
	n := testing.AllocsPerRun(10, func() {
		if _, got := readAllInto(part); got != 1000 {
			t.Fatal(got)
		}
	})
	if n > 10 {
		t.Errorf("%v allocations for 1000 messages", n)
	}
}

func readAllInto(part []byte) (last Message, n int) {
	b, err := Open(part, testLimit)
	for ok := err == nil; ok; n++ {
		if ok, err = b.Next(&last); !ok {
			break
		}
	}
	if err != nil {
		panic(err)
	}
	return last, n
}

// FuzzMessages shows that no producer part makes the reader do anything but
// return messages or one of its errors, within its limit.
func FuzzMessages(f *testing.F) {
	for _, c := range compressions {
		var b Builder
		b.Add(&Message{HasKey: true, Key: "k", Properties: map[string]string{"a": "b"}, Value: bytes.Repeat([]byte("v"), 100)}, 1)
		b.Add(&Message{SequenceID: 1, Value: []byte("w")}, 1)
		part := b.Close(BatchHeader{Producer: "p", Compression: c})
		_, at, err := ParseHeader(part)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(part[ProducerPrefixBytes:at], part[at:])
	}
	f.Fuzz(func(t *testing.T, metadata, payload []byte) {
		// A producer part with a right checksum around whatever the fuzzer made.
		var md entryv1.MessageMetadata
		if proto.Unmarshal(metadata, &md) != nil {
			return
		}
		b, err := Open(AppendProducerPart(nil, &md, payload), 1<<20)
		for ok := err == nil; ok; {
			ok, err = b.Next(new(Message))
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
	})
}

func BenchmarkBuildAndRead(b *testing.B) {
	for _, n := range []int{100, 1000} {
		value := bytes.Repeat([]byte("x"), n)
		b.Run(fmt.Sprintf("%dB", n), func(b *testing.B) {
			b.SetBytes(int64(128 << 10 / n * n))
			b.ReportAllocs()
			var builder Builder
			for b.Loop() {
				for i := range 128 << 10 / n {
					builder.Add(&Message{SequenceID: uint64(i), Value: value}, 0)
				}
				readAllInto(builder.Close(BatchHeader{Producer: "p"}))
			}
		})
	}
}

// TestRuleM11_Follow shows that a batch which was refused can be put behind
// another predecessor, with everything else as it was.
func TestRuleM11_Follow(t *testing.T) {
	var b Builder
	b.Add(&Message{SequenceID: 9, HasKey: true, Key: "k", Value: []byte("v")}, 7)
	part := b.Close(BatchHeader{Producer: "p", Epoch: 2, HasPrevious: true, Previous: 5, DeliverAt: 4, RoutingVersion: 3})
	before, want := readAll(t, part)
	for _, has := range []bool{true, false} {
		moved, err := Follow(part, has, 3)
		if err != nil {
			t.Fatal(err)
		}
		h, got := readAll(t, moved)
		if h.HasPrevious != has || has && h.PreviousSequence != 3 {
			t.Errorf("it follows %v %d", h.HasPrevious, h.PreviousSequence)
		}
		h.HasPrevious, h.PreviousSequence = before.HasPrevious, before.PreviousSequence
		if headerString(h) != headerString(before) || !cmp.Equal(want, got) {
			t.Errorf("got %+v %+v, want %+v %+v", h, got, before, want)
		}
	}
	moved, err := Reroute(part, 8)
	if err != nil {
		t.Fatal(err)
	}
	if h, got := readAll(t, moved); h.RoutingVersion != 8 || h.PreviousSequence != 5 || !cmp.Equal(want, got) {
		t.Errorf("rerouted: %+v %+v", h, got)
	}
	if _, err := Follow(part[:5], true, 3); !errors.Is(err, ErrCorrupt) {
		t.Errorf("half a part: %v", err)
	}
}
