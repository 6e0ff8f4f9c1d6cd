package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/bookie/remote"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/vfs"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// link is an in-memory network to one server, which can be cut.
type link struct {
	listener *bufconn.Listener
	mu       sync.Mutex
	conns    []net.Conn
	down     bool
	dials    atomic.Int64
}

func (l *link) dial(ctx context.Context, _ string) (net.Conn, error) {
	l.dials.Add(1)
	l.mu.Lock()
	down := l.down
	l.mu.Unlock()
	if down {
		return nil, errors.New("connection refused")
	}
	conn, err := l.listener.DialContext(ctx)
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, conn)
		l.mu.Unlock()
	}
	return conn, err
}

// cut breaks all connections; down says whether new ones are refused.
func (l *link) cut(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.Close()
	}
	l.conns, l.down = nil, down
}

// serve serves what register registers until the test ends.
func serve(t testing.TB, register func(grpc.ServiceRegistrar)) *link {
	t.Helper()
	l := &link{listener: bufconn.Listen(1 << 20)}
	server := grpc.NewServer(rpc.ServerOptions(rpc.Limits{Profile: rpc.BookieLink})...)
	register(server)
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(l.listener) }()
	t.Cleanup(func() { server.Stop(); <-served })
	return l
}

// disk holds up the writes of the log while it is stopped.
type disk struct {
	mu   sync.Mutex
	gate chan struct{}
}

func (d *disk) stop() { d.mu.Lock(); defer d.mu.Unlock(); d.gate = make(chan struct{}) }
func (d *disk) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		close(d.gate)
		d.gate = nil
	}
}

func (d *disk) hook(op vfs.Op) error {
	if op.Kind == vfs.OpWrite && strings.Contains(op.Name, "/hot/") {
		d.mu.Lock()
		gate := d.gate
		d.mu.Unlock()
		if gate != nil {
			<-gate
		}
	}
	return nil
}

