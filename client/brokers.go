package client

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// linger is how long a link stays without members before it is closed.
const linger = 30 * time.Second

// brokers holds the connections to brokers, one each, with at most one Produce
// and one Consume stream.
type brokers struct {
	dial func(address string) (*grpc.ClientConn, error)
	done context.Context // ends with the client
	wg   *sync.WaitGroup

	mu        sync.Mutex
	byAddress map[string]*brokerConn
}

type brokerConn struct {
	address string
	conn    *grpc.ClientConn
	turn    chan struct{} // buffered by one: held by who opens a stream

	// Guarded by brokers.mu.
	produce, consume *link
	users            int // opening a stream now
}

func dialer(o options) func(address string) (*grpc.ClientConn, error) {
	creds := o.creds
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	return func(address string) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+address, rpc.DialOptions(rpc.ClientFacing,
			grpc.WithTransportCredentials(creds), grpc.WithContextDialer(o.dial))...)
	}
}

func dialNetwork(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return d.DialContext(ctx, "unix", path)
	}
	return d.DialContext(ctx, "tcp", address)
}

// link returns the live Produce or Consume link to a broker, opening it where
// there is none.
func (b *brokers) link(ctx context.Context, address string, consume bool) (*link, error) {
	c, err := b.hold(address)
	if err != nil {
		return nil, err
	}
	defer b.release(c)
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	slot := &c.produce
	if consume {
		slot = &c.consume
	}
	b.mu.Lock()
	l := *slot
	b.mu.Unlock()
	if l != nil && l.ended() == nil {
		return l, nil
	}
	if l, err = b.open(ctx, c, consume); err != nil {
		return nil, err
	}
	b.mu.Lock()
	*slot = l
	b.mu.Unlock()
	return l, nil
}

// open opens a stream that lives until it fails or the client closes; ctx bounds
// only the opening.
func (b *brokers) open(ctx context.Context, c *brokerConn, consume bool) (*link, error) {
	streamCtx, cancel := context.WithCancel(b.done)
	stop := context.AfterFunc(ctx, cancel)
	client := brokerv1.NewMessagingClient(c.conn)
	l := &link{address: c.address, cancel: cancel}
	var err error
	if consume {
		l.stream, err = client.Consume(streamCtx)
		l.newHead = func() proto.Message { return &brokerv1.ConsumeResponse{} }
		l.dispatch, l.pack = dispatchConsume, packConsume
	} else {
		l.stream, err = client.Produce(streamCtx)
		l.newHead = func() proto.Message { return &brokerv1.ProduceResponse{} }
		l.dispatch, l.pack = dispatchProduce, packProduce
	}
	if !stop() && err == nil { // ctx ended meanwhile and took the stream with it
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connect to broker %s: %w", c.address, fromStatus(err))
	}
	l.start(b.wg)
	return l, nil
}

// hold returns the connection to a broker and keeps it from being closed.
func (b *brokers) hold(address string) (*brokerConn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done.Err() != nil {
		return nil, ErrClosed
	}
	c := b.byAddress[address]
	if c == nil {
		conn, err := b.dial(address)
		if err != nil {
			return nil, fmt.Errorf("broker address %q: %w: %w", address, err, ErrUnavailable)
		}
		c = &brokerConn{address: address, conn: conn, turn: make(chan struct{}, 1)}
		b.byAddress[address] = c
	}
	c.users++
	return c, nil
}

// release lets the connection be closed, and closes it when nothing lives on it:
// the next attempt dials anew.
func (b *brokers) release(c *brokerConn) {
	b.mu.Lock()
	c.users--
	gone := b.dropLocked(c)
	b.mu.Unlock()
	if gone {
		c.conn.Close()
	}
}

func (b *brokers) dropLocked(c *brokerConn) (gone bool) {
	alive := func(l *link) bool { return l != nil && l.ended() == nil }
	if c.users > 0 || alive(c.produce) || alive(c.consume) || b.byAddress[c.address] != c {
		return false
	}
	delete(b.byAddress, c.address)
	return true
}

// sweep ends links that had no members for a while and closes connections
// without links.
func (b *brokers) sweep() {
	b.mu.Lock()
	var gone []*brokerConn
	for _, c := range b.byAddress {
		for _, l := range []*link{c.produce, c.consume} {
			if l != nil {
				l.endIdle(time.Now()) // it has no members to be told
			}
		}
		if b.dropLocked(c) {
			gone = append(gone, c)
		}
	}
	b.mu.Unlock()
	for _, c := range gone {
		c.conn.Close()
	}
}

