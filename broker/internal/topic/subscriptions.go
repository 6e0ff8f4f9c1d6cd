package topic

import (
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
)

// ErrNoSubscription reports a subscription that does not exist.
var ErrNoSubscription = errors.New("topic: no such subscription")

// Open opens a topic from what its ledger and the journal hold. All that parked
// adds up to must be durable by now, also where the topic was closed here before.
func Open(ctx context.Context, opts Options, parked bundlelog.Parked) (*Topic, error) {
	opts.fill()
	state, err := restore(parked, opts.MaxProducers)
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", opts.Name, err)
	}
	t := &Topic{
		opts: opts, ledger: opts.Ledger, producers: state.producers, checkpointAt: state.checkpoint, checkpointSent: state.checkpoint,
		open: map[string]*Producer{}, subscriptions: map[string]*subscription.Subscription{},
		readers: map[*subscription.Subscription]struct{}{}, changing: map[string]chan struct{}{},
		nextSubscription: max(state.subscriptions.NextID, 1),
	}
	t.shared = t.subscriptionOptions()
	t.nextIndex, t.lastTime = t.ledger.NextIndex(), t.ledger.LastTime()
	if err := t.replay(ctx, state.checkpoint); err != nil {
		return nil, fmt.Errorf("open %s: %w", opts.Name, err)
	}
	for _, saved := range state.subscriptions.ByID {
		s, err := t.newSubscription(*saved, t.opts.Journal)
		if err != nil {
			t.closeAll(err)
			return nil, fmt.Errorf("open %s: %w", opts.Name, err)
		}
		t.subscriptions[saved.Name] = s
	}
	t.relistLocked() // nobody else has it yet
	return t, nil
}

// subscriptionOptions are those of all subscriptions of the topic.
func (t *Topic) subscriptionOptions() *subscription.Options {
	return subscription.Options{
		Topic: t.opts.Name.String(), Partition: t.opts.Name.Partition, Ledger: t.ledger,
		Reads: t.opts.Reads, Log: t.opts.Log, Metrics: t.opts.SubscriptionMetrics,
		Failed: func(err error) {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.endLocked(err)
		},
	}.Filled()
}

func (t *Topic) newSubscription(saved subscription.Saved, journal subscription.Journal) (*subscription.Subscription, error) {
	return subscription.New(t.shared, journal, saved)
}

// SubscribeRequest asks for a consumer.
type SubscribeRequest struct {
	Subscription string
	Consumer     subscription.ConsumerOptions
	Start        subscription.Place // of a subscription made now
	NonDurable   bool               // a reader: its cursor ends with it
	MustExist    bool
	Properties   map[string]string
}

// Subscribe joins a consumer to a subscription, making that first if need be;
// once it returns a durable subscription is in the journal. It waits for the
// journal, and where Start is a time or in the middle of a batch for reads.
func (t *Topic) Subscribe(ctx context.Context, req SubscribeRequest, sink subscription.Sink) (c *subscription.Consumer, created bool, err error) {
	if req.NonDurable {
		c, err = t.read(ctx, req, sink)
		return c, false, err
	}
	for {
		t.mu.Lock()
		switch {
		case t.closing != nil:
			err := t.closing
			t.mu.Unlock()
			return nil, false, err
		case t.changing[req.Subscription] != nil:
			wait := t.changing[req.Subscription]
			t.mu.Unlock()
			if err := awaitChange(ctx, wait); err != nil {
				return nil, false, err
			}
			continue
		case t.subscriptions[req.Subscription] != nil:
			s := t.subscriptions[req.Subscription]
			t.mu.Unlock()
			c, err := s.Join(req.Consumer, sink)
			return c, created, err
		case req.MustExist:
			t.mu.Unlock()
			return nil, false, fmt.Errorf("%w: %q of %s", ErrNoSubscription, req.Subscription, t.opts.Name)
		}
		t.changing[req.Subscription] = make(chan struct{})
		t.mu.Unlock()
		if err := t.create(ctx, req); err != nil {
			return nil, false, fmt.Errorf("create subscription %q of %s: %w", req.Subscription, t.opts.Name, err)
		}
		created = true
	}
}

