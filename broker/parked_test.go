package broker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// retain changes how long the namespace keeps what is acknowledged.
func (w *world) retain(age time.Duration) {
	w.t.Helper()
	p := catalog.Policy{RetentionSeconds: int64(age / time.Second), RetentionBytes: -1}
	if err := w.catalog.SetPolicy(w.t.Context(), "public/default", p); err != nil {
		w.t.Fatal(err)
	}
}

// ready waits until a broker has the bundles of topics open.
func (n *node) ready(names ...topicname.Name) *node {
	n.w.t.Helper()
	for _, name := range names {
		n.open(n.w.bundleOf(name))
	}
	return n
}

// acknowledge has a subscription, made now if there is none, take so many messages and
// acknowledge them.
func (n *node) acknowledge(name topicname.Name, subscribed string, messages int) {
	n.w.t.Helper()
	ctx := n.w.t.Context()
	tp, err := n.Broker.topic(ctx, name)
	if err != nil {
		n.w.t.Fatal(err)
	}
	k := &taker{}
	c, _, err := tp.Subscribe(ctx, topic.SubscribeRequest{
		Subscription: subscribed, Start: subscription.Place{Anchor: subscription.Earliest},
		Consumer: subscription.ConsumerOptions{Name: "c", WindowBytes: 1 << 20},
	}, k)
	if err == nil {
		err = c.Flow(uint32(messages), 0)
	}
	if err != nil {
		n.w.t.Fatal(err)
	}
	defer tp.Leave(c)
	n.w.until("deliveries", time.Minute, func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.got) == messages
	})
	if messages == 0 {
		return
	}
	answer := make(chan error, 1)
	c.Ack(subscription.Ack{Positions: k.got}, func(err error) { answer <- err })
	if err := <-answer; err != nil {
		n.w.t.Fatal(err)
	}
}

// ledgers counts those of a topic that can be read, as its chain's keys say.
func (w *world) ledgers(id uint64) int {
	w.t.Helper()
	kvs, _, err := w.store.Range(context.Background(), keys.Chain(id), "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for _, kv := range kvs {
		var link metav1.ChainLink
		if err := proto.Unmarshal(kv.Value, &link); err != nil {
			w.t.Fatal(err)
		}
		if !link.GetTrimmed() {
			n++
		}
	}
	return n
}

func (w *world) idOf(name topicname.Name) uint64 {
	w.t.Helper()
	record, err := w.catalog.Topic(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return record.ID
}

// isOpen reports whether a broker has a topic open, or is opening it.
func (n *node) isOpen(name topicname.Name) bool {
	o := n.bundle(n.w.bundleOf(name))
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.topics[name] != nil
}

// handTo starts a broker and stops n in order, which hands over all it owns.
func (n *node) handTo(id string, names ...topicname.Name) *node {
	n.w.t.Helper()
	next := n.w.start(id)
	n.close()
	return next.ready(names...)
}

// TestRuleM19_UnopenedTopicIsTrimmed shows a topic that is opened by none of its
// owners after the first: what its subscription is done with is trimmed once
// retention lets it go, also by the successor of an owner that died.
func TestRuleM19_UnopenedTopicIsTrimmed(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		id := w.idOf(name)
		w.retain(10 * time.Minute)
		a.ready(name).publish(name, "p", 3)
		a.acknowledge(name, "billing", 3)
		b := a.handTo("b", name)
		time.Sleep(3 * time.Minute)
		c := w.start("c")
		b.kill()
		c.open(w.bundleOf(name))
		time.Sleep(4 * time.Minute)
		if n := w.ledgers(id); n != 1 {
			t.Fatalf("%d ledgers are left while retention keeps one", n)
		}
		time.Sleep(5 * time.Minute)
		if n := w.ledgers(id); n != 0 {
			t.Errorf("%d ledgers are left after ten minutes", n)
		}
		if c.isOpen(name) {
			t.Error("the topic was opened for that")
		}
		if s := c.publish(name, "p", 0); s.producer == nil {
			t.Error("it cannot be opened any more")
		}
		c.acknowledge(name, "billing", 0)
	})
}

