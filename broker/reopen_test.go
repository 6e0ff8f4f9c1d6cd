package broker

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
)

// nobody is a consumer's end that takes everything.
type nobody struct{}

func (nobody) Deliver(uint64, []subscription.Delivery) {}
func (nobody) Active(bool)                             {}
func (nobody) Closed(error)                            {}
func (nobody) Alive() bool                             { return true }

// TestTopicOpensAfterAnOpenThatFailed shows a topic whose first open fails on its
// new owner, because bookies cannot be read for a while: the next open finds all
// that the log holds of it, and a snapshot that was asked for meanwhile is given.
func TestTopicOpensAfterAnOpenThatFailed(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		bd := w.bundleOf(name)
		a.open(bd)
		a.publish(name, "p", 10)
		at, err := a.Broker.topic(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := at.Subscribe(t.Context(), topic.SubscribeRequest{Subscription: "billing", Consumer: subscription.ConsumerOptions{Name: "c"}}, nobody{}); err != nil {
			t.Fatal(err)
		}
		a.publish(name, "q", 1) // after the checkpoint, if there was one
		b := w.start("b")
		var healed atomic.Bool
		var asked, given atomic.Int32
		for i := range 3 {
			w.bookies.At(i).OnRead(func(r ledger.ReadRequest) error {
				o := b.bundle(bd)
				if healed.Load() || o == nil || r.HeadBytes == 0 || r.First == r.Last {
					return nil // the log and the last entry can be read, the heads to replay cannot
				}
				if asked.CompareAndSwap(0, 1) {
					o.shelf.Snapshot(bundlelog.Topic{ID: at.ID(), Hash: name.Hash()}, func(p *bundlelog.Parked) {
						if p != nil {
							given.Add(1)
						}
					})
				}
				return ensembletest.ErrDown
			})
		}
		a.kill()
		b.open(bd)
		ctx := t.Context()
		if _, err := b.Broker.topic(ctx, name); err == nil {
			t.Fatal("opened while no bookie can be read")
		}
		synctest.Wait()
		if asked.Load() != 1 || given.Load() != 1 {
			t.Errorf("snapshots asked for %d, given %d", asked.Load(), given.Load())
		}
		healed.Store(true)
		var bt *topic.Topic
		w.until("the topic opens", 2*time.Minute, func() bool {
			bt, err = b.Broker.topic(ctx, name)
			return err == nil || errors.Is(err, ledger.ErrCorrupt)
		})
		if err != nil {
			t.Fatal(err)
		}
		if st := bt.Stats(ctx); st.Ledger.Messages != 11 || len(st.Subscriptions) != 1 {
			t.Errorf("%d messages, %d subscriptions", st.Ledger.Messages, len(st.Subscriptions))
		}
	})
}
