package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// stallAfter is how long publishing may stand still before a person is told why.
const stallAfter = 5 * time.Second

// stall watches work that stands still, for which there is no error while the
// cluster may still recover, and tells on stderr what is wrong with the cluster:
// once, and again when that changed.
type stall struct {
	app  *app
	done func() int // how much is done; it grows while all is well

	said string
}

// watch looks once a second until the function it returns is called or ctx ends.
// waiting reports whether anything is left to do.
func (s *stall) watch(ctx context.Context, waiting func() bool) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		last, since := s.done(), time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			if now := s.done(); now != last || !waiting() {
				last, since = now, time.Now()
				continue
			}
			if time.Since(since) >= stallAfter {
				s.tell(ctx, time.Since(since))
			}
		}
	})
	return func() { cancel(); running.Wait() }
}

func (s *stall) tell(ctx context.Context, since time.Duration) {
	why := "'magnetar cluster health' finds nothing wrong"
	err := s.app.ask(ctx, func(ctx context.Context, q *asker) error {
		v, err := q.examine(ctx)
		if err == nil && !v.Healthy {
			why = strings.Join(v.Problems, " ")
		}
		return err
	})
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		why = plain(err)
	}
	if why != s.said {
		s.said = why
		fmt.Fprintf(s.app.err, "magnetar: waiting, nothing was acknowledged for %s: %s\n", since.Round(time.Second), why)
	}
}