// create makes a durable subscription, first in the journal, then here. Its name
// is changing until then, or until it fails; also when ctx ends before.
func (t *Topic) create(ctx context.Context, req SubscribeRequest) error {
	target, err := subscription.Find(ctx, t.ledger, req.Start)
	if err != nil {
		t.settled(req.Subscription, nil)
		return err
	}
	durable := make(chan error, 1)
	err = t.appendCreate(req, target, func(err error) {
		t.settled(req.Subscription, err)
		durable <- err
	})
	if err != nil {
		t.settled(req.Subscription, nil)
		return err
	}
	select {
	case err := <-durable:
		return err
	case <-ctx.Done():
		return ctx.Err() // it exists, or will
	}
}

// appendCreate makes a subscription that starts at target and appends it to the
// journal. Once that has taken it, it is part of the topic's state, also of a
// snapshot; but nobody can join before done, since its name is changing.
func (t *Topic) appendCreate(req SubscribeRequest, target subscription.Target, done func(error)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing != nil {
		return t.closing // the state for the shelf may have been taken
	}
	saved := subscription.Saved{
		ID: t.nextSubscription, Name: req.Subscription, Created: t.opts.Now(),
		Properties: req.Properties, Cursor: target.Cursor(),
	}
	record := subscription.Record{Kind: subscription.KindCreate, Data: saved.AppendCreate(nil)}
	s, err := t.newSubscription(saved, t.opts.Journal)
	if err != nil {
		return err
	}
	if err := t.opts.Journal.Append([]subscription.Record{record}, done); err != nil {
		return err // nothing of s runs
	}
	t.nextSubscription++
	t.subscriptions[saved.Name] = s
	t.relistLocked()
	return nil
}

// settled lets others at a name that was changing. With an error it is not known
// whether the journal has the change: the topic ends.
func (t *Topic) settled(name string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changing[name])
	delete(t.changing, name)
	if err != nil {
		t.endLocked(fmt.Errorf("create or delete subscription %q: %w", name, err))
	}
}

// read joins a reader: a subscription of one consumer, with no cursor to keep.
func (t *Topic) read(ctx context.Context, req SubscribeRequest, sink subscription.Sink) (*subscription.Consumer, error) {
	target, err := subscription.Find(ctx, t.ledger, req.Start)
	if err != nil {
		return nil, err
	}
	req.Consumer.Type = subscription.Exclusive
	s, err := t.newSubscription(subscription.Saved{Name: req.Subscription, Created: t.opts.Now(), Cursor: target.Cursor()}, nil)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	if err = t.closing; err == nil {
		t.readers[s] = struct{}{}
		t.relistLocked()
	}
	t.mu.Unlock()
	if err != nil {
		s.Close(err)
		return nil, err
	}
	return s.Join(req.Consumer, sink)
}

// Leave takes a consumer out; a reader's cursor goes with it.
func (t *Topic) Leave(c *subscription.Consumer) {
	c.Leave()
	s := c.Subscription()
	if s.Durable() {
		return
	}
	t.mu.Lock()
	delete(t.readers, s)
	t.relistLocked()
	t.mu.Unlock()
	s.Close(subscription.ErrClosed)
}

// Unsubscribe deletes the subscription of c, which must be its only consumer.
func (t *Topic) Unsubscribe(ctx context.Context, c *subscription.Consumer) error {
	s := c.Subscription()
	if !s.Durable() {
		return fmt.Errorf("a reader has no subscription to delete: %w", subscription.ErrInvalid)
	}
	if n := s.Consumers(); n > 1 {
		return fmt.Errorf("%d consumers are connected to %q: %w", n, s.Name(), subscription.ErrBusy)
	}
	return t.delete(ctx, s)
}

// DeleteSubscription deletes a subscription; one with consumers only by force.
func (t *Topic) DeleteSubscription(ctx context.Context, name string, force bool) error {
	s, err := t.subscription(ctx, name)
	if err != nil {
		return err
	}
	if n := s.Consumers(); n > 0 && !force {
		return fmt.Errorf("%d consumers are connected to %q; close them, or delete it by force: %w", n, name, subscription.ErrBusy)
	}
	return t.delete(ctx, s)
}

