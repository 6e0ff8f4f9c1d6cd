package bundlelog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// record is the log key in the metadata store: it makes every transaction on it
// and knows its segments. It is the chain.Links of the log.
//
// Whoever makes such a transaction has the turn; the fields belong to it. The
// turn is held across calls of the store, so it is no mutex: taking it ends with
// the context.
type record struct {
	opts *Options
	turn chan struct{} // holds one token when free

	segments []Segment
	revision meta.Revision // of the key; 0: it does not exist
	sure     bool          // segments and revision are as the store has them
	highest  ledger.ID     // highest ledger ever in the log
	closed   map[ledger.ID]bool
}

func newRecord(opts *Options) *record {
	r := &record{opts: opts, turn: make(chan struct{}, 1), closed: map[ledger.ID]bool{}}
	r.turn <- struct{}{}
	return r
}

func (r *record) take(ctx context.Context) error {
	select {
	case <-r.turn:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another change of the bundle log: %w", ctx.Err())
	}
}

func (r *record) give() { r.turn <- struct{}{} }

func (r *record) key() string { return r.opts.Layout.BundleLog(r.opts.Bundle) }

// read takes over what the store has.
func (r *record) read(ctx context.Context) error {
	kv, err := r.opts.Store.Get(ctx, r.key())
	if err != nil {
		return fmt.Errorf("read the log of bundle %s: %w", r.opts.Bundle, err)
	}
	segments, err := Decode(kv.Value)
	if err != nil {
		return fmt.Errorf("bundle %s: %w", r.opts.Bundle, err)
	}
	r.segments, r.revision, r.sure = segments, kv.Revision, true
	if n := len(segments); n > 0 {
		r.highest = max(r.highest, segments[n-1].Ledger)
	}
	return nil
}

// recover closes every ledger that nobody of ours writes, oldest first, and drops
// the empty ones.
func (r *record) recover(ctx context.Context, ours func(ledger.ID) bool) error {
	for _, id := range ledgersOf(r.segments) {
		if r.closed[id] || ours(id) {
			continue
		}
		md, err := chain.Recover(ctx, r.opts.Ledgers, r.opts.Store, id, r.opts.Guard())
		if err != nil {
			return fmt.Errorf("recover ledger %d of the log of bundle %s: %w", id, r.opts.Bundle, err)
		}
		if err := r.close(ctx, md); err != nil {
			return err
		}
	}
	return nil
}

// close notes that a ledger is closed; an empty one is dropped.
func (r *record) close(ctx context.Context, md ledger.Metadata) error {
	if md.LastEntry == ledger.NoEntry {
		return r.remove(ctx, []ledger.ID{md.ID})
	}
	r.closed[md.ID] = true
	return nil
}

// refresh makes the record sure again. What an unanswered Create left in the log
// has no writer and no entries; it is dropped.
func (r *record) refresh(ctx context.Context) error {
	if r.sure {
		return nil
	}
	known := ledgersOf(r.segments)
	if err := r.read(ctx); err != nil {
		return err
	}
	err := r.recover(ctx, func(id ledger.ID) bool { return slices.Contains(known, id) })
	if err != nil { // then the orphan must not be taken for one of ours next time
		r.segments = slices.DeleteFunc(r.segments, func(s Segment) bool { return !slices.Contains(known, s.Ledger) })
		r.sure = false
	}
	return err
}

// Prepare implements chain.Links. It takes the turn until Linked or Unlinked.
func (r *record) Prepare(ctx context.Context) (ledger.ID, error) {
	if err := r.take(ctx); err != nil {
		return 0, err
	}
	if err := r.refresh(ctx); err != nil {
		r.give()
		return 0, err
	}
	return r.highest + 1, nil
}

func (r *record) with(id ledger.ID) []Segment {
	return append(slices.Clone(r.segments), Segment{Ledger: id, First: r.opts.First, Last: r.opts.Last})
}

// Link implements chain.Links.
func (r *record) Link(id ledger.ID) ([]meta.Cond, []meta.Op) {
	return []meta.Cond{{Key: r.key(), Revision: r.revision}},
		[]meta.Op{{Key: r.key(), Value: Encode(r.with(id))}}
}

