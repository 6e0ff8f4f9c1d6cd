package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

const (
	// Attempts to open again wait between half of and the whole of a time that
	// doubles from backoffFirst up to backoffMost.
	backoffFirst = 20 * time.Millisecond
	backoffMost  = 500 * time.Millisecond
	// openTimeout bounds one attempt, from connecting to the broker's answer.
	openTimeout = 15 * time.Second
	// vainAttempts is after how many attempts in vain another one is asked for the
	// owner: who was asked may be cut off from the cluster, and not know it moved.
	vainAttempts = 8
)

// endpoint is what is attached to a broker and, when that ends, attached again:
// a producer's lane or a consumer's feed.
type endpoint interface {
	topicName() string
	// open makes one attempt at the broker at address. A *codeError says what the
	// broker answered; nil: it is attached.
	open(ctx context.Context, address string) error
}

// attach finds the owner of e's topic and opens e there, again and again until
// it is attached, ctx ends, or the answer is final. first is where to try before
// asking; empty: ask. With patient, a name that is taken is waited for: it is our
// own ghost's, or somebody will leave.
func (c *Client) attach(ctx context.Context, e endpoint, first string, patient bool) error {
	wait := backoffFirst
	var last error
	for n := 1; ; n++ {
		address, err := first, error(nil)
		first = ""
		asked := c.discovery.preferred()
		if address == "" {
			address, err = c.discovery.owner(ctx, e.topicName())
		}
		if err == nil {
			err = c.try(ctx, e, address)
		}
		var said *codeError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return errors.Join(ctx.Err(), notJust(ctx.Err(), last))
		case errors.Is(err, ErrClosed), giveUp(err):
			return err
		case errors.As(err, &said):
			if said.permanent() || !patient && errors.Is(said, ErrBusy) {
				return fmt.Errorf("topic %s: %w", e.topicName(), err)
			}
			if said.movedTo != "" && said.movedTo != address {
				first = said.movedTo
			}
		}
		last = err
		if n%vainAttempts == 0 {
			c.discovery.demote(asked)
		}
		c.log.Debug("cannot attach yet", "topic", e.topicName(), "address", address, "retryIn", wait, "error", err)
		if err := c.sleepAbout(ctx, wait); err != nil {
			return errors.Join(err, notJust(err, last))
		}
		wait = min(2*wait, backoffMost)
	}
}

// attempt is one at attaching an endpoint. Like one that is attached it follows
// the topic away from a broker that is silent, by giving up.
type attempt struct {
	e       endpoint
	address string
	began   time.Time
	giveUp  context.CancelCauseFunc
}

func (a *attempt) topicName() string { return a.e.topicName() }

func (a *attempt) stalled(now time.Time) (address string, ok bool) {
	return a.address, now.Sub(a.began) >= stallAfter
}

func (a *attempt) moveTo(_, to string) {
	a.giveUp(&codeError{code: brokerv1.Code_CODE_MOVED, movedTo: to,
		message: fmt.Sprintf("broker %s is silent, %s owns the topic", a.address, to)})
}

// try makes one attempt to attach e at address.
func (c *Client) try(ctx context.Context, e endpoint, address string) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	a := &attempt{e: e, address: address, began: time.Now(), giveUp: giveUp}
	c.mu.Lock()
	c.attempts[a] = struct{}{}
	c.mu.Unlock()
	err := e.open(ctx, address)
	c.mu.Lock()
	delete(c.attempts, a)
	c.mu.Unlock()
	var moved *codeError
	if err != nil && errors.As(context.Cause(ctx), &moved) {
		return moved
	}
	return err
}

// notJust is last, the cause that a context's end hides, unless it says no more.
func notJust(ctxErr, last error) error {
	if last == nil || errors.Is(last, ctxErr) {
		return nil
	}
	return last
}

// pause waits before trouble number n that came without success between; not
// before the first.
func (c *Client) pause(ctx context.Context, n int) error {
	if n <= 1 {
		return ctx.Err()
	}
	return c.sleepAbout(ctx, min(backoffFirst<<min(n, 10), backoffMost))
}

// sleepAbout sleeps between half of d and the whole, so that those who lost the
// same broker do not all come back at once.
func (c *Client) sleepAbout(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + time.Duration(c.rand()%uint64(d/2)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
