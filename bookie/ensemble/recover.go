package ensemble

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

const (
	firstRecoveryPause = 20 * time.Millisecond
	maxRecoveryPause   = 2 * time.Second
)

// Recover shuts out whoever writes to the ledger, finds its last entry, closes
// it, and returns the closed record. A ledger already closed is returned as it
// is. guard must hold in the transaction that starts the recovery; ErrConflict:
// it did not.
//
// What cannot be found out now (bookies or the store are away) is tried again
// until ctx ends: the ledger then stays as it is, never shorter (R7). Any number
// of processes may recover a ledger at once; all return the same record.
// ErrNoLedger, ErrDeleted: there is nothing to recover. ErrCorrupt: the bookies
// contradict each other.
func (c *Client) Recover(ctx context.Context, id ledger.ID, guard []meta.Cond) (ledger.Metadata, error) {
	ctx, cancel := c.opCtx(ctx)
	defer cancel()
	began := time.Now()
	for pause := firstRecoveryPause; ; pause = min(2*pause, maxRecoveryPause) {
		md, err := c.recoverOnce(ctx, id, guard)
		switch {
		case err == nil:
			c.log.Info("ledger recovered", "ledger", id, "last", md.LastEntry, "term", md.Term, "took", time.Since(began))
			return md, nil
		case errors.Is(err, ErrConflict), errors.Is(err, ledger.ErrNoLedger), errors.Is(err, ledger.ErrDeleted),
			errors.Is(err, ledger.ErrCorrupt), ctx.Err() != nil:
			return ledger.Metadata{}, fmt.Errorf("recover ledger %d: %w", id, err)
		}
		c.log.Warn("recovery is tried again", "ledger", id, "error", err)
		// Drawn, so that two recoverers do not keep taking over from each other.
		if sleepErr := sleep(ctx, pause+time.Duration(c.opts.Rand()%uint64(pause))); sleepErr != nil {
			return ledger.Metadata{}, fmt.Errorf("recover ledger %d: %w: %w", id, err, context.Cause(ctx))
		}
	}
}

// recoverOnce makes one attempt at a term of its own.
func (c *Client) recoverOnce(ctx context.Context, id ledger.ID, guard []meta.Cond) (ledger.Metadata, error) {
	md, rev, err := c.beginRecovery(ctx, id, guard)
	if err != nil || md.State == ledger.Closed {
		return md, err
	}
	core, err := c.runRecovery(ctx, md)
	if err != nil {
		return ledger.Metadata{}, err
	}
	length := int64(0)
	if core.added == core.start && core.start != ledger.NoEntry {
		if length, err = c.lengthAt(ctx, md, core.start); err != nil {
			return ledger.Metadata{}, err
		}
	}
	return c.closeRecovered(ctx, md, core.closed(length), rev)
}

// beginRecovery takes the ledger into IN_RECOVERY at the next term before
// anything else (R1, M13). A recoverer that comes later does the same, so it has
// the higher term. A closed ledger is returned as it is.
func (c *Client) beginRecovery(ctx context.Context, id ledger.ID, guard []meta.Cond) (ledger.Metadata, meta.Revision, error) {
	for {
		md, rev, err := c.Metadata(ctx, id)
		if err != nil {
			return md, 0, err
		}
		next, err := recovering(&md)
		if err != nil || next.State == ledger.Closed {
			return next, rev, err
		}
		rev, err = c.putRecord(ctx, rev, &next, guard, nil)
		var moved *movedError
		if !errors.As(err, &moved) {
			return next, rev, err
		}
	}
}

// recovering returns the record with which a recovery of md begins; md itself if
// it is closed.
func recovering(md *ledger.Metadata) (ledger.Metadata, error) {
	switch md.State {
	case ledger.Deleted:
		return *md, fmt.Errorf("ledger %d: %w", md.ID, ledger.ErrDeleted)
	case ledger.Closed:
		return *md, nil
	}
	next := md.Clone()
	next.State, next.Term = ledger.InRecovery, md.Term+1
	return next, ledger.CheckTransition(md, &next)
}

// recoveryEvent is a bookie's answer on its way to the core.
type recoveryEvent func(*recoveryCore)

// runRecovery drives one recoveryCore until it is done or has failed.
func (c *Client) runRecovery(ctx context.Context, md ledger.Metadata) (*recoveryCore, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	core := newRecoveryCore(md, c.opts.RecoveryReadBytes)
	events := newMailbox[recoveryEvent]()
	stall := time.NewTimer(c.opts.AddTimeout)
	defer stall.Stop()
	for {
		for len(core.asks) > 0 && core.failed == nil {
			asks := core.asks
			core.asks = nil
			for i := range asks {
				c.ask(ctx, &asks[i], md, events)
			}
		}
		if core.needsBookies() {
			p := c.placer(md.Class)
			p.bodyBytes, p.remedy = core.largestBody(), remedyAfter // nothing else is appended
			core.replace(p)
			continue
		}
		if core.failed != nil {
			return core, core.failed
		}
		if core.done() {
			return core, nil
		}
		select {
		case <-events.wake:
			for _, event := range events.takeAll() {
				event(core)
			}
			stall.Reset(c.opts.AddTimeout)
		case <-stall.C:
			core.stalled()
			stall.Reset(c.opts.AddTimeout)
		case <-ctx.Done():
			return core, context.Cause(ctx)
		}
	}
}

