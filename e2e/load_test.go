package e2e

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/history"
)

const (
	loadTopic    = "kills"
	payloadBytes = 200

	loadProducers = 3
	offeredRate   = 8000 // messages a second, of all producers
	leastRate     = 5000 // that have to be acknowledged, over the whole time
	leastFlying   = 100  // publishes without an answer at a kill
)

// loadSubscriptions are the subscriptions of the load.
var loadSubscriptions = []struct {
	name     string
	kind     client.Type
	promises history.Kind
}{{"ordered", client.Exclusive, history.Exclusive}, {"shared", client.Shared, history.Shared}}

// load is three named producers and two subscriptions on one topic, with their
// history. Once in a while, when told to, a subscription's consumer leaves and a
// new one takes its place, which knows nothing of what the other was given.
type load struct {
	t          *testing.T
	log        *history.Log
	partitions []string // long names
	began      time.Time

	inFlight atomic.Int64
	ok       atomic.Int64
	// era counts the kills; a publish belongs to the one it was begun in.
	era      atomic.Int64
	progress []eraOK // by partition; the only one of a topic without partitions

	bursts    []chan struct{} // by producer, each buffered by one
	reopens   []chan struct{} // by subscription, each buffered by one
	stop      chan struct{}   // producers end
	drain     chan struct{}   // consumers end once they have everything
	producers sync.WaitGroup
	consumers sync.WaitGroup
}

// eraOK counts the acknowledged publishes that were begun in the newest era that
// has any.
type eraOK struct {
	mu    sync.Mutex
	era   int64
	count int
}

func (e *eraOK) add(era int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case era > e.era:
		e.era, e.count = era, 1
	case era == e.era:
		e.count++
	}
}

func (e *eraOK) of(era int64) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.era != era {
		return 0
	}
	return e.count
}

// startLoad starts publishing and consuming.
func startLoad(ctx context.Context, t *testing.T, c *client.Client) *load {
	t.Helper()
	l := &load{t: t, log: history.New(), stop: make(chan struct{}), drain: make(chan struct{})}
	first, err := c.Producer(ctx, loadTopic) // makes the topic where there is none
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if l.partitions, err = c.Partitions(ctx, loadTopic); err != nil {
		t.Fatal(err)
	}
	l.progress = make([]eraOK, len(l.partitions))
	l.began = time.Now()
	for i := range loadProducers {
		burst := make(chan struct{}, 1)
		l.bursts = append(l.bursts, burst)
		l.producers.Go(func() { l.produce(ctx, c, fmt.Sprintf("p%d", i), burst) })
	}
	for i := range loadSubscriptions {
		reopen := make(chan struct{}, 1)
		l.reopens = append(l.reopens, reopen)
		l.consumers.Go(func() {
			for l.consume(ctx, c, i, reopen) {
			}
		})
	}
	return l
}

// produce publishes at a steady rate, and a burst when told to, until stop is
// closed; then it waits for every answer.
func (l *load) produce(ctx context.Context, c *client.Client, name string, burst <-chan struct{}) {
	p, err := c.Producer(ctx, loadTopic, client.WithName(name))
	if err != nil {
		l.t.Errorf("producer %s: %v", name, err)
		return
	}
	const rate, burstMessages = offeredRate / loadProducers, 2 * leastFlying
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for number, paced := 0, 0; ; {
		n := 0
		select {
		case <-l.stop:
			if err := p.Close(ctx); err != nil {
				l.t.Errorf("close producer %s: %v", name, err)
			}
			return
		case <-burst:
			n = burstMessages
		case <-tick.C:
			due := int(time.Since(l.began).Seconds() * rate)
			n = min(due-paced, rate/10) // catches up after a pause, but not at once
			paced += n
		}
		for range n {
			l.publish(ctx, p, history.Message{Producer: name, Number: number})
			number++
		}
	}
}

func (l *load) publish(ctx context.Context, p *client.Producer, m history.Message) {
	era := l.era.Load()
	l.inFlight.Add(1)
	l.log.Publishing(m)
	p.Publish(ctx, client.Message{Value: m.Payload(payloadBytes)}, func(id client.MessageID, err error) {
		l.inFlight.Add(-1)
		if l.log.Answered(m, id, err) != history.OK {
			return
		}
		l.ok.Add(1)
		if id.Known() {
			l.progress[max(id.Partition, 0)].add(era)
		}
	})
}

// consume receives and acknowledges until told to make room for a new consumer,
// which it answers with true, or until everything acknowledged to producers has
// come after drain was closed. Every acknowledgement has its answer then.
func (l *load) consume(ctx context.Context, c *client.Client, n int, reopen <-chan struct{}) (again bool) {
	subscription, kind := loadSubscriptions[n].name, loadSubscriptions[n].kind
	records := l.log.Join(subscription, loadSubscriptions[n].promises, "load")
	s, err := c.Subscribe(ctx, loadTopic, subscription, client.OfType(kind), client.From(client.Earliest()))
	if err != nil {
		l.t.Errorf("subscribe %s: %v", subscription, err)
		return false
	}
	var acks sync.WaitGroup
	defer func() {
		acks.Wait()
		records.Leaving()
		if err := s.Close(ctx); err != nil && ctx.Err() == nil {
			l.t.Errorf("close %s: %v", subscription, err)
		}
	}()
	for {
		if err := l.receive(ctx, s, records, &acks); err != nil {
			if ctx.Err() == nil {
				l.t.Errorf("%s: %v", subscription, err)
			}
			return false
		}
		select {
		case <-reopen:
			return true
		case <-l.drain:
			if l.log.Missing(subscription) == 0 {
				return false
			}
		default:
		}
	}
}

