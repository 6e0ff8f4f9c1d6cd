package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/topicname"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// defaultMaxMessage is the largest message while the broker has not said.
const defaultMaxMessage = 5 << 20

// Producer publishes to a topic. Make one with Client.Producer and keep it; it is
// safe for concurrent use.
type Producer struct {
	c      *Client
	topic  string // long form
	opts   producerOptions
	ctx    context.Context // ends with the producer
	cancel context.CancelFunc

	routes    atomic.Pointer[routes]
	rerouting sync.Mutex // held by who follows a new map
	closed    atomic.Bool
	ended     chan struct{} // closed at the end of the Close that came first
	// maxMessage is what the brokers take, with keys, properties and framing.
	maxMessage atomic.Int64

	// Messages without a key fill one batch after another, each on the next lane.
	turnMu sync.Mutex
	turn   int
	filled *batch // the batch messages without a key gather in

	runMu   sync.Mutex
	run     []*batch // outcomes whose callbacks have not run
	running bool
}

// routes say which lane takes a message. Never altered once in use.
type routes struct {
	version uint64
	lanes   []*lane // by number of partition
	open    []*lane // those that take messages
	ranges  []keyRange
}

// keyRange sends the key hashes from first to last to a lane.
type keyRange struct {
	first, last uint32
	lane        *lane
}

// Producer opens a producer on every partition of a topic, creating the topic
// where it does not exist and the namespace's policy allows. It waits for the
// topic to be served, as long as ctx allows.
func (c *Client) Producer(ctx context.Context, topic string, opts ...ProducerOption) (*Producer, error) {
	o := newProducerOptions(opts)
	name, err := topicname.Parse(topic)
	if err == nil && o.name != "" {
		err = topicname.ValidateProducer(o.name)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
	case o.batchBytes < 1 || o.batchMessages < 1 || o.batchMessages > maxBatchMessages || o.compression < NoCompression || o.compression > Snappy:
		return nil, fmt.Errorf("batch limits %d bytes, %d messages, compression %d: %w", o.batchBytes, o.batchMessages, o.compression, ErrInvalid)
	case c.ctx.Err() != nil:
		return nil, fmt.Errorf("producer of %s: client: %w", name, ErrClosed)
	}
	p := &Producer{c: c, topic: name.String(), opts: o, ended: make(chan struct{})}
	p.maxMessage.Store(defaultMaxMessage)
	p.ctx, p.cancel = context.WithCancel(c.ctx)
	m, err := c.topicMap(ctx, name, !o.mustExist)
	if err == nil {
		err = p.follow(ctx, m)
	}
	if err == nil && !c.add(p) {
		err = ErrClosed
	}
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("producer of %s: %w", p.topic, err)
	}
	return p, nil
}

// maxBatchMessages bounds the messages of a batch, for brokers and consumers keep
// a bit of each.
const maxBatchMessages = 1 << 17

// follow takes a map of the topic over: it opens lanes for partitions that are
// new and routes messages by it.
func (p *Producer) follow(ctx context.Context, m *discoveryv1.TopicMap) error {
	r := &routes{version: m.GetRoutingVersion()}
	known := map[string]*lane{}
	name := p.opts.name
	old := p.routes.Load()
	if old != nil {
		name = p.Name()
		for _, l := range old.lanes {
			known[l.topic] = l
		}
	}
	var fresh []*lane
	for _, part := range m.GetPartitions() {
		l := known[part.GetTopic()]
		if l == nil {
			l = &lane{p: p, topic: part.GetTopic(), partition: part.GetNumber(), name: name}
			fresh = append(fresh, l)
		}
		l.adopt(r.version, part)
		r.lanes = append(r.lanes, l)
		if !part.GetSealed() {
			r.open = append(r.open, l)
			r.ranges = append(r.ranges, keyRange{part.GetKeyHashFirst(), part.GetKeyHashLast(), l})
		}
	}
	if len(r.open) == 0 {
		return fmt.Errorf("topic %s has no partition that takes messages: %w", p.topic, ErrUnavailable)
	}
	slices.SortFunc(r.ranges, func(a, b keyRange) int { return int(int64(a.first) - int64(b.first)) })
	if old == nil {
		err := p.attach(ctx, fresh)
		p.routes.Store(r) // also after a failure: stop has to find the lanes
		return err
	}
	// Those that are attached do not wait for those that are new, whose messages
	// gather meanwhile.
	p.routes.Store(r)
	for _, l := range fresh {
		p.c.spawn(func() { l.reattach("") })
	}
	if p.ctx.Err() != nil { // stop may have looked before they were stored
		p.stop()
	}
	return nil
}

