package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/topicname"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// Type says how the consumers of a subscription share its messages.
type Type int32

const (
	// Exclusive: one consumer, which gets everything in order. The default.
	Exclusive Type = Type(brokerv1.SubscriptionType_SUBSCRIPTION_TYPE_EXCLUSIVE)
	// Shared: each message goes to one of the consumers; no order.
	Shared Type = Type(brokerv1.SubscriptionType_SUBSCRIPTION_TYPE_SHARED)
	// Failover: one consumer of each partition gets everything in order, another
	// takes its place when it goes.
	Failover Type = Type(brokerv1.SubscriptionType_SUBSCRIPTION_TYPE_FAILOVER)
)

// ConsumerOption changes a Consumer.
type ConsumerOption func(*consumerOptions)

type consumerOptions struct {
	kind          Type
	from          Position
	name          string
	properties    map[string]string
	mustExist     bool
	noCreate      bool
	queueMessages int
	queueBytes    int
	nackFirst     time.Duration
	nackMost      time.Duration
	bounded       bool
}

// OfType sets the subscription's type (Exclusive).
func OfType(t Type) ConsumerOption { return func(o *consumerOptions) { o.kind = t } }

// From says where a subscription starts that does not exist yet (Latest).
func From(p Position) ConsumerOption { return func(o *consumerOptions) { o.from = p } }

// Named names the consumer, for operators and for the order in which failover
// subscriptions choose; without it the client makes a name up.
func Named(name string) ConsumerOption { return func(o *consumerOptions) { o.name = name } }

// WithProperties are kept with a subscription that is made now.
func WithProperties(p map[string]string) ConsumerOption {
	return func(o *consumerOptions) { o.properties = p }
}

// ExistingSubscription fails with ErrNotFound rather than create the subscription
// or its topic.
func ExistingSubscription() ConsumerOption {
	return func(o *consumerOptions) { o.mustExist, o.noCreate = true, true }
}

// ExistingTopic fails with ErrNotFound rather than create the topic.
func ExistingTopic() ConsumerOption { return func(o *consumerOptions) { o.noCreate = true } }

// Queue bounds what the consumer may hold ahead of the application, over all
// partitions (DefaultQueueMessages, DefaultQueueBytes). One entry per partition
// may exceed it.
func Queue(messages, bytes int) ConsumerOption {
	return func(o *consumerOptions) { o.queueMessages, o.queueBytes = messages, bytes }
}

// NackDelay sets after how long a message given back is delivered again: first,
// then twice as long each time, up to most (1 s, 1 min).
func NackDelay(first, most time.Duration) ConsumerOption {
	return func(o *consumerOptions) { o.nackFirst, o.nackMost = first, most }
}

func newConsumerOptions(opts []ConsumerOption) consumerOptions {
	o := consumerOptions{queueMessages: DefaultQueueMessages, queueBytes: DefaultQueueBytes, nackFirst: time.Second, nackMost: time.Minute}
	for _, f := range opts {
		f(&o)
	}
	return o
}

// Consumer receives the messages of a subscription. Make one with
// Client.Subscribe; it is safe for concurrent use.
//
// Messages of a partition come in order to callers of Receive that wait for each
// other; many goroutines may receive at the same time, each message goes to one.
type Consumer struct {
	c            *Client
	topic        string
	subscription string
	instance     string
	reader       bool
	opts         consumerOptions
	feeds        []*feed // never altered
	ctx          context.Context
	cancel       context.CancelFunc
	wake         chan struct{} // buffered by one: the queue or the state changed

	mu      sync.Mutex
	queue   queue
	current *opened // the entry whose messages are being handed out
	failure error
	nacks   nacks
	ticking bool // the timer for what can wait a while runs
	tick    *time.Timer
}

// opened is an entry whose messages are being handed out.
type opened struct {
	d        *delivered
	broker   entry.BrokerPart
	messages *entry.Messages
	h        *handed // nil for a reader
	take     bitset  // messages for the application
	next     int     // index of the next message
}

