package client

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// Attempts to open again wait between half of and the whole of a time that
	// doubles from backoffFirst up to backoffMost.
	backoffFirst = 20 * time.Millisecond
	backoffMost  = 500 * time.Millisecond
	// openTimeout bounds one attempt, from connecting to the broker's answer.
	openTimeout = 15 * time.Second
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
	for {
		address, err := first, error(nil)
		first = ""
		if address == "" {
			address, err = c.discovery.owner(ctx, e.topicName())
		}
		if err == nil {
			attempt, cancel := context.WithTimeout(ctx, openTimeout)
			err = e.open(attempt, address)
			cancel()
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
		c.log.Debug("cannot attach yet", "topic", e.topicName(), "address", address, "retryIn", wait, "error", err)
		if err := c.sleepAbout(ctx, wait); err != nil {
			return errors.Join(err, notJust(err, last))
		}
		wait = min(2*wait, backoffMost)
	}
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
