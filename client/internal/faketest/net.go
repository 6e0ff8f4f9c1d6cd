package faketest

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/test/bufconn"
)

// pipeListener is a listener in memory whose connections can be cut.
type pipeListener struct {
	*bufconn.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func newPipeListener() *pipeListener { return &pipeListener{Listener: bufconn.Listen(256 << 10)} }

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	c, err := l.Listener.DialContext(ctx)
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

// cutAll closes the clients' ends; what was under way in either direction is lost.
func (l *pipeListener) cutAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// outbox queues what a stream has to send for its one sender.
type outbox[T any] struct {
	mu     sync.Mutex
	queue  []T
	wake   chan struct{}
	closed bool
}

func newOutbox[T any]() *outbox[T] { return &outbox[T]{wake: make(chan struct{}, 1)} }

func (o *outbox[T]) put(m T) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.queue = append(o.queue, m)
		select {
		case o.wake <- struct{}{}:
		default:
		}
	}
}

// run sends what is queued, each after its delay, until ctx ends.
func (o *outbox[T]) run(ctx context.Context, delay func() time.Duration, send func(T) error) {
	for {
		select {
		case <-ctx.Done():
			o.mu.Lock()
			o.closed, o.queue = true, nil
			o.mu.Unlock()
			return
		case <-o.wake:
		}
		o.mu.Lock()
		queue := o.queue
		o.queue = nil
		o.mu.Unlock()
		for _, m := range queue {
			if d := delay(); d > 0 {
				select {
				case <-time.After(d):
				case <-ctx.Done():
				}
			}
			if send(m) != nil {
				break
			}
		}
	}
}
