package remote

import (
	"errors"
	"hash/crc32"
	"math"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/rpc"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

func marshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func sample(e ledger.EntryID) ledger.Entry {
	body := []byte("body")
	return ledger.Entry{Body: body, Envelope: ledger.Envelope{
		Ledger: 7, Entry: e, LAC: e - 1, TotalBytes: 4 * int64(e+1), BodyBytes: uint32(len(body)), BodyCRC: crc32.Checksum(body, ledger.Castagnoli),
	}}
}

// FuzzWriteResponse shows that whatever a bookie answers, each add is answered once,
// and those it said nothing of when the stream breaks.
func FuzzWriteResponse(f *testing.F) {
	result := func(first, last int64, status bookiev1.Status) []byte {
		return marshal(f, bookiev1.WriteResponse_builder{WindowBytes: new(uint64(5)), Results: []*bookiev1.AddResult{
			bookiev1.AddResult_builder{Ledger: new(int64(7)), FirstEntry: &first, LastEntry: &last, Status: &status}.Build(),
		}}.Build())
	}
	f.Add(result(0, 1, bookiev1.Status_STATUS_OK))
	f.Add(result(1, 1, bookiev1.Status_STATUS_FENCED))
	f.Add(result(math.MaxInt64, math.MaxInt64, bookiev1.Status_STATUS_OK))
	f.Add(result(math.MinInt64, math.MaxInt64, 99))
	o := Options{Member: ledger.Member{Bookie: "b", Incarnation: "i"}, Address: "b:1"}.withDefaults()
	f.Fuzz(func(t *testing.T, b []byte) {
		var response bookiev1.WriteResponse
		if proto.Unmarshal(b, &response) != nil {
			return
		}
		s := newAdds(&o, nil)
		r := &run{cancel: func() {}}
		s.run = r
		var answers [4]int
		for i := range answers {
			e := sample(ledger.EntryID(i % 3)) // the first is sent twice
			p := &add{
				Add: ledger.Add{Envelope: e.Envelope}, bytes: 52, began: time.Now(),
				done: func(error) { answers[i]++ },
			}
			s.countLocked(p.bytes)
			s.flight += p.bytes
			s.order = append(s.order, p)
			s.sentLocked(p)
		}
		_ = s.receive(r, &response)
		s.breakRun(r, errClosed)
		for i, n := range answers {
			if n != 1 {
				t.Errorf("add %d was answered %d times", i, n)
			}
		}
		if s.bytes != 0 || s.flight != 0 || s.window < 1 {
			t.Errorf("%d bytes and %d in flight are left, window %d", s.bytes, s.flight, s.window)
		}
	})
}

// FuzzReadResponse shows that of what a bookie sends only entries count that were
// asked for and match their checksums, and no more than were asked for.
func FuzzReadResponse(f *testing.F) {
	var payload []byte
	for e := range ledger.EntryID(2) {
		s := sample(e)
		for _, piece := range wire.Append(nil, &s.Envelope, s.Body) {
			payload = append(payload, piece...)
		}
	}
	ok, absent := bookiev1.Status_STATUS_OK, bookiev1.Status_STATUS_ABSENT
	head := marshal(f, bookiev1.ReadResponse_builder{FirstEntry: new(int64(0)), Statuses: []bookiev1.Status{ok, ok, absent}}.Build())
	f.Add(head, payload, int64(5), uint8(0))
	f.Add(head, payload[:len(payload)-1], int64(5), uint8(2))
	f.Add(head, payload, int64(math.MaxInt64), uint8(0))
	f.Add([]byte{0x7a, 0xff, 0xff, 0xff, 0xff, 0x07}, payload, int64(1), uint8(0))
	b := &Bookie{opts: Options{Member: ledger.Member{Bookie: "b", Incarnation: "i"}, Address: "b:1"}.withDefaults()}
	f.Fuzz(func(t *testing.T, head, payload []byte, last int64, headBytes uint8) {
		if last < 0 {
			return
		}
		message := append([]byte(nil), head...)
		message = protowire.AppendBytes(protowire.AppendTag(message, rpc.PayloadField, protowire.BytesType), payload)
		frame := rpc.Frame{Head: new(bookiev1.ReadResponse)}
		if rpc.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(message)}, &frame) != nil {
			return
		}
		defer frame.Free()
		request := ledger.ReadRequest{Ledger: 7, Last: ledger.EntryID(last), HeadBytes: int(headBytes)}
		reply := ledger.ReadReply{LAC: ledger.NoEntry}
		_, _ = b.receive(&reply, &request, frame.Head.(*bookiev1.ReadResponse), &frame)
		if uint64(len(reply.Entries)) > uint64(last)+1 {
			t.Fatalf("%d entries, asked for %d", len(reply.Entries), last+1)
		}
		for i, e := range reply.Entries {
			if e.Status == ledger.Found && headBytes == 0 && e.Entry.Check(7, ledger.EntryID(i)) != nil {
				t.Fatalf("entry %d was accepted as %+v", i, e.Entry)
			}
		}
	})
}

// FuzzDirectory shows that a record is taken whole or passed over, and that a bookie
// is only given under the incarnation that is listed.
func FuzzDirectory(f *testing.F) {
	f.Add("b", marshal(f, metav1.Bookie_builder{Incarnation: new("i"), Address: new("b:1"), Rack: new("r"), ReadOnly: new(true)}.Build()))
	f.Add("", []byte{})
	f.Add("b/c", []byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	keys := layout.New("test")
	f.Fuzz(func(t *testing.T, id string, record []byte) {
		d := NewDirectory(DirectoryOptions{Layout: keys})
		defer d.close()
		d.replace([]meta.KV{{Key: keys.Bookies() + id, Value: record, Revision: 1}})
		for _, c := range d.Candidates() {
			if c.Member.Vacant() || c.Member.Incarnation == "" {
				t.Fatalf("%+v was listed", c)
			}
			// What stands as the address may be none; who it belongs to is certain.
			if _, err := d.Bookie(c.Member); errors.Is(err, errUnlisted) || errors.Is(err, ledger.ErrIncarnation) {
				t.Fatalf("%+v was listed, but: %v", c, err)
			}
			if _, err := d.Bookie(ledger.Member{Bookie: c.Member.Bookie, Incarnation: c.Member.Incarnation + "x"}); !errors.Is(err, ledger.ErrIncarnation) {
				t.Fatalf("another incarnation: %v", err)
			}
		}
		d.replace(nil)
		if left := d.Candidates(); len(left) != 0 {
			t.Fatalf("gone, yet listed: %v", left)
		}
	})
}
