package subscription

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/semaphore"

	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/internal/entry"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// Options of the subscriptions of one topic. Ledger is required.
type Options struct {
	Topic     string // long form
	Partition int    // −1: the topic is not partitioned
	Ledger    Ledger
	// Failed is called once for each subscription, from a goroutine of its own, when
	// the journal takes nothing more. The subscription has closed itself by then.
	Failed func(error)
	// Reads bounds, in bytes, what all subscriptions that share it read at a time;
	// it holds at least 4 MiB. nil: no bound but that of each subscription.
	Reads *semaphore.Weighted
	// FailoverDelay is how long the next consumer of a failover subscription waits
	// for the one before to acknowledge what it has. 0: 1 s; below 0: not at all.
	FailoverDelay time.Duration
	// CursorBytes bounds what acknowledgements out of order may cost: beyond it
	// nothing new is handed out until older entries are acknowledged. What the
	// journal was given costs up to as much again. 0: 16 MiB.
	CursorBytes int64
	// UnansweredAcks bounds acknowledgements that wait to be durable. 0: 16,384.
	UnansweredAcks int
	Log            hclog.Logger
	Metrics        *Metrics
}

// Filled returns options with the defaults in place, for New.
func (o Options) Filled() *Options {
	if o.FailoverDelay == 0 {
		o.FailoverDelay = time.Second
	}
	if o.CursorBytes == 0 {
		o.CursorBytes = 16 << 20
	}
	if o.UnansweredAcks == 0 {
		o.UnansweredAcks = 16 << 10
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return &o
}

// Subscription is a named group of consumers and its cursor. Safe for concurrent
// use.
//
// While there is something to do and somebody to do it for, one goroutine, pump,
// reads and hands out. It ends when the machine says wait; kick, called after
// every event, starts it again. What only consumers need, the machine and the
// context of reads, is not there before the first one.
type Subscription struct {
	opts    *Options // shared, not altered
	journal Journal  // nil: the cursor is not kept
	saved   Saved    // its Cursor is guarded by mu

	work sync.WaitGroup // pump, and fail where it needs a goroutine

	mu       sync.Mutex
	m        *machine // nil while nobody is connected and nothing is remembered
	reads    *reads   // nil until the first read, and when m is gone again
	pumping  bool
	waiting  string // why nothing is handed out; "" while pump works
	closed   error
	handover *time.Timer // set while a hand-over waits
	outbox   outbox
}

// reads is the state of reading for a machine.
type reads struct {
	ctx     context.Context
	cancel  context.CancelFunc
	trouble error         // why the last read failed; nil: it did not
	backoff time.Duration // till the next try
	retry   *time.Timer   // set while trouble holds pump back
}

// stopRetry lets nothing hold pump back.
func (r *reads) stopRetry() {
	if r != nil && r.retry != nil {
		r.retry.Stop()
		r.retry = nil
	}
}

// Read failures are tried again after the first, doubling up to the second.
const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// New returns the subscription that saved describes, with saved.Cursor as its
// own, which journal keeps and has durably, or will have before any record of the
// subscription; nil: the cursor lives in memory and ends with the
// last consumer (a reader's). opts come from Filled and are shared by all
// subscriptions of the topic. A cursor that stands beyond the end of the topic
// is damage: managedledger.ErrBeyondEnd.
func New(opts *Options, journal Journal, saved Saved) (*Subscription, error) {
	if last := saved.Cursor.Last(); !last.IsStart() {
		if _, err := opts.Ledger.Next(last); err != nil {
			return nil, fmt.Errorf("subscription %s has acknowledged %v: %w", saved.Name, last, err)
		}
	}
	s := &Subscription{opts: opts, journal: journal, saved: saved, waiting: noConsumer}
	s.outbox.s = s
	if saved.Cursor.Last() != saved.Cursor.MarkDelete() {
		s.outbox.keepGivenLocked()
	}
	saved.Cursor.Settle(s.chain())
	s.outbox.durable = saved.Cursor.MarkDelete()
	return s, nil
}

func (s *Subscription) chain() chain { return chain{s.opts.Ledger} }

// machineLocked returns the machine, and makes it if need be.
func (s *Subscription) machineLocked() *machine {
	if s.m == nil {
		s.m = newMachine(s.chain(), s.saved.Cursor, s.opts.Topic, s.opts.Partition, s.opts.CursorBytes)
	}
	return s.m
}

// chain is the arithmetic of a Ledger, for positions that are in it.
type chain struct{ ledger Ledger }

func (c chain) After(p position.Position) position.Position {
	if next, err := c.ledger.Next(p); err == nil {
		return next
	}
	return p.Next()
}

func (c chain) Entries(from, to position.Position) int64 { return c.ledger.Between(from, to).Entries }

// Name is the name people gave it.
func (s *Subscription) Name() string { return s.saved.Name }

// MarkDelete is the position up to which all is acknowledged.
func (s *Subscription) MarkDelete() position.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved.Cursor.MarkDelete()
}

