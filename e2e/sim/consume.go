package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/history"
)

// life is one consumer of a subscription from joining to leaving.
type life struct {
	w        *crowd
	plan     subscriptionPlan
	name     string
	rand     *chance
	consumer *client.Consumer
	records  *history.Consumer

	// What it got: the ids of some messages, and when the newest of each partition
	// was published.
	some  []client.MessageID
	times map[int32]time.Time
	seeks int // still to come
}

// consume is one consumer of a subscription, in one life after another, until the
// subscription has got all that was acknowledged.
func (w *crowd) consume(ctx context.Context, s subscriptionPlan, number int) {
	name := fmt.Sprintf("%s-%s-%d", w.plan.Name, s.Name, number)
	rand := newChance(w.c.seed, w.stream(name))
	for n := 0; ctx.Err() == nil; n++ {
		cl, err := w.c.connect(ctx, name, rand)
		if err != nil {
			return
		}
		l := &life{w: w, plan: s, name: name, rand: rand, times: map[int32]time.Time{},
			records: w.log.Join(s.Name, s.promises(), fmt.Sprintf("%s, life %d", name, n+1))}
		if s.Seeks > 0 && number == 1 {
			l.seeks = 3
		}
		var done bool
		opening, cancel := context.WithTimeout(ctx, 30*time.Second)
		l.consumer, err = cl.Subscribe(opening, w.plan.Name, s.Name, client.OfType(s.Type), client.Named(name), client.From(client.Earliest()),
			client.NackDelay(100*time.Millisecond, 2*time.Second), client.Queue(rand.from(1, 50), 1<<20))
		cancel()
		if err == nil {
			done, err = l.receive(ctx)
		}
		if err != nil {
			w.c.journal.note(name, "%v", err)
		}
		l.records.Leaving()
		if done || rand.once(2) {
			w.leave(cl)
		} else { // it dies
			w.c.net.Kill(name)
			gone, cancel := context.WithCancel(context.Background())
			cancel()
			_ = cl.Close(gone)
		}
		if done {
			return
		}
		_ = sleep(ctx, time.Duration(rand.Uint64()%uint64(2*time.Second)))
	}
}

// receive receives for a life; done once the subscription has all.
func (l *life) receive(ctx context.Context) (done bool, err error) {
	w := l.w
	end := time.Now().Add(l.rand.span(2*time.Second, 10*time.Minute))
	for n := 1; ; n++ {
		receiving, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		m, err := l.consumer.Receive(receiving)
		cancel()
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			if w.over() && w.log.Missing(l.plan.Name) == 0 {
				return true, nil
			}
			if time.Now().After(end) {
				return false, nil
			}
			continue
		case err != nil:
			return false, fmt.Errorf("receive: %w", err)
		}
		if _, err := l.records.Receive(m); err != nil {
			w.c.problem("%s got a payload that nobody sent: %v", l.name, err)
			return true, err
		}
		l.answer(ctx, n, m)
		if l.times[m.ID.Partition] = m.BrokerTime; len(l.some) < 100 {
			l.some = append(l.some, m.ID)
		}
		if l.seeks > 0 && !w.over() && l.rand.once(l.plan.Seeks) {
			l.seeks--
			l.seek(ctx)
		}
	}
}

// over tells that publishing has ended and every outcome is known.
func (w *crowd) over() bool {
	select {
	case <-w.drained:
		return true
	default:
		return false
	}
}

// answer acknowledges the n-th message or gives it back. Of every twentieth it
// waits for the answer.
func (l *life) answer(ctx context.Context, n int, m *client.Received) {
	ack := m.Ack
	switch {
	case l.plan.Careless > 0 && l.rand.n(100) < l.plan.Careless:
		l.records.Nacked(m.ID)
		m.Nack()
		return
	case n%20 != 0:
		if !l.plan.Cumulative {
			l.records.Acking(m.ID, false)
			m.AckAsync()
		}
		return
	case l.plan.Cumulative:
		ack = m.AckCumulative
	}
	acking, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	pending := l.records.Acking(m.ID, l.plan.Cumulative)
	pending.Ended(ack(acking))
}

// seek moves the subscription back, to where nothing is passed over that it has
// not got: a shared one to its beginning, others also to what has come already.
func (l *life) seek(ctx context.Context) {
	to := history.Earliest()
	if l.plan.Type != client.Shared {
		switch l.rand.n(4) {
		case 0:
			to = history.At(l.some[l.rand.n(len(l.some))])
		case 1:
			to = history.After(l.some[l.rand.n(len(l.some))])
		case 2:
			if len(l.times) == max(1, l.w.plan.Partitions) {
				first := time.Now()
				for _, t := range l.times {
					if t.Before(first) {
						first = t
					}
				}
				to = history.Since(first)
			}
		}
	}
	seeking, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	pending := l.records.Seeking(to)
	err := l.consumer.Seek(seeking, to.Position())
	pending.Ended(err)
	if err != nil {
		l.w.c.journal.note(l.name, "seek: %v", err)
		l.w.c.counts.add("seeks of unknown outcome", 1)
		return
	}
	l.w.c.counts.add("seeks", 1)
}

// audit reads all that the topic holds with a subscription that never was used.
func (w *crowd) audit(ctx context.Context) error {
	name := w.plan.Name + "-audit"
	cl, err := w.c.connect(ctx, name, newChance(w.c.seed, w.stream(name)))
	if err != nil {
		return err
	}
	defer w.leave(cl)
	records := w.log.Join(auditPlan.Name, auditPlan.promises(), name)
	consumer, err := cl.Subscribe(ctx, w.plan.Name, auditPlan.Name)
	if err != nil {
		return err
	}
	for w.log.Missing(auditPlan.Name) > 0 {
		m, err := consumer.Receive(ctx)
		if err != nil {
			return fmt.Errorf("%d acknowledged messages of %s are missing: %w", w.log.Missing(auditPlan.Name), w.plan.Name, err)
		}
		if _, err := records.Receive(m); err != nil {
			return fmt.Errorf("a payload that nobody sent: %w", err)
		}
	}
	return consumer.Close(ctx)
}
