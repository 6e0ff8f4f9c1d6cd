package topic

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
)

// TestRuleM19_NeedsOfAnUnopenedTopic shows that what a topic's parked state says
// it needs, as records and as a snapshot, is what the topic would say if it were
// opened; and that it is nothing where the topic would trim nothing.
func TestRuleM19_NeedsOfAnUnopenedTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		byAge := managedledger.Retention{Bytes: -1, Age: time.Hour}
		check := func(want position.Position, some bool, r managedledger.Retention, known ...position.Position) {
			t.Helper()
			synctest.Wait()
			var base []byte
			b.topic.Snapshot(func(s []byte) { base = slices.Clone(s) })
			open := b.topic
			b.open()
			opened := b.topic.keepFrom()
			b.topic.Close(t.Context(), errors.New("end"))
			b.topic = open
			for name, parked := range map[string]bundlelog.Parked{"records": b.disk.parked(), "snapshot": {Base: base}} {
				needs, got, err := NeedsOf(parked, r)
				if err != nil || got != some || needs.From != want {
					t.Errorf("%s: %+v, %v, %v; want %v, %v", name, needs, got, err, want, some)
				}
				slices.SortFunc(needs.Known, position.Position.Compare)
				if !slices.Equal(needs.Known, known) {
					t.Errorf("%s: knows of %v, want %v", name, needs.Known, known)
				}
			}
			if opened != want {
				t.Errorf("the topic itself needs %v, want %v", opened, want)
			}
		}
		checkpoint := func() {
			b.topic.mu.Lock()
			defer b.topic.mu.Unlock()
			b.topic.checkpointLocked(true)
		}
		h := b.producer("p", 0)
		for n := range uint64(10) {
			h.producer.Publish(batch("p", n, n))
		}
		b.ledger.settle(10, nil, true)
		checkpoint()
		check(at(10), true, byAge, at(9))
		check(at(10), false, managedledger.Retention{}, at(9))                   // all waits for the first subscription
		check(at(10), false, managedledger.Retention{Bytes: -1, Age: -1}, at(9)) // for ever
		for _, name := range []string{"audit", "billing"} {
			if _, _, err := b.topic.Subscribe(t.Context(), SubscribeRequest{Subscription: name}, nobody{}); err != nil {
				t.Fatal(err)
			}
		}
		check(at(10), true, managedledger.Retention{}, at(9), at(9), at(9))
		if _, err := b.topic.Seek(t.Context(), "billing", subscription.Place{Anchor: subscription.At, Position: at(6)}); err != nil {
			t.Fatal(err)
		}
		check(at(6), true, managedledger.Retention{}, at(5), at(9), at(9))
		if _, err := b.topic.Seek(t.Context(), "audit", subscription.Place{Anchor: subscription.Earliest}); err != nil {
			t.Fatal(err)
		}
		check(position.Start, false, byAge, position.Start, at(5), at(9))
		b.topic.Close(t.Context(), errors.New("end"))
	})
}

// Shows that the checkpoint is a bound of its own, that a topic without one lets go
// of nothing, and that broken state is told.
func TestRuleM19_NeedsWithoutACheckpoint(t *testing.T) {
	r := managedledger.Retention{Bytes: -1, Age: time.Hour}
	if needs, some, err := NeedsOf(bundlelog.Parked{}, r); err != nil || some || !needs.From.IsStart() {
		t.Errorf("no state: %+v, %v, %v", needs, some, err)
	}
	for name, records := range map[string][]bundlelog.Record{
		"checkpoint":   {{Kind: uint8(kindProducers), Data: []byte{1}}},
		"subscription": {{Kind: uint8(subscription.KindCreate), Data: []byte{1, 1}}},
		"kind":         {{Kind: 99, Data: []byte{1, 1}}},
	} {
		if _, some, err := NeedsOf(bundlelog.Parked{Records: records}, r); err == nil || some {
			t.Errorf("broken %s: %v, %v", name, some, err)
		}
	}
}
