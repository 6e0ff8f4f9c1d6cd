package bookie

import (
	"fmt"
	"sync"
	"sync/atomic"

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
