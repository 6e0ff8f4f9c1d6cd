// Package topic is one topic partition on the broker that owns it: it takes
// batches from producers, gives entries their index and time, and keeps the
// topic's subscriptions.
//
// It starts no goroutine of its own: publishes run on the goroutine of the
// stream they came on, outcomes on that of the ledger's writer.
//
// The truth about what was published is in the topic's ledgers; the journal (the
// bundle log) holds checkpoints of what the ledgers tell of the producers, and
// the subscriptions' progress. Opening a topic restores the newest checkpoint,
// replays the headers of the entries after it, and only then takes publishes.
package topic

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/semaphore"

	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// Ledger is the chain of ledgers behind the topic; managedledger.ManagedLedger
// is one, and its methods promise what they promise there.
type Ledger interface {
	subscription.Ledger
	Append(add managedledger.Add, done func(position.Position, error)) error
	ReadHeads(ctx context.Context, from position.Position, maxEntries, n int) ([]managedledger.Entry, error)
	Measure(ctx context.Context, from, to position.Position) (managedledger.Extent, error)
	First() position.Position
	NextIndex() uint64
	LastTime() int64
	Pending() (entries int, bytes int64)
	Trim(ctx context.Context, keepFrom position.Position, r managedledger.Retention) (int, error)
	Stats() managedledger.Stats
	Close(ctx context.Context) error
	Abandon()
}

// Options of a topic. Name, ID, Ledger and Journal are required.
type Options struct {
	Name    topicname.Name
	ID      uint64
	Ledger  Ledger
	Journal subscription.Journal // records of this topic

	MaxMessageBytes int   // of a batch as sent; 0: 5 MiB
	MaxProducers    int   // remembered, and so connected at a time; 0: 10,000
	WindowBytes     int   // unanswered bytes a producer may have; 0: 8 MiB
	ResumeBytes     int64 // producers on hold go on below so many bytes in flight; 0: half of WindowBytes
	// RoutingVersion is that of the topic's map, as far as it is known. A batch made
	// for an older one was dealt to its partition by rules that do not hold any more,
	// and is refused (M32). Called with the topic locked; nil: always 0.
	RoutingVersion func() uint64

	Reads               *semaphore.Weighted // see subscription.Options
	SubscriptionMetrics *subscription.Metrics

	// OnEnd is called once when the topic ended by itself: the outcome of a publish,
	// or of a record in the journal, is unknown, or the ledger takes nothing any more.
	// Close it, then open it again or drop
	// its bundle; but not from within OnEnd, which is called with the topic locked
	// and must not block.
	OnEnd   func(error)
	Log     hclog.Logger
	Metrics *Metrics
	Now     func() time.Time
}

