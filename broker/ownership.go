package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/discovery"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// lookAgain is how often ownership is looked at though nothing changed: time
// alone makes an owner's session old enough to be taken over.
const lookAgain = 500 * time.Millisecond

// ownership takes bundles and gives them up, as discovery.Decide says.
//
// One goroutine, loop, decides; each bundle that it takes or gives up is dealt
// with on a goroutine of its own, so that one slow log keeps nobody waiting.
type ownership struct {
	b            *Broker
	registration *discovery.Registration // nil before start

	wake chan struct{} // buffered by one
	loop sync.WaitGroup

	mu     sync.Mutex
	moving map[bundle.Bundle]bool // being taken or given up
	// given is the revision at which this broker last wrote another one into an
	// owner record: what the view still shows from before says nothing.
	given   map[bundle.Bundle]meta.Revision
	leaving bool
	work    sync.WaitGroup // what moving stands for
}

func newOwnership(b *Broker) *ownership {
	return &ownership{b: b, wake: make(chan struct{}, 1), moving: map[bundle.Bundle]bool{}, given: map[bundle.Bundle]meta.Revision{}}
}

// start registers the broker and begins to decide.
func (w *ownership) start(ctx context.Context) error {
	o := w.b.opts
	r, err := discovery.Register(ctx, discovery.RegisterOptions{
		Store: o.Store, Layout: o.Layout, TTL: o.SessionLease, ID: o.ID, Address: o.Address, HTTPAddress: o.HTTPAddress,
		Version: o.Version, LargestEntryBytes: uint64(LargestBody(int64(o.MaxMessageBytes))), OnEnded: w.dropAll, Log: o.Log, Now: o.Now, Rand: o.Rand,
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.registration = r
	w.mu.Unlock()
	w.loop.Go(w.run)
	prober := discovery.NewProber(discovery.ProberOptions{
		Store: o.Store, Layout: o.Layout, View: o.View, Registration: r, ID: o.ID, Probe: o.Probe, Log: o.Log,
	})
	w.loop.Go(func() { prober.Run(w.b.ctx) })
	return nil
}

// listed waits until the view shows the broker under its session.
func (w *ownership) listed(ctx context.Context) error {
	view := w.b.opts.View
	for {
		viewChanged, sessionChanged := view.Changed(), w.registration.Changed()
		session := w.registration.Session()
		if session != "" && view.Snapshot().Brokers[w.b.opts.ID].Session == session {
			return nil
		}
		select {
		case <-viewChanged:
		case <-sessionChanged:
		case <-ctx.Done():
			return fmt.Errorf("broker %s is registered, but not yet seen in the cluster: %w: %w", w.b.opts.ID, meta.ErrUnavailable, ctx.Err())
		}
	}
}

// session is the one the broker is registered under; "": none yet.
func (w *ownership) session() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.registration == nil {
		return ""
	}
	return w.registration.Session()
}

// nudge has the loop look again.
func (w *ownership) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *ownership) run() {
	for {
		viewChanged, sessionChanged := w.b.opts.View.Changed(), w.registration.Changed()
		endings := w.b.sessionsEnded()
		w.act(w.b.opts.View.Snapshot(), w.registration.Session(), endings)
		select {
		case <-w.b.ctx.Done():
			return
		case <-viewChanged:
		case <-sessionChanged:
		case <-w.wake:
		case <-time.After(lookAgain):
		}
	}
}

// act does what a picture of the cluster asks for. endings is that of before
// session was read.
func (w *ownership) act(s *discovery.Snapshot, session string, endings int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leaving || session == "" {
		return
	}
	for _, o := range w.b.owned() {
		if !w.moving[o.bundle] {
			w.compareLocked(o, s, session)
		}
	}
	for _, info := range s.Bundles {
		mine := info.Owner.Broker == w.b.opts.ID && info.Owner.Session == session
		if mine && w.b.bundle(info.Bundle) == nil && info.Revision > w.given[info.Bundle] { // handed to this broker, or opening it failed before
			w.moveLocked(info.Bundle, func(ctx context.Context) {
				w.open(ctx, info.Bundle, w.holding(info.Bundle, info.Revision, info.Owner.Epoch), endings)
			})
		}
	}
	for _, a := range discovery.Decide(s, w.b.opts.ID, session) {
		o := w.b.bundle(a.Bundle)
		switch {
		case a.GiveUp && o != nil:
			w.moveLocked(a.Bundle, func(ctx context.Context) { w.handOver(ctx, a.Bundle, a.To, a.Reason) })
		case !a.GiveUp && o != nil:
			if a.Revision == o.holding().revision() { // else the view is behind
				w.moveLocked(a.Bundle, func(ctx context.Context) { w.renew(ctx, o, a, session) })
			}
		case !a.GiveUp:
			w.moveLocked(a.Bundle, func(ctx context.Context) { w.claim(ctx, a, session, endings) })
		}
	}
}

