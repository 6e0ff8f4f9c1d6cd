package ensemble

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// readOrder returns the slots of f in the order in which to ask them: those that
// failed lately last, and otherwise starting at a slot that depends only on the
// ledger, so that one bookie serves all reads of a ledger from its cache and the
// ledgers spread over the bookies (D3).
func readOrder(id ledger.ID, f *ledger.Fragment, failed func(ledger.Member) bool) []int {
	order := make([]int, 0, len(f.Ensemble))
	for pass := range 2 {
		for i := range f.Ensemble {
			s := (i + int(uint64(id)%uint64(len(f.Ensemble)))) % len(f.Ensemble)
			if m := f.Ensemble[s]; !m.Vacant() && failed(m) == (pass == 1) {
				order = append(order, s)
			}
		}
	}
	return order
}

// readAnswer is what one replica said.
type readAnswer struct {
	member  ledger.Member
	entries []ledger.Entry
	lac     ledger.EntryID
	err     error
}

// readFragment asks the replicas of f, one after the other as they fail, a
// further one beside a slow one (D2), until one gives at least the first entry.
func (r *Reader) readFragment(ctx context.Context, f *ledger.Fragment, req ledger.ReadRequest) ([]ledger.Entry, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now := r.c.now()
	order := readOrder(r.id, f, func(m ledger.Member) bool { return r.c.ref(m).failedLately(now) })
	answers := make(chan readAnswer, len(order))
	waiting, next := 0, 0
	ask := func() {
		m := f.Ensemble[order[next]]
		next++
		waiting++
		if !r.c.background(func() { answers <- r.c.readFrom(ctx, m, req) }) {
			answers <- readAnswer{member: m, err: ledger.ErrStopping}
		}
	}
	r.c.readCount.Add(1)
	ask()
	hedge := time.NewTimer(r.c.hedgeDelay(r.c.ref(f.Ensemble[order[0]])))
	defer hedge.Stop()
	var errs []error
	lost := true // every replica answered for certain that it lacks the entry
	for waiting > 0 {
		select {
		case a := <-answers:
			waiting--
			if a.err == nil {
				r.learn(a.lac)
				return a.entries, nil
			}
			errs = append(errs, fmt.Errorf("%v: %w", a.member, a.err))
			lost = lost && (errors.Is(a.err, ledger.ErrNoEntry) || errors.Is(a.err, ledger.ErrNoLedger) || errors.Is(a.err, ledger.ErrCorrupt))
			if next < len(order) && ctx.Err() == nil {
				r.c.met.readAgain(false)
				ask()
			}
		case <-hedge.C:
			if next < len(order) {
				r.c.hedgeCount.Add(1)
				r.c.met.readAgain(true)
				ask()
				hedge.Reset(r.c.opts.AddTimeout)
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("read entry %d of ledger %d: %w", req.First, r.id, errors.Join(append(errs, context.Cause(ctx))...))
		}
	}
	// Not wrapped: the ErrNoEntry of one bookie is not an answer about the ledger.
	kind := ledger.ErrUnknown
	if lost {
		kind = ledger.ErrCorrupt
	}
	return nil, fmt.Errorf("read entry %d of ledger %d: no bookie gave it (%v): %w", req.First, r.id, errors.Join(errs...), kind)
}

const (
	minHedge   = 5 * time.Millisecond
	maxHedge   = time.Second
	hedgeShare = 20 // at most one read in so many is hedged early
)

// hedgeDelay is how long to wait for a bookie before asking another as well.
// When too many reads were hedged already, which tells of a store that is slow
// as a whole, only the add timeout counts.
func (c *Client) hedgeDelay(ref *bookieRef) time.Duration {
	if c.hedgeCount.Load()*hedgeShare >= c.readCount.Load()+hedgeShare {
		return c.opts.AddTimeout
	}
	if c.opts.HedgeAfter > 0 {
		return c.opts.HedgeAfter
	}
	if p := ref.reads.p99(); p > 0 {
		return min(max(3*p, minHedge), maxHedge)
	}
	return maxHedge
}

// readFrom reads from one bookie and checks what it gives. It returns the run of
// good entries at the start of the answer, or an error when there is none.
func (c *Client) readFrom(ctx context.Context, m ledger.Member, req ledger.ReadRequest) readAnswer {
	a := readAnswer{member: m}
	ref := c.ref(m)
	b, err := ref.bookie()
	if err != nil {
		a.err = err
		return a
	}
	began := time.Now()
	reply, err := b.Read(ctx, req)
	if err != nil {
		if ctx.Err() == nil && judge(err) == uncertain {
			ref.noteFailure(c.now())
		}
		a.err = err
		return a
	}
	ref.reads.add(time.Since(began))
	a.lac = reply.LAC
	for i := range reply.Entries {
		e := req.First + ledger.EntryID(i)
		if e > req.Last {
			break
		}
		if a.err = checkRead(&reply.Entries[i], req, e); a.err != nil {
			break
		}
		a.entries = append(a.entries, reply.Entries[i].Entry)
	}
	switch {
	case len(a.entries) > 0:
		a.err = nil
	case a.err == nil:
		a.err = fmt.Errorf("an answer without entries: %w", ledger.ErrUnknown)
	}
	return a
}

// checkRead turns one entry of an answer into an error unless it is entry e,
// whole and undamaged, or its head if only that was asked for.
func checkRead(r *ledger.ReadEntry, req ledger.ReadRequest, e ledger.EntryID) error {
	switch {
	case r.Status == ledger.Absent:
		return ledger.ErrNoEntry
	case r.Status != ledger.Found:
		return ledger.ErrUnknown
	case req.HeadBytes == 0 || int(r.Entry.Envelope.BodyBytes) <= req.HeadBytes:
		return r.Entry.Check(req.Ledger, e)
	case r.Entry.Envelope.Ledger != req.Ledger || r.Entry.Envelope.Entry != e || len(r.Entry.Body) != req.HeadBytes:
		return fmt.Errorf("the head of another entry: %w", ledger.ErrCorrupt)
	}
	return nil
}