// ID is unique in the topic.
func (s *Subscription) ID() uint64 { return s.saved.ID }

// Durable reports whether the cursor outlives its consumers.
func (s *Subscription) Durable() bool { return s.journal != nil }

// Notify tells that there may be more entries to read.
func (s *Subscription) Notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kickLocked()
}

// kickLocked starts pump if there is something to do.
func (s *Subscription) kickLocked() {
	if s.pumping || s.closed != nil || s.reads != nil && s.reads.retry != nil {
		return
	}
	if s.m == nil {
		s.waiting = noConsumer
		return
	}
	next := s.m.plan(s.opts.Ledger.LastConfirmed())
	s.waiting = next.wait
	if next.wait == "" {
		if s.reads == nil {
			s.reads = &reads{}
			s.reads.ctx, s.reads.cancel = context.WithCancel(context.Background())
		}
		s.pumping = true
		s.work.Add(1)
		go s.pump(s.reads.ctx, next)
	}
}

// endReadsLocked forgets what reading needs; pump does not run.
func (s *Subscription) endReadsLocked() {
	if s.reads != nil {
		s.reads.stopRetry()
		s.reads.cancel()
		s.reads = nil
	}
}

// pump reads and hands out until there is nothing to do.
func (s *Subscription) pump(ctx context.Context, next step) {
	defer s.work.Done()
	for next.wait == "" {
		items, err := s.read(ctx, next)
		next = s.handOut(next, items, err)
	}
}

// read fetches the entries of a step.
func (s *Subscription) read(ctx context.Context, next step) ([]item, error) {
	if s.opts.Reads != nil {
		if err := s.opts.Reads.Acquire(ctx, next.maxBytes); err != nil {
			return nil, err
		}
		defer s.opts.Reads.Release(next.maxBytes)
	}
	entries, err := s.opts.Ledger.Read(ctx, next.from, next.maxEntries, next.maxBytes)
	if err != nil {
		return nil, err
	}
	items := make([]item, len(entries))
	for i, e := range entries {
		messages, err := messagesIn(e.Body)
		if err != nil {
			if i > 0 {
				return items[:i], nil // the next read begins with it
			}
			return nil, fmt.Errorf("entry %v: %w", e.Position, err)
		}
		items[i] = item{at: e.Position, messages: messages, body: e.Body}
	}
	return items, nil
}

// messagesIn counts the messages of an entry. An entry that is no data is not
// handed out by this build: to skip it would be to lose it.
func messagesIn(body []byte) (int, error) {
	broker, producer, err := entry.ParseBody(body)
	if err != nil {
		return 0, err
	}
	if broker.Kind != entryv1.Kind_KIND_DATA {
		return 0, fmt.Errorf("kind %v: %w", broker.Kind, ErrUnsupported)
	}
	h, _, err := entry.ParseHeader(producer)
	return h.Messages, err
}

