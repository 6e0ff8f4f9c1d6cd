package managedledger

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// record is the chain in the metadata store: it makes every transaction on the
// chain's keys and keeps ManagedLedger.links in step with them. It is the
// chain.Links of the topic.
//
// Whoever makes such a transaction has the turn; the fields belong to it. The
// turn is held across calls of the store, so it is no mutex: taking it ends with
// the context.
type record struct {
	m    *ManagedLedger
	turn chan struct{} // holds one token when free

	sequence uint64    // highest ever in the chain
	highest  ledger.ID // highest ledger ever in the chain
	unsure   bool      // a ledger may have been created that links does not show
}

func newRecord(m *ManagedLedger) *record {
	r := &record{m: m, turn: make(chan struct{}, 1)}
	r.turn <- struct{}{}
	return r
}

// take waits for the turn and makes sure that links is what the store has.
func (r *record) take(ctx context.Context) error {
	select {
	case <-r.turn:
	case <-ctx.Done():
		return fmt.Errorf("wait for another change of the chain: %w", ctx.Err())
	}
	if err := r.refresh(ctx); err != nil {
		r.give()
		return err
	}
	return nil
}

func (r *record) give() { r.turn <- struct{}{} }

// reread makes links what the store has, whether or not that is in doubt.
func (r *record) reread(ctx context.Context) error {
	if err := r.take(ctx); err != nil {
		return err
	}
	defer r.give()
	r.unsure = true
	return r.refresh(ctx)
}

func (r *record) key(sequence uint64) string {
	return r.m.opts.Layout.ChainLink(r.m.opts.Topic, sequence)
}

// read returns the links as the store has them.
func (r *record) read(ctx context.Context) (links, error) {
	o := &r.m.opts
	kvs, _, err := o.Store.Range(ctx, o.Layout.Chain(o.Topic), "", 0)
	if err != nil {
		return nil, fmt.Errorf("read the chain of topic %d: %w", o.Topic, err)
	}
	ls := make(links, 0, len(kvs))
	for _, kv := range kvs {
		sequence, ok := o.Layout.ParseChainLink(o.Topic, kv.Key)
		if !ok {
			return nil, fmt.Errorf("topic %d: key %q in its chain: %w", o.Topic, kv.Key, ledger.ErrCorrupt)
		}
		l, err := decodeLink(sequence, kv.Value)
		if err != nil {
			return nil, fmt.Errorf("topic %d: %w", o.Topic, err)
		}
		l.revision = kv.Revision
		ls = append(ls, l)
	}
	if err := ls.check(); err != nil {
		return nil, fmt.Errorf("topic %d: %w", o.Topic, err)
	}
	return ls, nil
}