func (o *Options) fill() {
	if o.MaxMessageBytes == 0 {
		o.MaxMessageBytes = 5 << 20
	}
	if o.MaxProducers == 0 {
		o.MaxProducers = 10_000
	}
	if o.WindowBytes == 0 {
		o.WindowBytes = 8 << 20
	}
	if o.ResumeBytes == 0 {
		o.ResumeBytes = int64(o.WindowBytes / 2)
	}
	if o.OnEnd == nil {
		o.OnEnd = func(error) {}
	}
	if o.RoutingVersion == nil {
		o.RoutingVersion = func() uint64 { return 0 }
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Topic is an open topic. Safe for concurrent use.
//
// Locks: mu, then that of a subscription, then those of the ledger and the
// journal. No disk or network is waited for under mu.
type Topic struct {
	opts   Options
	ledger Ledger
	shared *subscription.Options // of all subscriptions

	mu        sync.Mutex
	closing   error // why nothing is taken any more; nil while open
	ended     bool  // OnEnd was told
	producers *producer.Registry
	open      map[string]*Producer // by name
	inFlight  []*pending           // appended, no outcome yet, oldest first
	flying    int64                // bytes in inFlight
	taken     uint64               // counts what was appended
	held      []*Producer          // told to hold, and not yet to go on
	release   *time.Timer          // set while held waits and nothing is in flight
	forgotten uint64               // producers, as far as it was made known
	nextIndex uint64
	lastTime  int64             // broker time of the last entry, milliseconds
	storedAt  position.Position // last stored entry
	chosen    uint64            // counts the names made up

	sinceCheckpoint   lag
	nextTry           lag // with the journal too busy at the last one; else zero
	checkpointing     bool
	checkpointRefused bool              // it was made known
	checkpointSent    position.Position // of the newest that the journal has taken
	checkpointAt      position.Position // durable

	counters struct{ messagesIn, bytesIn uint64 }

	subscriptions    map[string]*subscription.Subscription   // durable ones
	readers          map[*subscription.Subscription]struct{} // others
	changing         map[string]chan struct{}                // names being created or deleted; closed when the journal has it
	nextSubscription uint64                                  // id

	listeners atomic.Pointer[[]*subscription.Subscription] // all of them
}

// Name of the topic.
func (t *Topic) Name() topicname.Name { return t.opts.Name }

// ID of the topic.
func (t *Topic) ID() uint64 { return t.opts.ID }

// OpenProducer connects a producer; an empty name makes one up. chosenBefore says
// that the name is one that a broker made up earlier for the same producer.
// producer.ErrBusy: the name is taken; producer.ErrFull: there is no room for it.
// The producer returned may only be closed before its sink has heard Opened.
//
// What an earlier connection of that name sent and has no outcome yet is waited
// for before the sink hears Opened: a new process that was told a lower sequence
// id would give the next ones to messages of its own, and these would be taken
// for the earlier ones sent again, and lost.
func (t *Topic) OpenProducer(name string, epoch uint64, chosenBefore bool, sink Sink) (*Producer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing != nil {
		return nil, t.closing
	}
	chosen := chosenBefore
	if name == "" {
		chosen = true
		t.chosen++
		// Unique among all producers ever: topic ids and positions never repeat, and
		// one open topic counts on.
		name = fmt.Sprintf("%s-%d-%s-%d", t.opts.Name.Local, t.opts.ID, t.storedAt, t.opts.Now().UnixNano()+int64(t.chosen))
	}
	last, stored, replaced, err := t.producers.Open(name, epoch)
	if err != nil {
		return nil, fmt.Errorf("producer %q of %s: %w", name, t.opts.Name, err)
	}
	if replaced {
		t.endProducerLocked(t.open[name], fmt.Errorf("%w: producer %q, epoch %d", ErrFenced, name, epoch))
	}
	p := &Producer{topic: t, name: name, chosen: chosen, sink: sink}
	t.open[name] = p
	t.countForgottenLocked()
	if p.opening = t.producers.InFlight(name); !p.opening {
		sink.Opened(p, last, stored)
	}
	return p, nil
}

// openedLocked lets a producer begin that waited for the outcome of what its name
// had in flight.
func (t *Topic) openedLocked(name string) {
	p := t.open[name]
	if p == nil || !p.opening || t.producers.InFlight(name) {
		return
	}
	p.opening = false
	last, stored := t.producers.Last(name)
	p.sink.Opened(p, last, stored)
}

// countForgottenLocked makes it visible that producers were forgotten.
func (t *Topic) countForgottenLocked() {
	n := t.producers.Dropped()
	if n == t.forgotten {
		return
	}
	t.opts.Metrics.forgotten.Add(float64(n - t.forgotten))
	t.opts.Log.Warn("producers forgotten, the longest silent first", "topic", t.opts.Name.String(),
		"forgotten", n-t.forgotten, "remembered", t.producers.Len())
	t.forgotten = n
}

// Name of the producer.
func (p *Producer) Name() string { return p.name }

// WindowBytes is how many unanswered bytes the producer may have.
func (p *Producer) WindowBytes() int { return p.topic.opts.WindowBytes }

// MaxMessageBytes is the largest batch taken.
func (p *Producer) MaxMessageBytes() int { return p.topic.opts.MaxMessageBytes }

// Close disconnects the producer; its sink hears nothing more. final: the
// producer ends for good, rather than its connection.
func (p *Producer) Close(final bool) {
	t := p.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	if t.open[p.name] == p {
		delete(t.open, p.name)
		t.producers.Close(p.name, p.chosen && final)
	}
}

// endProducerLocked closes a producer from this side and tells it why.
func (t *Topic) endProducerLocked(p *Producer, err error) {
	if p.closed {
		return
	}
	p.closed = true
	p.sink.Closed(err)
}

// endLocked ends the topic where it cannot go on: see Options.OnEnd.
func (t *Topic) endLocked(err error) {
	if t.closing == nil {
		t.closing = err
	}
	for name, p := range t.open {
		t.endProducerLocked(p, err)
		delete(t.open, name)
	}
	if !t.ended {
		t.ended = true
		t.opts.Log.Warn("topic ended", "topic", t.opts.Name.String(), "error", err)
		t.opts.OnEnd(err)
	}
}

// Close ends the topic: no more publishes are taken, those in flight are
// answered, a checkpoint is written, subscriptions are closed with reason, the
// ledger is closed. When ctx ends first, what is left is abandoned: its outcome
// is unknown, and the next to open the topic finds out. The topic's state is
// returned for the shelf, as in Snapshot; nothing is appended for it any more. It is
// not durable before all is that the journal has taken: see Open.
func (t *Topic) Close(ctx context.Context, reason error) []byte {
	t.mu.Lock()
	if t.closing == nil {
		t.closing = fmt.Errorf("%w: %w", ErrClosed, reason)
	}
	t.ended = true // what happens from here on is ours to deal with
	if t.release != nil {
		t.release.Stop()
	}
	t.mu.Unlock()

	err := t.ledger.Close(ctx) // answers what is in flight
	if err != nil {
		t.opts.Log.Warn("topic's ledger is left to its next owner", "topic", t.opts.Name.String(), "error", err)
		t.ledger.Abandon()
	}
	t.mu.Lock()
	for name, p := range t.open {
		t.endProducerLocked(p, reason)
		delete(t.open, name)
	}
	if err == nil {
		t.checkpointLocked(true)
	}
	t.mu.Unlock()
	return t.closeSubscriptions(ctx, reason)
}

// Notify is to be called after the ledger's last confirmed position moved.
func (t *Topic) Notify() {
	if listeners := t.listeners.Load(); listeners != nil {
		for _, s := range *listeners {
			s.Notify()
		}
	}
}

// relistLocked makes the list that Notify walks without the lock.
func (t *Topic) relistLocked() {
	list := make([]*subscription.Subscription, 0, len(t.subscriptions)+len(t.readers))
	for _, s := range t.subscriptions {
		list = append(list, s)
	}
	for s := range t.readers {
		list = append(list, s)
	}
	t.listeners.Store(&list)
}

var (
	// errStateCorrupt reports journal state that does not belong to this topic.
	errStateCorrupt = errors.New("topic: corrupt state in the bundle log")
	// errStateVersion reports state written by a newer build.
	errStateVersion = errors.New("topic: unknown version of state in the bundle log")
)
