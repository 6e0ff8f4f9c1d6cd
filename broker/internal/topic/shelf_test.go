package topic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// progress is what clients of one subscription know of it.
type progress struct {
	moves   int                            // seeks and deletions asked for
	moving  int                            // of them, not answered
	acked   map[position.Position]struct{} // answered as durable, and no move asked for since
	exists  bool                           // answered so, and nothing else asked for since
	gone    bool                           // the same of its deletion
	asked   int                            // counts what was asked for that makes or ends it
	joining int                            // subscribes not answered

	consumer *subscription.Consumer
}

// tale drives one topic of random fate.
type tale struct {
	t     *testing.T
	rng   *rand.Rand
	disk  *disk
	log   *slowLog
	epoch uint64

	ledger  *fakeLedger
	topic   *Topic
	produce *heard
	stop    context.CancelFunc // of what waits for the topic
	ctx     context.Context
	work    sync.WaitGroup

	mu   sync.Mutex
	subs map[string]*progress
}

// taker is the end of a consumer that finds out what comes twice.
type taker struct {
	nobody
	tale *tale
	sub  string
}

func (k taker) Deliver(_ uint64, entries []subscription.Delivery) {
	k.tale.mu.Lock()
	defer k.tale.mu.Unlock()
	for _, e := range entries {
		if _, acked := k.tale.subs[k.sub].acked[e.Position]; acked {
			k.tale.t.Errorf("%v was acknowledged to %s and is delivered again", e.Position, k.sub)
		}
	}
}