// openNode opens a small node on a disk that can be stopped.
func openNode(t testing.TB) (*bookie.Node, *disk) {
	t.Helper()
	d := &disk{}
	n, err := bookie.Open(bookie.Options{
		FS: vfs.NewFaults(vfs.NewMem(), d.hook), Dir: "/data", ID: "bookie-1", Cluster: "cluster-1",
		MemoryBytes: 64 << 20, HotBytes: 64 << 20, SegmentBytes: 8 << 20, ReserveBytes: 32 << 20,
		Fatal: func(err error) { t.Errorf("the node gave up: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.resume()
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n, d
}

// connect returns a client of member over l; change alters its options.
func connect(t testing.TB, l *link, member ledger.Member, change func(*remote.Options)) *remote.Bookie {
	t.Helper()
	o := remote.Options{Member: member, Address: "bookie", Dial: l.dial}
	if change != nil {
		change(&o)
	}
	b, err := remote.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

func entryOf(id ledger.ID, e ledger.EntryID, size int) ledger.Add {
	body := bytes.Repeat([]byte(fmt.Sprintf("entry %d of ledger %d ", e, id)), size/16+1)[:size]
	return ledger.Add{
		Envelope: ledger.Envelope{Ledger: id, Entry: e, LAC: e - 1, TotalBytes: int64(e+1) * int64(size),
			BodyBytes: uint32(size), BodyCRC: crc32.Checksum(body, ledger.Castagnoli)},
		Body: body, Create: true,
	}
}

func send(b *remote.Bookie, a ledger.Add) <-chan error {
	result := make(chan error, 1)
	b.Add(a, func(err error) { result <- err })
	return result
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// isRefusal reports whether err is one of those that say an add surely was not stored.
func isRefusal(err error) bool {
	for _, e := range []error{ledger.ErrFenced, ledger.ErrClosed, ledger.ErrNoLedger, ledger.ErrDeleted, ledger.ErrUnknown, ledger.ErrCorrupt,
		ledger.ErrTooBusy, ledger.ErrReadOnly, ledger.ErrIncarnation, ledger.ErrStopping, ledger.ErrTooLarge} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// TestEverythingOverTheWire shows that a bookie far away answers as one at hand:
// adds of all sizes, runs longer than one message, heads, fences, recovery, info,
// list, and each refusal as the error it was.
func TestEverythingOverTheWire(t *testing.T) {
	n, _ := openNode(t)
	l := serve(t, n.Register)
	b := connect(t, l, n.Member(), nil)
	ctx := testContext(t)
	var results []<-chan error
	for e, size := range []int{0, 1, 1000, 700_000, 3_000_000, 50, 50} {
		results = append(results, send(b, entryOf(7, ledger.EntryID(e), size)))
	}
	for e, r := range results {
		if err := <-r; err != nil {
			t.Errorf("add %d: %v", e, err)
		}
	}
	reply, err := b.Read(ctx, ledger.ReadRequest{Ledger: 7, First: 0, Last: 9})
	if err != nil || len(reply.Entries) != 8 || reply.LAC != 5 {
		t.Fatalf("read: %d entries, LAC %d, %v; want 7 and an absence, 5", len(reply.Entries), reply.LAC, err)
	}
	for i, e := range reply.Entries[:7] {
		if e.Status != ledger.Found || e.Entry.Check(7, ledger.EntryID(i)) != nil {
			t.Errorf("entry %d: status %d, %v", i, e.Status, e.Entry.Check(7, ledger.EntryID(i)))
		}
	}
	if reply.Entries[7].Status != ledger.Absent {
		t.Errorf("entry 7: status %d, want absent", reply.Entries[7].Status)
	}
	if reply, err = b.Read(ctx, ledger.ReadRequest{Ledger: 7, First: 2, Last: 4, HeadBytes: 10}); err != nil || len(reply.Entries) != 3 {
		t.Fatalf("heads: %v, %v", reply, err)
	}
	for i, e := range reply.Entries {
		if want := entryOf(7, ledger.EntryID(2+i), 1000).Body[:10]; !bytes.Equal(e.Entry.Body, want) {
			t.Errorf("head of entry %d: %q, want %q", 2+i, e.Entry.Body, want)
		}
	}
	if fence, err := b.Fence(ctx, 7, 3); err != nil || fence != (ledger.FenceReply{LastEntry: 6, LAC: 5}) {
		t.Errorf("fence: %+v, %v", fence, err)
	}
	if _, err := b.Fence(ctx, 7, 2); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("lower fence: %v", err)
	}
	if err := <-send(b, entryOf(7, 7, 10)); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("add to a fenced ledger: %v", err)
	}
	again := entryOf(7, 7, 10)
	again.RecoveryTerm = 3
	if err := <-send(b, again); err != nil {
		t.Errorf("recovery add: %v", err)
	}
	if reply, err = b.Read(ctx, ledger.ReadRequest{Ledger: 7, First: 6, Last: 10, FenceTerm: 3}); err != nil || len(reply.Entries) != 5 {
		t.Errorf("recovery read: %d answers, %v; want 5", len(reply.Entries), err)
	}
	if _, err = b.Read(ctx, ledger.ReadRequest{Ledger: 7, First: 6, Last: 10, FenceTerm: 1}); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("recovery read below the term: %v", err)
	}
	unknown := entryOf(8, 0, 10)
	unknown.Create = false
	if err := <-send(b, unknown); !errors.Is(err, ledger.ErrNoLedger) {
		t.Errorf("add without create: %v", err)
	}
	info, err := b.Info(ctx, 7)
	if diff := cmp.Diff(ledger.Info{Ranges: []ledger.EntryRange{{First: 0, Last: 7}}, LAC: 6, Term: 3}, info); diff != "" || err != nil {
		t.Errorf("info: %v (-want +got):\n%s", err, diff)
	}
	if _, err := b.Info(ctx, 99); !errors.Is(err, ledger.ErrNoLedger) {
		t.Errorf("info of a ledger never seen: %v", err)
	}
	if ids, more, err := b.List(ctx, 0, 10); err != nil || more || len(ids) != 1 || ids[0] != 7 {
		t.Errorf("list: %v %v %v", ids, more, err)
	}
	if d, err := b.Describe(ctx); err != nil || d.Member != n.Member() || d.Ledgers != 1 || d.ReadOnly {
		t.Errorf("describe: %+v, %v", d, err)
	}
	if got := l.dials.Load(); got != 2 {
		t.Errorf("%d connections, want one for data and one for fencing and recovery", got)
	}
}

// TestRuleB5_WrongIncarnation shows that every request meant for other storage is
// refused as such, and stores nothing.
func TestRuleB5_WrongIncarnation(t *testing.T) {
	n, _ := openNode(t)
	b := connect(t, serve(t, n.Register), ledger.Member{Bookie: "bookie-1", Incarnation: "another"}, nil)
	ctx := testContext(t)
	_, fence := b.Fence(ctx, 7, 2)
	_, read := b.Read(ctx, ledger.ReadRequest{Ledger: 7})
	_, info := b.Info(ctx, 7)
	_, _, list := b.List(ctx, 0, 1)
	for what, err := range map[string]error{
		"first add": <-send(b, entryOf(7, 0, 10)), "second add": <-send(b, entryOf(7, 1, 10)),
		"fence": fence, "read": read, "info": info, "list": list,
	} {
		if !errors.Is(err, ledger.ErrIncarnation) {
			t.Errorf("%s: %v, want ErrIncarnation", what, err)
		}
	}
	if ids, _, _ := n.List(ctx, 0, 1); len(ids) != 0 {
		t.Errorf("ledgers %v were made", ids)
	}
}

// TestBrokenConnectionIsUnknown shows that adds in flight on a connection that
// breaks end with an error that is no refusal, that the next use finds the bookie
// again, and that while it cannot be reached adds fail at once.
func TestBrokenConnectionIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, d := openNode(t)
		l := serve(t, n.Register)
		b := connect(t, l, n.Member(), nil)
		if err := <-send(b, entryOf(7, 0, 10)); err != nil {
			t.Fatal(err)
		}
		d.stop()
		first, second := send(b, entryOf(7, 1, 10)), send(b, entryOf(7, 2, 10))
		synctest.Wait()
		l.cut(true)
		for _, r := range []<-chan error{first, second} {
			if err := <-r; err == nil || isRefusal(err) {
				t.Errorf("add in flight: %v, want an unknown outcome", err)
			}
		}
		d.resume()
		down := time.Now()
		for range 20 {
			if err := <-send(b, entryOf(7, 3, 10)); err == nil {
				t.Error("stored on a bookie that cannot be reached")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(down); took > time.Second {
			t.Errorf("20 adds to a dead bookie took %v", took)
		}
		l.cut(false)
		time.Sleep(5 * time.Second)
		if err := <-send(b, entryOf(7, 3, 10)); err != nil {
			t.Errorf("add after the network came back: %v", err)
		}
		reply, err := b.Read(testContext(t), ledger.ReadRequest{Ledger: 7, First: 0, Last: 3})
		if err != nil || len(reply.Entries) != 4 {
			t.Errorf("read: %d entries, %v; the unknown adds had reached the log", len(reply.Entries), err)
		}
	})
}

// TestSilentBookie shows that each entry's wait is bounded, that a bookie that says
// nothing for long is cut off, and that close ends what waits.
func TestSilentBookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, d := openNode(t)
		b := connect(t, serve(t, n.Register), n.Member(), func(o *remote.Options) { o.AddTimeout = 3 * time.Second })
		if err := <-send(b, entryOf(7, 0, 10)); err != nil {
			t.Fatal(err)
		}
		d.stop()
		began := time.Now()
		early := send(b, entryOf(7, 1, 10))
		time.Sleep(time.Second)
		late := send(b, entryOf(7, 2, 10))
		if err := <-early; err == nil || isRefusal(err) || time.Since(began) != 3*time.Second {
			t.Errorf("first: %v after %v, want an unknown outcome after 3s", err, time.Since(began))
		}
		if err := <-late; err == nil || isRefusal(err) || time.Since(began) != 4*time.Second {
			t.Errorf("second: %v after %v, want an unknown outcome after 4s", err, time.Since(began))
		}
		d.resume()
		synctest.Wait()
		if err := <-send(b, entryOf(7, 3, 10)); err != nil {
			t.Errorf("add after the bookie woke up: %v", err)
		}
		d.stop()
		waits := send(b, entryOf(7, 4, 10))
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-waits; err == nil || isRefusal(err) {
			t.Errorf("add in flight at close: %v, want an unknown outcome", err)
		}
		if err := <-send(b, entryOf(7, 5, 10)); !errors.Is(err, ledger.ErrStopping) {
			t.Errorf("add after close: %v, want ErrStopping", err)
		}
		d.resume()
	})
}

