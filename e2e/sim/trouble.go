package sim

import (
	"strings"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
)

// metaTrouble is what befalls calls on the metadata store.
type metaTrouble struct {
	c    *cluster
	rand *chance

	mu    sync.Mutex
	lost  int           // of a hundred calls, how many answers are lost
	slow  time.Duration // calls take up to so much longer
	watch time.Duration // watches are so much behind
}

func (t *metaTrouble) set(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

// befalls is asked about every call of every client.
func (t *metaTrouble) befalls(call meta.Call) meta.Fault {
	name, _, _ := strings.Cut(call.Client, "/")
	var f meta.Fault
	if h := t.c.host(name); h != nil {
		f.Until = h.standstill()
	}
	t.mu.Lock()
	lost, slow, watch := t.lost, t.slow, t.watch
	t.mu.Unlock()
	switch {
	case call.Kind == meta.CallDeliver:
		f.Delay = watch
		return f
	case slow > 0:
		d := time.Duration(t.rand.Uint64() % uint64(slow))
		if t.rand.once(2) {
			f.Delay = d
		} else {
			f.AnswerDelay = d
		}
	}
	if lost > 0 && t.rand.n(100) < lost {
		t.c.counts.add("metadata answers lost", 1)
		f.Lost = true
	}
	return f
}
