package meta

import (
	"context"
	"fmt"
	"time"
)

const (
	// probeEvery is how often Probe asks; probeTimeout how long an answer may take.
	probeEvery   = 2 * time.Second
	probeTimeout = 5 * time.Second
)

// Probe asks a store for one key every two seconds until ctx ends, and tells
// whether it answers: at first, and at each change after that. told gets nil, or
// why there was no answer within five seconds; it is called by this goroutine.
//
// Reads are linearizable, so an answer means more than a connection: of a store of
// several members, a majority is there. Errors of the requests that a process
// makes anyway would not do in its place: one that is idle makes none.
func Probe(ctx context.Context, s Store, told func(err error)) {
	began, answered := false, false
	for {
		asking, cancel := context.WithTimeout(ctx, probeTimeout)
		_, err := s.Get(asking, "/magnetar")
		cancel()
		if ctx.Err() != nil {
			return
		}
		if ok := err == nil; !began || ok != answered {
			if err != nil {
				err = fmt.Errorf("no answer since %s: %w", time.Now().UTC().Format(time.RFC3339), err)
			}
			told(err)
			began, answered = true, ok
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(probeEvery):
		}
	}
}
