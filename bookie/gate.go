package bookie

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// gate lets work in until it is shut, and shuts only when nobody is inside.
type gate struct {
	mu   sync.RWMutex
	shut bool
}

// enter lets the caller in, who then calls leave; ErrStopping once shut.
func (g *gate) enter() error {
	g.mu.RLock()
	if g.shut {
		g.mu.RUnlock()
		return fmt.Errorf("bookie: %w", ledger.ErrStopping)
	}
	return nil
}

func (g *gate) leave() { g.mu.RUnlock() }

// close shuts the gate, waits until all have left, and reports whether it was
// open.
func (g *gate) close() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	open := !g.shut
	g.shut = true
	return open
}

// readBudget bounds the bytes being read at a time. A read that finds it used up
// waits its turn, holding nothing. Recovery has a budget of its own, half as large,
// so that a takeover does not wait for readers.
type readBudget struct {
	limit              int64
	ordinary, recovery *semaphore.Weighted
}

func newReadBudget(limit int64) readBudget {
	return readBudget{limit: limit, ordinary: semaphore.NewWeighted(limit), recovery: semaphore.NewWeighted(limit / 2)}
}

// acquire waits until n bytes may be read, at most limit/2; release gives them back.
func (b *readBudget) acquire(ctx context.Context, n int64, recovery bool) (release func(), err error) {
	s := b.ordinary
	if recovery {
		s = b.recovery
	}
	if err := s.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return func() { s.Release(n) }, nil
}

// budget counts bytes against a limit. Control may go half as far again, so that
// it is let in where data is not.
type budget struct {
	limit int64
	bytes atomic.Int64
}

// take reserves n bytes unless that passes the limit. Whatever its size, one is
// let in when there is nothing else.
func (b *budget) take(n int64, control bool) bool {
	limit := b.limit
	if control {
		limit += limit / 2
	}
	if now := b.bytes.Add(n); now > limit && now != n {
		b.bytes.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.bytes.Add(-n) }
