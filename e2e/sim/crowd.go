package sim

import (
	"context"
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
		w.log.Subscription(s.Name, s.promises())
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
	w.log.Publishing(m)
	p.Publish(ctx, message, func(id client.MessageID, err error) {
		switch w.log.Answered(m, id, err) {
		case history.Unknown:
			w.c.counts.add("publishes of unknown outcome", 1)
		case history.Failed:
			w.c.journal.note(m.Producer, "%v refused: %v", m, err)
			w.c.counts.add("publishes refused", 1)
		}
	})
}

// leave closes a client whose work is done.
func (w *crowd) leave(cl *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = cl.Close(ctx) // what it had to say it has said
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
