package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// consumeEvent is something to tell the client: an event ready to send, entries,
// or the end of a consumer.
type consumeEvent struct {
	from     *streamConsumer
	response *brokerv1.ConsumeResponse
	epoch    uint64
	entries  []subscription.Delivery
	closed   error
	topic    string // with closed
}

// consumeStream is one client's Consume stream: all its consumers on this
// broker. The receiving goroutine never waits: what has to runs on a goroutine of
// its own, of which there are at most maxPerStream for opening, maxTasks for the
// rest.
type consumeStream struct {
	topics topics
	log    hclog.Logger
	out    *outbox[consumeEvent]

	tasks sync.WaitGroup
	slots chan struct{}

	mu        sync.Mutex
	consumers map[uint64]*streamConsumer
	opening   int // goroutines that open a consumer, also one that is closed by now
	ended     bool
}

// consumerWindowBytes is how many bytes of entries may be out with a consumer
// that has not handed them on.
const consumerWindowBytes = 4 << 20

// maxTasks bounds the seeks and the like of one stream under way at a time.
const maxTasks = 256

type streamConsumer struct {
	stream    *consumeStream
	id        uint64
	partition int32
	// Below is guarded by stream.mu.
	topic    *topic.Topic
	consumer *subscription.Consumer // nil while it is being opened
	dropped  bool                   // closed while it was being opened
	early    uint32                 // permits granted while it was being opened
}