// close ends all links and closes all connections.
func (b *brokers) close() {
	b.mu.Lock()
	all := b.byAddress
	b.byAddress = map[string]*brokerConn{}
	b.mu.Unlock()
	for _, c := range all {
		for _, l := range []*link{c.produce, c.consume} {
			if l != nil {
				l.end(ErrClosed)
			}
		}
		c.conn.Close()
	}
}

// packConsume makes one frame of each message.
func packConsume(p *parcel) []*rpc.Frame {
	frames := make([]*rpc.Frame, 0, len(p.messages))
	for _, m := range p.messages {
		frames = append(frames, &rpc.Frame{Head: m})
	}
	return frames
}

// packProduce makes one frame of all batches.
func packProduce(p *parcel) []*rpc.Frame {
	if len(p.parts) == 0 {
		return nil
	}
	published := make([]*brokerv1.PublishedBatch, len(p.parts))
	for i, part := range p.parts {
		published[i] = &brokerv1.PublishedBatch{}
		published[i].SetProducerId(p.ids[i])
		published[i].SetLength(uint32(len(part)))
	}
	head := brokerv1.ProduceRequest_builder{Publish: brokerv1.Publish_builder{Batches: published}.Build()}.Build()
	return []*rpc.Frame{{Head: head, Payload: p.parts}}
}

func dispatchProduce(l *link, f *rpc.Frame) error {
	r := f.Head.(*brokerv1.ProduceResponse)
	to := func(id uint64, do func(*lane)) {
		if m, ok := l.member(id).(*lane); ok {
			do(m)
		}
	}
	switch r.WhichEvent() {
	case brokerv1.ProduceResponse_Receipts_case:
		for _, rc := range r.GetReceipts().GetReceipts() {
			to(rc.GetProducerId(), func(m *lane) { m.receipt(l, rc) })
		}
	case brokerv1.ProduceResponse_Opened_case:
		to(r.GetOpened().GetProducerId(), func(m *lane) { m.opened(l, r.GetOpened()) })
	case brokerv1.ProduceResponse_Refused_case:
		to(r.GetRefused().GetProducerId(), func(m *lane) { m.refused(l, r.GetRefused()) })
	case brokerv1.ProduceResponse_Closed_case:
		to(r.GetClosed().GetProducerId(), func(m *lane) { m.closedBy(l, r.GetClosed()) })
	case brokerv1.ProduceResponse_Hold_case:
		to(r.GetHold().GetProducerId(), func(m *lane) { m.hold(l, r.GetHold()) })
	}
	return nil // an event this build does not know is passed over
}

func dispatchConsume(l *link, f *rpc.Frame) error {
	r := f.Head.(*brokerv1.ConsumeResponse)
	to := func(id uint64, do func(*feed)) {
		if m, ok := l.member(id).(*feed); ok {
			do(m)
		}
	}
	switch r.WhichEvent() {
	case brokerv1.ConsumeResponse_Delivery_case:
		d := r.GetDelivery()
		entries, err := carve(d, f)
		if err != nil {
			return err
		}
		to(d.GetConsumerId(), func(m *feed) { m.delivery(l, d.GetConsumerId(), d.GetEpoch(), entries) })
	case brokerv1.ConsumeResponse_Subscribed_case:
		to(r.GetSubscribed().GetConsumerId(), func(m *feed) { m.subscribed(l, r.GetSubscribed()) })
	case brokerv1.ConsumeResponse_Done_case:
		to(r.GetDone().GetConsumerId(), func(m *feed) { m.answered(l, r.GetDone()) })
	case brokerv1.ConsumeResponse_Closed_case:
		to(r.GetClosed().GetConsumerId(), func(m *feed) { m.closedBy(l, r.GetClosed()) })
	}
	return nil
}

// carve copies the bodies of a delivery out of the transport's buffers, each
// into a buffer of its own, so that one message in use holds one entry only.
func carve(d *brokerv1.Delivery, f *rpc.Frame) ([]*delivered, error) {
	total := 0
	for _, e := range d.GetEntries() {
		total += int(e.GetLength())
	}
	if total != f.Size() {
		return nil, fmt.Errorf("delivery of %d bytes announces entries of %d: %w", f.Size(), total, ErrInternal)
	}
	entries := make([]*delivered, 0, len(d.GetEntries()))
	for _, e := range d.GetEntries() {
		body := make([]byte, e.GetLength())
		f.CopyTo(body)
		entries = append(entries, &delivered{
			at: place{e.GetLedger(), e.GetEntry()}, redeliveries: int(e.GetRedeliveryCount()),
			left: bitset(e.GetAckSet()), body: body,
		})
	}
	return entries, nil
}
