package rpc

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

var stock = encoding.GetCodecV2(protocodec.Name)

// countingPool hands out buffers that must all come back.
type countingPool struct{ out atomic.Int64 }

func (p *countingPool) Get(n int) *[]byte {
	p.out.Add(1)
	b := make([]byte, n)
	return &b
}

func (p *countingPool) Put(b *[]byte) {
	clear(*b) // who reads it after Free will notice
	p.out.Add(-1)
}

// pieces cuts wire into buffers of random sizes, all from pool. Buffers small
// enough for gRPC not to pool them come as they are.
func (p *countingPool) pieces(wire []byte, rng *rand.Rand, max int) mem.BufferSlice {
	var s mem.BufferSlice
	for len(wire) > 0 {
		n := 1 + rng.IntN(min(max, len(wire)))
		buf := p.Get(1 << 11)
		*buf = append((*buf)[:0], wire[:n]...)
		if cap(*buf) <= 1024 {
			p.out.Add(-1)
		}
		s = append(s, mem.NewBuffer(buf, p))
		wire = wire[n:]
	}
	return s
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func request(flags int) *bookiev1.WriteRequest {
	r := bookiev1.WriteRequest_builder{Incarnation: proto.String("incarnation"), Terms: []int64{-1, 1 << 60}}.Build()
	for i := range flags {
		r.SetFlags(append(r.GetFlags(), uint32(i)))
	}
	return r
}

var sizes = []int{0, 1, 100, 1023, 1024, 1025, 16 << 10, 128<<10 + 7, 3 << 20}

// Shows that what a Frame sends, generated code with the stock codec reads, and
// the other way round, whatever the payload's size and however the transport
// cuts the message.
func TestInteropWithStockCodec(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	c := Codec()
	for _, n := range sizes {
		payload := random(rng, n)
		sent, err := c.Marshal(&Frame{Head: request(3), Payload: [][]byte{payload[:n/3], nil, payload[n/3:]}})
		if err != nil {
			t.Fatal(err)
		}
		var got bookiev1.WriteRequest
		if err := stock.Unmarshal(sent, &got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.GetPayload(), payload) || got.HasPayload() != (n > 0) {
			t.Errorf("%d bytes: stock codec reads another payload", n)
		}
		got.ClearPayload()
		if !proto.Equal(&got, request(3)) {
			t.Errorf("%d bytes: stock codec reads %v", n, &got)
		}
		sent.Free()

		full := request(5)
		full.SetPayload(payload)
		wire, err := stock.Marshal(full)
		if err != nil {
			t.Fatal(err)
		}
		pool := &countingPool{}
		cut := pool.pieces(wire.Materialize(), rng, 20<<10)
		wire.Free()
		f := Frame{Head: &bookiev1.WriteRequest{}}
		if err := c.Unmarshal(cut, &f); err != nil {
			t.Fatal(err)
		}
		cut.Free()
		if f.Size() != n || !bytes.Equal(f.Bytes(), payload) || !proto.Equal(f.Head, request(5)) {
			t.Errorf("%d bytes: frame reads %d bytes and %v", n, f.Size(), f.Head)
		}
		f.Free()
		if out := pool.out.Load(); out != 0 {
			t.Errorf("%d bytes: %d buffers never came back", n, out)
		}
	}
}

// Shows that other messages go through the stock codec.
func TestOtherMessagesAsEver(t *testing.T) {
	in := bookiev1.FenceRequest_builder{Ledger: proto.Int64(7)}.Build()
	wire, err := Codec().Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out bookiev1.FenceRequest
	if err := Codec().Unmarshal(wire, &out); err != nil || !proto.Equal(in, &out) {
		t.Errorf("%v, %v", &out, err)
	}
}

// Shows that field order, repeated payload fields and unknown fields mean to a
// Frame what they mean to protobuf, cut anywhere.
func TestFieldsInAnyOrder(t *testing.T) {
	var wire []byte
	field := func(num protowire.Number, v string) {
		wire = protowire.AppendString(protowire.AppendTag(wire, num, protowire.BytesType), v)
	}
	field(PayloadField, "dropped: the last one counts")
	field(1, "incarnation")
	field(PayloadField, "the payload")
	field(2, "\x01\x02\x03")
	field(999, "unknown")
	wire = protowire.AppendFixed64(protowire.AppendTag(wire, 1000, protowire.Fixed64Type), 1)
	wire = protowire.AppendFixed32(protowire.AppendTag(wire, 1001, protowire.Fixed32Type), 1)
	wire = protowire.AppendVarint(protowire.AppendTag(wire, 1002, protowire.VarintType), 1<<63)
	var want bookiev1.WriteRequest
	if err := proto.Unmarshal(wire, &want); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(2, 2))
	pool := &countingPool{}
	for range 200 {
		data := pool.pieces(wire, rng, 1+rng.IntN(len(wire)))
		f := Frame{Head: &bookiev1.WriteRequest{}}
		if err := Codec().Unmarshal(data, &f); err != nil {
			t.Fatal(err)
		}
		data.Free()
		if got := string(f.Bytes()); got != string(want.GetPayload()) {
			t.Fatalf("payload %q", got)
		}
		got := f.Head.(*bookiev1.WriteRequest)
		got.SetPayload(want.GetPayload())
		if !proto.Equal(got, &want) {
			t.Fatalf("read %v, want %v", got, &want)
		}
	}
	if out := pool.out.Load(); out != 0 {
		t.Errorf("%d buffers never came back", out)
	}
}

