package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// maxPerStream bounds the producers, and the consumers, of one stream; and those
// being opened, which may be others: a client can close one before it is open, and
// what opens it ends only some time later.
const maxPerStream = 10_000

// tooManyOpening refuses one more of those.
func tooManyOpening() error {
	return fmt.Errorf("%d of the stream are being opened, try again later: %w", maxPerStream, rpcerr.ErrUnavailable)
}

// maxReceiptsPerMessage bounds the receipts that go out in one gRPC message.
const maxReceiptsPerMessage = 4096

// produceEvent is something to tell the client: an event ready to send, or a
// receipt, which is sent together with its neighbours.
type produceEvent struct {
	from     *streamProducer
	response *brokerv1.ProduceResponse // nil: a receipt, or the end of the producer
	receipt  topic.Receipt
	closed   error
	topic    string // with closed
}

// produceStream is one client's Produce stream: all its producers on this
// broker. The receiving goroutine never waits for a topic: opening one runs on a
// goroutine of its own, and publishing does not block.
type produceStream struct {
	topics topics
	log    hclog.Logger
	out    *outbox[produceEvent]
	opens  sync.WaitGroup

	mu        sync.Mutex
	producers map[uint64]*streamProducer
	opening   int // goroutines that open a producer, also one that is closed by now
	ended     bool
}

// streamProducer is one producer of a stream: being opened, or open.
type streamProducer struct {
	stream *produceStream
	id     uint64
	// Below is guarded by stream.mu.
	producer *topic.Producer // nil while its topic is being opened
	opened   bool            // it may publish: it waits for no earlier outcome
	dropped  bool            // its client closed it
}

// topics finds the topics that this broker owns, opening them as needed.
type topics interface {
	// topic returns an open topic; NotOwnerError and others of rpcerr's errors say
	// why not.
	topic(ctx context.Context, name topicname.Name) (*topic.Topic, error)
	// movedTo is the address of a topic's owner, "" unless another broker is known
	// to be.
	movedTo(name string) string
}

// produce serves one Produce stream until it ends.
func produce(stream brokerv1.Messaging_ProduceServer, t topics, log hclog.Logger) error {
	s := &produceStream{topics: t, log: log, out: newOutbox[produceEvent](), producers: map[uint64]*streamProducer{}}
	ctx, cancel := context.WithCancel(stream.Context())
	sent := make(chan error, 1)
	go func() {
		err := s.out.run(ctx, func(events []produceEvent) error { return s.send(stream, events) })
		cancel()
		sent <- err
	}()
	received := make(chan error, 1)
	go func() { received <- s.receive(ctx, stream) }()

	// The receiver can only be freed by ending the handler, so it is not waited
	// for when the sender fails: gRPC ends it with the stream.
	var err error
	select {
	case err = <-received:
		cancel()
		<-sent
	case err = <-sent:
		if stream.Context().Err() != nil {
			err = nil // the client is gone
		}
	}
	s.end()
	return err
}

// receive takes requests until the client closes the stream or breaks its rules.
func (s *produceStream) receive(ctx context.Context, stream brokerv1.Messaging_ProduceServer) error {
	head := &brokerv1.ProduceRequest{}
	frame := rpc.Frame{Head: head}
	defer frame.Free()
	for {
		head.Reset()
		if err := stream.RecvMsg(&frame); err != nil {
			if errors.Is(err, io.EOF) || stream.Context().Err() != nil {
				return nil
			}
			return err
		}
		switch head.WhichCommand() {
		case brokerv1.ProduceRequest_Publish_case:
			if err := s.publish(head.GetPublish(), &frame); err != nil {
				return err
			}
		case brokerv1.ProduceRequest_Open_case:
			if err := s.open(ctx, head.GetOpen()); err != nil {
				return err
			}
		case brokerv1.ProduceRequest_Close_case:
			s.closeProducer(head.GetClose().GetProducerId())
		default:
			return fmt.Errorf("produce request without a command this build knows: %w", rpcerr.ErrInvalid)
		}
		frame.Free()
	}
}

