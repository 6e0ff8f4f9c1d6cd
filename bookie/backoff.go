package bookie

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff spaces attempts: each wait is a random part of a bound that doubles.
type backoff struct{ bound time.Duration }

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

func (b *backoff) reset() { b.bound = 0 }

// sleep waits before the next attempt, or until ctx ends.
func (b *backoff) sleep(ctx context.Context, random func() uint64) {
	b.bound = min(max(2*b.bound, minBackoff), maxBackoff)
	sleep(ctx, b.bound/2+time.Duration(rand.New(source(random)).Int64N(int64(b.bound/2))))
}

// source makes a function a rand.Source.
type source func() uint64

func (s source) Uint64() uint64 { return s() }

// sleep waits for d and reports whether it did; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
