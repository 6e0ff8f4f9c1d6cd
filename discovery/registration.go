package discovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// RegisterOptions say which broker is registered and how.
type RegisterOptions struct {
	Store  meta.Store
	Layout layout.Layout
	// TTL is how long the broker stays listed after it was last heard of; 0:
	// DefaultLease.
	TTL time.Duration

	ID          string // unique in the cluster; a restart keeps it
	Address     string // where clients reach it
	HTTPAddress string
	Version     string
	// LargestEntryBytes is the largest body it may write, for people to see; 0: not known.
	LargestEntryBytes uint64

	// OnEnded is called when another broker has ended this one's session, on proof
	// that it is gone. It has to drop all bundles, and returns when none is served
	// any more or will be. nil: nothing is to be dropped.
	OnEnded func()

	Log  hclog.Logger     // nil: none
	Now  func() time.Time // nil: time.Now; its value is stored
	Rand func() uint64    // nil: math/rand/v2
}

// Registration keeps a broker's record alive under a session.
//
// A session that lapsed, because this process or the store was away for too
// long, is replaced at once, and nothing need be given up for it (M5). A session
// that another broker ended is over for good (M6): all bundles are dropped, and
// the broker is listed again only after a pause that doubles each time. So two
// healthy brokers that cannot see each other do not end each other for ever.
type Registration struct {
	opts RegisterOptions
	log  hclog.Logger
	key  string

	ctx     context.Context // of the goroutine
	cancel  context.CancelFunc
	stopped chan struct{}
	abandon atomic.Bool // leave the session's key to its lease
	ready   chan struct{}

	mu      sync.Mutex
	session string    // "": was ended by another, and not begun again
	cond    meta.Cond // on the session's key
	changed chan struct{}
}

const (
	// DefaultLease of a session.
	DefaultLease = 5 * time.Second
	// firstExile is how long a broker stays away whose session was ended; up to as
	// much again is added by chance.
	firstExile = 10 * time.Second
	maxExile   = 10 * time.Minute
	// pardon is how long a session must last for the exile to start over.
	pardon = 10 * time.Minute

	firstPause = 50 * time.Millisecond
	maxPause   = 2 * time.Second
)

// Register begins to keep a broker registered and returns once it is, or when
// ctx ends. Close ends it.
func Register(ctx context.Context, o RegisterOptions) (*Registration, error) {
	if o.TTL == 0 {
		o.TTL = DefaultLease
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	r := &Registration{
		opts: o, log: o.Log, key: o.Layout.Broker(o.ID),
		changed: make(chan struct{}), stopped: make(chan struct{}), ready: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	go r.run()
	select {
	case <-r.ready:
		return r, nil
	case <-ctx.Done():
		r.cancel()
		<-r.stopped
		return nil, fmt.Errorf("register broker %s: %w: %w", o.ID, meta.ErrUnavailable, ctx.Err())
	}
}

// Session returns the session the broker is registered under, or was last when
// it lapsed; "" after another broker has ended it.
func (r *Registration) Session() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.session
}

// Cond holds as long as the key of Session stands as it was written. It belongs
// in every transaction made as owner (M1).
func (r *Registration) Cond() meta.Cond {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cond
}

// Changed is closed when Session next changes. Take it before Session.
func (r *Registration) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *Registration) set(session string, cond meta.Cond) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session, r.cond = session, cond
	close(r.changed)
	r.changed = make(chan struct{})
}

// Close takes the broker's record away and waits until that is done, or ctx
// ends; the rest is left to the lease.
func (r *Registration) Close(ctx context.Context) error {
	r.cancel()
	select {
	case <-r.stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("take away the registration of broker %s: %w", r.opts.ID, ctx.Err())
	}
}

// Abandon ends the registration as the death of the process would: the record
// stays until its lease has run out.
func (r *Registration) Abandon() {
	r.abandon.Store(true)
	r.cancel()
	<-r.stopped
}

// run keeps the broker registered until it is closed.
func (r *Registration) run() {
	defer close(r.stopped)
	pause, exile := firstPause, firstExile
	for r.ctx.Err() == nil {
		began := time.Now()
		ended, err := r.keep(r.ctx)
		var wait time.Duration
		switch {
		case r.ctx.Err() != nil:
			return
		case ended:
			if time.Since(began) > pardon {
				exile = firstExile
			}
			wait = exile + time.Duration(r.opts.Rand()%uint64(exile))
			exile, pause = min(2*exile, maxExile), firstPause
			r.log.Error("another broker has ended this one's session; all bundles are dropped", "broker", r.opts.ID, "away", wait)
			r.set("", r.Cond())
			if r.opts.OnEnded != nil {
				r.opts.OnEnded()
			}
		case err == nil:
			r.log.Warn("session lapsed, registering anew", "broker", r.opts.ID)
			pause = firstPause
		default:
			r.log.Warn("not registered, trying again", "broker", r.opts.ID, "error", err)
			wait = pause
			pause = min(2*pause, maxPause)
		}
		select {
		case <-time.After(wait):
		case <-r.ctx.Done():
		}
	}
}