// load takes the links over as the store has them.
func (r *record) load(ctx context.Context) error {
	ls, err := r.read(ctx)
	if err != nil {
		return err
	}
	if n := len(ls); n > 0 {
		r.sequence, r.highest = max(r.sequence, ls[n-1].sequence), max(r.highest, ls[n-1].ledger)
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.m.links = ls
	return nil
}

// commit makes a transaction as owner. After an error it may have been done.
func (r *record) commit(ctx context.Context, t meta.Txn) (meta.Revision, error) {
	rev, err := chain.Commit(ctx, r.m.opts.Store, r.m.opts.Guard(), t)
	r.unsure = r.unsure || err != nil
	return rev, err
}

// newest returns a copy of the newest link; false: the chain has none.
func (r *record) newest() (link, bool) {
	r.m.mu.RLock()
	defer r.m.mu.RUnlock()
	if n := len(r.m.links); n > 0 {
		return r.m.links[n-1], true
	}
	return link{}, false
}

// Prepare implements chain.Links. It takes the turn until Linked or Unlinked.
func (r *record) Prepare(ctx context.Context) (ledger.ID, error) {
	if err := r.take(ctx); err != nil {
		return 0, err
	}
	if newest, ok := r.newest(); ok && newest.closed && newest.revision == 0 {
		r.unsure = true
		if err := r.refresh(ctx); err != nil {
			r.give()
			return 0, err
		}
	}
	return r.highest + 1, nil
}

// Link implements chain.Links.
//
// The link before it is written again, as it is, when its ledger is closed. A trim
// of it may still be on its way, made here or by an earlier ManagedLedger of the
// same owner, for whose guard no transaction is too late; arriving after the new
// link was made it would leave a trimmed link inside the chain.
func (r *record) Link(id ledger.ID) ([]meta.Cond, []meta.Op) {
	l := link{sequence: r.sequence + 1, ledger: id}
	conds := []meta.Cond{{Key: r.key(l.sequence)}}
	var ops []meta.Op
	if newest, ok := r.newest(); ok {
		l.follow(&newest)
		key := r.key(newest.sequence)
		switch {
		case newest.trimmed: // it stayed only until there is a newer one
			conds = append(conds, meta.Cond{Key: key, Revision: newest.revision})
			ops = append(ops, meta.Op{Key: key, Delete: true})
		case newest.closed:
			conds = append(conds, meta.Cond{Key: key, Revision: newest.revision})
			ops = append(ops, meta.Op{Key: key, Value: newest.encode()})
		default: // a try that arrives late, after a later one was made and trimmed, fails
			conds = append(conds, meta.Cond{Key: key, AnyRevision: true})
		}
	}
	return conds, append(ops, meta.Op{Key: r.key(l.sequence), Value: l.encode()})
}

// Linked implements chain.Links.
func (r *record) Linked(w *ensemble.Writer) {
	defer r.give()
	r.sequence++
	r.highest = w.ID()
	l := link{sequence: r.sequence, ledger: w.ID()}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if n := len(r.m.links); n > 0 {
		l.follow(&r.m.links[n-1])
		if newest := &r.m.links[n-1]; newest.trimmed {
			r.m.links = nil
		} else if newest.closed {
			newest.revision = 0 // Link wrote it again
		}
	}
	r.m.links = append(r.m.links, l)
	r.m.readers[l.ledger] = w.Reader()
}

// Unlinked implements chain.Links.
func (r *record) Unlinked(surely bool) {
	r.unsure = r.unsure || !surely
	r.give()
}

// Closed implements chain.Links.
func (r *record) Closed(ctx context.Context, md ledger.Metadata) error {
	if err := r.take(ctx); err != nil {
		return err
	}
	defer r.give()
	return r.closed(ctx, md)
}

// refresh reads the chain again when it is not sure, because the answer of a
// transaction was lost.
//
// Links that the store has no more were removed by it. Links that only the store
// has are ledgers whose creation was answered by an error and took place: nothing
// was ever sent to them, and they are dropped.
func (r *record) refresh(ctx context.Context) error {
	if !r.unsure {
		return nil
	}
	stored, err := r.read(ctx)
	if err != nil {
		return err
	}
	for _, l := range stored {
		if r.m.indexOf(l.ledger) < 0 {
			if err := r.dropOrphan(ctx, l, stored); err != nil {
				return err
			}
		}
	}
	if stored, err = r.read(ctx); err != nil {
		return err
	}
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range stored {
		// What an open ledger holds is known here alone.
		if j := m.links.find(stored[i].ledger); !stored[i].closed && j < len(m.links) && m.links[j].ledger == stored[i].ledger {
			rev := stored[i].revision
			stored[i] = m.links[j]
			stored[i].revision = rev
		}
	}
	m.links = stored
	for id := range m.readers {
		if i := stored.find(id); i == len(stored) || stored[i].ledger != id || stored[i].trimmed {
			delete(m.readers, id)
		}
	}
	r.unsure = false
	return nil
}

// dropOrphan removes a link that got into the chain without a writer.
func (r *record) dropOrphan(ctx context.Context, l link, stored links) error {
	md, err := chain.Recover(ctx, r.m.opts.Ledgers, r.m.opts.Store, l.ledger, r.m.opts.Guard())
	if err != nil {
		return fmt.Errorf("recover ledger %d, which got into the chain without a writer: %w", l.ledger, err)
	}
	if md.LastEntry != ledger.NoEntry {
		return fmt.Errorf("ledger %d got into the chain without a writer and ends with entry %d: %w",
			l.ledger, md.LastEntry, ledger.ErrCorrupt)
	}
	r.sequence, r.highest = max(r.sequence, l.sequence), max(r.highest, l.ledger)
	// The link it followed may have been one that stayed only until there was a
	// newer one, and is gone then; this one stays in its place.
	stays := len(stored) == 1
	if newest, ok := r.newest(); ok && stays {
		l.follow(&newest)
	}
	_, err = r.removeEmpty(ctx, l, stays)
	return err
}

// closed writes what a closed ledger holds into its link, and where the next one
// goes on into that link, if there is one. An empty ledger is dropped.
func (r *record) closed(ctx context.Context, md ledger.Metadata) error {
	m := r.m
	i := m.indexOf(md.ID)
	if i < 0 {
		return nil // an empty one that an earlier try has dropped
	}
	m.mu.RLock()
	l, alone := m.links[i], len(m.links) == 1
	m.mu.RUnlock()
	if l.closed {
		return nil
	}
	if md.LastEntry == ledger.NoEntry {
		rev, err := r.removeEmpty(ctx, l, alone)
		if err != nil {
			return err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.readers, l.ledger)
		if alone {
			m.links[0].closed, m.links[0].trimmed, m.links[0].revision = true, true, rev
		} else {
			m.links = slices.Delete(slices.Clone(m.links), i, i+1)
		}
		return nil
	}
	if l.entries != int64(md.LastEntry)+1 || l.bytes != md.Length {
		if err := m.learn(ctx, &l, md); err != nil {
			return err
		}
	}
	l.closed = true
	return r.putClosed(ctx, l)
}

// putClosed writes the closed link l, and the bounds of the link after it.
func (r *record) putClosed(ctx context.Context, l link) error {
	m := r.m
	changed := links{l}
	m.mu.RLock()
	if i := m.links.find(l.ledger); i+1 < len(m.links) {
		next := m.links[i+1]
		next.follow(&l)
		changed = append(changed, next)
	}
	m.mu.RUnlock()
	var t meta.Txn
	for i := range changed {
		key := r.key(changed[i].sequence)
		rev := changed[i].revision
		if rev == 0 {
			kv, err := m.opts.Store.Get(ctx, key)
			switch {
			case err != nil:
				return fmt.Errorf("read chain link %d: %w", changed[i].sequence, err)
			case !kv.Exists():
				return fmt.Errorf("chain link %d of ledger %d is gone: %w", changed[i].sequence, changed[i].ledger, ledger.ErrCorrupt)
			}
			rev = kv.Revision
		}
		t.Conds = append(t.Conds, meta.Cond{Key: key, Revision: rev})
		t.Ops = append(t.Ops, meta.Op{Key: key, Value: changed[i].encode()})
	}
	rev, err := r.commit(ctx, t)
	if err != nil {
		return fmt.Errorf("close chain link %d of ledger %d: %w", l.sequence, l.ledger, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.links.find(l.ledger)
	l.revision = rev
	m.links[i] = l
	if i+1 < len(m.links) {
		next := &m.links[i+1]
		if next.revision = rev; next.entries == 0 {
			next.follow(&l)
		}
	}
	return nil
}

// removeEmpty takes the link of an empty closed ledger out of the chain and turns
// the ledger into a tombstone. stays: it is the only link, and its key remains,
// marked as trimmed.
func (r *record) removeEmpty(ctx context.Context, l link, stays bool) (meta.Revision, error) {
	kv, err := r.m.opts.Store.Get(ctx, r.key(l.sequence))
	if err != nil {
		return 0, fmt.Errorf("read chain link %d: %w", l.sequence, err)
	}
	if !kv.Exists() {
		return 0, nil // an earlier try was done
	}
	l.revision, l.closed, l.trimmed = kv.Revision, true, stays
	t, err := r.removal(ctx, links{l})
	if err != nil {
		return 0, err
	}
	rev, err := r.commit(ctx, t)
	if err != nil {
		return 0, fmt.Errorf("drop empty ledger %d: %w", l.ledger, err)
	}
	return rev, nil
}

// removal is the transaction that takes links out of the chain and turns their
// ledgers into tombstones. The key of a link marked as trimmed stays, so marked.
// There are at most removalSize of them.
func (r *record) removal(ctx context.Context, out links) (meta.Txn, error) {
	o := &r.m.opts
	var t meta.Txn
	for i := range out {
		l := &out[i]
		key := r.key(l.sequence)
		t.Conds = append(t.Conds, meta.Cond{Key: key, Revision: l.revision})
		if l.trimmed {
			t.Ops = append(t.Ops, meta.Op{Key: key, Value: l.encode()})
		} else {
			t.Ops = append(t.Ops, meta.Op{Key: key, Delete: true})
		}
		kv, err := o.Store.Get(ctx, o.Layout.Ledger(int64(l.ledger)))
		if err != nil {
			return t, fmt.Errorf("read ledger %d: %w", l.ledger, err)
		}
		conds, ops, err := o.Ledgers.DeleteOps(kv)
		switch {
		case errors.Is(err, ledger.ErrDeleted), errors.Is(err, ledger.ErrNoLedger):
			o.Log.Warn("a ledger of the chain was deleted behind its back", "topic", o.Topic, "ledger", l.ledger, "error", err)
		case err != nil:
			return t, fmt.Errorf("delete ledger %d: %w", l.ledger, err)
		}
		t.Conds = append(t.Conds, conds...)
		t.Ops = append(t.Ops, ops...)
	}
	return t, nil
}

// removalSize is how many links one transaction takes out: two conditions and
// two operations each, beside the guard's.
const removalSize = 32

// indexOf returns the index of the link of ledger id, or −1.
func (m *ManagedLedger) indexOf(id ledger.ID) int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if i := m.links.find(id); i < len(m.links) && m.links[i].ledger == id {
		return i
	}
	return -1
}
