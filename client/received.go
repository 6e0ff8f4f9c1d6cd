package client

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Ack acknowledges the message and waits until that is durable: it will not be
// delivered again. When ctx ends first the error wraps ErrUnknownOutcome; the
// acknowledgement is still under way. ErrVoid: a seek came between.
func (r *Received) Ack(ctx context.Context) error {
	g, err := r.ack(true)
	if g == nil {
		return err
	}
	return g.wait(ctx)
}

// AckAsync acknowledges the message without waiting. The client keeps trying
// until it is durable or the consumer is closed, which waits for it.
func (r *Received) AckAsync() {
	_, _ = r.ack(false) // it fails only where there is nothing left to acknowledge
}

// ack returns who waits for the acknowledgement to be durable; nil when it is
// already, or never will be because of err.
func (r *Received) ack(wait bool) (*ackGroup, error) {
	f := r.feed
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if err := r.validLocked(); err != nil || r.entry == nil {
		return nil, err
	}
	changed := f.acks.ack(r.entry, r.bit)
	if !wait {
		f.wantLocked()
		return nil, nil
	}
	if !changed && r.entry.refused != nil {
		return nil, r.entry.refused
	}
	if !changed && f.acks.idle() {
		return nil, nil
	}
	g := f.acks.group()
	f.acks.now = true
	f.wantLocked()
	return g, nil
}

// AckCumulative acknowledges the message and all before it in its partition, and
// waits until that is durable. Shared subscriptions refuse it.
func (r *Received) AckCumulative(ctx context.Context) error {
	f := r.feed
	f.c.mu.Lock()
	err := r.validLocked()
	switch {
	case err == nil && f.c.opts.kind == Shared:
		err = fmt.Errorf("cumulative acknowledgement on a shared subscription, where others hold earlier messages: %w", ErrInvalid)
	case err == nil && r.entry == nil: // a reader's
		f.c.mu.Unlock()
		return nil
	}
	if err != nil {
		f.c.mu.Unlock()
		return err
	}
	f.acks.ackThrough(r.entry, r.bit)
	g := f.acks.group()
	f.wantLocked()
	f.c.mu.Unlock()
	return g.wait(ctx)
}

// Nack gives the message back. It is delivered again, to this consumer or another
// one, after a delay that grows with Redeliveries. Brokers do not open batches: with
// it comes what else of its batch is not acknowledged, and where a subscription is
// shared, another consumer may get that while this one still holds it. Acknowledge
// what is done before the delay is over, or publish in smaller batches.
func (r *Received) Nack() {
	f := r.feed
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if r.validLocked() != nil || r.entry == nil || !r.entry.out.has(r.bit) {
		return
	}
	delay := f.c.opts.nackFirst
	for i := 0; i < r.Redeliveries && delay < f.c.opts.nackMost; i++ {
		delay *= 2
	}
	f.c.nacks.add(nack{time.Now().Add(min(delay, f.c.opts.nackMost)), r}, f.c.onNacks)
}

// validLocked reports why nothing can be said about the message any more.
func (r *Received) validLocked() error {
	switch {
	case r.feed.c.failure != nil:
		return r.feed.c.failure
	case r.entry != nil && r.entry.void:
		return fmt.Errorf("message %s: %w", r.ID, ErrVoid)
	}
	return nil
}

func (g *ackGroup) wait(ctx context.Context) error {
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return unknownOutcome(ctx.Err())
	}
}

// flushAcks waits until everything acknowledged is durable.
func (s *Consumer) flushAcks(ctx context.Context) error {
	for _, f := range s.feeds {
		for {
			s.mu.Lock()
			if s.failure != nil || f.acks.idle() {
				s.mu.Unlock()
				break
			}
			g := f.acks.group()
			f.acks.now = true
			f.wantLocked()
			s.mu.Unlock()
			if err := g.wait(ctx); err != nil {
				return fmt.Errorf("flush acknowledgements of %s: %w", f.topic, err)
			}
		}
	}
	return nil
}

// nacks are messages given back that wait for their time. One timer runs for the
// first of them.
type nacks struct {
	waiting []nack // by time
	timer   *time.Timer
}

type nack struct {
	due time.Time
	r   *Received
}

func (n *nacks) add(x nack, fire func()) {
	i, _ := slices.BinarySearchFunc(n.waiting, x, func(a, b nack) int { return cmp.Or(a.due.Compare(b.due), -1) })
	n.waiting = slices.Insert(n.waiting, i, x)
	if i > 0 {
		return
	}
	if n.timer == nil {
		n.timer = time.AfterFunc(time.Until(x.due), fire)
	} else {
		n.timer.Reset(time.Until(x.due))
	}
}

func (n *nacks) stop() {
	if n.timer != nil {
		n.timer.Stop()
	}
	n.waiting = nil
}

// onNacks asks for the messages to be delivered again whose time has come.
func (s *Consumer) onNacks() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	n := 0
	for ; n < len(s.nacks.waiting) && !s.nacks.waiting[n].due.After(now); n++ {
		r := s.nacks.waiting[n].r
		f := r.feed
		if r.validLocked() != nil || !f.acks.giveBack(r.entry, r.bit) {
			continue
		}
		// Not attached: subscribing again brings back all that is unacknowledged.
		if at := r.entry.at; f.link != nil && !slices.Contains(f.redeliver, at) {
			f.redeliver = append(f.redeliver, at)
			f.wantLocked()
		}
	}
	s.nacks.waiting = slices.Delete(s.nacks.waiting, 0, n)
	if len(s.nacks.waiting) > 0 {
		s.nacks.timer.Reset(time.Until(s.nacks.waiting[0].due))
	}
}
