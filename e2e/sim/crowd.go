package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/history"
)

// crowd is the clients of one topic: producers, and the consumers of its
// subscriptions.
type crowd struct {
	c    *cluster
	plan topicPlan
	log  *history.Log

	// stop ends publishing; drained is closed once that is over and every outcome
	// known.
	stop    context.Context
	drained chan struct{}
}

// prepare makes the topic and its subscriptions, which then miss nothing.
func (w *crowd) prepare(ctx context.Context) error {
	name := "admin-" + w.plan.Name
	cl, err := w.c.connect(ctx, name, newChance(w.c.seed, w.stream(name)))
	if err != nil {
		return err
	}
	if err := w.createTopic(ctx, name); err != nil {
		return err
	}
	for _, s := range w.subscriptions() {
		consumer, err := cl.Subscribe(ctx, w.plan.Name, s.Name, client.OfType(s.Type), client.From(client.Earliest()))
		if err != nil {
			return fmt.Errorf("subscription %s of %s: %w", s.Name, w.plan.Name, err)
		}
		if err := consumer.Close(ctx); err != nil {
			return err
		}
	}
	return cl.Close(ctx)
}

// subscriptions are all of the topic.
func (w *crowd) subscriptions() []subscriptionPlan {
	if w.plan.Audited {
		return append(slices.Clone(w.plan.Subscriptions), auditPlan)
	}
	return w.plan.Subscriptions
}

// auditPlan is a subscription that nobody uses before all is over: it sees what
// the topic holds.
var auditPlan = subscriptionPlan{Name: "audit", Type: client.Exclusive, Consumers: 1}

// stream numbers the chance of a party of this topic.
func (w *crowd) stream(name string) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for _, b := range []byte(w.plan.Name + "/" + name) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}

// produce publishes until stop ends, then waits for all outcomes as long as ctx
// allows.
func (w *crowd) produce(ctx context.Context, number int) error {
	name := fmt.Sprintf("%s-producer-%d", w.plan.Name, number)
	rand := newChance(w.c.seed, w.stream(name))
	cl, err := w.c.connect(ctx, name, rand)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer w.leave(cl)
	var p *client.Producer
	for next := 0; w.stop.Err() == nil; {
		if p == nil {
			opening, cancel := context.WithTimeout(ctx, 30*time.Second)
			p, err = cl.Producer(opening, w.plan.Name, client.WithName(name), client.WithCompression(w.plan.Compression))
			cancel()
			if err != nil {
				w.c.journal.note(name, "cannot open: %v", err)
				p = nil
				_ = sleep(w.stop, 500*time.Millisecond)
				continue
			}
		}
		for range rand.from(1, 4) {
			m := history.Message{Producer: name, Number: next}
			next++
			w.publish(ctx, p, m, rand)
		}
		if rand.once(200) { // the application restarts
			if err := p.Close(ctx); err != nil {
				w.c.journal.note(name, "close: %v", err)
			}
			p = nil
		}
		_ = sleep(w.stop, time.Duration(rand.Uint64()%uint64(2*w.plan.Pause)))
	}
	if p == nil {
		return nil
	}
	if err := p.Close(ctx); err != nil {
		return fmt.Errorf("%s does not get its answers: %w", name, err)
	}
	return nil
}

func (w *crowd) publish(ctx context.Context, p *client.Producer, m history.Message, rand *chance) {
	message := client.Message{Value: m.Payload(rand.from(1, w.plan.Bytes))}
	if w.plan.Keys > 0 {
		message.Key = fmt.Sprintf("key-%d", rand.n(w.plan.Keys))
	}
	p.Publish(ctx, message, func(id client.MessageID, err error) {
		switch {
		case err == nil && id.Known():
			w.log.Published(m, history.OK, id.String())
		case err == nil:
			w.log.Published(m, history.OK, "")
		case errors.Is(err, client.ErrUnknownOutcome):
			w.c.counts.add("publishes of unknown outcome", 1)
			w.log.Published(m, history.Unknown, "")
		default:
			w.c.journal.note(m.Producer, "%v refused: %v", m, err)
			w.c.counts.add("publishes refused", 1)
			w.log.Published(m, history.Failed, "")
		}
	})
}

// leave closes a client whose work is done.
func (w *crowd) leave(cl *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = cl.Close(ctx) // what it had to say it has said
}