// keep registers under one session and stays until it is over: by itself
// (false, nil), ended by another (true, nil), or never begun (an error).
func (r *Registration) keep(ctx context.Context) (ended bool, err error) {
	session, err := r.opts.Store.NewSession(ctx, r.opts.TTL)
	if err != nil {
		return false, fmt.Errorf("start a session: %w", err)
	}
	defer r.close(session)
	at, err := r.register(ctx, session)
	if err != nil {
		return false, err
	}
	r.log.Info("registered", "broker", r.opts.ID, "session", session.ID())
	r.set(session.ID(), meta.Cond{Key: r.key, Revision: at})
	select {
	case <-r.ready:
	default:
		close(r.ready)
	}
	watching, stop := context.WithCancel(ctx)
	taken := make(chan bool, 1)
	var wg sync.WaitGroup
	wg.Go(func() { taken <- r.watchTaken(watching, at) })
	defer wg.Wait()
	defer stop()
	select {
	case <-session.Ended():
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	case <-taken:
	}
	// The key is gone: with its lease, or without.
	select {
	case <-session.Ended():
		return false, nil
	case <-time.After(r.opts.TTL / 2): // the session renews each third of its lease
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// register writes the record, in place of one that an earlier process of this
// id left, and returns its revision.
func (r *Registration) register(ctx context.Context, session meta.Session) (meta.Revision, error) {
	value, err := proto.Marshal(metav1.Broker_builder{
		Session:     proto.String(session.ID()),
		Address:     proto.String(r.opts.Address),
		HttpAddress: proto.String(r.opts.HTTPAddress),
		Pid:         proto.Int64(int64(os.Getpid())),
		Version:     proto.String(r.opts.Version),
		StartedAtMs: proto.Int64(r.opts.Now().UnixMilli()),

		LargestEntryBytes: proto.Uint64(r.opts.LargestEntryBytes),
	}.Build())
	if err != nil {
		return 0, fmt.Errorf("encode the broker's record: %w", err)
	}
	for {
		kv, err := r.opts.Store.Get(ctx, r.key)
		if err != nil {
			return 0, err
		}
		if old, err := decodeBroker(r.opts.ID, kv); kv.Exists() && err == nil {
			if old.Session == session.ID() { // an answer was lost
				return kv.Revision, nil
			}
			r.log.Info("replacing the record of an earlier process", "session", old.Session, "address", old.Address)
		}
		result, err := r.opts.Store.Txn(ctx, meta.Txn{
			Conds: []meta.Cond{{Key: r.key, Revision: kv.Revision}},
			Ops:   []meta.Op{{Key: r.key, Value: value, Session: session}},
		})
		switch {
		case err == nil && result.Done:
			return result.Revision, nil
		case err != nil && !errors.Is(err, meta.ErrUncertain):
			return 0, err
		}
	}
}

// watchTaken returns true once the key is no longer as it was written at
// revision at, false when ctx ends.
func (r *Registration) watchTaken(ctx context.Context, at meta.Revision) bool {
	for {
		kv, err := r.opts.Store.Get(ctx, r.key)
		if err == nil && kv.Revision != at {
			return true
		}
		if err == nil && r.seesChange(ctx, at) {
			return true
		}
		select {
		case <-time.After(r.opts.TTL / 10):
		case <-ctx.Done():
			return false
		}
	}
}

// seesChange watches the key until it changes or the watch fails.
func (r *Registration) seesChange(ctx context.Context, at meta.Revision) bool {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w := r.opts.Store.Watch(ctx, r.key, at)
	for {
		b, err := w.Next()
		if err != nil {
			return false
		}
		for _, e := range b.Events {
			if e.Key == r.key { // else an id that begins with ours
				return true
			}
		}
	}
}

// close takes the record away at once instead of letting it lapse. It has a
// context of its own because the caller's is over.
func (r *Registration) close(session meta.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if r.abandon.Load() {
		cancel() // the session is no longer renewed, but not revoked either
	}
	if err := session.Close(ctx); err != nil {
		r.log.Debug("session not closed, it will lapse", "session", session.ID(), "error", err)
	}
}