// Shows that a payload is carved into pieces across buffers, that the rest can be
// had where it stands, that Free may come at any time and twice, and that receiving again frees what was left.
func TestCarving(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	payload := random(rng, 100_000)
	full := request(0)
	full.SetPayload(payload)
	wire, err := proto.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	pool := &countingPool{}
	f := Frame{Head: &bookiev1.WriteRequest{}}
	for range 50 {
		data := pool.pieces(wire, rng, 10_000)
		if err := Codec().Unmarshal(data, &f); err != nil {
			t.Fatal(err)
		}
		data.Free()
		var got []byte
		for len(got) < rng.IntN(2*len(payload)) && f.Unread() > 0 {
			dst := make([]byte, rng.IntN(30_000))
			n := f.CopyTo(dst)
			got = append(got, dst[:n]...)
		}
		if !bytes.Equal(got, payload[:len(got)]) || f.Unread() != len(payload)-len(got) || f.Size() != len(payload) {
			t.Fatalf("after %d bytes: %d unread, or other bytes", len(got), f.Unread())
		}
		if rest := bytes.Join(f.Pieces(), nil); !bytes.Equal(rest, payload[len(got):]) {
			t.Fatalf("after %d bytes: pieces of %d bytes hold something else than the rest", len(got), len(rest))
		}
	}
	f.Free()
	f.Free()
	if out := pool.out.Load(); out != 0 {
		t.Errorf("%d buffers never came back", out)
	}
	if f.CopyTo(make([]byte, 10)) != 0 || f.Bytes() != nil {
		t.Error("bytes after Free")
	}
}