// TestAddIsBounded shows that above its bytes a client refuses at once, that the
// bytes come back with the answers, and that what queues up meanwhile travels in
// few messages.
func TestAddIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, d := openNode(t)
		registry := prometheus.NewRegistry()
		b := connect(t, serve(t, n.Register), n.Member(), func(o *remote.Options) {
			o.QueueBytes, o.Metrics = 4<<20, remote.NewMetrics(registry)
		})
		if err := <-send(b, entryOf(7, 0, 10)); err != nil {
			t.Fatal(err)
		}
		for round := range 2 {
			d.stop()
			var results []<-chan error
			for e := range 5000 {
				results = append(results, send(b, entryOf(7, ledger.EntryID(1+e), 1000)))
			}
			refused := 0
			synctest.Wait()
			for _, r := range results {
				select {
				case err := <-r:
					if refused++; !errors.Is(err, ledger.ErrTooBusy) {
						t.Fatalf("round %d: %v", round, err)
					}
				default:
				}
			}
			if want := 5000 - 4<<20/(1000+ledger.EnvelopeBytes); refused != want {
				t.Errorf("round %d: %d of 5000 refused, want %d", round, refused, want)
			}
			d.resume()
			for _, r := range results[:5000-refused] {
				if err := <-r; err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := counter(t, registry, "magnetar_bookie_client_write_messages_total"); got > 100 {
			t.Errorf("8,000 entries travelled in %v messages", got)
		}
		if got := counter(t, registry, "magnetar_bookie_client_unanswered_bytes"); got != 0 {
			t.Errorf("%v bytes unanswered with nothing in flight", got)
		}
	})
}