// compareLocked drops an open bundle whose record is not what this broker wrote
// last, also when it names this broker: it may have been another's in between,
// which the view, being behind, did not show. Only the record of the very next
// epoch is surely of this broker's own making, a renewal whose answer was lost:
// another owner would have needed one of its own first.
func (w *ownership) compareLocked(o *ownedBundle, s *discovery.Snapshot, session string) {
	info, held := s.Bundles[o.bundle.String()], o.holding()
	switch {
	case info.Revision <= held.revision():
		if info.Revision == 0 && s.Revision >= held.revision() && !s.RolledBack {
			w.b.drop(o, fmt.Errorf("%w: its owner record was deleted", errMoved))
		}
	case info.Owner == catalog.Owner{Broker: w.b.opts.ID, Session: session, Epoch: held.epoch + 1}:
		o.hold(w.holding(o.bundle, info.Revision, info.Owner.Epoch))
	default:
		w.b.drop(o, fmt.Errorf("%w: %s", errMoved, info.Owner.Broker))
	}
}

// moveLocked runs f for a bundle unless something is under way for it already.
func (w *ownership) moveLocked(bd bundle.Bundle, f func(context.Context)) {
	if w.moving[bd] {
		return
	}
	w.moving[bd] = true
	w.work.Go(func() {
		f(w.b.ctx)
		w.mu.Lock()
		delete(w.moving, bd)
		w.mu.Unlock()
		w.nudge()
	})
}

// claim takes a bundle by compare-and-swap of its owner record, then opens it.
func (w *ownership) claim(ctx context.Context, a discovery.Action, session string, endings int) {
	newer := w.newer()
	rev, err := w.write(ctx, a.Bundle, a.Revision, catalog.Owner{Broker: w.b.opts.ID, Session: session, Epoch: a.Epoch + 1})
	if err != nil {
		newer(ctx, err)
		return
	}
	w.b.log.Debug("bundle taken", "bundle", a.Bundle.String(), "epoch", a.Epoch+1, "reason", a.Reason)
	w.open(ctx, a.Bundle, w.holding(a.Bundle, rev, a.Epoch+1), endings)
}

// renew writes the present session into the owner record that an earlier session
// of this broker wrote (M5); the bundle goes on as if nothing had happened. Only
// the very record that this process wrote is replaced.
func (w *ownership) renew(ctx context.Context, o *ownedBundle, a discovery.Action, session string) {
	select {
	case <-o.renewing:
	case <-ctx.Done():
		return
	}
	newer := w.newer()
	rev, err := w.write(ctx, a.Bundle, a.Revision, catalog.Owner{Broker: w.b.opts.ID, Session: session, Epoch: a.Epoch + 1})
	if err == nil {
		o.hold(w.holding(a.Bundle, rev, a.Epoch+1))
	}
	o.renewing <- struct{}{}
	newer(ctx, err)
}

// newer returns what waits, after a write that somebody else outran, for a newer
// picture of the cluster than there is now: on the same one the loop would decide
// the same, and be outrun again, without rest.
func (w *ownership) newer() func(context.Context, error) {
	viewChanged, sessionChanged := w.b.opts.View.Changed(), w.registration.Changed()
	return func(ctx context.Context, err error) {
		if !errors.Is(err, discovery.ErrOutrun) {
			return
		}
		select {
		case <-viewChanged:
		case <-sessionChanged:
		case <-time.After(lookAgain):
		case <-ctx.Done():
		}
	}
}

// holding is what stands of an owner record that this broker wrote. Its guard is
// what every transaction made as owner of the bundle compares (M1).
func (w *ownership) holding(bd bundle.Bundle, rev meta.Revision, epoch uint64) holding {
	return holding{epoch: epoch, guard: []meta.Cond{{Key: w.b.opts.Layout.BundleOwner(bd.String()), Revision: rev}, w.registration.Cond()}}
}

// write replaces the owner record at revision from. An error was logged, unless
// somebody else was faster.
func (w *ownership) write(ctx context.Context, bd bundle.Bundle, from meta.Revision, owner catalog.Owner) (meta.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, w.b.opts.OpenTimeout)
	defer cancel()
	rev, err := discovery.WriteOwner(ctx, w.b.opts.Store, w.b.opts.Layout, w.registration.Cond(), bd, from, owner)
	if err != nil && !errors.Is(err, discovery.ErrOutrun) && ctx.Err() == nil {
		w.b.log.Warn("owner record cannot be written", "bundle", bd.String(), "error", err)
		w.pause(ctx)
	}
	return rev, err
}

// pause keeps the loop from trying again at once.
func (w *ownership) pause(ctx context.Context) {
	select {
	case <-time.After(lookAgain):
	case <-ctx.Done():
	}
}