// ask sends one ask of the core to its bookie; the answer comes as an event.
func (c *Client) ask(ctx context.Context, a *recoveryAsk, md ledger.Metadata, events *mailbox[recoveryEvent]) {
	ref, slot := c.ref(a.member), a.slot
	b, err := ref.bookie()
	note := func(err error) error {
		if err != nil && ctx.Err() == nil && judge(err) == uncertain {
			ref.noteFailure(c.now())
		}
		return err
	}
	run := func(f func()) {
		if !c.background(f) {
			events.put(func(core *recoveryCore) { core.fail(ledger.ErrStopping) })
		}
	}
	switch {
	case a.fence && err != nil:
		events.put(func(core *recoveryCore) { core.fenceAnswered(slot, ledger.FenceReply{}, unreachable(err)) })
	case a.fence:
		run(func() {
			reply, err := b.Fence(ctx, md.ID, md.Term)
			note(err)
			events.put(func(core *recoveryCore) { core.fenceAnswered(slot, reply, err) })
		})
	case a.add != nil:
		gen, add := a.gen, *a.add
		done := func(err error) {
			note(err)
			events.put(func(core *recoveryCore) { core.addAnswered(slot, gen, add.Envelope.Entry, err) })
		}
		if err != nil {
			done(unreachable(err))
			return
		}
		b.Add(add, done)
	default:
		read := a.read
		if err != nil {
			events.put(func(core *recoveryCore) {
				core.readAnswered(slot, read.First, ledger.ReadReply{}, unreachable(err))
			})
			return
		}
		run(func() {
			reply, err := b.Read(ctx, read)
			note(err)
			events.put(func(core *recoveryCore) { core.readAnswered(slot, read.First, reply, err) })
		})
	}
}

// unreachable keeps an error of the directory from being taken for the answer of
// a bookie: a bookie that is not known has not said that it lacks anything, nor
// that it is fenced.
func unreachable(err error) error {
	return fmt.Errorf("bookie cannot be reached: %v", err)
}

// lengthAt returns the bodies up to an acknowledged entry, from its envelope
// (R12).
func (c *Client) lengthAt(ctx context.Context, md ledger.Metadata, e ledger.EntryID) (int64, error) {
	r := &Reader{c: c, id: md.ID, md: md, lac: e}
	req := ledger.ReadRequest{Ledger: md.ID, First: e, Last: e, HeadBytes: 1}
	entries, err := r.readFragment(ctx, &md.Fragments[md.FragmentOf(e)], req)
	if err != nil {
		// Whatever the bookies say, it is acknowledged: not corrupt, only out of reach.
		return 0, fmt.Errorf("length of ledger %d: %v: %w", md.ID, err, ledger.ErrUnknown)
	}
	return entries[0].Envelope.TotalBytes, nil
}

// closeRecovered writes the closing record (R10). Whoever closed first is right.
func (c *Client) closeRecovered(ctx context.Context, base, next ledger.Metadata, rev meta.Revision) (ledger.Metadata, error) {
	for {
		if err := ledger.CheckTransition(&base, &next); err != nil {
			return next, err
		}
		_, err := c.putRecord(ctx, rev, &next, nil, nil)
		if err == nil {
			c.met.closedByRecovery()
			return next, nil
		}
		var moved *movedError
		if !errors.As(err, &moved) {
			return next, err
		}
		md, movedRev, err := recoveredMoved(moved, &base, &next)
		if err != nil || md.State == ledger.Closed {
			return md, err
		}
		base, rev = md, movedRev
	}
}

// recoveredMoved decides what it means to a recovery that closes, with next over
// base, that the record moved on. It returns the record as it stands: closed by
// another, who is right, or with bookies of older fragments swapped, and then
// next was made to fit. Any other outcome is an error.
func recoveredMoved(moved *movedError, base, next *ledger.Metadata) (ledger.Metadata, meta.Revision, error) {
	md, rev, err := decodeRecord(moved.id, moved.now)
	switch {
	case err != nil:
		return *next, 0, err
	case md.State == ledger.Closed:
		return md, rev, nil
	case md.State == ledger.Deleted:
		return *next, 0, fmt.Errorf("ledger %d: %w", md.ID, ledger.ErrDeleted)
	case md.State != ledger.InRecovery || md.Term != base.Term || len(md.Fragments) != len(base.Fragments) ||
		!ledger.SameFragment(md.Last(), base.Last()):
		return *next, 0, fmt.Errorf("ledger %d: %w", md.ID, errSuperseded)
	}
	copy(next.Fragments[:len(md.Fragments)-1], md.Clone().Fragments)
	return md, rev, nil
}
