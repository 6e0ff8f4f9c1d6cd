package managedledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Trim lets go of ledgers at the head of the chain: closed, with every entry
// before keepFrom, and past retention. keepFrom is the earliest position that
// anything durable in the bundle's log still needs. It returns how many ledgers
// went. Trimming is resumable: each step is one transaction, and an error leaves
// the rest for the next call.
//
// A ledger being written is closed, and trimmed by a later call, when it is older
// than the roll's MaxAge, or the disks of the bookies are full, and it holds
// something that is no longer needed.
func (m *ManagedLedger) Trim(ctx context.Context, keepFrom position.Position, r Retention) (int, error) {
	age := m.opts.Roll.MaxAge
	if m.opts.Ledgers.OutOfRoom(ledger.Data, m.opts.Quorum) {
		age = time.Nanosecond // nothing can be published, so the ledger is needed for nothing else (M28)
	}
	m.mu.RLock()
	retire := m.links.worthRetiring(keepFrom, r, age, m.opts.Now().UnixMilli())
	newest := uint64(0)
	if retire {
		newest = m.links[len(m.links)-1].sequence
	}
	m.mu.RUnlock()
	if retire {
		// Without the store the next ledger could not be made, and publishing would
		// wait for it: such a roll is a wish (M20).
		if _, err := m.opts.Store.Get(ctx, m.record.key(newest)); err != nil {
			return 0, fmt.Errorf("trim topic %d: read chain link %d: %w", m.opts.Topic, newest, err)
		}
		m.appender.Retire()
	}
	return m.record.trim(ctx, keepFrom, r)
}

func (r *record) trim(ctx context.Context, keepFrom position.Position, ret Retention) (int, error) {
	if err := r.take(ctx); err != nil {
		return 0, err
	}
	defer r.give()
	for total := 0; ; {
		n, more, err := r.trimSome(ctx, keepFrom, ret)
		total += n
		if err != nil || !more {
			return total, err
		}
	}
}

// trimSome is one step of trim: as many links as one transaction takes out. The
// caller has the turn.
func (r *record) trimSome(ctx context.Context, keepFrom position.Position, ret Retention) (n int, more bool, err error) {
	r.m.mu.RLock()
	all := r.m.links.trimmable(keepFrom, ret, r.m.opts.Now().UnixMilli())
	n = min(all, removalSize)
	out := append(links(nil), r.m.links[:n]...)
	newest := n == len(r.m.links)
	r.m.mu.RUnlock()
	if n == 0 {
		return 0, false, nil
	}
	if newest {
		out[n-1].trimmed = true // its key stays
	}
	if err := r.remove(ctx, out); err != nil {
		return 0, false, fmt.Errorf("trim topic %d: %w", r.m.opts.Topic, err)
	}
	return n, n < all, nil
}

// remove takes the first links out of the chain, in the store and here.
func (r *record) remove(ctx context.Context, out links) error {
	m := r.m
	for i := range out {
		if out[i].revision != 0 {
			continue
		}
		kv, err := m.opts.Store.Get(ctx, r.key(out[i].sequence))
		if err != nil {
			return fmt.Errorf("read chain link %d: %w", out[i].sequence, err)
		}
		out[i].revision = kv.Revision
	}
	t, err := r.removal(ctx, out)
	if err != nil {
		return err
	}
	rev, err := r.commit(ctx, t)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	rest := append(links(nil), m.links[len(out):]...)
	if last := out[len(out)-1]; last.trimmed {
		last.revision = rev
		rest = append(links{last}, rest...)
	}
	m.links = rest
	for i := range out {
		delete(m.readers, out[i].ledger)
	}
	m.opts.Metrics.trimmed.Add(float64(len(out)))
	return nil
}

// Delete removes the whole chain of a topic that is not open here, in steps of
// one transaction each, oldest ledger first. It can be resumed after any failure;
// a topic without a chain is no error. The topic's record must say that it is
// being deleted, so that nobody opens it meanwhile.
func Delete(ctx context.Context, opts Options) error {
	m, err := newManagedLedger(opts)
	if err != nil {
		return err
	}
	for {
		if err := m.record.load(ctx); err != nil {
			return err
		}
		n := min(len(m.links), removalSize)
		if n == 0 {
			return nil
		}
		out := append(links(nil), m.links[:n]...)
		for i := range out {
			out[i].trimmed = false // its key goes too
		}
		// A ledger's record may change under our feet (repair): then read again.
		if err := m.record.remove(ctx, out); err != nil && !errors.Is(err, chain.ErrMoved) {
			return fmt.Errorf("delete topic %d: %w", opts.Topic, err)
		}
	}
}
