package client

import (
	"context"
	"errors"
	"sync"

	"github.com/magnetar-io/magnetar/internal/topicname"
)

// HandleOption changes Consumer.Consume.
type HandleOption func(*handleOptions)

type handleOptions struct {
	workers int
}

// Workers sets how many messages are handled at a time (1).
func Workers(n int) HandleOption { return func(o *handleOptions) { o.workers = n } }

// workerQueue is how many messages wait at each worker, at most.
const workerQueue = 64

// Consume hands each message to handle, until ctx ends or the consumer fails, and
// returns why, nil for ctx. A message whose handler returns nil is acknowledged,
// else it is given back as by Nack. Messages of one key are handled one after the
// other, in order; with one worker all messages are. When Consume returns, no
// handler runs.
func (s *Consumer) Consume(ctx context.Context, handle func(context.Context, *Received) error, opts ...HandleOption) error {
	o := handleOptions{workers: 1}
	for _, f := range opts {
		f(&o)
	}
	if o.workers < 1 {
		return errors.Join(errors.New("workers below 1"), ErrInvalid)
	}
	workers := make([]*worker, o.workers)
	var wg sync.WaitGroup
	for i := range workers {
		w := &worker{}
		w.changed.L = &w.mu
		workers[i] = w
		wg.Go(func() { w.run(ctx, handle) })
	}
	err := s.deal(ctx, workers)
	for _, w := range workers {
		w.end()
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// deal gives messages to workers: by key, those without one in turn.
func (s *Consumer) deal(ctx context.Context, workers []*worker) error {
	stop := context.AfterFunc(ctx, func() {
		for _, w := range workers {
			w.end()
		}
	})
	defer stop()
	turn := 0
	for {
		m, err := s.Receive(ctx)
		switch {
		case errors.Is(err, ErrCorrupt):
			s.c.log.Error("entry skipped", "topic", s.topic, "subscription", s.subscription, "error", err)
			continue
		case err != nil:
			return err
		}
		i := turn
		switch {
		case len(m.OrderingKey) > 0:
			i = int(topicname.KeyHash(m.OrderingKey)) % len(workers)
		case m.Key != "":
			i = int(topicname.KeyHash([]byte(m.Key))) % len(workers)
		default:
			turn = (turn + 1) % len(workers)
		}
		workers[i].put(m)
	}
}

// worker handles the messages of some keys.
type worker struct {
	mu      sync.Mutex
	changed sync.Cond
	waiting []*Received // at most workerQueue
	ended   bool
}

// put waits for room. After end the message is given back.
func (w *worker) put(m *Received) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.waiting) >= workerQueue && !w.ended {
		w.changed.Wait()
	}
	if w.ended {
		m.Nack()
		return
	}
	w.waiting = append(w.waiting, m)
	w.changed.Broadcast()
}

func (w *worker) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.changed.Broadcast()
}

// run handles what waits, all of it at a time, until the end. What waits when ctx
// ends is given back.
func (w *worker) run(ctx context.Context, handle func(context.Context, *Received) error) {
	for {
		w.mu.Lock()
		for len(w.waiting) == 0 && !w.ended {
			w.changed.Wait()
		}
		batch, ended := w.waiting, w.ended
		w.waiting = nil
		w.changed.Broadcast()
		w.mu.Unlock()
		for _, m := range batch {
			if ended || ctx.Err() != nil || handle(ctx, m) != nil {
				m.Nack()
			} else {
				m.AckAsync()
			}
		}
		if ended {
			return
		}
	}
}