// attach opens lanes, the first one alone where the cluster chooses the name, for
// the others to take it over.
func (p *Producer) attach(ctx context.Context, lanes []*lane) error {
	if len(lanes) == 0 {
		return nil
	}
	if p.opts.name == "" {
		if err := p.c.attach(ctx, lanes[0], "", false); err != nil {
			return err
		}
		for _, l := range lanes[1:] {
			l.name = lanes[0].name
		}
		lanes = lanes[1:]
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range lanes {
		g.Go(func() error { return p.c.attach(ctx, l, "", false) })
	}
	return g.Wait()
}

// reroute asks for the map of the topic again and follows it.
func (p *Producer) reroute() error {
	p.rerouting.Lock()
	defer p.rerouting.Unlock()
	m, err := p.c.topicMap(p.ctx, topicname.MustParse(p.topic), false)
	if err == nil {
		err = p.follow(p.ctx, m)
	}
	return err
}

// Topic is the topic's long name.
func (p *Producer) Topic() string { return p.topic }

// Name is the producer's name, as given or as the cluster chose it.
func (p *Producer) Name() string {
	l := p.routes.Load().lanes[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.name
}

// LastSequence is the highest sequence id that was stored under the producer's
// name when it was opened; ok is false when there was none. Of a partitioned
// topic it is the highest of all partitions.
func (p *Producer) LastSequence() (last uint64, ok bool) {
	for _, l := range p.routes.Load().lanes {
		l.mu.Lock()
		if l.stored && (!ok || l.lastStored > last) {
			last, ok = l.lastStored, true
		}
		l.mu.Unlock()
	}
	return last, ok
}

// Send publishes a message and waits until it is stored. An error is definite,
// the message is not stored, unless it wraps ErrUnknownOutcome.
func (p *Producer) Send(ctx context.Context, m Message) (MessageID, error) {
	return p.SendAsync(ctx, m).Wait(ctx)
}

// SendAsync publishes a message and returns its outcome to be. It copies the
// message. It waits, as long as ctx allows, only while the memory budget is used
// up. Messages of calls that follow each other keep their order.
func (p *Producer) SendAsync(ctx context.Context, m Message) Future {
	b, i := p.send(ctx, &m, nil)
	return Future{b, i}
}

// Publish is SendAsync with a callback in place of a Future. Callbacks of a
// producer run one after the other, those of a partition in order, on a
// goroutine of their own; while one runs, later ones wait. The callback is called
// exactly once; on the caller's goroutine when the message could not be taken. It
// must not wait for the producer: what it waits for may be behind it.
func (p *Producer) Publish(ctx context.Context, m Message, done func(MessageID, error)) {
	b, i := p.send(ctx, &m, done)
	if b.early {
		done(b.outcome(i))
	}
}

func (p *Producer) send(ctx context.Context, m *Message, done func(MessageID, error)) (*batch, int) {
	out := outgoing{callback: done, Message: entry.Message{
		SequenceID: m.Sequence, HasKey: m.Key != "", Key: m.Key, OrderingKey: m.OrderingKey,
		Properties: m.Properties, Value: m.Value, NullValue: m.NoValue, EventTime: millis(m.EventTime),
	}}
	out.held = int64(out.Bytes())
	out.hash = keyHash(&out.Message)
	if err := p.check(&out); err != nil {
		return failed(err), 0
	}
	if err := p.acquire(ctx, out.held); err != nil {
		return failed(fmt.Errorf("wait for memory: %w", err)), 0
	}
	b, i := p.route(&out)
	if b.early {
		p.c.memory.Release(out.held)
	}
	return b, i
}

// acquire takes bytes of the memory budget. It waits no longer than until the
// producer ends: what fills the budget may be another one's.
func (p *Producer) acquire(ctx context.Context, bytes int64) error {
	if p.c.memory.TryAcquire(bytes) {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ctx, func() { cancel(fmt.Errorf("producer of %s: %w", p.topic, ErrClosed)) })()
	if p.c.memory.Acquire(ctx, bytes) != nil {
		return context.Cause(ctx)
	}
	return nil
}

func millis(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(max(0, t.UnixMilli()))
}

func keyHash(m *entry.Message) uint32 {
	if !m.HasKey {
		return 0
	}
	return topicname.KeyHash([]byte(m.Key))
}

func (p *Producer) check(m *outgoing) error {
	if p.closed.Load() {
		return fmt.Errorf("producer of %s: %w", p.topic, ErrClosed)
	}
	if err := m.Check(); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if limit := p.maxMessage.Load(); m.held > limit || m.held > p.c.opts.memory {
		return fmt.Errorf("message of %d bytes with its key and properties, at most %d, of memory %d: %w", m.held, limit, p.c.opts.memory, ErrTooLarge)
	}
	return nil
}

// route puts a message in its lane.
func (p *Producer) route(m *outgoing) (*batch, int) {
	r := p.routes.Load()
	if len(r.open) == 1 {
		b, i, _ := r.open[0].add(m)
		return b, i
	}
	if m.HasKey {
		i, found := slices.BinarySearchFunc(r.ranges, m.hash, func(k keyRange, hash uint32) int {
			switch {
			case k.last < hash:
				return -1
			case k.first > hash:
				return 1
			}
			return 0
		})
		if !found {
			return failed(fmt.Errorf("no partition of %s takes key hash %#x: %w", p.topic, m.hash, ErrUnavailable)), 0
		}
		b, n, _ := r.ranges[i].lane.add(m)
		return b, n
	}
	p.turnMu.Lock()
	defer p.turnMu.Unlock()
	if p.turn >= len(r.open) || !r.open[p.turn].gathers(p.filled) {
		p.turn = (p.turn + 1) % len(r.open)
	}
	b, i, gathering := r.open[p.turn].add(m)
	if p.filled = nil; gathering {
		p.filled = b
	}
	return b, i
}

// gathers reports whether b is the batch that takes messages now.
func (l *lane) gathers(b *batch) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return b != nil && l.gather == b
}

// finish gives a batch its outcome, at or err, and has its callbacks called behind
// those of all that were finished before. It waits for nothing: lanes call it with
// their lock held.
func (p *Producer) finish(b *batch, at place, err error) {
	b.at, b.err, b.part = at, err, nil
	close(b.done)
	if b.callbacks == nil {
		p.c.memory.Release(b.held)
		return
	}
	p.runMu.Lock()
	defer p.runMu.Unlock()
	p.run = append(p.run, b)
	if !p.running {
		p.running = true
		p.c.spawn(p.runCallbacks)
	}
}

// runCallbacks runs until no callback is left.
func (p *Producer) runCallbacks() {
	for {
		p.runMu.Lock()
		batches := p.run
		p.run = nil
		p.running = len(batches) > 0
		p.runMu.Unlock()
		if len(batches) == 0 {
			return
		}
		for _, b := range batches {
			p.c.memory.Release(b.held)
			for i, f := range b.callbacks {
				if f != nil {
					f(b.outcome(i))
				}
			}
		}
	}
}

// Flush waits until every message sent before has its outcome. It returns the
// first failure since the last Flush.
func (p *Producer) Flush(ctx context.Context) error {
	lanes := p.routes.Load().lanes
	var last []*batch
	for _, l := range lanes {
		if b := l.flush(); b != nil {
			last = append(last, b)
		}
	}
	for _, b := range last {
		select {
		case <-b.done:
		case <-ctx.Done():
			return fmt.Errorf("flush producer of %s: %w", p.topic, unknownOutcome(ctx.Err()))
		}
	}
	for _, l := range lanes {
		if err := l.takeFailure(); err != nil {
			return err
		}
	}
	return nil
}

// Close flushes and ends the producer. When ctx ends first, messages without an
// answer fail, with ErrUnknownOutcome if they were sent. A second call waits for
// the first one; when its ctx ends, so does the first one's patience.
func (p *Producer) Close(ctx context.Context) error {
	if !p.closed.CompareAndSwap(false, true) {
		return p.awaitClosed(ctx)
	}
	defer close(p.ended)
	err := p.Flush(ctx)
	p.stop()
	p.c.remove(p) // only now: until then the client waits for us
	return err
}

// awaitClosed waits for the Close under way, and cuts it short when ctx ends.
func (p *Producer) awaitClosed(ctx context.Context) error {
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
	}
	p.stop() // which ends the other one's Flush
	<-p.ended
	return fmt.Errorf("close producer of %s: %w", p.topic, unknownOutcome(ctx.Err()))
}

// stop ends all lanes.
func (p *Producer) stop() {
	p.closed.Store(true)
	p.cancel()
	r := p.routes.Load()
	if r == nil {
		return
	}
	for _, l := range r.lanes {
		l.goodbye()
		l.fail(ErrClosed)
	}
}

func (p *Producer) endpoints() []follower {
	lanes := p.routes.Load().lanes
	all := make([]follower, len(lanes))
	for i, l := range lanes {
		all[i] = l
	}
	return all
}

// close is for the client, which closes what is still open.
func (p *Producer) close(ctx context.Context) error {
	err := p.Close(ctx)
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}
