package subscription

import (
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Consumer is a member of a subscription. Safe for concurrent use. After it was
// closed, by itself or by the subscription, its methods do nothing.
type Consumer struct {
	s *Subscription
	c *consumer
}

// Join adds a consumer. Nothing is sent to it before it gives permits.
//
// ErrBusy: the type does not fit those who are connected, or the subscription is
// exclusive and taken. A holder with nobody at its other end any more, or of the
// same name and client instance, gives way (ErrReplaced). ErrUnsupported: the
// type is not offered.
func (s *Subscription) Join(opts ConsumerOptions, sink Sink) (*Consumer, error) {
	if opts.Type == KeyShared {
		return nil, fmt.Errorf("type key_shared is not offered by this broker; use shared, or failover for order: %w", ErrUnsupported)
	}
	if opts.Type > KeyShared {
		return nil, fmt.Errorf("subscription type %d: %w", opts.Type, ErrInvalid)
	}
	if opts.WindowBytes <= 0 {
		opts.WindowBytes = defaultWindowBytes
	}
	c := &consumer{name: opts.Name, instance: opts.Instance, sink: sink, window: opts.WindowBytes}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return nil, s.closed
	}
	m := s.machineLocked()
	s.makeRoomLocked(opts)
	notices, err := m.join(c, opts.Type)
	if err != nil {
		s.eventLocked(nil)
		return nil, fmt.Errorf("subscription %s: %w", s.saved.Name, err)
	}
	s.eventLocked(notices)
	return &Consumer{s: s, c: c}, nil
}

// makeRoomLocked takes out members that must not keep the newcomer out.
func (s *Subscription) makeRoomLocked(opts ConsumerOptions) {
	var gone []*consumer
	for _, c := range s.m.consumers {
		same := opts.Instance != "" && c.instance == opts.Instance && c.name == opts.Name
		if same || (opts.Type != s.m.kind || opts.Type == Exclusive) && !c.sink.Alive() {
			gone = append(gone, c)
		}
	}
	for _, c := range gone {
		notices := s.m.leave(c)
		c.sink.Closed(ErrReplaced)
		for _, n := range notices {
			n.to.sink.Active(n.active)
		}
	}
}

// Flow adds to what the consumer may be sent: messages, and bytes of entries that
// it has handed on or dropped. ErrOverCredit is an error of protocol: close it.
func (c *Consumer) Flow(messages uint32, bytes uint64) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err := c.c.flow(messages, bytes); err != nil {
		return err
	}
	c.s.kickLocked()
	return nil
}

// Redeliver asks for entries that the consumer holds to be delivered again, to
// whoever's turn it is; nil: for all it holds. Of an exclusive or failover
// subscription all means everything after the mark-delete position, in order.
func (c *Consumer) Redeliver(which []position.Position) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.m == nil {
		return
	}
	before := c.s.m.replay.Len()
	c.s.m.giveBack(c.c, which)
	c.s.opts.Metrics.returned.Add(float64(max(0, c.s.m.replay.Len()-before)))
	c.s.kickLocked()
}

// Leave takes the consumer out; what it holds goes to others. A subscription
// without a journal has no more to do once the last one has left.
func (c *Consumer) Leave() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.m != nil {
		c.s.eventLocked(c.s.m.leave(c.c))
	}
}

// Subscription is the one the consumer belongs to.
func (c *Consumer) Subscription() *Subscription { return c.s }

// Acked is one position of an acknowledgement.
type Acked struct {
	Position position.Position
	Left     cursor.Bits // messages of the entry still unacknowledged; nil: none
}

// Ack is an acknowledgement.
type Ack struct {
	// Epoch in which the entries were delivered; 0: not told. One from before a
	// seek says nothing about now, is ignored and answered as done.
	Epoch      uint64
	Cumulative bool // everything up to the one position
	Positions  []Acked
}

// Ack acknowledges. done, which may be nil, is called once: with nil when the
// acknowledgement is durable; with ErrInvalid or ErrTooBusy when it was refused
// whole; with any other error when it may or may not be durable. It may be called
// before Ack returns, and must not block.
func (c *Consumer) Ack(ack Ack, done func(error)) {
	if done == nil {
		done = func(error) {}
	}
	if now, err := c.s.ack(c.c, ack, done); now {
		done(err)
	}
}

// ack applies an acknowledgement; now reports that it is answered with err, else
// done will be called.
func (s *Subscription) ack(c *consumer, ack Ack, done func(error)) (now bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed != nil:
		return true, s.closed
	case ack.Epoch != 0 && ack.Epoch < s.epochLocked():
		return true, nil
	case s.outbox.waiting >= s.opts.UnansweredAcks:
		return true, fmt.Errorf("%d acknowledgements are not durable yet: %w", s.outbox.waiting, ErrTooBusy)
	}
	if err := s.checkLocked(ack); err != nil {
		return true, err
	}
	s.outbox.keepGivenLocked()
	for _, a := range ack.Positions {
		s.applyLocked(c, ack.Cumulative, a)
	}
	now = s.outbox.oweLocked(done)
	s.outbox.sendLocked()
	s.opts.Metrics.acks.Inc()
	s.eventLocked(nil)
	return now, nil
}

// checkLocked refuses an acknowledgement before any of it is applied.
func (s *Subscription) checkLocked(ack Ack) error {
	if ack.Cumulative {
		if s.m != nil && s.m.kind == Shared && len(s.m.consumers) > 0 {
			return fmt.Errorf("cumulative acknowledgement on a shared subscription, where others hold entries before it: %w", ErrInvalid)
		}
		if len(ack.Positions) != 1 {
			return fmt.Errorf("cumulative acknowledgement of %d positions, want 1: %w", len(ack.Positions), ErrInvalid)
		}
	}
	last := s.opts.Ledger.LastConfirmed()
	for _, a := range ack.Positions {
		switch {
		case a.Position.Ledger < 1 || a.Position.Entry <= ledger.NoEntry:
			return fmt.Errorf("acknowledgement of %v: %w", a.Position, ErrInvalid)
		case last.Before(a.Position):
			return fmt.Errorf("acknowledgement of %v, the last entry is %v: %w", a.Position, last, ErrInvalid)
		case len(a.Left) > cursor.MaxBits/64:
			return fmt.Errorf("acknowledgement of a batch of %d messages, at most %d: %w", 64*len(a.Left), cursor.MaxBits, ErrInvalid)
		}
	}
	return nil
}

// applyLocked acknowledges one position. One that names no entry of the topic,
// such as one trimmed away, is passed over; one acknowledged before still counts for
// those before it, where it is cumulative.
func (s *Subscription) applyLocked(c *consumer, cumulative bool, a Acked) {
	cur, links := s.saved.Cursor, s.chain()
	if cur.Acked(a.Position) && !cumulative || links.After(a.Position.Prev()) != a.Position {
		return
	}
	whole := true
	switch {
	case cumulative && a.Left == nil:
		cur.AckCumulative(links, a.Position)
	case cumulative:
		cur.AckCumulativePart(links, a.Position, a.Left)
	case a.Left == nil:
		cur.Ack(links, a.Position)
	default:
		_, whole = cur.AckPart(links, a.Position, a.Left)
	}
	switch {
	case s.m == nil:
	case cumulative:
		s.m.ackedThrough()
	case whole:
		s.m.acked(c, a.Position)
	}
}