func counter(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// stock returns the generated client with nothing of ours.
func stock(t *testing.T, l *link) bookiev1.BookieClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///bookie", grpc.WithContextDialer(l.dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return bookiev1.NewBookieClient(conn)
}

func encode(adds ...ledger.Add) []byte {
	var payload []byte
	for _, a := range adds {
		head := make([]byte, ledger.EnvelopeBytes)
		a.Envelope.Encode(head)
		payload = append(append(payload, head...), a.Body...)
	}
	return payload
}

// TestStockClient shows that a client made of the generated code and the default
// codec alone can write and read.
func TestStockClient(t *testing.T) {
	n, _ := openNode(t)
	client := stock(t, serve(t, n.Register))
	ctx := testContext(t)
	stream, err := client.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	request := bookiev1.WriteRequest_builder{
		Incarnation: new(n.Member().Incarnation),
		Flags:       []uint32{1, 1, 1},
		Payload:     encode(entryOf(7, 0, 100), entryOf(7, 1, 0), entryOf(7, 2, 5000)),
	}
	if err := stream.Send(request.Build()); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	stored := int64(0)
	for {
		response, err := stream.Recv()
		if err != nil {
			break
		}
		for _, r := range response.GetResults() {
			if r.GetStatus() != bookiev1.Status_STATUS_OK || r.GetLedger() != 7 {
				t.Errorf("answered %v", r)
			}
			stored += r.GetLastEntry() - r.GetFirstEntry() + 1
		}
	}
	if stored != 3 {
		t.Errorf("%d adds answered, want 3", stored)
	}
	read, err := client.Read(ctx, bookiev1.ReadRequest_builder{Incarnation: new(n.Member().Incarnation), Ledger: new(int64(7)), LastEntry: new(int64(2))}.Build())
	if err != nil {
		t.Fatal(err)
	}
	response, err := read.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(response.GetPayload(), encode(entryOf(7, 0, 100), entryOf(7, 1, 0), entryOf(7, 2, 5000))) || len(response.GetStatuses()) != 3 {
		t.Errorf("read back %d bytes, statuses %v", len(response.GetPayload()), response.GetStatuses())
	}
}

type writes = grpc.BidiStreamingClient[bookiev1.WriteRequest, bookiev1.WriteResponse]