// consume serves one Consume stream until it ends.
func consume(stream brokerv1.Messaging_ConsumeServer, t topics, log hclog.Logger) error {
	s := &consumeStream{
		topics: t, log: log, out: newOutbox[consumeEvent](),
		slots: make(chan struct{}, maxTasks), consumers: map[uint64]*streamConsumer{},
	}
	ctx, cancel := context.WithCancel(stream.Context())
	sent := make(chan error, 1)
	go func() {
		err := s.out.run(ctx, func(events []consumeEvent) error { return s.send(stream, events) })
		cancel()
		sent <- err
	}()
	received := make(chan error, 1)
	go func() { received <- s.receive(ctx, stream) }()

	// As in produce: the receiver ends with the handler.
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

// receive takes requests until the client closes the stream or breaks its rules. A
// request comes as a Frame, which bounds it, though it never has a payload.
func (s *consumeStream) receive(ctx context.Context, stream brokerv1.Messaging_ConsumeServer) error {
	for {
		req := &brokerv1.ConsumeRequest{}
		frame := rpc.Frame{Head: req}
		if err := stream.RecvMsg(&frame); err != nil {
			if errors.Is(err, io.EOF) || stream.Context().Err() != nil {
				return nil
			}
			return err
		}
		frame.Free()
		if err := s.handle(ctx, req); err != nil {
			return err
		}
	}
}

// handle serves one request; an error breaks the stream.
func (s *consumeStream) handle(ctx context.Context, req *brokerv1.ConsumeRequest) error {
	switch req.WhichCommand() {
	case brokerv1.ConsumeRequest_Subscribe_case:
		return s.subscribe(ctx, req.GetSubscribe())
	case brokerv1.ConsumeRequest_Flow_case:
		if err := s.flow(req.GetFlow()); err != nil {
			return fmt.Errorf("flow of consumer %d: %w: %w", req.GetFlow().GetConsumerId(), err, rpcerr.ErrInvalid)
		}
	case brokerv1.ConsumeRequest_Ack_case:
		s.ack(req.GetAck())
	case brokerv1.ConsumeRequest_Redeliver_case:
		r := req.GetRedeliver()
		if _, c := s.find(r.GetConsumerId()); c != nil {
			var which []position.Position
			for _, p := range r.GetPositions() {
				which = append(which, positionOf(p.GetLedger(), p.GetEntry()))
			}
			c.Redeliver(which)
		}
	case brokerv1.ConsumeRequest_Seek_case:
		sk := req.GetSeek()
		s.task(ctx, sk.GetConsumerId(), sk.GetRequestId(), func(ctx context.Context, t *topic.Topic, c *subscription.Consumer) (*position.Position, error) {
			place, err := placeOf(sk.GetTo())
			if err != nil {
				return nil, err
			}
			mark, err := t.SeekIn(ctx, c.Subscription(), place)
			start := t.After(mark)
			return &start, err
		})
	case brokerv1.ConsumeRequest_Unsubscribe_case:
		u := req.GetUnsubscribe()
		s.task(ctx, u.GetConsumerId(), u.GetRequestId(), func(ctx context.Context, t *topic.Topic, c *subscription.Consumer) (*position.Position, error) {
			return nil, t.Unsubscribe(ctx, c)
		})
	case brokerv1.ConsumeRequest_Close_case:
		s.closeConsumer(req.GetClose().GetConsumerId())
	default:
		return fmt.Errorf("consume request without a command this build knows: %w", rpcerr.ErrInvalid)
	}
	return nil
}

// find returns a consumer of the stream; both nil once it is closed, which its
// client may not have heard yet.
func (s *consumeStream) find(id uint64) (*streamConsumer, *subscription.Consumer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sc := s.consumers[id]
	if sc == nil {
		return nil, nil
	}
	return sc, sc.consumer
}

// flow grants permits. A client may send them right behind its Subscribe; they
// are kept until the consumer is open.
func (s *consumeStream) flow(f *brokerv1.Flow) error {
	s.mu.Lock()
	sc := s.consumers[f.GetConsumerId()]
	if sc == nil || sc.consumer != nil {
		s.mu.Unlock()
		if sc == nil {
			return nil
		}
		return sc.consumer.Flow(f.GetPermits(), f.GetBytes()) // it stays set
	}
	defer s.mu.Unlock()
	if f.GetBytes() > 0 {
		return fmt.Errorf("%d bytes given back before any were sent: %w", f.GetBytes(), subscription.ErrOverCredit)
	}
	sc.early = uint32(min(uint64(sc.early)+uint64(f.GetPermits()), math.MaxUint32))
	return nil
}

// task runs something that may wait, and answers the request with its outcome: an
// error, or where the subscription starts now, nil where that is not moved.
func (s *consumeStream) task(ctx context.Context, id, request uint64, run func(context.Context, *topic.Topic, *subscription.Consumer) (start *position.Position, err error)) {
	sc, c := s.find(id)
	if c == nil {
		s.done(id, request, fmt.Errorf("consumer %d is closed: %w", id, subscription.ErrClosed))
		return
	}
	select {
	case s.slots <- struct{}{}:
	default:
		s.done(id, request, fmt.Errorf("%d requests of the stream are under way: %w", maxTasks, subscription.ErrTooBusy))
		return
	}
	s.tasks.Go(func() {
		defer func() { <-s.slots }()
		start, err := run(ctx, sc.topic, c)
		if err != nil || start == nil {
			s.done(id, request, err)
			return
		}
		s.answer(id, request, brokerv1.Done_builder{StartMessageId: messageIDOf(*start, sc.partition)}.Build())
	})
}

// done answers a request that wants an answer.
func (s *consumeStream) done(id, request uint64, err error) {
	d := &brokerv1.Done{}
	if err != nil {
		d.SetCode(codeOf(err))
		d.SetMessage(err.Error())
	}
	s.answer(id, request, d)
}

func (s *consumeStream) answer(id, request uint64, d *brokerv1.Done) {
	if request == 0 {
		return
	}
	d.SetConsumerId(id)
	d.SetRequestId(request)
	s.out.put(consumeEvent{response: brokerv1.ConsumeResponse_builder{Done: d}.Build()})
}

func (s *consumeStream) ack(a *brokerv1.Ack) {
	_, c := s.find(a.GetConsumerId())
	if c == nil {
		s.done(a.GetConsumerId(), a.GetRequestId(), fmt.Errorf("consumer %d is closed: %w", a.GetConsumerId(), subscription.ErrClosed))
		return
	}
	ack := subscription.Ack{Epoch: a.GetEpoch(), Cumulative: a.GetCumulative(), Positions: make([]subscription.Acked, 0, len(a.GetPositions()))}
	for _, p := range a.GetPositions() {
		ack.Positions = append(ack.Positions, subscription.Acked{
			Position: positionOf(p.GetLedger(), p.GetEntry()), Left: cursor.Bits(p.GetAckSet()),
		})
	}
	id, request := a.GetConsumerId(), a.GetRequestId()
	c.Ack(ack, func(err error) { s.done(id, request, err) })
}

func (s *consumeStream) subscribe(ctx context.Context, req *brokerv1.Subscribe) error {
	id := req.GetConsumerId()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.consumers[id] != nil:
		return fmt.Errorf("consumer %d is open on this stream already: %w", id, rpcerr.ErrInvalid)
	case len(s.consumers) >= maxPerStream:
		return fmt.Errorf("more than %d consumers on one stream: %w", maxPerStream, rpcerr.ErrInvalid)
	}
	sc := &streamConsumer{stream: s, id: id, partition: -1}
	if s.opening >= maxPerStream {
		s.out.put(consumeEvent{from: sc, closed: tooManyOpening(), topic: req.GetTopic()})
		return nil
	}
	s.consumers[id] = sc
	s.opening++
	s.tasks.Go(func() {
		if err := sc.connect(ctx, req); err != nil {
			s.out.put(consumeEvent{from: sc, closed: err, topic: req.GetTopic()})
		}
		s.mu.Lock()
		s.opening--
		s.mu.Unlock()
	})
	return nil
}