// TestRuleM19_WhatIsNeededStays shows that a sweep keeps what a subscription has
// not acknowledged, what a policy keeps, and all of a topic that had no
// subscription yet.
func TestRuleM19_WhatIsNeededStays(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		behind, waiting := w.topic("behind"), w.topic("waiting")
		w.retain(0)
		a.ready(behind, waiting).publish(behind, "p", 3)
		a.acknowledge(behind, "billing", 3)
		a.acknowledge(behind, "audit", 2)
		a.publish(waiting, "p", 3)
		b := a.handTo("b", behind, waiting)
		time.Sleep(5 * time.Minute)
		for _, name := range []topicname.Name{behind, waiting} {
			if n := w.ledgers(w.idOf(name)); n != 1 || b.isOpen(name) {
				t.Errorf("%s: %d ledgers are left, open %v", name, n, b.isOpen(name))
			}
		}
		// By age nothing waits for a first subscription any more.
		w.retain(time.Minute)
		time.Sleep(5 * time.Minute)
		if n := w.ledgers(w.idOf(waiting)); n != 0 {
			t.Errorf("%d ledgers are left of what no subscription keeps", n)
		}
		if n := w.ledgers(w.idOf(behind)); n != 1 {
			t.Errorf("%d ledgers are left, one has a backlog", n)
		}
	})
}

// TestRuleM22_SweepStopsAtTheCheckpoint shows that nothing is swept past the
// producers' checkpoint as the log has it: owners died before they wrote a newer
// one, and the next to open the topic has to replay.
func TestRuleM22_SweepStopsAtTheCheckpoint(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		id := w.idOf(name)
		w.retain(5 * time.Minute)
		a.ready(name).publish(name, "p", 3)
		b := a.handTo("b", name) // with a checkpoint
		b.publish(name, "p2", 2)
		b.acknowledge(name, "billing", 5)
		c := w.start("c")
		b.kill()
		o := c.open(w.bundleOf(name))
		w.until("the topic is recovered", time.Minute, func() bool { return len(o.openTopics()) == 1 })
		d := w.start("d")
		c.kill()
		d.open(w.bundleOf(name))
		time.Sleep(10 * time.Minute)
		if n := w.ledgers(id); n != 1 || d.isOpen(name) {
			t.Errorf("%d ledgers are left, open %v; want the one after the checkpoint", n, d.isOpen(name))
		}
		if _, err := d.Broker.topic(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := w.ledgers(id); n != 0 {
			t.Errorf("%d ledgers are left after the topic wrote a checkpoint", n)
		}
	})
}

// TestRuleM19_WhatTheLogMayNotHaveIsNotSweptBy shows a topic that ended by itself
// and that nobody asks for again: it says more than is surely in the log, so it is
// opened again rather than swept.
func TestRuleM19_WhatTheLogMayNotHaveIsNotSweptBy(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		o := a.open(w.bundleOf(name))
		s := a.publish(name, "p", 3)
		for i := range 3 {
			w.bookies.At(i).OnAdd(func(add ledger.Add) ensembletest.AddFault {
				if add.Envelope.Class == ledger.Data {
					return ensembletest.AddFault{Err: ledger.ErrFenced}
				}
				return ensembletest.AddFault{}
			})
		}
		s.producer.Publish(batch("p", 3, 0))
		w.until("the topic ends", time.Minute, func() bool { return !a.isOpen(name) })
		for i := range 3 {
			w.bookies.At(i).OnAdd(nil)
		}
		if _, durable, ok := o.shelf.Peek(bundlelog.Topic{ID: w.idOf(name), Hash: name.Hash()}); durable || !ok {
			t.Errorf("on the shelf %v, durable %v", ok, durable)
		}
		w.until("it is opened again", 2*time.Minute, func() bool { return len(o.openTopics()) == 1 })
	})
}