// Shows that truncated and hostile messages are refused, with no buffer lost and
// without allocating what they claim to hold.
func TestHostileFrames(t *testing.T) {
	full := request(3)
	full.SetPayload(make([]byte, 5000))
	whole, err := proto.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	bad := [][]byte{
		{0x7a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, // payload of 2^64-1 bytes
		{0x7a, 0xff, 0xff, 0xff, 0xff, 0x07, 'x'},                          // of 2 GiB
		{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},       // a field of 2^63-1
		{0x78, 0x01}, // payload as a varint
		{0x00},       // field number 0
		{0x0b, 0x0c}, // a group
		{0x0f},       // wire type 7
		{0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, // a varint of 11 bytes
		{0xff},                           // half a tag
		append(bytes.Clone(whole), 0x0a), // trailing tag
		{0x0a, 0x01, 0xff},               // a string that is not UTF-8
		append(protowire.AppendVarint([]byte{0x0a}, MaxHeadBytes+1), make([]byte, MaxHeadBytes+1)...), // a head of more than the limit
	}
	for n := 1; n < len(whole)-1; n += 7 {
		bad = append(bad, whole[:n])
	}
	rng := rand.New(rand.NewPCG(4, 4))
	for _, wire := range bad {
		pool := &countingPool{}
		data := pool.pieces(wire, rng, 2000)
		f := Frame{Head: &bookiev1.WriteRequest{}}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := Codec().Unmarshal(data, &f)
		runtime.ReadMemStats(&after)
		data.Free()
		if err == nil {
			// A cut may fall between two fields.
			if proto.Unmarshal(wire, &bookiev1.WriteRequest{}) != nil {
				t.Errorf("accepted %x", wire[:min(len(wire), 32)])
			}
			f.Free()
		} else if f.Size() != 0 {
			t.Errorf("a refused frame holds %d bytes", f.Size())
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<10 {
			t.Errorf("%x: %d bytes allocated", wire[:min(len(wire), 32)], grown)
		}
		if out := pool.out.Load(); out != 0 {
			t.Errorf("%x: %d buffers never came back", wire[:min(len(wire), 32)], out)
		}
	}
	if err := Codec().Unmarshal(nil, &Frame{}); err == nil {
		t.Error("a frame without a head was filled")
	}
	if _, err := Codec().Marshal(&Frame{}); err == nil {
		t.Error("a frame without a head was sent")
	}
	if _, err := Codec().Marshal(&Frame{Head: full}); err == nil {
		t.Error("a frame with two payloads was sent")
	}
}

// FuzzFrame shows that a Frame reads from any bytes, cut anywhere, what protobuf
// reads, or refuses.
func FuzzFrame(f *testing.F) {
	full := request(3)
	full.SetPayload([]byte("payload"))
	whole, err := proto.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, uint8(3))
	f.Add([]byte{0x7a, 0x01, 'x', 0x7a, 0x00}, uint8(1))
	f.Add([]byte{0x7a, 0xff, 0xff, 0xff, 0xff, 0x07, 'x'}, uint8(2))
	f.Fuzz(func(t *testing.T, wire []byte, cut uint8) {
		var data mem.BufferSlice
		for rest := wire; len(rest) > 0; {
			n := min(1+int(cut), len(rest))
			data = append(data, mem.SliceBuffer(rest[:n]))
			rest = rest[n:]
		}
		fr := Frame{Head: &bookiev1.WriteRequest{}}
		if err := Codec().Unmarshal(data, &fr); err != nil {
			return
		}
		var want bookiev1.WriteRequest
		if err := proto.Unmarshal(wire, &want); err != nil {
			t.Fatalf("accepted what protobuf refuses: %v", err)
		}
		got := fr.Head.(*bookiev1.WriteRequest)
		if p := fr.Bytes(); !bytes.Equal(p, want.GetPayload()) {
			t.Fatalf("payload %q, want %q", p, want.GetPayload())
		}
		want.ClearPayload()
		if !proto.Equal(got, &want) {
			t.Fatalf("head %v, want %v", got, &want)
		}
	})
}

func benchmark(b *testing.B, c encoding.CodecV2, n int, frame bool) {
	payload := make([]byte, n)
	b.SetBytes(int64(n))
	b.ReportAllocs()
	for b.Loop() {
		var v any
		if frame {
			v = &Frame{Head: request(8), Payload: [][]byte{payload}}
		} else {
			r := request(8)
			r.SetPayload(payload)
			v = r
		}
		wire, err := c.Marshal(v)
		if err != nil {
			b.Fatal(err)
		}
		// The transport delivers DATA frames of 16 KiB from pooled buffers.
		if frame {
			f := Frame{Head: &bookiev1.WriteRequest{}}
			err = c.Unmarshal(wire, &f)
			f.Free()
		} else {
			err = c.Unmarshal(wire, &bookiev1.WriteRequest{})
		}
		if err != nil {
		}
		wire.Free()
	}
}

func BenchmarkCodec(b *testing.B) {
	for _, c := range []struct {
		name string
		n    int
	}{{"1KiB", 1 << 10}, {"128KiB", 128 << 10}, {"1MiB", 1 << 20}} {
		b.Run("frame/"+c.name, func(b *testing.B) { benchmark(b, Codec(), c.n, true) })
		b.Run("stock/"+c.name, func(b *testing.B) { benchmark(b, stock, c.n, false) })
	}
}