// consume is one consumer of a subscription, in one life after another, until the
// subscription has got all that was acknowledged.
func (w *crowd) consume(ctx context.Context, s subscriptionPlan, number int) {
	name := fmt.Sprintf("%s-%s-%d", w.plan.Name, s.Name, number)
	rand := newChance(w.c.seed, w.stream(name))
	for life := 0; ctx.Err() == nil; life++ {
		cl, err := w.c.connect(ctx, name, rand)
		if err != nil {
			return
		}
		var done bool
		opening, cancel := context.WithTimeout(ctx, 30*time.Second)
		consumer, err := cl.Subscribe(opening, w.plan.Name, s.Name, client.OfType(s.Type), client.Named(name), client.From(client.Earliest()),
			client.NackDelay(100*time.Millisecond, 2*time.Second), client.Queue(rand.from(1, 50), 1<<20))
		cancel()
		if err == nil {
			done, err = w.receive(ctx, consumer, s, name, rand)
		}
		if err != nil {
			w.c.journal.note(name, "%v", err)
		}
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
func (w *crowd) receive(ctx context.Context, consumer *client.Consumer, s subscriptionPlan, name string, rand *chance) (done bool, err error) {
	life := time.Now().Add(rand.span(2*time.Second, 10*time.Minute))
	id := fmt.Sprintf("%s/%s", w.plan.Name, s.Name)
	for n := 1; ; n++ {
		receiving, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		m, err := consumer.Receive(receiving)
		cancel()
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			select {
			case <-w.drained:
				if w.log.Missing(id) == 0 {
					return true, nil
				}
			default:
			}
			if time.Now().After(life) {
				return false, nil
			}
			continue
		case err != nil:
			return false, fmt.Errorf("receive: %w", err)
		}
		named, err := history.Parse(m.Value)
		if err != nil {
			w.c.problem("%s got a payload that nobody sent: %v", name, err)
			return true, err
		}
		w.log.Delivered(id, named, int(m.ID.Partition), m.ID.String())
		switch {
		case s.Careless > 0 && rand.n(100) < s.Careless:
			m.Nack()
		case n%20 != 0:
			if !s.Cumulative {
				m.AckAsync()
			}
		case s.Cumulative:
			w.answer(ctx, m.AckCumulative, s, id, m.ID.String())
		default:
			w.answer(ctx, m.Ack, s, id, m.ID.String())
		}
	}
}

// answer acknowledges and waits for the answer.
func (w *crowd) answer(ctx context.Context, ack func(context.Context) error, s subscriptionPlan, id, position string) {
	acking, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := ack(acking); err == nil && s.Type == client.Exclusive {
		w.log.Acked(id, position)
	}
}

// audit reads all that the topic holds with a subscription that never was used.
func (w *crowd) audit(ctx context.Context) error {
	name := w.plan.Name + "-audit"
	cl, err := w.c.connect(ctx, name, newChance(w.c.seed, w.stream(name)))
	if err != nil {
		return err
	}
	defer w.leave(cl)
	consumer, err := cl.Subscribe(ctx, w.plan.Name, auditPlan.Name)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%s/%s", w.plan.Name, auditPlan.Name)
	for w.log.Missing(id) > 0 {
		m, err := consumer.Receive(ctx)
		if err != nil {
			return fmt.Errorf("%d acknowledged messages of %s are missing: %w", w.log.Missing(id), w.plan.Name, err)
		}
		named, err := history.Parse(m.Value)
		if err != nil {
			return fmt.Errorf("a payload that nobody sent: %w", err)
		}
		w.log.Delivered(id, named, int(m.ID.Partition), m.ID.String())
	}
	return consumer.Close(ctx)
}

// run publishes and consumes until stop ends and all is delivered, as long as
// ctx allows.
func (w *crowd) run(ctx context.Context) {
	var producers, consumers sync.WaitGroup
	for i := range w.plan.Producers {
		producers.Go(func() {
			if err := w.produce(ctx, i+1); err != nil {
				w.c.problem("%v", err)
			}
		})
	}
	for _, s := range w.plan.Subscriptions {
		for i := range s.Consumers {
			consumers.Go(func() { w.consume(ctx, s, i+1) })
		}
	}
	producers.Wait()
	close(w.drained)
	consumers.Wait()
	if w.plan.Audited {
		if err := w.audit(ctx); err != nil {
			w.c.problem("audit: %v", err)
		}
	}
}

// judge reports what the history of the topic shows.
func (w *crowd) judge() *history.Verdict {
	id := func(name string) string { return fmt.Sprintf("%s/%s", w.plan.Name, name) }
	var all, ordered []string
	for _, s := range w.subscriptions() {
		all = append(all, id(s.Name))
		if s.Type != client.Shared {
			ordered = append(ordered, id(s.Name))
		}
	}
	return w.log.Check(all, ordered)
}