// receive receives for a while. Each message is acknowledged on a goroutine of
// its own, counted by acks, which records that it was answered.
func (l *load) receive(ctx context.Context, s *client.Consumer, records *history.Consumer, acks *sync.WaitGroup) error {
	while, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	for {
		m, err := s.Receive(while)
		switch {
		case err != nil && while.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		}
		if _, err := records.Receive(m); err != nil {
			return err
		}
		acks.Go(func() {
			ack := records.Acking(m.ID, false)
			err := m.Ack(ctx)
			ack.Ended(err)
			if err != nil && ctx.Err() == nil {
				l.t.Errorf("%s: acknowledge %s: %v", s.Subscription(), m.ID, err)
			}
		})
	}
}

// reopen has every subscription's consumer replaced by a new one.
func (l *load) reopen() {
	for _, r := range l.reopens {
		select {
		case r <- struct{}{}:
		default: // asked already
		}
	}
}

// awaitFlying has the producers publish more until enough publishes have no
// answer, and returns how many at once, for the caller to strike.
func (l *load) awaitFlying(ctx context.Context) int64 {
	l.t.Helper()
	ask := time.NewTicker(50 * time.Millisecond)
	defer ask.Stop()
	poll := time.NewTicker(50 * time.Microsecond)
	defer poll.Stop()
	deadline := time.After(20 * time.Second)
	for {
		for _, b := range l.bursts {
			select {
			case b <- struct{}{}:
			default:
			}
		}
		for asked := true; asked; {
			if n := l.inFlight.Load(); n >= leastFlying {
				return n
			}
			select {
			case <-poll.C:
			case <-ask.C:
				asked = false
			case <-ctx.Done():
				l.t.Fatal(ctx.Err())
			case <-deadline:
				l.t.Fatalf("never %d publishes in flight", leastFlying)
			}
		}
	}
}

// progressed reports whether publishes that were begun in an era have been
// acknowledged on every partition, and enough in all.
func (l *load) progressed(era int64) bool {
	all := 0
	for i := range l.progress {
		n := l.progress[i].of(era)
		if n == 0 {
			return false
		}
		all += n
	}
	return all >= 5*leastFlying
}

// finish ends the load, and judges the rate and the history.
func (l *load) finish(ctx context.Context, server string) {
	l.t.Helper()
	close(l.stop)
	l.producers.Wait()
	l.log.Rest()
	took := time.Since(l.began)
	close(l.drain)
	l.consumers.Wait()
	drained := time.Since(l.began) - took
	if l.t.Failed() {
		return
	}
	l.readAgain(ctx, server)
	l.t.Logf("drained in %s, read again in %s", drained.Round(time.Millisecond), (time.Since(l.began) - took - drained).Round(time.Millisecond))
	rate := float64(l.ok.Load()) / took.Seconds()
	v := l.log.Check()
	l.t.Logf("%d messages acknowledged in %s, %.0f a second, kills included", l.ok.Load(), took.Round(time.Millisecond), rate)
	l.t.Log(v)
	if rate < leastRate {
		l.t.Errorf("%.0f messages a second, want %d", rate, leastRate)
	}
	if v.Bad() || v.OK == 0 {
		l.t.Errorf("history is bad: %v", v)
	}
}

// readAgain subscribes anew, from another client, once everything was
// acknowledged: nothing may come but the message that ends each partition.
func (l *load) readAgain(ctx context.Context, server string) {
	l.t.Helper()
	c := connect(ctx, l.t, server)
	p, err := c.Producer(ctx, loadTopic, client.WithName("end"))
	if err != nil {
		l.t.Fatal(err)
	}
	ended := map[int32]bool{}
	for number := 0; len(ended) < len(l.partitions); number++ { // the partitions in turn
		m := history.Message{Producer: "end", Number: number}
		l.log.Publishing(m)
		id, err := p.Send(ctx, client.Message{Value: m.Payload(payloadBytes)})
		if err != nil {
			l.t.Fatal(err)
		}
		l.log.Published(m, history.OK, id)
		ended[id.Partition] = true
	}
	for _, sub := range loadSubscriptions {
		records := l.log.Join(sub.name, sub.promises, "again")
		s, err := c.Subscribe(ctx, loadTopic, sub.name, client.OfType(sub.kind), client.ExistingSubscription())
		if err != nil {
			l.t.Fatal(err)
		}
		for l.log.Missing(sub.name) > 0 {
			m, err := s.Receive(ctx)
			if err != nil {
				l.t.Fatalf("%s, subscribed again: %v", sub.name, err)
			}
			if _, err := records.Receive(m); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}
