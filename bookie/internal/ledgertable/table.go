package ledgertable

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Table is the records of all ledgers of a bookie, and the set of those deleted.
// The zero Table is empty. Safe for concurrent use.
type Table struct {
	shards  [64]shard
	deleted tombstones
	limbo   atomic.Bool
}

type shard struct {
	mu      sync.Mutex
	ledgers map[ledger.ID]*state
	_       [40]byte // keeps neighbours off one cache line
}

// state is a Record and how much of it is safe where.
//
// Invariant: durableTerm <= Term. What Record knows is in the log, in segments
// from saved on; saved 0 says that no whole copy was made yet, or none of the limbo
// it is in by now.
type state struct {
	Record
	durableTerm int64  // highest term whose fence is on disk
	saved       uint32 // hot segment with the newest whole copy
}

// Guard is the lock of one ledger. What is decided under it, and handed to the
// log under it, is in that order in the log: a fence handed over after an add is
// durable after it (B9). No disk, network or callback is waited for under it.
type Guard struct {
	table *Table
	shard *shard
	id    ledger.ID
	state *state // nil: nothing is known of the ledger
}

// Lock takes the lock of ledger id.
func (t *Table) Lock(id ledger.ID) Guard {
	s := &t.shards[uint64(id)%uint64(len(t.shards))]
	s.mu.Lock()
	return Guard{table: t, shard: s, id: id, state: s.ledgers[id]}
}

// Known reports whether anything is known of the ledger.
func (g *Guard) Known() bool { return g.state != nil }

// Unlock gives the lock back; the Guard is not used after it.
func (g *Guard) Unlock() { g.shard.mu.Unlock() }

// makeKnown returns the state, made if there was none.
func (g *Guard) makeKnown() *state {
	if g.state == nil {
		if g.shard.ledgers == nil {
			g.shard.ledgers = make(map[ledger.ID]*state)
		}
		g.state = &state{Record: NewRecord()}
		g.shard.ledgers[g.id] = g.state
	}
	return g.state
}

// SetLimbo puts the whole bookie in limbo: any ledger, also one never seen, may
// have lost something here.
func (t *Table) SetLimbo() { t.limbo.Store(true) }

// Limbo reports whether the whole bookie is in limbo.
func (t *Table) Limbo() bool { return t.limbo.Load() }

// Len counts the ledgers that are not deleted.
func (t *Table) Len() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += len(s.ledgers)
		s.mu.Unlock()
	}
	return n
}

// Deleted reports whether ledger id was deleted.
func (t *Table) Deleted(id ledger.ID) bool { return t.deleted.has(id) }

// DeletedCount counts the deleted ledgers remembered.
func (t *Table) DeletedCount() uint64 {
	t.deleted.mu.RLock()
	defer t.deleted.mu.RUnlock()
	return t.deleted.count
}

// List returns up to limit ids above after, in order, and whether there are more. It
// looks at every ledger, and holds no more than two pages of them.
func (t *Table) List(after ledger.ID, limit int) (ids []ledger.ID, more bool) {
	keep := func() {
		slices.Sort(ids)
		if len(ids) > limit {
			ids, more = ids[:limit], true
		}
	}
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for id := range s.ledgers {
			if id <= after || more && id > ids[limit-1] { // the first limit are a page already
				continue
			}
			if ids = append(ids, id); len(ids) >= 2*limit {
				keep()
			}
		}
		s.mu.Unlock()
	}
	keep()
	return ids, more
}

// MergeRecord adds what a copy of ledger id's record says: one read from the
// index (segment 0) or from the log segment it stands in. For start-up.
func (t *Table) MergeRecord(id ledger.ID, r Record, segment uint32) {
	if t.deleted.has(id) {
		return
	}
	g := t.Lock(id)
	defer g.Unlock()
	s := g.makeKnown()
	s.Merge(r)
	s.durableTerm = s.Term // it was read from disk
	s.saved = max(s.saved, segment)
}

// MergeDeleted takes in that ledger id was deleted, as the index says. For
// start-up, before anything else is merged.
func (t *Table) MergeDeleted(id ledger.ID) { t.deleted.add(id) }

// MergeTombstones adds an encoded chunk, read as in MergeRecord. DropDeleted
// follows once all is read.
func (t *Table) MergeTombstones(chunk []byte, segment uint32) error {
	return t.deleted.merge(chunk, segment)
}

// DropDeleted forgets the records of ledgers that merged tombstones say are
// deleted.
func (t *Table) DropDeleted() {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for id := range s.ledgers {
			if t.deleted.has(id) {
				delete(s.ledgers, id)
			}
		}
		s.mu.Unlock()
	}
}

// DeletedLedgers calls fn for every deleted ledger, in no order.
func (t *Table) DeletedLedgers(fn func(ledger.ID)) { t.deleted.each(fn) }

// Unsaved returns the ledgers whose newest whole copy in the log is not in a
// segment above segment: before it is recycled they must be saved anew.
func (t *Table) Unsaved(segment uint32) []ledger.ID {
	var ids []ledger.ID
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for id, st := range s.ledgers {
			if st.saved <= segment {
				ids = append(ids, id)
			}
		}
		s.mu.Unlock()
	}
	slices.Sort(ids)
	return ids
}

// Saved notes that a whole copy of ledger id's record is durable in segment. The
// copy was taken, and handed to the log, under one Guard.
func (t *Table) Saved(id ledger.ID, segment uint32) {
	g := t.Lock(id)
	defer g.Unlock()
	if g.state != nil {
		g.state.saved = max(g.state.saved, segment)
	}
}

// UnsavedTombstones is Unsaved for the chunks of the set of deleted ledgers, by key.
func (t *Table) UnsavedTombstones(segment uint32) []int64 { return t.deleted.unsaved(segment) }

// EncodeTombstones returns a whole copy of chunk key, as MergeTombstones takes it.
// The caller sees to it that what is deleted later also stands later in the log.
func (t *Table) EncodeTombstones(key int64) []byte { return t.deleted.encode(key) }

// SavedTombstones notes that chunk key is durable in segment.
func (t *Table) SavedTombstones(key int64, segment uint32) { t.deleted.setSaved(key, segment) }
