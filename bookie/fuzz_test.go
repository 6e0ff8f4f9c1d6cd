package bookie

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/vfs"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// wireStream is the server's end of a stream on which one message comes, as bytes.
type wireStream struct {
	grpc.ServerStream
	ctx     context.Context
	message []byte // nil: it was received
	sent    int
}

func (s *wireStream) Context() context.Context { return s.ctx }

func (s *wireStream) RecvMsg(m any) error {
	if s.message == nil {
		return io.EOF
	}
	data := mem.BufferSlice{mem.SliceBuffer(s.message)}
	s.message = nil
	return rpc.Codec().Unmarshal(data, m)
}

func (s *wireStream) SendMsg(any) error { s.sent++; return nil }

// seal makes the envelopes of a payload ones that pass their own checks, as far as
// the payload goes: a fuzzer does not guess checksums.
func seal(payload []byte) {
	for len(payload) >= ledger.EnvelopeBytes {
		head, rest := payload[:ledger.EnvelopeBytes], payload[ledger.EnvelopeBytes:]
		n := min(int(binary.LittleEndian.Uint32(head[4:])), len(rest))
		head[0] = 1
		binary.LittleEndian.PutUint32(head[4:], uint32(n))
		binary.LittleEndian.PutUint32(head[40:], crc32.Checksum(rest[:n], ledger.Castagnoli))
		binary.LittleEndian.PutUint32(head[44:], crc32.Checksum(head[:44], ledger.Castagnoli))
		payload = rest[n:]
	}
}

func marshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// FuzzWrite shows that no message on a Write stream keeps the stream from ending,
// or the node from serving.
func FuzzWrite(f *testing.F) {
	n := openNode(f, testOptions(vfs.NewMem()))
	own := n.identity.Incarnation
	var payload []byte
	for e := range ledger.EntryID(3) {
		a := entryOf(7, e, 30)
		for _, piece := range wire.Append(nil, &a.Envelope, a.Body) {
			payload = append(payload, piece...)
		}
	}
	head := marshal(f, bookiev1.WriteRequest_builder{Flags: []uint32{1, 3, 2}, Terms: []int64{1, 2}}.Build())
	f.Add(head, payload, true)
	f.Add(head, payload[:len(payload)-5], false)
	f.Add([]byte{0x7a, 0xff, 0xff, 0xff, 0xff, 0x07}, payload, true)
	f.Fuzz(func(t *testing.T, head, payload []byte, sealed bool) {
		if sealed {
			payload = append([]byte(nil), payload...)
			seal(payload)
		}
		message := append([]byte(nil), head...)
		message = protowire.AppendBytes(protowire.AppendTag(message, rpc.PayloadField, protowire.BytesType), payload)
		named := bookiev1.WriteRequest_builder{Incarnation: &own}.Build()
		message, err := proto.MarshalOptions{}.MarshalAppend(message, named)
		if err != nil {
			t.Fatal(err)
		}
		s := &wireStream{ctx: testContext(t), message: message}
		_ = (&service{node: n}).Write(&grpc.GenericServerStream[bookiev1.WriteRequest, bookiev1.WriteResponse]{ServerStream: s})
		if s.ctx.Err() != nil {
			t.Fatal("the stream did not end")
		}
	})
}

// FuzzRequest shows that every request is answered, whatever it asks for: of reads
// no more than was asked.
func FuzzRequest(f *testing.F) {
	n := openNode(f, testOptions(vfs.NewMem()))
	own := n.identity.Incarnation
	fill(f, n, 7, 0, 9, 100)
	f.Add(uint8(0), marshal(f, bookiev1.ReadRequest_builder{Ledger: new(int64(7)), LastEntry: new(int64(9))}.Build()))
	f.Add(uint8(0), marshal(f, bookiev1.ReadRequest_builder{
		Ledger: new(int64(7)), FirstEntry: new(int64(8)), LastEntry: new(int64(1<<63 - 1)), FenceTerm: new(int64(1)), HeadBytes: new(uint32(5)),
	}.Build()))
	f.Add(uint8(1), marshal(f, bookiev1.FenceRequest_builder{Ledger: new(int64(9)), Term: new(int64(3))}.Build()))
	f.Add(uint8(2), marshal(f, bookiev1.LedgerInfoRequest_builder{Ledger: new(int64(7))}.Build()))
	f.Add(uint8(3), marshal(f, bookiev1.ListLedgersRequest_builder{After: new(int64(-1)), Limit: new(uint32(1<<32 - 1))}.Build()))
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		s := &service{node: n}
		stream := &wireStream{ctx: testContext(t)}
		switch kind % 4 {
		case 0:
			var r bookiev1.ReadRequest
			if proto.Unmarshal(b, &r) == nil {
				r.SetIncarnation(own)
				_ = s.Read(&r, &grpc.GenericServerStream[bookiev1.ReadRequest, bookiev1.ReadResponse]{ServerStream: stream})
				if asked := uint64(r.GetLastEntry()) - uint64(r.GetFirstEntry()) + 1; asked > 0 && uint64(stream.sent) > asked {
					t.Fatalf("%d messages for %d entries", stream.sent, asked)
				}
			}
		case 1:
			var r bookiev1.FenceRequest
			if proto.Unmarshal(b, &r) == nil && r.GetLedger() != 7 {
				r.SetIncarnation(own)
				_, _ = s.Fence(stream.ctx, &r)
			}
		case 2:
			var r bookiev1.LedgerInfoRequest
			if proto.Unmarshal(b, &r) == nil {
				r.SetIncarnation(own)
				_, _ = s.LedgerInfo(stream.ctx, &r)
			}
		case 3:
			var r bookiev1.ListLedgersRequest
			if proto.Unmarshal(b, &r) == nil {
				r.SetIncarnation(own)
				_, _ = s.ListLedgers(stream.ctx, &r)
			}
		}
		if stream.ctx.Err() != nil {
			t.Fatal("no answer")
		}
	})
}