// Linked implements chain.Links.
func (r *record) Linked(w *ensemble.Writer) {
	r.segments = r.with(w.ID())
	r.highest = w.ID()
	r.sure = false // the key's revision is not known
	r.give()
}

// Unlinked implements chain.Links.
func (r *record) Unlinked(surely bool) {
	r.sure = r.sure && surely
	r.give()
}

// Closed implements chain.Links.
func (r *record) Closed(ctx context.Context, md ledger.Metadata) error {
	if err := r.take(ctx); err != nil {
		return err
	}
	defer r.give()
	return r.close(ctx, md)
}

// trim takes closed ledgers before the given one out of the log. It returns how
// many went.
func (r *record) trim(ctx context.Context, before ledger.ID) (int, error) {
	if err := r.take(ctx); err != nil {
		return 0, err
	}
	defer r.give()
	var out []ledger.ID
	for _, id := range ledgersOf(r.segments) {
		if id < before && r.closed[id] {
			out = append(out, id)
		}
	}
	for done := 0; done < len(out); {
		n := min(len(out)-done, removalSize)
		if err := r.remove(ctx, out[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(out), nil
}

// removalSize is how many ledgers one transaction takes out: up to two
// conditions and one operation each, beside the guard's and the log key's.
const removalSize = 32

// remove takes ledgers out of the log in one transaction. Those that no other
// bundle's log refers to become tombstones in it; that the others still do is a
// condition of it, so that the last reference is always somebody's.
func (r *record) remove(ctx context.Context, out []ledger.ID) error {
	if err := r.refresh(ctx); err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(r.segments), func(s Segment) bool { return slices.Contains(out, s.Ledger) })
	t := meta.Txn{
		Conds: []meta.Cond{{Key: r.key(), Revision: r.revision}},
		Ops:   []meta.Op{{Key: r.key(), Value: Encode(rest)}},
	}
	others, err := r.others(ctx)
	if err != nil {
		return err
	}
	for _, id := range out {
		if cond, shared := others[id]; shared {
			if !slices.Contains(t.Conds, cond) {
				t.Conds = append(t.Conds, cond)
			}
			continue
		}
		kv, err := r.opts.Store.Get(ctx, r.opts.Layout.Ledger(int64(id)))
		if err != nil {
			return fmt.Errorf("read ledger %d: %w", id, err)
		}
		conds, ops, err := r.opts.Ledgers.DeleteOps(kv)
		switch {
		case errors.Is(err, ledger.ErrDeleted), errors.Is(err, ledger.ErrNoLedger):
			r.opts.Log.Warn("a ledger of the log was deleted behind its back", "bundle", r.opts.Bundle, "ledger", id, "error", err)
		case err != nil:
			return fmt.Errorf("delete ledger %d: %w", id, err)
		}
		t.Conds, t.Ops = append(t.Conds, conds...), append(t.Ops, ops...)
	}
	rev, err := chain.Commit(ctx, r.opts.Store, r.opts.Guard(), t)
	if err != nil {
		r.sure = false
		return fmt.Errorf("remove %d ledgers from the log of bundle %s: %w", len(out), r.opts.Bundle, err)
	}
	r.segments, r.revision = rest, rev
	for _, id := range out {
		delete(r.closed, id)
	}
	return nil
}

// others returns the ledgers that logs of other bundles of the namespace refer
// to, each with the condition that one of these logs stays as it is.
func (r *record) others(ctx context.Context) (map[ledger.ID]meta.Cond, error) {
	l := r.opts.Layout
	namespace := r.opts.Bundle[:strings.LastIndexByte(r.opts.Bundle, '/')]
	kvs, _, err := r.opts.Store.Range(ctx, l.Bundles(namespace), "", 0)
	if err != nil {
		return nil, fmt.Errorf("read the logs of namespace %s: %w", namespace, err)
	}
	out := map[ledger.ID]meta.Cond{}
	for _, kv := range kvs {
		bundle, kind, ok := l.ParseBundle(kv.Key)
		if !ok || kind != "log" || bundle == r.opts.Bundle {
			continue
		}
		segments, err := Decode(kv.Value)
		if err != nil {
			return nil, fmt.Errorf("bundle %s: %w", bundle, err)
		}
		for _, s := range segments {
			out[s.Ledger] = meta.Cond{Key: kv.Key, Revision: kv.Revision}
		}
	}
	return out, nil
}
