package meta

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
)

// Mem is the metadata store in memory: one state, shared by as many clients as
// Client makes, with the revisions, transactions, watches and sessions of the
// real store. It is itself a Store, the client named "".
//
// All its time is that of package time, so that a lease of seconds costs nothing
// inside a synctest bubble. It starts no goroutine that outlives a call; sessions
// run on timers.
//
// Tests make it fail: see OnCall for faults of one call, and SetUnavailable,
// SetNoSpace, Compact, Expire, Rollback and MemClient.Cut for the rest.
type Mem struct {
	*MemClient // the client named ""

	mu          sync.Mutex
	revision    Revision
	compacted   Revision // changes up to here are forgotten
	keys        []string // sorted; those in records
	records     map[string]memRecord
	history     []memChange // of revisions compacted+1 … revision, in order
	changed     chan struct{}
	leases      map[string]*memLease
	lastLease   uint64 // never goes back, not even by Rollback
	unavailable bool
	noSpace     bool
	rollbacks   int // running watches end when it moves
	hook        func(Call) Fault
	calls       int
}

// memRecord is a key as stored. Its value is never altered.
type memRecord struct {
	KV
	lease string // "" when tied to no session
}

// memChange is one change of one key; before and after have revision 0 where
// the key does not exist.
type memChange struct {
	revision      Revision
	key           string
	before, after memRecord
}

// memHistory bounds the changes kept for watches and Rollback; beyond it the
// older half is compacted away.
const memHistory = 1 << 17

// NewMem returns an empty store at revision 1.
func NewMem() *Mem {
	m := &Mem{
		revision:  1,
		compacted: 1,
		records:   make(map[string]memRecord),
		changed:   make(chan struct{}),
		leases:    make(map[string]*memLease),
	}
	m.MemClient = m.Client("")
	return m
}

// Revision returns the revision the store stands at.
func (m *Mem) Revision() Revision {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision
}

// Compact forgets how the store came to its present state: a watch that asks
// for a change before now gets ErrCompacted.
func (m *Mem) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history = nil
	m.compacted = m.revision
	m.wakeLocked()
}

// SetUnavailable makes every call of every client fail with ErrUnavailable, not
// done, until it is called with false. Leases do not run out meanwhile and start
// with their full ttl afterwards, as they do when etcd elects a leader; sessions
// whose process could not renew them for their ttl have ended all the same.
func (m *Mem) SetUnavailable(unavailable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unavailable == unavailable {
		return
	}
	m.unavailable = unavailable
	for _, l := range m.leases {
		l.expiry.Stop()
		if !unavailable {
			l.expiry.Reset(l.ttl)
		}
	}
	m.wakeLocked()
}

// Sessions lists the sessions that have not ended for the store, in order.
func (m *Mem) Sessions() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.leases))
}

// SetNoSpace makes every put and every new session fail with ErrNoSpace until it
// is called with false. Reads and deletions work.
func (m *Mem) SetNoSpace(noSpace bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.noSpace = noSpace
}

// Rollback puts the store back to what it was at revision to, as a restored
// backup does. Sessions begun since are gone; those that ended since have their
// keys back, for one ttl. Running watches end with ErrUnavailable. It panics when
// that revision is forgotten or in the future.
func (m *Mem) Rollback(to Revision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if to < m.compacted || to > m.revision {
		panic(fmt.Sprintf("meta: rollback to revision %d: only %d to %d are kept", to, m.compacted, m.revision))
	}
	for len(m.history) > 0 && m.history[len(m.history)-1].revision > to {
		last := m.history[len(m.history)-1]
		m.history = m.history[:len(m.history)-1]
		m.setLocked(last.key, last.before)
	}
	m.revision = to
	m.rollbackLeasesLocked(to)
	m.rollbacks++
	m.wakeLocked()
}

// setLocked makes key what r says it is, without history; a revision of 0
// removes it.
func (m *Mem) setLocked(key string, r memRecord) {
	old, had := m.records[key]
	if had && old.lease != "" {
		if l := m.leases[old.lease]; l != nil {
			delete(l.keys, key)
		}
	}
	i, _ := slices.BinarySearch(m.keys, key)
	if !r.Exists() {
		if had {
			delete(m.records, key)
			m.keys = slices.Delete(m.keys, i, i+1)
		}
		return
	}
	if !had {
		m.keys = slices.Insert(m.keys, i, key)
	}
	m.records[key] = r
	if l := m.leases[r.lease]; l != nil {
		l.keys[key] = struct{}{}
	}
}

// changeLocked makes one change at revision at and remembers it.
func (m *Mem) changeLocked(at Revision, key string, after memRecord) {
	m.history = append(m.history, memChange{revision: at, key: key, before: m.records[key], after: after})
	m.setLocked(key, after)
}

