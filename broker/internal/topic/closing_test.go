package topic

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
)

// bySlowLog runs a test with a topic of three entries, whose journal is a slowLog.
func bySlowLog(t *testing.T, run func(t *testing.T, x *tale)) {
	synctest.Test(t, func(t *testing.T) {
		x := newTale(t, 0)
		x.open(bundlelog.Parked{})
		x.ledger.delay = 0
		for range 3 {
			x.publish()
		}
		run(t, x)
		x.crash()
	})
}

// subscribed joins a consumer to a subscription from the first entry on.
func (x *tale) subscribed() *subscription.Consumer {
	x.t.Helper()
	var c *subscription.Consumer
	var err error
	x.work.Go(func() {
		c, _, err = x.topic.Subscribe(x.ctx, SubscribeRequest{
			Subscription: "audit", Start: subscription.Place{Anchor: subscription.Earliest},
			Consumer: subscription.ConsumerOptions{Name: "c", Instance: "i"},
		}, nobody{})
	})
	synctest.Wait()
	x.log.settle(1)
	x.work.Wait()
	if err != nil {
		x.t.Fatal(err)
	}
	return c
}

// closed closes the topic without waiting for the log, and returns its state.
func (x *tale) closed() bundlelog.Parked {
	ctx, cancel := context.WithCancel(x.t.Context())
	cancel()
	return bundlelog.Parked{Base: x.topic.Close(ctx, errors.New("moved"))}
}

// TestRuleM21_SeekThatWasNeverSent tells the story of a seek that the log was too
// busy to take before the topic was closed. The topic opened again must not go on
// in the epoch of that seek: the log has no record that begins it, and the next
// owner could not replay what came after.
func TestRuleM21_SeekThatWasNeverSent(t *testing.T) {
	bySlowLog(t, func(t *testing.T, x *tale) {
		c := x.subscribed()
		x.log.busy = true
		var sought error
		c.Subscription().Seek(subscription.Target{Mark: at(1)}, func(err error) { sought = err })
		parked := x.closed()
		if sought == nil {
			t.Fatal("a seek that the log does not hold was answered as durable")
		}
		x.log.busy = false
		x.leave()
		x.open(parked)
		x.subscribed().Ack(subscription.Ack{Positions: []subscription.Acked{{Position: at(2)}}}, nil)
		if _, err := restore(x.log.parked(pass{}), 10); err != nil {
			t.Fatalf("the next owner cannot open the topic: %v", err)
		}
	})
}

// TestRuleM21_AckRepeated tells the story of an acknowledgement that the log was
// too busy to take before the topic was closed, and that the client makes again
// when it is open again: it is answered when the log has it, and not before.
func TestRuleM21_AckRepeated(t *testing.T) {
	bySlowLog(t, func(t *testing.T, x *tale) {
		c := x.subscribed()
		x.log.busy = true
		first := subscription.Ack{Positions: []subscription.Acked{{Position: at(0)}}}
		var failed error
		c.Ack(first, func(err error) { failed = err })
		parked := x.closed()
		if failed == nil {
			t.Fatal("an acknowledgement that the log does not hold was answered as durable")
		}
		x.log.busy = false
		x.leave()
		x.open(parked)
		answered := false
		x.subscribed().Ack(first, func(error) { answered = true })
		if answered {
			t.Fatal("answered before the log has it")
		}
		if x.log.settle(1); !answered {
			t.Fatal("not answered")
		}
		state, err := restore(x.log.parked(pass{}), 10)
		if err != nil || !state.subscriptions.ByID[1].Cursor.Acked(at(0)) {
			t.Fatalf("the log does not hold what was answered: %v", err)
		}
	})
}

// TestRuleM21_SnapshotOfWhatDeliveryFound shows that an acknowledgement which the
// broker makes itself, because what is left of an entry are bits of no message,
// is not in a snapshot before it is in the log.
func TestRuleM21_SnapshotOfWhatDeliveryFound(t *testing.T) {
	bySlowLog(t, func(t *testing.T, x *tale) {
		x.subscribed().Ack(subscription.Ack{Positions: []subscription.Acked{
			{Position: at(0), Left: cursor.Bits{1 << messagesOf}},
		}}, nil)
		x.log.settle(1)
		parked := x.closed()
		x.leave()
		x.open(parked)
		x.log.busy = true
		c := x.subscribed()
		if err := c.Flow(1, 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c.Subscription().Stats().MarkDelete != at(0) {
			t.Fatal("the entry was not passed over")
		}
		c.Ack(subscription.Ack{Positions: []subscription.Acked{{Position: at(1)}}}, nil)
		x.same("closed", x.closed())
	})
}

// TestRuleM22_NoCheckpointAfterClose shows that a topic whose state has gone to the
// shelf writes nothing more, though it is still being trimmed: its checkpoint could
// come after a newer one of the topic opened again, past which all was trimmed.
func TestRuleM22_NoCheckpointAfterClose(t *testing.T) {
	bySlowLog(t, func(t *testing.T, x *tale) {
		x.subscribed().Ack(subscription.Ack{Cumulative: true, Positions: []subscription.Acked{{Position: at(2)}}}, nil)
		x.log.settle(1)
		x.log.busy = true
		parked := x.closed()
		x.log.busy = false
		taken := len(x.log.taken)
		if _, err := x.topic.Trim(t.Context(), managedledger.Retention{Age: time.Second}); err != nil {
			t.Fatal(err)
		}
		if n := len(x.log.taken) - taken; n != 0 {
			t.Errorf("%d records followed", n)
		}
		x.same("closed", parked)
	})
}
