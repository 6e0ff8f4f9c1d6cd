// Package rpc is how this system uses gRPC: a codec that passes payloads through
// by reference, and the limits and settings of its servers and connections.
//
// On the wire everything is plain protobuf. A message with a payload is its
// ordinary fields followed by field 15, bytes; a program with generated stubs
// and the stock codec reads and writes the same.
package rpc

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// PayloadField is the number of the bytes field that is carried by reference.
const PayloadField = 15

// MaxHeadBytes bounds what of a received Frame is not payload. Decoded, a head of
// two-byte messages takes sixty times its size.
const MaxHeadBytes = 1 << 20

// Frame is a message in transit: Head with its payload field left empty, and the
// bytes of that field apart. It is for one goroutine at a time.
//
// To send, set Head and Payload and pass a *Frame to SendMsg. The pieces of
// Payload follow each other on the wire as one field. They are not copied before
// the transport writes them, which may be after SendMsg returned: whoever holds
// them never alters them again.
//
// To receive, set Head to an empty message and pass the *Frame to RecvMsg. The
// payload then stands in the transport's own buffers: read it with CopyTo or
// Bytes, then call Free. Receiving into a Frame frees what it still held.
type Frame struct {
	Head    proto.Message
	Payload [][]byte

	recv   mem.BufferSlice // buffers of the payload received, each with a reference of ours
	at     int             // first unread byte of recv[0]
	unread int             // payload bytes not yet read
	size   int
}

// Size is how many payload bytes were received.
func (f *Frame) Size() int { return f.size }

// Unread is how many of them have not been read.
func (f *Frame) Unread() int { return f.unread }

// CopyTo fills dst with the next unread bytes and returns how many there were.
// Calls in a row carve the payload into pieces; buffers are given back as soon
// as they are read.
func (f *Frame) CopyTo(dst []byte) int {
	dst = dst[:min(len(dst), f.unread)]
	n := 0
	for n < len(dst) {
		data := f.recv[0].ReadOnlyData()[f.at:]
		c := copy(dst[n:], data)
		n += c
		f.at += c
		if c == len(data) {
			f.recv[0].Free()
			f.recv, f.at = f.recv[1:], 0
		}
	}
	f.unread -= n
	if f.unread == 0 {
		f.Free()
	}
	return n
}

// Bytes returns a copy of all unread bytes, nil when there are none.
func (f *Frame) Bytes() []byte {
	if f.unread == 0 {
		return nil
	}
	b := make([]byte, f.unread)
	f.CopyTo(b)
	return b
}

// Pieces returns the unread bytes where they stand, to be passed on as another
// Frame's Payload. They are good until Free, which the caller puts off until that
// one was received at its other end; they count as unread still.
func (f *Frame) Pieces() [][]byte {
	pieces := make([][]byte, len(f.recv))
	left, at := f.unread, f.at
	for i, b := range f.recv {
		data := b.ReadOnlyData()[at:]
		pieces[i] = data[:min(len(data), left)]
		left, at = left-len(pieces[i]), 0
	}
	return pieces
}

// Free gives the received buffers back; what was unread is gone. A second call
// does nothing.
func (f *Frame) Free() {
	f.recv.Free()
	f.recv, f.at, f.unread = nil, 0, 0
}

// hold takes the payload, length bytes from byte start of data, in place of what
// the frame held.
func (f *Frame) hold(data mem.BufferSlice, start, length int) {
	f.Free()
	f.size, f.unread = length, length
	for _, b := range data {
		if length == 0 {
			return
		}
		n := b.Len()
		if start >= n {
			start -= n
			continue
		}
		b.Ref()
		if f.recv == nil {
			f.recv, f.at = make(mem.BufferSlice, 0, len(data)), start
		}
		f.recv = append(f.recv, b)
		length -= min(length, n-start)
		start = 0
	}
}
