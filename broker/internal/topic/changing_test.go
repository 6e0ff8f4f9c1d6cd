package topic

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/magnetar-io/magnetar/broker/internal/subscription"
)

// ask has somebody ask for something that may wait; answered reports, once nothing
// moves any more, whether there is an answer, and which.
func (x *tale) ask(call func(context.Context) error) (answered func() (bool, error)) {
	answer := make(chan error, 1)
	x.work.Go(func() { answer <- call(x.ctx) })
	return func() (bool, error) {
		synctest.Wait()
		select {
		case err := <-answer:
			return true, err
		default:
			return false, nil
		}
	}
}

// create has somebody ask for subscription "audit" who gives up before the log has
// it.
func (x *tale) create() {
	x.t.Helper()
	ctx, giveUp := context.WithCancel(x.ctx)
	subscribed := x.ask(func(context.Context) error {
		_, _, err := x.topic.Subscribe(ctx, SubscribeRequest{Subscription: "audit"}, nobody{})
		return err
	})
	synctest.Wait()
	giveUp()
	if _, err := subscribed(); !errors.Is(err, context.Canceled) {
		x.t.Fatalf("subscribe: %v", err)
	}
}

// TestSubscriptionThatIsBeingCreatedIsNotAbsent shows that who seeks or deletes a
// subscription whose creation the log has not answered yet waits for it, and is not
// told that there is none.
func TestSubscriptionThatIsBeingCreatedIsNotAbsent(t *testing.T) {
	for name, call := range map[string]func(context.Context, *Topic) error{
		"seek": func(ctx context.Context, t *Topic) error {
			_, err := t.Seek(ctx, "audit", subscription.Place{Anchor: subscription.Earliest})
			return err
		},
		"delete": func(ctx context.Context, t *Topic) error { return t.DeleteSubscription(ctx, "audit", false) },
	} {
		t.Run(name, func(t *testing.T) {
			bySlowLog(t, func(t *testing.T, x *tale) {
				x.create()
				answered := x.ask(func(ctx context.Context) error { return call(ctx, x.topic) })
				if is, err := answered(); is {
					t.Fatalf("answered %v while it is not known", err)
				}
				x.log.settle(1) // it exists
				synctest.Wait()
				x.log.settle(1)
				if is, err := answered(); !is || err != nil {
					t.Errorf("answered %v: %v", is, err)
				}
			})
		})
	}
}

// TestDeletedSubscriptionIsGoneForAll shows that nobody is told that a subscription
// is gone before the log has its end: neither who deletes it too, nor who asks for
// it; and where the log ends first, that all hear that this is not known.
func TestDeletedSubscriptionIsGoneForAll(t *testing.T) {
	for _, lost := range []bool{false, true} {
		bySlowLog(t, func(t *testing.T, x *tale) {
			c := x.subscribed()
			deletes := func(ctx context.Context) error { return x.topic.DeleteSubscription(ctx, "audit", true) }
			first := x.ask(deletes)
			synctest.Wait()
			asks := map[string]func() (bool, error){
				"delete":      x.ask(deletes),
				"unsubscribe": x.ask(func(ctx context.Context) error { return x.topic.Unsubscribe(ctx, c) }),
				"seek": x.ask(func(ctx context.Context) error {
					_, err := x.topic.Seek(ctx, "audit", subscription.Place{})
					return err
				}),
				"join": x.ask(func(ctx context.Context) error {
					_, _, err := x.topic.Subscribe(ctx, SubscribeRequest{Subscription: "audit", MustExist: true}, nobody{})
					return err
				}),
			}
			for name, answered := range asks {
				if is, err := answered(); is {
					t.Fatalf("%s: answered %v while it is not known", name, err)
				}
			}
			if lost {
				x.log.end()
			} else {
				x.log.settle(1)
			}
			if is, err := first(); !is || lost != (err != nil) {
				t.Errorf("the first delete: answered %v: %v", is, err)
			}
			for name, answered := range asks {
				is, err := answered()
				switch absent := errors.Is(err, ErrNoSubscription); {
				case !is:
					t.Errorf("%s: not answered", name)
				case lost && (err == nil || absent):
					t.Errorf("%s: answered %v, it is not known", name, err)
				case !lost && name == "unsubscribe" && err != nil:
					t.Errorf("%s: answered %v", name, err)
				case !lost && name != "unsubscribe" && !absent:
					t.Errorf("%s: answered %v", name, err)
				}
			}
		})
	}
}