// publish carves the batches out of the payload, each into a buffer of its own
// with room for the broker's part, and passes them to their producers.
func (s *produceStream) publish(p *brokerv1.Publish, frame *rpc.Frame) error {
	for _, b := range p.GetBatches() {
		n := int(b.GetLength())
		if n > frame.Unread() {
			return fmt.Errorf("publish: a batch of %d bytes where %d are left: %w", n, frame.Unread(), rpcerr.ErrInvalid)
		}
		buffer := make([]byte, entry.BrokerPartRoom+n)
		frame.CopyTo(buffer[entry.BrokerPartRoom:])
		s.mu.Lock()
		sp := s.producers[b.GetProducerId()]
		var open *topic.Producer
		if sp != nil && sp.opened {
			open = sp.producer
		}
		s.mu.Unlock()
		if open == nil {
			if sp == nil {
				continue // closed by this side a moment ago; its client has been told
			}
			return fmt.Errorf("publish of producer %d before it was opened: %w", b.GetProducerId(), rpcerr.ErrInvalid)
		}
		open.Publish(topic.Batch{Buffer: buffer})
	}
	if frame.Unread() > 0 {
		return fmt.Errorf("publish: %d bytes belong to no batch: %w", frame.Unread(), rpcerr.ErrInvalid)
	}
	return nil
}

func (s *produceStream) open(ctx context.Context, req *brokerv1.OpenProducer) error {
	id := req.GetProducerId()
	sp := &streamProducer{stream: s, id: id}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.producers[id] != nil:
		return fmt.Errorf("producer %d is open on this stream already: %w", id, rpcerr.ErrInvalid)
	case len(s.producers) >= maxPerStream:
		return fmt.Errorf("more than %d producers on one stream: %w", maxPerStream, rpcerr.ErrInvalid)
	}
	if s.opening >= maxPerStream {
		s.out.put(produceEvent{from: sp, closed: tooManyOpening(), topic: req.GetTopic()})
		return nil
	}
	s.producers[id] = sp
	s.opening++
	s.opens.Go(func() {
		sp.connect(ctx, req)
		s.mu.Lock()
		s.opening--
		s.mu.Unlock()
	})
	return nil
}

// connect opens the topic and the producer, which may take a while.
func (sp *streamProducer) connect(ctx context.Context, req *brokerv1.OpenProducer) {
	s := sp.stream
	fail := func(err error) { s.out.put(produceEvent{from: sp, closed: err, topic: req.GetTopic()}) }
	name, err := topicname.Parse(req.GetTopic())
	if err == nil && req.GetProducerName() != "" {
		err = topicname.ValidateProducer(req.GetProducerName())
	}
	if err != nil {
		fail(err)
		return
	}
	t, err := s.topics.topic(ctx, name)
	var p *topic.Producer
	if err == nil {
		p, err = t.OpenProducer(req.GetProducerName(), req.GetEpoch(), req.GetNameChosenByBroker(), producerSink{sp, name})
	}
	if err != nil {
		fail(err)
		return
	}
	s.mu.Lock()
	sp.producer = p
	dropped, final := sp.dropped || s.ended, sp.dropped
	s.mu.Unlock()
	if dropped { // nobody wants it any more
		p.Close(final)
	}
}

func (s *produceStream) closeProducer(id uint64) {
	s.mu.Lock()
	sp := s.producers[id]
	delete(s.producers, id)
	var p *topic.Producer
	if sp != nil {
		sp.dropped = true
		p = sp.producer
	}
	s.mu.Unlock()
	if p != nil {
		p.Close(true)
	}
}

// end disconnects all producers: the connection ended, they may come back. Those
// whose topic is still being opened are closed by connect.
func (s *produceStream) end() {
	s.mu.Lock()
	s.ended = true
	var open []*topic.Producer
	for _, sp := range s.producers {
		if sp.producer != nil {
			open = append(open, sp.producer)
		}
	}
	s.mu.Unlock()
	for _, p := range open {
		p.Close(false)
	}
	s.opens.Wait()
}

// producerSink turns what a topic says into events of the stream. Its methods run
// with the topic locked.
type producerSink struct {
	sp   *streamProducer
	name topicname.Name
}