// TestTopicIsOpenedAfterItsSweep shows that who asks for a topic, or deletes it,
// while it is being swept waits for the sweep; and that it does not wait for ever.
func TestTopicIsOpenedAfterItsSweep(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		t.Run(fmt.Sprintf("deleted %v", deleted), func(t *testing.T) {
			story(t, func(t *testing.T, w *world) {
				a := w.start("a")
				name := w.topic("orders")
				id := w.idOf(name)
				w.retain(time.Minute)
				a.ready(name).publish(name, "p", 3)
				a.acknowledge(name, "billing", 3)
				reached, open := make(chan struct{}), make(chan struct{})
				var once sync.Once
				b := a.handTo("b", name)
				w.onCall(func(c meta.Call) (f meta.Fault) {
					if c.Client == "b" && c.Kind == meta.CallTxn && strings.HasPrefix(c.Key, keys.Chain(id)) {
						once.Do(func() { close(reached); f.Until = open }) // only the sweep's is held back
					}
					return f
				})
				select {
				case <-reached:
				case <-time.After(5 * time.Minute):
					t.Fatal("the topic is not swept")
				}
				if deleted {
					if _, err := w.catalog.MarkDeleting(t.Context(), name); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Minute)
					if n := w.ledgers(id); n != 1 {
						t.Errorf("%d ledgers while the sweep is at them", n)
					}
					close(open)
					w.until("the topic is deleted", time.Minute, func() bool {
						_, err := w.catalog.Topic(context.Background(), name)
						return err != nil
					})
					return
				}
				if _, err := b.Broker.topic(t.Context(), name); err == nil {
					t.Fatal("opened while it is being swept")
				}
				close(open)
				synctest.Wait()
				if s := b.publish(name, "p", 0); s.producer == nil {
					t.Error("not opened")
				}
				if n := w.ledgers(id); n != 0 {
					t.Errorf("%d ledgers are left", n)
				}
			})
		})
	}
}

// TestSweepHasItsRate shows that however many topics are not open, a broker reads
// no more of the metadata store in a second than its rate, goes round all of them,
// and not oftener than once a minute.
func TestSweepHasItsRate(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		const topics = 3 * sweepCost
		a := w.start("a")
		w.retain(time.Hour)
		looked := map[string]int{} // by the prefix of the chain
		var last topicname.Name
		for i := range topics {
			last = w.topic(fmt.Sprint("t", i))
			looked[keys.Chain(w.idOf(last))] = 0
			a.ready(last).publish(last, "p", 1)
			a.acknowledge(last, "billing", 1)
		}
		b := a.handTo("b", last)
		w.until("all bundles are open", time.Minute, func() bool { return len(b.owned()) == catalog.DefaultBundles })
		time.Sleep(2 * topics / unclosedRate * time.Second) // what was left open by a was looked for
		var mu sync.Mutex
		reads, most := 0, 0 // in one second
		second := int64(0)
		w.onCall(func(c meta.Call) meta.Fault {
			mu.Lock()
			defer mu.Unlock()
			_, chain := looked[c.Key]
			if chain {
				looked[c.Key]++
			}
			if c.Kind == meta.CallRange && (chain || strings.HasPrefix(c.Key, keys.AllTopics())) {
				if now := time.Now().Unix(); now != second {
					second, reads = now, 0
				}
				reads++
				most = max(most, reads)
			}
			return meta.Fault{}
		})
		time.Sleep(5 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if most > sweepCost || most == 0 {
			t.Errorf("%d reads in one second, want up to %d", most, sweepCost)
		}
		for chain, n := range looked {
			if n < 4 || n > 6 {
				t.Errorf("%s was looked at %d times in five minutes", chain, n)
			}
		}
	})
}