// tickAfter is how long acknowledgements of parts of entries, and small credits,
// wait for company.
const tickAfter = 100 * time.Millisecond

// Subscribe joins, or makes, a subscription of a topic, on all its partitions. It
// waits for the topic to be served, as long as ctx allows.
func (c *Client) Subscribe(ctx context.Context, topic, subscription string, opts ...ConsumerOption) (*Consumer, error) {
	o := newConsumerOptions(opts)
	if err := topicname.ValidateSubscription(subscription); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return c.subscribe(ctx, topic, subscription, o, false)
}

func (c *Client) subscribe(ctx context.Context, topic, subscription string, o consumerOptions, reader bool) (*Consumer, error) {
	name, err := topicname.Parse(topic)
	if o.name == "" {
		o.name = fmt.Sprintf("consumer-%08x", uint32(c.rand()))
	} else if err == nil {
		err = topicname.ValidateConsumer(o.name)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
	case o.queueMessages < 1 || o.queueBytes < 1 || o.nackFirst < 0 || o.nackMost < o.nackFirst || o.kind < Exclusive || o.kind > Failover:
		return nil, fmt.Errorf("queue of %d messages and %d bytes, nack delay %v to %v, type %d: %w",
			o.queueMessages, o.queueBytes, o.nackFirst, o.nackMost, o.kind, ErrInvalid)
	}
	m, err := c.topicMap(ctx, name, !o.noCreate)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", name, err)
	}
	s := newConsumer(c, name.String(), subscription, o, reader, m.GetPartitions())
	g, attachCtx := errgroup.WithContext(ctx)
	for _, f := range s.feeds {
		g.Go(func() error { return c.attach(attachCtx, f, "", false) })
	}
	err = g.Wait()
	if err == nil && !c.add(s) {
		err = ErrClosed
	}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("subscribe to %s: %w", name, err)
	}
	return s, nil
}

func newConsumer(c *Client, topic, subscription string, o consumerOptions, reader bool, partitions []*discoveryv1.Partition) *Consumer {
	s := &Consumer{c: c, topic: topic, subscription: subscription, reader: reader, opts: o, wake: make(chan struct{}, 1),
		instance: fmt.Sprintf("%s-%08x", c.instance, uint32(c.rand()))}
	s.ctx, s.cancel = context.WithCancel(c.ctx)
	for _, p := range partitions {
		f := &feed{
			c: s, topic: p.GetTopic(), partition: p.GetNumber(),
			permits:  max(1, o.queueMessages/len(partitions)),
			bytes:    max(1, o.queueBytes/len(partitions)),
			acks:     acks{entries: map[place]*handed{}},
			requests: map[uint64]*request{},
			from:     o.from,
			pos:      readerPosition{bounded: o.bounded},
		}
		if reader {
			f.pos.begin(f.partition, o.from)
		}
		s.feeds = append(s.feeds, f)
	}
	return s
}

// Topic is the topic's long name.
func (s *Consumer) Topic() string { return s.topic }

// Subscription is the subscription's name.
func (s *Consumer) Subscription() string { return s.subscription }

// Name is the consumer's name.
func (s *Consumer) Name() string { return s.opts.name }

