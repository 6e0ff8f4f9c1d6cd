package ensemble

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// bookieRef is what a client knows of one incarnation of a bookie, shared by all
// its writers and readers. Safe for concurrent use.
type bookieRef struct {
	member ledger.Member
	dir    Directory
	conn   atomic.Pointer[Bookie] // the connection last used; nil: ask the directory

	bytes    atomic.Int64 // bodies sent and not answered
	failedAt atomic.Int64 // time.Duration of the last failure; 0: none
	reads    latency

	mu       sync.Mutex
	minute   time.Duration // start of the minute that replaced counts
	replaced int           // times it was replaced for being slow
}

// recentFailure is how long a failed bookie comes last in every choice.
const recentFailure = time.Minute

// bookie returns the connection.
func (r *bookieRef) bookie() (Bookie, error) {
	if b := r.conn.Load(); b != nil {
		return *b, nil
	}
	b, err := r.dir.Bookie(r.member)
	if err != nil {
		return nil, err
	}
	r.conn.Store(&b)
	return b, nil
}

// noteFailure puts the bookie last for a while, and has the directory asked
// again for its connection.
func (r *bookieRef) noteFailure(now time.Duration) {
	r.failedAt.Store(int64(max(now, 1)))
	r.conn.Store(nil)
}

// failedLately reports whether it failed within the last minute.
func (r *bookieRef) failedLately(now time.Duration) bool {
	at := r.failedAt.Load()
	return at != 0 && now-time.Duration(at) < recentFailure
}

// mayReplace counts one replacement for slowness and reports whether it is
// within the bound for this minute (A10).
func (r *bookieRef) mayReplace(now time.Duration, bound int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now-r.minute >= time.Minute {
		r.minute, r.replaced = now, 0
	}
	if r.replaced >= bound {
		return false
	}
	r.replaced++
	return true
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