// handOut gives what was read to consumers and says what to do next.
func (s *Subscription) handOut(did step, items []item, err error) step {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		s.pumping = false
		return step{wait: s.closed.Error()}
	}
	if err != nil {
		return s.troubleLocked(err)
	}
	s.reads.trouble, s.reads.backoff = nil, 0
	for _, p := range s.m.assign(did, items) {
		p.to.sink.Deliver(s.epochLocked(), p.entries)
		s.opts.Metrics.entries.Add(float64(len(p.entries)))
	}
	next := s.m.plan(s.opts.Ledger.LastConfirmed())
	if next.wait == "" && len(items) == 0 && next.from == did.from && next.replay == did.replay {
		next = step{wait: "caught up: no entry can be read yet"}
	}
	s.waiting = next.wait
	s.pumping = next.wait == ""
	return next
}

// epochLocked is the epoch that deliveries and acknowledgements name: from 1, so
// that 0 can stand for one that was not told.
func (s *Subscription) epochLocked() uint64 { return s.saved.Cursor.Epoch() + 1 }

// troubleLocked waits a while before the next read.
func (s *Subscription) troubleLocked(err error) step {
	r := s.reads
	r.backoff = min(max(2*r.backoff, firstBackoff), lastBackoff)
	if r.trouble == nil {
		s.opts.Log.Warn("cannot read entries", "topic", s.opts.Topic, "subscription", s.saved.Name, "error", err)
	}
	r.trouble = err
	s.pumping = false
	s.waiting = "reading failed, it is tried again: " + err.Error()
	r.retry = time.AfterFunc(r.backoff, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		r.retry = nil
		s.kickLocked()
	})
	return step{wait: s.waiting}
}

// eventLocked does what follows every change of the machine that consumers or
// acknowledgements made.
func (s *Subscription) eventLocked(notices []notice) {
	if s.m == nil {
		return
	}
	for _, n := range notices {
		n.to.sink.Active(n.active)
	}
	for _, n := range s.m.settle() {
		n.to.sink.Active(n.active)
	}
	switch {
	case s.m.leaving == nil:
		if s.handover != nil {
			s.handover.Stop()
			s.handover = nil
		}
	case s.handover == nil:
		s.handover = time.AfterFunc(max(0, s.opts.FailoverDelay), s.handOverLate)
	}
	s.kickLocked()
	if s.m.idle() && !s.pumping {
		s.m = nil
		s.endReadsLocked()
	}
}

// handOverLate serves the next consumer of a failover subscription though the
// one before has not acknowledged everything: it will be delivered twice.
func (s *Subscription) handOverLate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handover == nil || s.closed != nil || s.m == nil {
		return
	}
	s.handover = nil
	s.eventLocked(s.m.handOver())
}

// Close ends the subscription here: consumers are told reason, acknowledgements
// not durable yet are answered with it. It returns when nothing of the
// subscription runs any more. To have everything acknowledged durable first, call
// Flush.
func (s *Subscription) Close(reason error) {
	s.mu.Lock()
	answers := s.closeLocked(reason)
	s.mu.Unlock()
	for _, answer := range answers {
		answer(reason)
	}
	s.work.Wait()
}

// closeLocked returns who must be told, with no lock held, that its
// acknowledgement is not known to be durable.
func (s *Subscription) closeLocked(reason error) []func(error) {
	if s.closed != nil {
		return nil
	}
	s.closed = reason
	s.waiting = reason.Error()
	if s.reads != nil { // pump may still be at it, and ends with them
		s.reads.cancel()
		s.reads.stopRetry()
	}
	if s.handover != nil {
		s.handover.Stop()
		s.handover = nil
	}
	if s.m != nil {
		for _, c := range s.m.consumers {
			c.sink.Closed(reason)
		}
		s.m = nil
	}
	return s.outbox.abandonLocked()
}

// fail closes the subscription because its journal takes nothing more.
func (s *Subscription) fail(err error) {
	err = fmt.Errorf("subscription %s: journal: %w", s.saved.Name, err)
	s.mu.Lock()
	was := s.closed
	answers := s.closeLocked(errors.Join(ErrClosed, err))
	s.mu.Unlock()
	for _, answer := range answers {
		answer(err)
	}
	if was == nil {
		go s.opts.Failed(err)
	}
}

// KeepFrom is the earliest position that is still needed: everything before it
// is acknowledged, durably.
func (s *Subscription) KeepFrom() position.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return position.Min(s.outbox.durable, s.saved.Cursor.MarkDelete()).Next()
}