// connect opens the topic and joins the subscription, which may take a while.
func (sc *streamConsumer) connect(ctx context.Context, req *brokerv1.Subscribe) error {
	s := sc.stream
	name, err := topicname.Parse(req.GetTopic())
	if err != nil {
		return err
	}
	if err := topicname.ValidateSubscription(req.GetSubscription()); err != nil {
		return err
	}
	if req.GetConsumerName() != "" {
		if err := topicname.ValidateConsumer(req.GetConsumerName()); err != nil {
			return err
		}
	}
	if req.GetPriority() != 0 {
		return fmt.Errorf("priority %d: priorities are not offered: %w", req.GetPriority(), subscription.ErrUnsupported)
	}
	start := subscription.Place{Anchor: subscription.Latest}
	if req.HasInitialPosition() {
		if start, err = placeOf(req.GetInitialPosition()); err != nil {
			return err
		}
	}
	t, err := s.topics.topic(ctx, name)
	if err != nil {
		return err
	}
	sc.partition = int32(name.Partition)
	sink := &consumerSink{sc: sc, topic: name.String()}
	window := uint64(consumerWindowBytes)
	if asked := req.GetWindowBytes(); asked > 0 {
		window = min(window, asked)
	}
	c, created, err := t.Subscribe(ctx, topic.SubscribeRequest{
		Subscription: req.GetSubscription(),
		Consumer: subscription.ConsumerOptions{
			Name: req.GetConsumerName(), Type: subscription.Type(req.GetType()), Instance: req.GetInstance(), WindowBytes: int64(window),
		},
		Start: start, NonDurable: req.GetNonDurable(), MustExist: req.GetMustExist(), Properties: req.GetProperties(),
	}, sink)
	if err != nil {
		return err
	}
	subscribed := consumeEvent{response: brokerv1.ConsumeResponse_builder{Subscribed: brokerv1.Subscribed_builder{
		ConsumerId: &sc.id, Created: &created, WindowBytes: &window,
		LastMessageId:  messageIDOf(t.Last(), sc.partition),
		StartMessageId: messageIDOf(t.After(c.Subscription().MarkDelete()), sc.partition),
	}.Build()}.Build()}
	s.mu.Lock()
	dropped, early := sc.dropped || s.ended, sc.early
	if !dropped {
		// Nothing was delivered yet: that takes permits, and until now none were
		// passed on.
		s.out.put(subscribed)
		sc.topic, sc.consumer = t, c
	}
	s.mu.Unlock()
	if dropped {
		t.Leave(c)
		return nil
	}
	return c.Flow(early, 0)
}

func (s *consumeStream) closeConsumer(id uint64) {
	s.mu.Lock()
	sc := s.consumers[id]
	delete(s.consumers, id)
	var leave func()
	if sc != nil {
		sc.dropped = true
		if t, c := sc.topic, sc.consumer; c != nil {
			leave = func() { t.Leave(c) }
		}
	}
	s.mu.Unlock()
	if leave != nil {
		leave()
	}
}

// end takes all consumers out: the connection ended.
func (s *consumeStream) end() {
	s.mu.Lock()
	s.ended = true
	var open []*streamConsumer
	for _, sc := range s.consumers {
		if sc.consumer != nil {
			open = append(open, sc)
		}
	}
	s.mu.Unlock()
	for _, sc := range open {
		sc.topic.Leave(sc.consumer)
	}
	s.tasks.Wait()
}

// consumerSink turns what a subscription says into events of the stream.
type consumerSink struct {
	sc    *streamConsumer
	topic string
}

func (k *consumerSink) Deliver(epoch uint64, entries []subscription.Delivery) {
	k.sc.stream.out.put(consumeEvent{from: k.sc, epoch: epoch, entries: entries})
}

func (k *consumerSink) Active(active bool) {
	k.sc.stream.out.put(consumeEvent{response: brokerv1.ConsumeResponse_builder{Active: brokerv1.ActiveChanged_builder{
		ConsumerId: &k.sc.id, Active: &active,
	}.Build()}.Build()})
}

func (k *consumerSink) Closed(err error) {
	k.sc.stream.out.put(consumeEvent{from: k.sc, closed: err, topic: k.topic})
}

func (k *consumerSink) Alive() bool {
	s := k.sc.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ended
}