// Receive waits for the next message; when ctx has ended it takes none, also if
// there is one. Its error is final, save the context's and ErrCorrupt, after which
// it goes on behind the damaged entry.
func (s *Consumer) Receive(ctx context.Context) (*Received, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		m, err := s.nextLocked()
		if (m != nil || err != nil) && (s.queue.len() > 0 || s.current != nil || s.opts.bounded) {
			s.wakeLocked() // for another one who waits
		}
		s.mu.Unlock()
		if m != nil || err != nil {
			return m, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Messages iterates over the messages, until the loop ends it or an error is
// yielded that is final: the context's, or the consumer's.
func (s *Consumer) Messages(ctx context.Context) iter.Seq2[*Received, error] {
	return func(yield func(*Received, error) bool) {
		for {
			m, err := s.Receive(ctx)
			if !yield(m, err) || err != nil && !errors.Is(err, ErrCorrupt) {
				return
			}
		}
	}
}

func (s *Consumer) wakeLocked() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// nextLocked returns the next message, nil when there is none yet.
func (s *Consumer) nextLocked() (*Received, error) {
	for {
		if s.current == nil {
			d := s.queue.pop()
			if d == nil {
				return nil, s.idleLocked()
			}
			if err := s.openLocked(d); err != nil {
				d.feed.acks.dropped(d)
				d.feed.passedLocked(d)
				return nil, fmt.Errorf("entry %d:%d of %s: %w: %w", d.at.ledger, d.at.entry, d.feed.topic, ErrCorrupt, err)
			}
		}
		o := s.current
		f := o.d.feed
		i := o.take.next(o.next)
		if i < 0 || f.pos.ended {
			s.current = nil
			f.passedLocked(o.d)
			continue
		}
		var m entry.Message
		for ; o.next <= i; o.next++ {
			if ok, err := o.messages.Next(&m); err != nil || !ok {
				s.current = nil
				f.passedLocked(o.d)
				return nil, fmt.Errorf("entry %d:%d of %s: %w: %w", o.d.at.ledger, o.d.at.entry, f.topic, ErrCorrupt, err)
			}
		}
		last := o.take.next(o.next) < 0
		if s.reader {
			f.pos.handedOut(o.d.at, i)
		}
		r := o.received(&m, i)
		if last {
			s.current = nil
			f.passedLocked(o.d)
		}
		return r, nil
	}
}

// idleLocked says why there will be no more messages, nil when there may be.
func (s *Consumer) idleLocked() error {
	if s.failure != nil {
		s.wakeLocked() // for the others who wait
		return s.failure
	}
	if !s.opts.bounded {
		return nil
	}
	for _, f := range s.feeds {
		if !f.pos.ended {
			return nil
		}
	}
	s.wakeLocked()
	return ErrEnd
}

// openLocked makes d the entry whose messages are handed out.
func (s *Consumer) openLocked(d *delivered) error {
	o := &opened{d: d}
	var part []byte
	var err error
	if o.broker, part, err = entry.ParseBody(d.body); err != nil {
		return err
	}
	if o.messages, err = entry.Open(part, entry.MaxPayloadBytes); err != nil {
		return err
	}
	all := d.left
	if all == nil {
		all = allBits(o.messages.Header.Messages)
	}
	if s.reader {
		o.take = d.feed.pos.skip(d.at, all)
	} else {
		o.h, o.take = d.feed.acks.deliver(d, all)
	}
	s.current = o
	return nil
}

// received makes what the application gets of message i.
func (o *opened) received(m *entry.Message, i int) *Received {
	h := &o.messages.Header
	r := &Received{
		Message: Message{Key: m.Key, OrderingKey: m.OrderingKey, Value: m.Value, Properties: m.Properties, Sequence: m.SequenceID, NoValue: m.NullValue},
		ID:      MessageID{Ledger: o.d.at.ledger, Entry: o.d.at.entry, Partition: o.d.feed.partition, BatchIndex: -1},
		Topic:   o.d.feed.topic, Producer: h.ProducerName,
		PublishTime: time.UnixMilli(int64(h.PublishTime)), BrokerTime: time.UnixMilli(o.broker.Time),
		Index: o.broker.Index - uint64(h.Messages-1-i), Redeliveries: o.d.redeliveries,
		feed: o.d.feed, entry: o.h, bit: i,
	}
	if h.Messages > 1 {
		r.ID.BatchIndex = int32(i)
	}
	if m.EventTime != 0 {
		r.EventTime = time.UnixMilli(int64(m.EventTime))
	}
	return r
}

// dropQueuedLocked takes a feed's entries out of the queue. With credit, the
// session goes on and their credit is given back, and the entry whose messages
// are being handed out goes too.
func (s *Consumer) dropQueuedLocked(f *feed, credit bool) {
	s.queue.drop(func(d *delivered) bool {
		if d.feed != f {
			return false
		}
		f.acks.dropped(d)
		if credit {
			f.returnLocked(d, d.messages())
		}
		return true
	})
	if credit && s.current != nil && s.current.d.feed == f {
		f.returnLocked(s.current.d, s.current.d.messages())
		s.current = nil
	}
}

// tickLocked makes sure that the timer runs for what can wait a while.
func (s *Consumer) tickLocked() {
	switch {
	case s.ticking || s.failure != nil:
	case s.tick == nil:
		s.ticking = true
		s.tick = time.AfterFunc(tickAfter, s.onTick)
	default:
		s.ticking = true
		s.tick.Reset(tickAfter)
	}
}

func (s *Consumer) onTick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ticking = false
	for _, f := range s.feeds {
		f.acks.now = f.acks.now || f.acks.waits()
		f.flowNow = f.flowNow || f.inQueue == 0
		f.wantLocked()
	}
}

// Seek moves the subscription to a place: that and what follows is delivered, also
// to its other consumers. A place that names a message moves only that message's
// partition. Messages received before are void.
func (s *Consumer) Seek(ctx context.Context, to Position) error {
	if to.p == nil {
		return fmt.Errorf("seek to nowhere: %w", ErrInvalid)
	}
	partition, one := to.partition()
	g, ctx := errgroup.WithContext(ctx)
	moved := false
	for _, f := range s.feeds {
		if one && f.partition != partition {
			continue
		}
		moved = true
		g.Go(func() error {
			p := to.p
			if s.reader {
				var at readerPosition
				at.begin(f.partition, to)
				p = at.subscribeFrom(f.partition, to)
			}
			return f.ask(ctx, to, func(consumer, id uint64) proto.Message {
				return brokerv1.ConsumeRequest_builder{Seek: brokerv1.Seek_builder{ConsumerId: &consumer, RequestId: &id, To: p}.Build()}.Build()
			})
		})
	}
	if !moved {
		return fmt.Errorf("seek: %s has no partition %d: %w", s.topic, partition, ErrInvalid)
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("seek: %w", err)
	}
	return nil
}

// Unsubscribe deletes the subscription, which has no other consumers, and closes
// the consumer.
func (s *Consumer) Unsubscribe(ctx context.Context) error {
	g, askCtx := errgroup.WithContext(ctx)
	for _, f := range s.feeds {
		g.Go(func() error {
			return f.ask(askCtx, Position{}, func(consumer, id uint64) proto.Message {
				return brokerv1.ConsumeRequest_builder{Unsubscribe: brokerv1.Unsubscribe_builder{ConsumerId: &consumer, RequestId: &id}.Build()}.Build()
			})
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("unsubscribe: %w", err)
	}
	s.stop()
	return nil
}

// Close waits, as long as ctx allows, until all acknowledgements are durable, and
// leaves the subscription. Messages that were not acknowledged go to other
// consumers. A second call does nothing.
func (s *Consumer) Close(ctx context.Context) error {
	err := s.flushAcks(ctx)
	s.stop()
	return err
}

// stop leaves all partitions.
func (s *Consumer) stop() {
	s.c.remove(s)
	s.fail(ErrClosed)
}

// fail ends the consumer; err is what calls return from then on.
func (s *Consumer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(err)
}

func (s *Consumer) failLocked(err error) {
	if s.failure != nil {
		return
	}
	if s.ctx.Err() != nil {
		err = ErrClosed
	}
	s.failure = fmt.Errorf("consumer of %s: %w", s.topic, err)
	s.cancel()
	for _, f := range s.feeds {
		f.detachLocked()
		f.acks.end(s.failure)
	}
	s.current = nil
	s.nacks.stop()
	if s.tick != nil {
		s.tick.Stop()
	}
	s.wakeLocked()
}

func (s *Consumer) close(ctx context.Context) error { return s.Close(ctx) }

func (s *Consumer) endpoints() []follower {
	all := make([]follower, len(s.feeds))
	for i, f := range s.feeds {
		all[i] = f
	}
	return all
}