func (x *tale) open(parked bundlelog.Parked) {
	x.t.Helper()
	x.ledger = &fakeLedger{disk: x.disk}
	x.ctx, x.stop = context.WithCancel(x.t.Context())
	topic, err := Open(x.t.Context(), Options{
		Name: topicname.MustParse("orders"), ID: 7, Ledger: x.ledger, Journal: x.log, Now: func() time.Time { return time.UnixMilli(1) },
	}, parked)
	if err != nil {
		x.t.Fatalf("open: %v", err)
	}
	x.topic = topic
	x.ledger.delay = time.Duration(x.rng.IntN(3)) * 20 * time.Millisecond
	x.produce = &heard{}
	if _, err := topic.OpenProducer("p", x.epoch, false, x.produce); err != nil {
		x.t.Fatal(err)
	}
	x.epoch++
	if n := len(x.disk.entries); n > 0 && (!x.produce.stored || x.produce.last != lastOf(n-1)) {
		x.t.Errorf("the producer is told to go on after %d (stored %v), want %d", x.produce.last, x.produce.stored, lastOf(n-1))
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for name, p := range x.subs {
		p.consumer = nil
		if here := topic.subscriptions[name] != nil; p.exists && !here || p.gone && here {
			x.t.Errorf("subscription %s is there: %v; it was made %v, deleted %v", name, here, p.exists, p.gone)
		}
	}
}

// Each entry holds messagesOf messages.
const messagesOf = 5

func lastOf(entry int) uint64 { return uint64(messagesOf*(entry+1) - 1) }

func (x *tale) publish() {
	n := uint64(len(x.disk.entries))
	x.produce.producer.Publish(batch("p", n*messagesOf, n*messagesOf+messagesOf-1))
	x.ledger.settle(1, nil, true)
	x.topic.Notify()
}

func (x *tale) name() string { return []string{"audit", "billing"}[x.rng.IntN(2)] }

// where to subscribe or seek.
func (x *tale) where() subscription.Place {
	return subscription.Place{
		Anchor: subscription.Anchor(x.rng.IntN(4)), Position: x.place(), Index: x.rng.IntN(messagesOf+1) - 1,
	}
}

func (x *tale) place() position.Position { return at(x.rng.IntN(len(x.disk.entries))) }

// subscribe joins a consumer in the place of the one before.
func (x *tale) subscribe() {
	name, t, ctx, start := x.name(), x.topic, x.ctx, x.where()
	x.mu.Lock()
	p := x.subs[name]
	p.asked++
	asked := p.asked
	p.gone = false
	p.joining++
	alone := p.moving == 0 // else it may be deleted after this has joined it
	x.mu.Unlock()
	x.work.Go(func() {
		defer p.joined(x)
		c, _, err := t.Subscribe(ctx, SubscribeRequest{
			Subscription: name, Start: start,
			Consumer: subscription.ConsumerOptions{Name: "c", Instance: "i", WindowBytes: 1 << 30},
		}, taker{tale: x, sub: name})
		if err != nil {
			return
		}
		x.mu.Lock()
		if p.consumer = c; alone && p.asked == asked {
			p.exists = true
		}
		x.mu.Unlock()
		if err := c.Flow(1<<20, 0); err != nil {
			x.t.Error(err)
		}
	})
}

func (p *progress) joined(x *tale) {
	x.mu.Lock()
	defer x.mu.Unlock()
	p.joining--
}

// move forgets what was acknowledged, for it may not hold any more.
func (p *progress) move() {
	p.moves++
	p.moving++
	p.acked = map[position.Position]struct{}{}
}

func (x *tale) delete() {
	name, t, ctx := x.name(), x.topic, x.ctx
	x.mu.Lock()
	p := x.subs[name]
	p.move()
	p.asked++
	asked := p.asked
	p.exists = false
	c, byConsumer := p.consumer, x.rng.IntN(2) == 0
	alone := p.joining == 0 // else a new one may be made after this is deleted
	x.mu.Unlock()
	x.work.Go(func() {
		var err error
		if byConsumer = byConsumer && c != nil; byConsumer {
			err = t.Unsubscribe(ctx, c) // which may be of an earlier one of that name
		} else {
			err = t.DeleteSubscription(ctx, name, true)
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		p.moving--
		if err == nil && !byConsumer && alone && p.asked == asked {
			p.gone = true
		}
	})
}

func (x *tale) seek() {
	name, t, ctx, to := x.name(), x.topic, x.ctx, x.where()
	x.mu.Lock()
	p := x.subs[name]
	p.move()
	moves, alone := p.moves, p.moving == 1
	x.mu.Unlock()
	x.work.Go(func() {
		mark, err := t.Seek(ctx, name, to)
		x.mu.Lock()
		p.moving--
		x.mu.Unlock()
		if err == nil && alone {
			x.durable(p, moves, at(0), mark)
		}
	})
}

// durable notes that first to last were answered as durably acknowledged, unless
// the subscription was moved since that was asked for.
func (x *tale) durable(p *progress, moves int, first, last position.Position) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for ; p.moves == moves && first.Compare(last) <= 0; first = first.Next() {
		p.acked[first] = struct{}{}
	}
}

func (x *tale) ack() {
	last := x.place()
	ack := subscription.Ack{Cumulative: x.rng.IntN(3) == 0, Positions: []subscription.Acked{{Position: last}}}
	first := last
	if ack.Cumulative {
		first = at(0)
	}
	if x.rng.IntN(3) == 0 {
		ack.Positions[0].Left = cursor.Bits{uint64(1 + x.rng.IntN(1<<(messagesOf+2)-1))} // also of no message
		if last = last.Prev(); !ack.Cumulative {
			first = last.Next() // nothing is whole
		}
	}
	x.mu.Lock()
	p := x.subs[x.name()]
	c, moves, alone := p.consumer, p.moves, p.moving == 0
	x.mu.Unlock()
	if c != nil {
		c.Ack(ack, func(err error) {
			if err == nil && alone {
				x.durable(p, moves, first, last)
			}
		})
	}
}

// step does one thing that may happen to a topic at any time, also while it is
// being closed and afterwards.
func (x *tale) step() {
	switch x.rng.IntN(14) {
	case 0, 1:
		x.subscribe()
	case 2:
		x.delete()
	case 3, 4:
		x.seek()
	case 5, 6, 7, 8:
		x.ack()
	case 9, 10:
		x.log.settle(x.rng.IntN(4))
	case 11:
		x.log.mu.Lock()
		x.log.busy = x.rng.IntN(2) == 0
		x.log.mu.Unlock()
	case 12:
		time.Sleep(time.Duration(x.rng.IntN(50)) * time.Millisecond)
	case 13:
		if _, err := x.topic.Trim(x.ctx, managedledger.Retention{}); err != nil {
			x.t.Error(err)
		}
	}
	synctest.Wait()
}

// close closes the topic while things go on happening, and returns its state.
func (x *tale) close() (base []byte) {
	ctx, cancel := context.WithTimeout(x.t.Context(), time.Duration(x.rng.IntN(2))*time.Second)
	defer cancel()
	closed := make(chan []byte, 1)
	go func() { closed <- x.topic.Close(ctx, errors.New("moved")) }()
	synctest.Wait()
	for range x.rng.IntN(6) {
		x.step()
	}
	time.Sleep(2 * time.Second)
	base = <-closed
	for range x.rng.IntN(6) {
		x.step()
	}
	x.leave()
	return base
}

// leave ends what waits for the topic.
func (x *tale) leave() {
	x.stop()
	x.work.Wait()
}

// crash ends the topic with its bundle; of the records not answered the first few
// survive.
func (x *tale) crash() bundlelog.Parked {
	x.log.end()
	x.leave()
	ctx, cancel := context.WithCancel(x.t.Context())
	cancel()
	x.topic.Close(ctx, errLogEnded)
	old := x.log
	n := old.durable + x.rng.IntN(len(old.taken)-old.durable+1)
	x.log = &slowLog{taken: old.taken[:n:n], durable: n}
	for _, p := range old.passes {
		if p.place <= n {
			x.log.passes = append(x.log.passes, p)
		}
	}
	return x.replays()
}

// replays checks that the log says the same from wherever it is replayed, and
// returns one of the replays.
func (x *tale) replays() bundlelog.Parked {
	starts := append([]pass{{}}, x.log.passes...)
	for _, from := range starts {
		x.same("replayed from a pass", x.log.parked(from))
	}
	return x.log.parked(starts[x.rng.IntN(len(starts))])
}

// same checks that a state is what all records of the log add up to: of the
// subscriptions exactly; of the producers up to the same position at least, for
// what was published after it is replayed.
func (x *tale) same(what string, p bundlelog.Parked) {
	x.t.Helper()
	want, wantErr := restore(x.log.parked(pass{}), 10)
	got, err := restore(p, 10)
	if err != nil || wantErr != nil {
		x.t.Fatalf("%s: %v; all of the log: %v", what, err, wantErr)
	}
	if g, w := describe(got), describe(want); g != w {
		x.t.Errorf("%s: %s, the log says %s", what, g, w)
	}
	if got.checkpoint != want.checkpoint {
		x.t.Errorf("%s: the checkpoint stands at %v, in the log at %v", what, got.checkpoint, want.checkpoint)
	}
	if got.subscriptions.NextID < want.subscriptions.NextID {
		x.t.Errorf("%s: the next subscription is %d, in the log %d", what, got.subscriptions.NextID, want.subscriptions.NextID)
	}
}

func describe(r restored) string {
	out := ""
	for id := uint64(1); id < r.subscriptions.NextID; id++ {
		if s := r.subscriptions.ByID[id]; s != nil {
			out += fmt.Sprintf(" %s=%x", s.Name, s.AppendCreate(nil))
		}
	}
	return out
}

// TestRuleM21_ShelfHoldsWhatTheLogHolds drives a topic through seeks,
// acknowledgements, subscriptions that come and go and a log that is busy, slow or
// ends, and closes and opens it at random. Whatever was under way, what Close
// gives for the shelf is what the log adds up to, and so is every snapshot of a
// pass; nothing answered as durable is forgotten or delivered again; and the log
// can always be replayed.
func TestRuleM21_ShelfHoldsWhatTheLogHolds(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { tell(t, seed) })
		})
	}
}

func newTale(t *testing.T, seed uint64) *tale {
	x := &tale{t: t, rng: rand.New(rand.NewPCG(seed, 1)), disk: &disk{}, log: &slowLog{}, subs: map[string]*progress{}}
	for _, name := range []string{"audit", "billing"} {
		x.subs[name] = &progress{acked: map[position.Position]struct{}{}}
	}
	return x
}

func tell(t *testing.T, seed uint64) {
	x := newTale(t, seed)
	x.open(bundlelog.Parked{})
	for range 5 {
		x.publish()
	}
	for range 80 {
		switch x.rng.IntN(16) {
		case 0:
			x.log.pass(x.topic)
		case 1:
			x.publish()
		case 2:
			base := x.close()
			x.log.settle(len(x.log.waiting)) // as the broker waits before it opens the topic again
			x.same("closed", bundlelog.Parked{Base: base})
			x.open(bundlelog.Parked{Base: base})
		case 3:
			x.open(x.crash())
		default:
			x.step()
		}
	}
	x.crash()
}