// commitLocked ends a revision: whoever watches is told.
func (m *Mem) commitLocked(at Revision) {
	m.revision = at
	if len(m.history) > memHistory {
		cut := m.history[len(m.history)-memHistory/2].revision
		i := sort.Search(len(m.history), func(i int) bool { return m.history[i].revision > cut })
		m.history = slices.Clone(m.history[i:])
		m.compacted = cut
	}
	m.wakeLocked()
}

func (m *Mem) wakeLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *Mem) getLocked(key string) KV {
	r, ok := m.records[key]
	if !ok {
		return KV{Key: key}
	}
	kv := r.KV
	kv.Value = bytes.Clone(kv.Value)
	return kv
}

func (m *Mem) rangeLocked(start, end string, limit int) []KV {
	inside := func(key string) bool { return key < end }
	if end == "" {
		inside = func(key string) bool { return strings.HasPrefix(key, start) }
	}
	var kvs []KV
	i, _ := slices.BinarySearch(m.keys, start)
	for ; i < len(m.keys) && inside(m.keys[i]) && (limit == 0 || len(kvs) < limit); i++ {
		kvs = append(kvs, m.getLocked(m.keys[i]))
	}
	return kvs
}

func (c Cond) holds(kv KV) bool {
	if c.AnyRevision {
		return kv.Exists()
	}
	return kv.Revision == c.Revision
}

func (m *Mem) txnLocked(t Txn) (TxnResult, error) {
	for _, c := range t.Conds {
		if !c.holds(m.records[c.Key].KV) {
			return TxnResult{Revision: m.revision}, nil
		}
	}
	for _, op := range t.Ops {
		if op.Delete {
			continue
		}
		if m.noSpace {
			return TxnResult{}, fmt.Errorf("put %s: %w", op.Key, ErrNoSpace)
		}
		if op.Session != nil && m.leases[op.Session.ID()] == nil {
			return TxnResult{}, fmt.Errorf("put %s under session %s: %w", op.Key, op.Session.ID(), ErrSessionEnded)
		}
	}
	at, changes := m.revision+1, 0
	for _, op := range t.Ops {
		before, had := m.records[op.Key]
		if op.Delete {
			if had {
				m.changeLocked(at, op.Key, memRecord{})
				changes++
			}
			continue
		}
		r := memRecord{KV: KV{Key: op.Key, Value: bytes.Clone(op.Value), Revision: at, Created: at}}
		if had {
			r.Created = before.Created
		}
		if op.Session != nil {
			r.lease = op.Session.ID()
		}
		m.changeLocked(at, op.Key, r)
		changes++
	}
	if changes > 0 {
		m.commitLocked(at)
	}
	return TxnResult{Done: true, Revision: m.revision}, nil
}

// memLease is the store's side of a session.
type memLease struct {
	id      string
	ttl     time.Duration
	granted Revision
	keys    map[string]struct{}
	expiry  *time.Timer // runs while the store is available
}

func (m *Mem) grantLocked(ttl time.Duration) (string, error) {
	if m.noSpace {
		return "", fmt.Errorf("new session: %w", ErrNoSpace)
	}
	m.lastLease++
	id := fmt.Sprintf("%016x", m.lastLease)
	m.leases[id] = m.newLease(id, ttl, m.revision)
	return id, nil
}

func (m *Mem) newLease(id string, ttl time.Duration, granted Revision) *memLease {
	return &memLease{
		id: id, ttl: ttl, granted: granted,
		keys:   make(map[string]struct{}),
		expiry: time.AfterFunc(ttl, func() { m.Expire(id) }),
	}
}

// renewLocked reports whether the lease is still there.
func (m *Mem) renewLocked(id string) bool {
	l := m.leases[id]
	if l == nil {
		return false
	}
	l.expiry.Reset(l.ttl)
	return true
}

// Expire ends a session on the store's side: its keys go, in one revision. Its
// process learns of it when it next renews.
func (m *Mem) Expire(session string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expireLocked(session)
}

func (m *Mem) expireLocked(session string) {
	l := m.leases[session]
	if l == nil {
		return
	}
	l.expiry.Stop()
	keys := make([]string, 0, len(l.keys))
	for key := range l.keys {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	at := m.revision + 1
	for _, key := range keys {
		m.changeLocked(at, key, memRecord{})
	}
	delete(m.leases, session)
	if len(keys) > 0 {
		m.commitLocked(at)
	}
}

// rollbackLeasesLocked drops the leases granted after to, and gives keys that
// came back without their lease a new one of the same id, which nobody renews.
func (m *Mem) rollbackLeasesLocked(to Revision) {
	for id, l := range m.leases {
		if l.granted > to {
			l.expiry.Stop()
			delete(m.leases, id)
		}
	}
	for key, r := range m.records {
		if r.lease == "" {
			continue
		}
		if m.leases[r.lease] == nil {
			m.leases[r.lease] = m.newLease(r.lease, memLostLease, to)
		}
		m.leases[r.lease].keys[key] = struct{}{}
	}
}

// memLostLease is how long keys live that a rollback brought back.
const memLostLease = 5 * time.Second
