package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/latency"
	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// load is what a producer publishes.
type load struct {
	size       int     // bytes of a message
	batchBytes int     // of messages in a batch, at least one message
	window     int     // batches without an answer
	rate       float64 // bytes a second; 0: as many as go
}

// batch is one buffer of the window. It goes round: filled, sent, answered.
type batch struct {
	bytes    []byte
	answered []func() // one for each message
	began    time.Time
}

// producer publishes for as long as its context lasts. What it does for each
// message is what any client has to: copy it into a batch, remember whom to tell,
// and tell them.
type producer struct {
	load
	free   chan *batch // the window: those not in flight
	flying chan *batch // in the order sent
	times  *latency.Recorder
	stored atomic.Int64 // messages
}

// publish connects to a broker and publishes until ctx ends or something breaks.
// The time of an answer counts from when its batch was due; from when there was
// room for it in the window, where no rate is set.
func (p *producer) publish(ctx context.Context, address string) error {
	conn, err := grpc.NewClient(address, rpc.DialOptions(rpc.ClientFacing, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return err
	}
	defer conn.Close()
	streaming, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := brokerv1.NewMessagingClient(conn).Produce(streaming)
	if err != nil {
		return err
	}
	perBatch := max(1, p.batchBytes/p.size)
	p.free, p.flying = make(chan *batch, p.window), make(chan *batch, p.window)
	for range p.window {
		p.free <- &batch{bytes: make([]byte, 0, perBatch*(4+p.size)+4), answered: make([]func(), 0, perBatch)}
	}
	received := make(chan error, 1)
	go func() { received <- p.receive(stream) }()
	err = p.send(ctx, stream, perBatch, received)
	if err == nil {
		err = stream.CloseSend()
	}
	if err == nil {
		err = <-received
	}
	return err
}

// send fills and sends batches until ctx ends, then waits for the last answers.
func (p *producer) send(ctx context.Context, stream grpc.BidiStreamingClient[brokerv1.ProduceRequest, brokerv1.ProduceResponse], perBatch int, received <-chan error) error {
	message := make([]byte, p.size)
	var pacer *latency.Pacer
	if p.rate > 0 {
		pacer = latency.NewPacer(p.rate/float64(perBatch*p.size), 0)
	}
	for ctx.Err() == nil {
		var due time.Time
		if pacer != nil {
			var err error
			if due, err = pacer.Next(ctx); err != nil {
				break
			}
		}
		var b *batch
		select {
		case b = <-p.free:
		case err := <-received:
			return err
		}
		if pacer == nil {
			due = time.Now()
		}
		b.began, b.bytes, b.answered = due, b.bytes[:0], b.answered[:0]
		for range perBatch {
			b.bytes = binary.BigEndian.AppendUint32(b.bytes, uint32(len(message)))
			b.bytes = append(b.bytes, message...)
			b.answered = append(b.answered, p.count)
		}
		b.bytes = binary.LittleEndian.AppendUint32(b.bytes, crc32.Checksum(b.bytes, ledger.Castagnoli))
		p.flying <- b // has room for the whole window
		head := brokerv1.ProduceRequest_builder{Publish: brokerv1.Publish_builder{Batches: []*brokerv1.PublishedBatch{
			brokerv1.PublishedBatch_builder{ProducerId: new(uint64(1)), Length: new(uint32(len(b.bytes)))}.Build(),
		}}.Build()}.Build()
		if err := stream.SendMsg(&rpc.Frame{Head: head, Payload: [][]byte{b.bytes}}); err != nil {
			if errors.Is(err, io.EOF) {
				return <-received // which knows why
			}
			return err
		}
	}
	for range p.window {
		select {
		case <-p.free:
		case err := <-received:
			return err
		}
	}
	return nil
}

// count is what every message's callback does.
func (p *producer) count() { p.stored.Add(1) }

// receive takes answers, each of which stands for all batches up to its entry.
func (p *producer) receive(stream grpc.BidiStreamingClient[brokerv1.ProduceRequest, brokerv1.ProduceResponse]) error {
	next := int64(0)
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("broker: %w", err)
		}
		now := time.Now()
		for _, receipt := range r.GetReceipts().GetReceipts() {
			for ; next <= receipt.GetEntry(); next++ {
				b := <-p.flying
				p.times.Record(now.Sub(b.began))
				for _, f := range b.answered {
					f()
				}
				p.free <- b
			}
		}
	}
}
