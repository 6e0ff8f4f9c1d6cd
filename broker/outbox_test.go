package broker

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// TestOutboxKeepsOrder shows that events of each putter arrive in order, all of
// them, whatever is queued while the sender is busy.
func TestOutboxKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const putters, each = 4, 500
		o := newOutbox[[2]int]()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for p := range putters {
			wg.Go(func() {
				for i := range each {
					o.put([2]int{p, i})
				}
			})
		}
		next, total := map[int]int{}, 0
		err := o.run(ctx, func(events [][2]int) error {
			for _, e := range events {
				if next[e[0]] != e[1] {
					t.Errorf("putter %d: got event %d, want %d", e[0], e[1], next[e[0]])
				}
				next[e[0]]++
				total++
			}
			if total == putters*each {
				cancel()
			}
			return nil
		})
		wg.Wait()
		if !errors.Is(err, context.Canceled) || total != putters*each {
			t.Fatalf("got %d events, %v", total, err)
		}
		o.put([2]int{}) // nobody listens any more
		if len(o.queue) != 0 {
			t.Error("an event was kept after the end")
		}
	})
}

// TestOutboxIsBounded shows that a client which never reads ends its stream
// rather than fill the memory.
func TestOutboxIsBounded(t *testing.T) {
	o := newOutbox[int]()
	for i := range maxOutbox + 10 {
		o.put(i)
	}
	if len(o.queue) != maxOutbox {
		t.Errorf("%d events are queued, want %d", len(o.queue), maxOutbox)
	}
	if err := o.run(t.Context(), func([]int) error { return nil }); !errors.Is(err, errOutboxFull) {
		t.Errorf("got %v", err)
	}
}
