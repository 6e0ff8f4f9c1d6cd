package rpc

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// errFrame reports a received message that is no well-formed frame.
var errFrame = errors.New("rpc: malformed frame")

// Codec returns the codec of our servers and connections: *Frame by reference,
// every other message as the stock proto codec has it. It is set per server and
// connection, never registered, since other users of gRPC share the process.
func Codec() encoding.CodecV2 { return codec{stock: encoding.GetCodecV2(protocodec.Name)} }

type codec struct {
	stock encoding.CodecV2
	limit int // of a message that is no frame, when it is read; 0: gRPC's own
}

// serverCodec is Codec for a server, which decodes no more of a request than of a
// frame's head: gRPC's own limit leaves room for entries, and what lists names may
// take many times its size once it is decoded, before anyone can count them.
func serverCodec() encoding.CodecV2 {
	return codec{stock: encoding.GetCodecV2(protocodec.Name), limit: MaxHeadBytes}
}

func (codec) Name() string { return protocodec.Name }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*Frame)
	if !ok {
		return c.stock.Marshal(v)
	}
	if f.Head == nil {
		return nil, errors.New("rpc: frame without a head")
	}
	if h, ok := f.Head.(interface{ HasPayload() bool }); ok && h.HasPayload() {
		return nil, fmt.Errorf("rpc: frame whose head, a %T, has a payload of its own", f.Head)
	}
	total := 0
	for _, p := range f.Payload {
		total += len(p)
	}
	const prefix = 1 + 10 // tag and length of the payload
	size := proto.Size(f.Head)
	head, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(make([]byte, 0, size+prefix), f.Head)
	if err != nil {
		return nil, err
	}
	if total == 0 {
		return mem.BufferSlice{mem.SliceBuffer(head)}, nil
	}
	head = protowire.AppendTag(head, PayloadField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(total))
	data := make(mem.BufferSlice, 1, 1+len(f.Payload))
	data[0] = mem.SliceBuffer(head)
	for _, p := range f.Payload {
		if len(p) > 0 {
			data = append(data, mem.SliceBuffer(p))
		}
	}
	return data, nil
}

// Unmarshal reads a frame out of data, which the caller frees. It copies only
// the head, and only where that is not in one piece.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*Frame)
	if !ok {
		if n := data.Len(); c.limit > 0 && n > c.limit {
			return fmt.Errorf("%w: %d bytes without a payload, at most %d", errFrame, n, c.limit)
		}
		return c.stock.Unmarshal(data, v)
	}
	if f.Head == nil {
		return errors.New("rpc: frame without a head to receive into")
	}
	f.Free()
	f.size = 0
	s, err := scan(data)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(s.head, f.Head); err != nil {
		return err
	}
	f.hold(data, s.payload, s.length)
	return nil
}

// scanned says where the two halves of a message are.
type scanned struct {
	head    []byte // all fields but the payload; may be part of a received buffer
	payload int    // offset of the payload's bytes in the message
	length  int
}

// scan walks the top-level fields of a message. Of several payload fields the
// last counts, as protobuf has it.
func scan(data mem.BufferSlice) (s scanned, err error) {
	r := reader{data: data, total: data.Len()}
	var skip []span // payload fields, with their tags
	for r.pos < r.total {
		start := r.pos
		tag, ok := r.varint()
		if !ok {
			return scanned{}, fmt.Errorf("%w: tag at byte %d of %d", errFrame, start, r.total)
		}
		num, typ := protowire.DecodeTag(tag)
		if num < protowire.MinValidNumber {
			return scanned{}, fmt.Errorf("%w: field number at byte %d", errFrame, start)
		}
		n, ok := r.valueLen(typ)
		if !ok || n > uint64(r.total-r.pos) {
			return scanned{}, fmt.Errorf("%w: field %d at byte %d of %d is cut off or of unknown type", errFrame, num, start, r.total)
		}
		if num == PayloadField {
			if typ != protowire.BytesType {
				return scanned{}, fmt.Errorf("%w: payload of wire type %d", errFrame, typ)
			}
			s.payload, s.length = r.pos, int(n)
			skip = append(skip, span{start, r.pos + int(n)})
		}
		r.skip(int(n))
	}
	s.head, err = headOf(data, skip, r.total)
	return s, err
}

// span is a run of bytes of a message, end not included.
type span struct{ start, end int }

// headOf returns the message without the skipped spans, a part of the first
// buffer where it stands there in one piece.
func headOf(data mem.BufferSlice, skip []span, total int) ([]byte, error) {
	size := total
	for _, s := range skip {
		size -= s.end - s.start
	}
	if size > MaxHeadBytes {
		return nil, fmt.Errorf("%w: %d bytes beside the payload, at most %d", errFrame, size, MaxHeadBytes)
	}
	switch {
	case size == 0:
		return nil, nil
	case size <= data[0].Len() && (len(skip) == 0 || skip[0].start == size):
		return data[0].ReadOnlyData()[:size], nil
	}
	head := make([]byte, 0, size)
	pos := 0
	for _, b := range data {
		rest := b.ReadOnlyData()
		for len(rest) > 0 {
			for len(skip) > 0 && skip[0].end <= pos {
				skip = skip[1:]
			}
			switch {
			case len(skip) == 0:
				head = append(head, rest...)
				pos, rest = pos+len(rest), nil
			case pos >= skip[0].start:
				n := min(len(rest), skip[0].end-pos)
				pos, rest = pos+n, rest[n:]
			default:
				n := min(len(rest), skip[0].start-pos)
				head = append(head, rest[:n]...)
				pos, rest = pos+n, rest[n:]
			}
		}
	}
	return head, nil
}

// reader walks over the bytes of a message that lies in several buffers.
type reader struct {
	data  mem.BufferSlice
	at    int // in data[0]
	pos   int // in the message
	total int
}

func (r *reader) varint() (v uint64, ok bool) {
	for shift := 0; shift < 70 && r.pos < r.total; shift += 7 {
		for r.at == r.data[0].Len() {
			r.data, r.at = r.data[1:], 0
		}
		b := r.data[0].ReadOnlyData()[r.at]
		r.at++
		r.pos++
		if shift == 63 && b > 1 {
			return 0, false
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, true
		}
	}
	return 0, false
}

// valueLen reads what stands before the value's bytes and says how many those
// are. Groups, which none of our messages has, are refused.
func (r *reader) valueLen(typ protowire.Type) (n uint64, ok bool) {
	switch typ {
	case protowire.VarintType:
		_, ok = r.varint()
		return 0, ok
	case protowire.Fixed32Type:
		return 4, true
	case protowire.Fixed64Type:
		return 8, true
	case protowire.BytesType:
		return r.varint()
	}
	return 0, false
}

// skip passes over n bytes, which are there.
func (r *reader) skip(n int) {
	r.pos += n
	for n > 0 {
		c := min(n, r.data[0].Len()-r.at)
		n -= c
		r.at += c
		if r.at == r.data[0].Len() {
			r.data, r.at = r.data[1:], 0
		}
	}
}