// openWrites opens a stream of adds by hand and returns the window it was given.
func openWrites(t *testing.T, client bookiev1.BookieClient) (stream writes, window uint64) {
	t.Helper()
	stream, err := client.Write(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	hello, err := stream.Recv()
	if err != nil || hello.GetWindowBytes() == 0 {
		t.Fatalf("hello %v, %v", hello, err)
	}
	return stream, hello.GetWindowBytes()
}

func write(t *testing.T, stream writes, n *bookie.Node, payload []byte, flags ...uint32) {
	t.Helper()
	if err := stream.Send(bookiev1.WriteRequest_builder{Incarnation: new(n.Member().Incarnation), Flags: flags, Payload: payload}.Build()); err != nil {
		t.Fatal(err)
	}
}

// TestWriteStreamProtocol shows how a bookie meets clients that break the rules:
// a damaged body costs that entry, what destroys the framing costs the stream.
func TestWriteStreamProtocol(t *testing.T) {
	n, _ := openNode(t)
	client := stock(t, serve(t, n.Register))
	t.Run("damaged body", func(t *testing.T) {
		stream, _ := openWrites(t, client)
		bad := entryOf(7, 1, 100)
		bad.Body[0] ^= 1
		write(t, stream, n, encode(entryOf(7, 0, 100), bad, entryOf(7, 2, 100)), 1, 1, 1)
		got := map[int64]bookiev1.Status{}
		for len(got) < 3 {
			response, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range response.GetResults() {
				for e := r.GetFirstEntry(); e <= r.GetLastEntry(); e++ {
					got[e] = r.GetStatus()
				}
			}
		}
		if diff := cmp.Diff(map[int64]bookiev1.Status{0: 0, 1: bookiev1.Status_STATUS_CORRUPT, 2: 0}, got); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})
	for _, test := range []struct {
		name    string
		payload []byte
		flags   []uint32
		want    codes.Code
	}{
		{"damaged envelope", append(encode(entryOf(7, 3, 100)), make([]byte, 100)...), nil, codes.DataLoss},
		{"cut off", encode(entryOf(7, 3, 100))[:100], nil, codes.DataLoss},
		{"recovery without a term", encode(entryOf(7, 3, 100)), []uint32{2}, codes.InvalidArgument},
	} {
		t.Run(test.name, func(t *testing.T) {
			stream, _ := openWrites(t, client)
			write(t, stream, n, test.payload, test.flags...)
			var err error
			for err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != test.want {
				t.Errorf("stream ended with %v, want %v", err, test.want)
			}
		})
	}
}

// TestRuleM31_OverTheWindowIsRefused shows that bytes a client had no leave to send
// are answered TOO_BUSY without being stored, while those within its window stand.
func TestRuleM31_OverTheWindowIsRefused(t *testing.T) {
	n, d := openNode(t)
	stream, window := openWrites(t, stock(t, serve(t, n.Register)))
	d.stop()
	half := entryOf(9, 0, int(window/2))
	for e := range ledger.EntryID(4) {
		half.Envelope.Entry, half.Envelope.LAC = e, e-1
		write(t, stream, n, encode(half), 1)
	}
	for refused := 0; refused < 3; {
		response, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range response.GetResults() {
			if r.GetStatus() != bookiev1.Status_STATUS_TOO_BUSY || r.GetFirstEntry() == 0 {
				t.Errorf("answered %v while the disk stands still", r)
			}
			refused++
		}
	}
	d.resume()
	response, err := stream.Recv()
	if err != nil || len(response.GetResults()) != 1 || response.GetResults()[0].GetStatus() != bookiev1.Status_STATUS_OK {
		t.Errorf("the one within the window: %v, %v", response, err)
	}
	if info, err := n.Info(testContext(t), 9); err != nil || len(info.Ranges) != 1 || info.Ranges[0].Last != 0 {
		t.Errorf("stored: %+v, %v; want entry 0 alone", info, err)
	}
}

// rotten is a bookie whose replies to reads are damaged on the way.
type rotten struct {
	bookiev1.UnimplementedBookieServer
	reply *bookiev1.ReadResponse
}

func (r *rotten) Read(_ *bookiev1.ReadRequest, stream grpc.ServerStreamingServer[bookiev1.ReadResponse]) error {
	return stream.Send(r.reply)
}

// TestDamagedReplyIsUnknown shows that an entry that does not match its checksum or
// is not the one asked for is Unknown, ends the run, and is never passed on; and
// that answers to what was not asked are an error.
func TestDamagedReplyIsUnknown(t *testing.T) {
	server := &rotten{}
	l := serve(t, func(r grpc.ServiceRegistrar) { bookiev1.RegisterBookieServer(r, server) })
	b := connect(t, l, ledger.Member{Bookie: "b", Incarnation: "i"}, nil)
	good := encode(entryOf(7, 0, 50), entryOf(7, 1, 50))
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for _, test := range []struct {
		name     string
		first    int64
		statuses []bookiev1.Status
		payload  []byte
		want     string // F, A, U; "" for an error
	}{
		{"good", 0, []bookiev1.Status{0, 0}, good, "FF"},
		{"flipped", 0, []bookiev1.Status{0, 0}, flipped, "FU"},
		{"short", 0, []bookiev1.Status{0, 0}, good[:150], "FU"},
		{"other ledger", 0, []bookiev1.Status{0}, encode(entryOf(8, 0, 50)), "U"},
		{"other entry", 0, []bookiev1.Status{0}, encode(entryOf(7, 5, 50)), "U"},
		{"other run", 4, []bookiev1.Status{0}, encode(entryOf(7, 4, 50)), ""},
		{"too many", 0, make([]bookiev1.Status, 5), good, ""},
		{"none", 0, nil, nil, ""},
		{"fenced", 0, []bookiev1.Status{bookiev1.Status_STATUS_FENCED}, nil, ""},
		{"status of the future", 0, []bookiev1.Status{77}, nil, ""},
	} {
		server.reply = bookiev1.ReadResponse_builder{FirstEntry: &test.first, Statuses: test.statuses, Payload: test.payload}.Build()
		reply, err := b.Read(testContext(t), ledger.ReadRequest{Ledger: 7, First: 0, Last: 3})
		got := ""
		for i, e := range reply.Entries {
			got += string("FAU"[e.Status])
			if e.Status == ledger.Found && e.Entry.Check(7, ledger.EntryID(i)) != nil {
				t.Errorf("%s: a damaged entry was passed on", test.name)
			}
		}
		if (err != nil) != (test.want == "") || err == nil && got != test.want {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
}

// liar is a bookie that answers adds nobody sent.
type liar struct {
	bookiev1.UnimplementedBookieServer
}

func (liar) Write(stream grpc.BidiStreamingServer[bookiev1.WriteRequest, bookiev1.WriteResponse]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	stream.Send(bookiev1.WriteResponse_builder{Results: []*bookiev1.AddResult{bookiev1.AddResult_builder{
		Ledger: new(int64(7)), FirstEntry: new(int64(0)), LastEntry: new(int64(1 << 60))}.Build()}}.Build())
	<-stream.Context().Done()
	return nil
}

// TestAnswersNobodyAskedFor shows that a range of answers beyond what was sent ends
// the stream instead of being walked through.
func TestAnswersNobodyAskedFor(t *testing.T) {
	l := serve(t, func(r grpc.ServiceRegistrar) { bookiev1.RegisterBookieServer(r, liar{}) })
	b := connect(t, l, ledger.Member{Bookie: "b", Incarnation: "i"}, nil)
	if err := <-send(b, entryOf(7, 0, 10)); err == nil || isRefusal(err) {
		t.Errorf("got %v, want an unknown outcome", err)
	}
}

// TestLargestEntry shows that a bookie says exactly how large an entry it takes: a
// body of that size is stored, and one byte more is refused as too large, which a
// writer elsewhere can tell from every other refusal.
func TestLargestEntry(t *testing.T) {
	n, _ := openNode(t)
	b := connect(t, serve(t, n.Register), n.Member(), nil)
	ctx := testContext(t)
	d, err := b.Describe(ctx)
	if err != nil || d.MaxEntryBytes < 8<<20-64<<10 || d.MaxEntryBytes > 8<<20 {
		t.Fatalf("%+v, %v; want a little less than the segments of 8 MiB", d, err)
	}
	if err := <-send(b, entryOf(7, 0, int(d.MaxEntryBytes)+1)); !errors.Is(err, ledger.ErrTooLarge) {
		t.Errorf("a byte too much: %v", err)
	}
	if err := <-send(b, entryOf(7, 0, int(d.MaxEntryBytes))); err != nil {
		t.Errorf("the largest entry: %v", err)
	}
	reply, err := b.Read(ctx, ledger.ReadRequest{Ledger: 7, First: 0, Last: 0})
	if err != nil || len(reply.Entries) != 1 || reply.Entries[0].Status != ledger.Found {
		t.Errorf("the largest entry is read as %d answers, %v", len(reply.Entries), err)
	}
}