// subscription returns a durable subscription. One that is being created or deleted,
// perhaps for somebody who has given up waiting, may come to be or not: that is
// waited for.
func (t *Topic) subscription(ctx context.Context, name string) (*subscription.Subscription, error) {
	for {
		t.mu.Lock()
		closing, wait, s := t.closing, t.changing[name], t.subscriptions[name]
		t.mu.Unlock()
		switch {
		case closing != nil:
			return nil, closing
		case wait != nil:
			if err := awaitChange(ctx, wait); err != nil {
				return nil, err
			}
		case s == nil:
			return nil, fmt.Errorf("%w: %q of %s", ErrNoSubscription, name, t.opts.Name)
		default:
			return s, nil
		}
	}
}

func awaitChange(ctx context.Context, settled <-chan struct{}) error {
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the subscription is being created or deleted: %w", ctx.Err())
	}
}

// delete ends a subscription in the journal, then here. What it still appends in
// between is about nothing. Nobody is told that it is gone, neither the caller nor
// others who ask for it, before the journal has it.
func (t *Topic) delete(ctx context.Context, s *subscription.Subscription) error {
	durable := make(chan error, 1)
	for {
		wait, err := t.appendDelete(s, durable)
		if err != nil {
			return err // it is as it was
		}
		if wait == nil {
			break
		}
		if err := awaitChange(ctx, wait); err != nil {
			return err
		}
	}
	s.Close(fmt.Errorf("%w: %q", subscription.ErrDeleted, s.Name()))
	select {
	case err := <-durable:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// appendDelete is one try of delete; durable hears what became of it. wait: the name
// is changing, try again when that is settled.
func (t *Topic) appendDelete(s *subscription.Subscription, durable chan<- error) (wait <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := s.Name()
	switch {
	case t.closing != nil:
		return nil, t.closing // the state for the shelf may have been taken
	case t.changing[name] != nil:
		return t.changing[name], nil
	case t.subscriptions[name] != s:
		durable <- nil // somebody else deleted it
		return nil, nil
	}
	record := subscription.Record{Kind: subscription.KindDelete, Data: subscription.AppendDelete(nil, s.ID())}
	err = t.opts.Journal.Append([]subscription.Record{record}, func(err error) {
		t.settled(name, err)
		durable <- err
	})
	if err != nil {
		return nil, err
	}
	t.changing[name] = make(chan struct{})
	delete(t.subscriptions, name)
	t.relistLocked()
	return nil, nil
}

// Seek moves a subscription and returns where it stands then: everything up to
// there is acknowledged.
func (t *Topic) Seek(ctx context.Context, name string, to subscription.Place) (position.Position, error) {
	s, err := t.subscription(ctx, name)
	if err != nil {
		return position.Position{}, err
	}
	return t.SeekIn(ctx, s, to)
}

// SeekIn is Seek for a subscription at hand, such as a reader's.
func (t *Topic) SeekIn(ctx context.Context, s *subscription.Subscription, to subscription.Place) (position.Position, error) {
	target, err := subscription.Find(ctx, t.ledger, to)
	if err != nil {
		return position.Position{}, err
	}
	done := make(chan error, 1)
	s.Seek(target, func(err error) { done <- err })
	select {
	case err := <-done:
		return target.Mark, err
	case <-ctx.Done():
		return position.Position{}, ctx.Err()
	}
}

// After is where the first entry behind p stands, or will stand.
func (t *Topic) After(p position.Position) position.Position {
	if next, err := t.ledger.Next(p); err == nil {
		return next
	}
	return p.Next()
}

// closeSubscriptions makes what was acknowledged durable, as far as ctx allows,
// closes all subscriptions and returns the topic's state.
func (t *Topic) closeSubscriptions(ctx context.Context, reason error) []byte {
	t.mu.Lock()
	flushed := make(chan error, len(t.subscriptions))
	for _, s := range t.subscriptions {
		s.Flush(func(err error) { flushed <- err })
	}
	n := cap(flushed)
	t.mu.Unlock()
	for range n {
		select {
		case <-flushed: // an error: the next owner knows less, and delivers again
		case <-ctx.Done():
		}
	}
	t.closeAll(reason)
	var base []byte
	t.Snapshot(func(b []byte) { base = b })
	return base
}

func (t *Topic) closeAll(reason error) {
	t.mu.Lock()
	var all []*subscription.Subscription
	for _, s := range t.subscriptions {
		all = append(all, s)
	}
	for s := range t.readers {
		all = append(all, s)
	}
	t.readers = map[*subscription.Subscription]struct{}{}
	t.mu.Unlock()
	for _, s := range all {
		s.Close(reason)
	}
}