func (k producerSink) put(e produceEvent) {
	e.from = k.sp
	k.sp.stream.out.put(e)
}

func (k producerSink) Opened(p *topic.Producer, last uint64, stored bool) {
	s := k.sp.stream
	s.mu.Lock()
	dropped := k.sp.dropped || s.ended // connect closes it
	k.sp.producer, k.sp.opened = p, !dropped
	s.mu.Unlock()
	if dropped {
		return
	}
	k.put(produceEvent{response: brokerv1.ProduceResponse_builder{Opened: brokerv1.ProducerOpened_builder{
		ProducerId: &k.sp.id, ProducerName: new(p.Name()),
		HasLastSequenceId: &stored, LastSequenceId: &last,
		WindowBytes: new(uint64(p.WindowBytes())), WindowBatches: new(uint32(producer.Window)),
		MaxMessageBytes: new(uint64(p.MaxMessageBytes())),
	}.Build()}.Build()})
}

func (k producerSink) Receipt(r topic.Receipt) { k.put(produceEvent{receipt: r}) }

func (k producerSink) Refused(r topic.Refusal) {
	k.put(produceEvent{response: brokerv1.ProduceResponse_builder{Refused: brokerv1.PublishRefused_builder{
		ProducerId: &k.sp.id, SequenceId: &r.Sequence, Code: new(codeOf(r.Err)), Message: new(r.Err.Error()),
		HasExpected: &r.HasExpected, ExpectedSequenceId: &r.Expected,
	}.Build()}.Build()})
}

func (k producerSink) Hold(hold bool, reason string) {
	k.put(produceEvent{response: brokerv1.ProduceResponse_builder{Hold: brokerv1.ProducerHold_builder{
		ProducerId: &k.sp.id, Hold: &hold, Reason: &reason,
	}.Build()}.Build()})
}

func (k producerSink) Closed(err error) { k.put(produceEvent{closed: err, topic: k.name.String()}) }

// send sends events in order, neighbouring receipts together.
func (s *produceStream) send(stream brokerv1.Messaging_ProduceServer, events []produceEvent) error {
	var receipts []*brokerv1.Receipt
	flush := func() error {
		if len(receipts) == 0 {
			return nil
		}
		r := brokerv1.Receipts_builder{Receipts: receipts}.Build()
		receipts = nil
		return stream.SendMsg(&rpc.Frame{Head: brokerv1.ProduceResponse_builder{Receipts: r}.Build()})
	}
	for _, e := range events {
		if e.closed != nil {
			e.response = s.closedMessage(e)
		}
		if e.response == nil {
			receipts = append(receipts, receiptMessage(e.from.id, e.receipt))
			if len(receipts) < maxReceiptsPerMessage {
				continue
			}
		}
		if err := flush(); err != nil {
			return err
		}
		if e.response == nil {
			continue
		}
		if err := stream.SendMsg(&rpc.Frame{Head: e.response}); err != nil {
			return err
		}
	}
	return flush()
}

// closedMessage forgets a producer that ended from this side and says why.
func (s *produceStream) closedMessage(e produceEvent) *brokerv1.ProduceResponse {
	s.mu.Lock()
	if s.producers[e.from.id] == e.from {
		delete(s.producers, e.from.id)
	}
	s.mu.Unlock()
	closed := brokerv1.ProducerClosed_builder{
		ProducerId: &e.from.id, Code: new(codeOf(e.closed)), Message: new(e.closed.Error()),
	}.Build()
	if closed.GetCode() == brokerv1.Code_CODE_MOVED {
		closed.SetMovedTo(s.topics.movedTo(e.topic))
	}
	return brokerv1.ProduceResponse_builder{Closed: closed}.Build()
}

func receiptMessage(id uint64, r topic.Receipt) *brokerv1.Receipt {
	m := &brokerv1.Receipt{}
	m.SetProducerId(id)
	m.SetSequenceId(r.Sequence)
	m.SetDuplicate(r.Duplicate)
	if r.Position == position.Start {
		m.SetLedger(-1)
		m.SetEntry(-1)
		return m
	}
	m.SetLedger(int64(r.Position.Ledger))
	m.SetEntry(int64(r.Position.Entry))
	return m
}
