package ensemble

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// ErrConflict reports that a condition the caller gave (a guard, or one of the
// extra conditions) did not hold. Nothing was written.
var ErrConflict = errors.New("ensemble: a condition of the caller no longer holds")

// Client creates, opens, recovers and deletes ledgers. Safe for concurrent use.
type Client struct {
	opts  Options
	log   hclog.Logger
	met   *Metrics
	start time.Time // the zero of every time.Duration the cores see

	held    atomic.Int64 // bodies in the windows of all writers
	lagging atomic.Int64 // those of them that are acknowledged
	calls   sync.Pool    // of *addCall

	readCount  atomic.Int64 // reads sent to a first bookie
	hedgeCount atomic.Int64 // reads sent to a further one because the first was slow

	repairs chan struct{} // one token per repair under way

	ctx    context.Context // of the background work
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closing bool       // no new writers
	closed  bool       // no new background work
	writers map[*Writer]struct{}
	refs    map[ledger.Member]*bookieRef
}

// New returns a client; the error lists every fault of the options.
func New(opts Options) (*Client, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	c := &Client{
		opts:    opts,
		log:     opts.Log.Named("ensemble"),
		met:     opts.Metrics,
		start:   time.Now(),
		writers: make(map[*Writer]struct{}),
		refs:    make(map[ledger.Member]*bookieRef),
		repairs: make(chan struct{}, maxRepairs),
	}
	c.calls.New = func() any { return newAddCall() }
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close stops the client's background work and waits for it. Writers still open
// are abandoned first, for what they have to say to the application is background
// work too: never said from within a call of the application's.
func (c *Client) Close() {
	c.mu.Lock()
	c.closing = true
	writers := make([]*Writer, 0, len(c.writers))
	for w := range c.writers {
		writers = append(writers, w)
	}
	c.mu.Unlock()
	for _, w := range writers {
		w.Abandon()
	}
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// background runs f as work that Close waits for; false: the client is closed,
// and f will not run.
func (c *Client) background(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// forget drops a writer that is done.
func (c *Client) forget(w *Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.writers, w)
}

// now is the time the cores see.
func (c *Client) now() time.Duration { return time.Since(c.start) }

// stamp is the wall clock as records keep it.
func (c *Client) stamp() time.Time { return time.UnixMilli(c.opts.Now().UnixMilli()).UTC() }

// maxIdleRefs bounds how many bookies are remembered before those without
// traffic are forgotten.
const maxIdleRefs = 1024

// ref returns what is known of a bookie.
func (c *Client) ref(m ledger.Member) *bookieRef {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.refs[m]
	if r == nil {
		if len(c.refs) >= maxIdleRefs {
			for k, old := range c.refs {
				if old.bytes.Load() == 0 {
					delete(c.refs, k)
				}
			}
		}
		r = &bookieRef{member: m, dir: c.opts.Directory}
		c.refs[m] = r
	}
	return r
}

// placer returns a chooser over the bookies alive now.
func (c *Client) placer(class ledger.Class) *placer {
	now := c.now()
	return &placer{
		candidates: c.opts.Directory.Candidates(),
		class:      class,
		bodyBytes:  c.largestBody(class),
		remedy:     remedyBefore,
		rand:       c.opts.Rand,
		avoid:      func(m ledger.Member) bool { return c.ref(m).failedLately(now) },
		mayReplaceSlow: func(m ledger.Member) bool {
			return c.ref(m).mayReplace(now, c.opts.SuspectChanges)
		},
	}
}

// OutOfRoom reports whether too few bookies take adds of a class for a ledger of
// quorum q, although enough are alive: their disks are full.
func (c *Client) OutOfRoom(class ledger.Class, q ledger.Quorum) bool {
	p := c.placer(class)
	return p.count(p.hasRoom) < q.Ack && len(p.candidates) >= q.Ack
}

// largestBody is the demand on the bookies of a ledger of that class.
func (c *Client) largestBody(class ledger.Class) int64 {
	if class == ledger.Control {
		return 0
	}
	return c.opts.MaxBodyBytes
}

// TooSmall says why no ledger of a class and quorum q can be had for want of
// bookies that take the largest bodies, although enough are alive and have room:
// nothing but an operator mends that, so waiting is no answer. nil: it is not so.
func (c *Client) TooSmall(class ledger.Class, q ledger.Quorum) error {
	if c.largestBody(class) == 0 {
		return nil
	}
	p := c.placer(class)
	if p.writable() >= q.Ack || p.count(p.hasRoom) < q.Ack {
		return nil
	}
	return p.missing(q)
}

// reserve takes n bytes of the budget for bodies.
func (c *Client) reserve(n int64) bool {
	if c.held.Add(n) > c.opts.BudgetBytes {
		c.held.Add(-n)
		return false
	}
	return true
}

// opCtx returns a context that also ends when the client closes.
func (c *Client) opCtx(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(fmt.Errorf("client closed: %w", ledger.ErrStopping)) })
	return ctx, func() { stop(); cancel(nil) }
}
