package broker

import (
	"context"
	"errors"
	"sync"
)

// maxOutbox bounds the events a stream may have waiting. Receipts and
// deliveries are bounded by the windows granted; what is left are answers to
// requests, and a client that sends thousands without reading is broken.
const maxOutbox = 1 << 16

// errOutboxFull reports a client that asks without reading the answers.
var errOutboxFull = errors.New("too many unread answers on the stream")

// outbox queues what a stream has to send, in order, for the stream's one
// sender. put never blocks, so topics and subscriptions may call it from their
// own goroutines. Safe for concurrent use.
type outbox[T any] struct {
	mu     sync.Mutex
	queue  []T
	full   bool
	wake   chan struct{} // buffered by one: there is something to do
	spare  []T           // the slice the sender emptied last
	closed bool
}

func newOutbox[T any]() *outbox[T] { return &outbox[T]{wake: make(chan struct{}, 1)} }

// put queues one event; after close it is dropped, since nobody is left to hear.
func (o *outbox[T]) put(event T) {
	o.mu.Lock()
	switch {
	case o.closed:
	case len(o.queue) >= maxOutbox:
		o.full = true
	default:
		o.queue = append(o.queue, event)
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run hands all that is queued to send, again and again, until ctx ends or
// send fails. The slice is send's only until it returns.
func (o *outbox[T]) run(ctx context.Context, send func([]T) error) error {
	defer o.close()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.wake:
		}
		o.mu.Lock()
		events, full := o.queue, o.full
		o.queue, o.spare = o.spare[:0], nil
		o.mu.Unlock()
		if full {
			return errOutboxFull
		}
		if len(events) > 0 {
			if err := send(events); err != nil {
				return err
			}
		}
		clear(events) // let go of payloads
		o.mu.Lock()
		o.spare = events
		o.mu.Unlock()
	}
}

func (o *outbox[T]) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.queue, o.spare = true, nil, nil
}