// open opens a bundle whose owner record names this broker's session. When it
// fails, or the bundle is lost meanwhile, the record stays, and the loop tries
// again.
func (w *ownership) open(ctx context.Context, bd bundle.Bundle, held holding, endings int) {
	opening, cancel := context.WithTimeout(ctx, w.b.opts.OpenTimeout)
	defer cancel()
	o, err := w.b.openBundle(opening, bd, held)
	if err != nil {
		if ctx.Err() == nil {
			w.b.log.Warn("bundle cannot be opened yet", "bundle", bd.String(), "error", err)
			w.pause(ctx)
		}
		return
	}
	if !w.b.admit(o, endings) {
		o.abandon(errMoved)
	}
}

// handOver gives a bundle to another broker: it stops serving it, makes all of it
// durable, and writes the other one, which may be none, into the owner record.
func (w *ownership) handOver(ctx context.Context, bd bundle.Bundle, to discovery.BrokerInfo, reason string) error {
	o := w.b.take(bd)
	if o == nil {
		return nil
	}
	closing, cancel := context.WithTimeout(ctx, 2*w.b.opts.CloseTimeout)
	defer cancel()
	if err := o.close(closing, fmt.Errorf("%w: %s", errMoved, to.ID)); err != nil {
		w.b.log.Warn("the bundle's log is left to its next owner to recover", "bundle", bd.String(), "error", err)
	}
	held := o.holding()
	record := held.guard[0]
	kv, err := w.b.opts.Store.Get(closing, record.Key)
	if err != nil || kv.Revision != record.Revision {
		return err
	}
	rev, err := w.write(closing, bd, record.Revision, catalog.Owner{Broker: to.ID, Session: to.Session, Epoch: held.epoch + 1})
	if err != nil {
		return fmt.Errorf("hand bundle %s to %q: %w", bd, to.ID, err)
	}
	w.mu.Lock()
	w.given[bd] = rev
	w.mu.Unlock()
	w.b.log.Debug("bundle handed over", "bundle", bd.String(), "to", to.ID, "reason", reason)
	return nil
}

// dropAll drops every bundle and returns when none is served any more, or will
// be under the present session.
func (w *ownership) dropAll() {
	for _, o := range w.b.takeAll() {
		o.abandon(errMoved)
	}
}

// stop hands all bundles to their successors and ends the session. What is not
// done when ctx ends is dropped as it is.
func (w *ownership) stop(ctx context.Context) error {
	w.halt()
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	s := w.b.opts.View.Snapshot()
	for _, o := range w.b.owned() {
		wg.Go(func() {
			to, _ := s.Successor(o.bundle.String(), w.b.opts.ID)
			if err := w.handOver(ctx, o.bundle, to, "this broker stops"); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	if w.registration != nil {
		errs = append(errs, w.registration.Close(ctx))
	}
	return errors.Join(errs...)
}

// kill drops everything at once, as the death of the process would.
func (w *ownership) kill() {
	if w.registration != nil {
		w.registration.Abandon()
	}
	w.halt()
	w.dropAll()
}

// halt ends the loop and what it began.
func (w *ownership) halt() {
	w.mu.Lock()
	w.leaving = true
	w.mu.Unlock()
	w.b.cancel()
	w.loop.Wait()
	w.work.Wait()
}

// wait waits, for a while, for a bundle that is on its way to this broker.
func (w *ownership) wait(ctx context.Context, name topicname.Name) error {
	ctx, cancel := context.WithTimeout(ctx, w.b.opts.OpenTimeout)
	defer cancel()
	for {
		changed := w.b.opts.View.Changed()
		info, ok := w.b.opts.View.Snapshot().BundleOf(name.NamespaceName(), name.Hash())
		if !ok {
			return fmt.Errorf("namespace %s: %w", name.NamespaceName(), rpcerr.ErrNotFound)
		}
		w.mu.Lock()
		coming := w.moving[info.Bundle] || info.Owner.Broker == w.b.opts.ID
		stopping := w.leaving
		w.mu.Unlock()
		if stopping || !coming || w.b.bundleOf(name.NamespaceName(), name.Hash()) != nil {
			return nil
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("bundle %s is not open yet: %w", info.Bundle.String(), rpcerr.ErrUnavailable)
		}
	}
}

// notOwner says who owns a topic as far as is known.
func (w *ownership) notOwner(name topicname.Name) error {
	s := w.b.opts.View.Snapshot()
	info, ok := s.BundleOf(name.NamespaceName(), name.Hash())
	if !ok {
		return fmt.Errorf("namespace %s: %w", name.NamespaceName(), rpcerr.ErrNotFound)
	}
	e := &rpcerr.NotOwnerError{Bundle: info.Bundle.String()}
	if broker, live := s.OwnerOf(info); live {
		e.Owner, e.Address = broker.ID, broker.Address
	}
	return e
}