// FuzzIdentity shows that a directory's text files are read as what they say or
// refused, with a checksum that is right.
func FuzzIdentity(f *testing.F) {
	f.Add("magnetar-bookie-identity 1\ncluster c\nbookie b\nincarnation i\nreserve-bytes 5\n")
	f.Add("magnetar-bookie-starts 1\ncount 5\nregistered 4\n")
	f.Add("magnetar-bookie-identity 1\ncluster c\nbookie b\nincarnation i\nreserve-bytes 0x5 6\nbookie\n")
	f.Add("magnetar-bookie-starts 1\ncount -1\ncount 99999999999999999999\n")
	f.Fuzz(func(t *testing.T, text string) {
		files := vfs.NewMem()
		for _, name := range []string{identityFile, startsFile} {
			if err := writeText(files, "/", name, text); err != nil {
				t.Fatal(err)
			}
		}
		known := func(err error) bool {
			return errors.Is(err, ErrForeign) || errors.Is(err, ErrNewer) || errors.Is(err, ledger.ErrCorrupt)
		}
		id, err := ReadIdentity(files, "/")
		if err != nil && !known(err) || err == nil && (id.Cluster == "" || id.Bookie == "" || id.Incarnation == "" || id.ReserveBytes < 0) {
			t.Fatalf("%+v, %v", id, err)
		}
		if s, err := readStarts(files, "/"); err != nil && !known(err) || err == nil && s.registered > s.count {
			t.Fatalf("%+v, %v", s, err)
		}
	})
}

// FuzzStoreRecords shows that whatever the metadata store holds of bookies and
// ledgers is judged or refused, and never taken for a deletion that is owed here.
func FuzzStoreRecords(f *testing.F) {
	n := openNode(f, testOptions(vfs.NewMem()))
	keys := layout.New("test")
	f.Add(marshal(f, metav1.BookieIdentity_builder{Incarnation: new("i"), StartCount: new(uint64(5)), PastIncarnations: []string{"h"}}.Build()))
	f.Add(marshal(f, metav1.Bookie_builder{Incarnation: new("i"), Address: new("h:1"), ReadOnly: new(true)}.Build()))
	f.Add(marshal(f, metav1.Cluster_builder{Id: new("c")}.Build()))
	f.Add(marshal(f, metav1.Ledger_builder{State: metav1.LedgerState_LEDGER_STATE_DELETED.Enum(), Owed: []*metav1.Member{{}}}.Build()))
	f.Fuzz(func(t *testing.T, value []byte) {
		store := meta.NewMem()
		defer store.Close()
		ops := []meta.Op{{Key: keys.Cluster(), Value: value}, {Key: keys.BookieIdentity("b"), Value: value}}
		if _, err := store.Txn(t.Context(), meta.Txn{Ops: ops}); err != nil {
			t.Fatal(err)
		}
		_ = checkCluster(t.Context(), store, keys, "c")
		exists, known, _, err := lastingIdentity(t.Context(), store, keys.BookieIdentity("b"))
		if err == nil {
			_, _ = judgeIdentity(n.identity, starts{count: 3, registered: 2}, exists, known)
			_ = lastingRecord(n.identity, 4, known)
		}
		record, err := decodeLedger(meta.KV{Key: keys.Ledger(1), Value: value})
		if err == nil && (&Collector{node: n}).owed(record) >= 0 && !bytes.Contains(value, []byte(n.identity.Bookie)) {
			t.Fatalf("owed here: %v", record)
		}
	})
}
