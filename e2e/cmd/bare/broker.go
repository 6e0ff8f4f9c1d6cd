package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/bookie/logonly"
	"github.com/magnetar-io/magnetar/internal/rpc"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// broker passes batches through: it puts an envelope in front of each and hands
// it on. It serves one producer, whose batches are entries 0, 1, … of ledger 1.
type broker struct {
	brokerv1.UnimplementedMessagingServer
	open func(ctx context.Context, stored func(ledger.EntryID, error)) (store, error)
}

// store is where batches go: a bookie in this process, or one behind gRPC.
type store interface {
	// add takes an entry whose body is all that frame holds; the store frees it.
	// Entries are stored in the order of the calls.
	add(e *ledger.Envelope, frame *rpc.Frame) error
	// close ends the store once nobody adds any more.
	close()
}

// sealedCRC is the CRC-32C of any bytes that end in their own CRC-32C, little
// endian. The client closes batches that way, so the broker knows the checksum
// for the envelope without reading the batch.
const sealedCRC = 0x48674bc7

// Produce serves the producer.
func (b *broker) Produce(stream grpc.BidiStreamingServer[brokerv1.ProduceRequest, brokerv1.ProduceResponse]) error {
	a := &acks{wake: make(chan struct{}, 1), last: ledger.NoEntry}
	s, err := b.open(stream.Context(), a.stored)
	if err != nil {
		return err
	}
	defer s.close()
	received := make(chan error, 1)
	go func() { received <- pass(stream, s) }()
	for {
		select {
		case err := <-received:
			return err
		case <-a.wake:
		}
		last, err := a.take()
		if err != nil {
			return err
		}
		r := brokerv1.Receipt_builder{Ledger: new(int64(1)), Entry: new(int64(last))}.Build()
		receipts := brokerv1.Receipts_builder{Receipts: []*brokerv1.Receipt{r}}.Build()
		if err := stream.Send(brokerv1.ProduceResponse_builder{Receipts: receipts}.Build()); err != nil {
			return err
		}
	}
}

// pass hands every batch of a stream to the store.
func pass(stream grpc.BidiStreamingServer[brokerv1.ProduceRequest, brokerv1.ProduceResponse], s store) error {
	var total int64
	head := &brokerv1.ProduceRequest{}
	for next := ledger.EntryID(0); ; next++ {
		frame := &rpc.Frame{Head: head}
		if err := stream.RecvMsg(frame); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		total += int64(frame.Size())
		e := ledger.Envelope{
			Ledger: 1, Entry: next, LAC: ledger.NoEntry, TotalBytes: total,
			BodyBytes: uint32(frame.Size()), BodyCRC: sealedCRC,
		}
		if err := s.add(&e, frame); err != nil {
			return err
		}
	}
}

// acks holds the one thing there is to tell the producer: up to where all is
// stored.
type acks struct {
	wake chan struct{} // buffered by one
	mu   sync.Mutex
	last ledger.EntryID
	err  error
}

func (a *acks) stored(last ledger.EntryID, err error) {
	a.mu.Lock()
	if err != nil {
		a.err = err
	} else {
		a.last = last
	}
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *acks) take() (ledger.EntryID, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last, a.err
}

// called is a bookie in this process.
type called struct {
	bookie *logonly.Bookie
	stored func(ledger.EntryID, error)
	buffer []byte
}

func callBookie(b *logonly.Bookie) func(context.Context, func(ledger.EntryID, error)) (store, error) {
	return func(_ context.Context, stored func(ledger.EntryID, error)) (store, error) {
		return &called{bookie: b, stored: stored}, nil
	}
}

func (c *called) add(e *ledger.Envelope, frame *rpc.Frame) error {
	if cap(c.buffer) < frame.Size() {
		c.buffer = make([]byte, frame.Size())
	}
	body := c.buffer[:frame.Size()]
	frame.CopyTo(body)
	entry := e.Entry
	c.bookie.Add(e, body, func(err error) { c.stored(entry, err) })
	return nil
}

func (c *called) close() {}

// dialled is a bookie behind gRPC. The buffers a batch came in are passed on as
// they are, and freed once the bookie has answered for it.
type dialled struct {
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[bookiev1.WriteRequest, bookiev1.WriteResponse]
	cancel context.CancelFunc
	ended  chan struct{}

	mu     sync.Mutex
	flying []*rpc.Frame // not answered; the first is that of entry first
	first  ledger.EntryID
}

func dialBookie(address string) func(context.Context, func(ledger.EntryID, error)) (store, error) {
	return func(ctx context.Context, stored func(ledger.EntryID, error)) (store, error) {
		conn, err := grpc.NewClient(address, rpc.DialOptions(rpc.BookieLink, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		if err != nil {
			return nil, err
		}
		d := &dialled{conn: conn, ended: make(chan struct{})}
		ctx, d.cancel = context.WithCancel(ctx)
		if d.stream, err = bookiev1.NewBookieClient(conn).Write(ctx); err != nil {
			d.cancel()
			conn.Close()
			return nil, err
		}
		go d.receive(stored)
		return d, nil
	}
}

func (d *dialled) add(e *ledger.Envelope, frame *rpc.Frame) error {
	d.mu.Lock()
	d.flying = append(d.flying, frame)
	d.mu.Unlock()
	envelope := make([]byte, ledger.EnvelopeBytes)
	e.Encode(envelope)
	return d.stream.SendMsg(&rpc.Frame{Head: &bookiev1.WriteRequest{}, Payload: append([][]byte{envelope}, frame.Pieces()...)})
}

// receive frees what the bookie has answered for, and says so.
func (d *dialled) receive(stored func(ledger.EntryID, error)) {
	defer close(d.ended)
	for {
		r, err := d.stream.Recv()
		if err != nil {
			stored(0, fmt.Errorf("bookie: %w", err))
			return
		}
		for _, result := range r.GetResults() {
			last := ledger.EntryID(result.GetLastEntry())
			d.mu.Lock()
			n := int(last - d.first + 1)
			for _, f := range d.flying[:n] {
				f.Free()
			}
			d.flying, d.first = d.flying[n:], last+1
			d.mu.Unlock()
			stored(last, nil)
		}
	}
}

func (d *dialled) close() {
	d.cancel()
	<-d.ended
	d.conn.Close()
}
