package managedledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

// Options of a ManagedLedger. Topic, Layout, Store, Ledgers, Guard and Quorum
// are required; zero is the documented default elsewhere.
type Options struct {
	Topic   uint64 // id
	Layout  layout.Layout
	Store   meta.Store
	Ledgers *ensemble.Client
	// Guard returns what must hold in every transaction made as owner: the
	// revision of the bundle's owner key, and that the owner's session key exists.
	// That the topic's own key exists may be added: then nothing that is on its way
	// while the topic is deleted can bring a part of it back.
	Guard func() []meta.Cond
	// StillOwner is as in chain.Options.
	StillOwner func(context.Context) (bool, error)
	Quorum     ledger.Quorum
	Roll       Roll
	Cache      *Cache        // shared by all topics of the broker; nil: nothing is cached
	Budget     *chain.Budget // shared: of what waits for a ledger; nil: one of its own
	// OnFenced is called once when the topic is lost to this owner, after all
	// appends were answered. Ask chain.Owned then: reopen, or drop the bundle. It
	// must not wait for Close or Abandon.
	OnFenced func(error)
	// Notify is called after the last confirmed position moved and the append's
	// done has returned. It must be quick.
	Notify  func()
	Log     hclog.Logger
	Metrics *Metrics
	Now     func() time.Time // nil: time.Now
}

// Roll says when a ledger is closed and the next one begun.
type Roll struct {
	MaxBytes   int64 // 0: 256 MiB
	MaxEntries int64 // 0: 262,144
	// MaxAge closes a ledger that old, when Trim finds that this frees data; 0: 4 h.
	MaxAge time.Duration
}

// Validate reports every fault of the options.
func (o *Options) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("managedledger: option %s is missing", what))
		}
	}
	need(o.Topic != 0, "Topic")
	need(o.Store != nil, "Store")
	need(o.Ledgers != nil, "Ledgers")
	need(o.Guard != nil, "Guard")
	if o.Roll.MaxBytes < 0 || o.Roll.MaxEntries < 0 || o.Roll.MaxAge < 0 {
		errs = append(errs, fmt.Errorf("managedledger: roll %+v: want figures of at least 0", o.Roll))
	}
	return errors.Join(append(errs, o.Quorum.Validate())...)
}

func (o *Options) fill() {
	if o.Roll.MaxAge == 0 {
		o.Roll.MaxAge = 4 * time.Hour
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Metrics == nil {
		o.Metrics = unshown()
	}
	if o.Cache == nil {
		o.Cache = NewCache(CacheOptions{Bytes: 1, Metrics: o.Metrics})
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Notify == nil {
		o.Notify = func() {}
	}
}

// ManagedLedger is an open chain. Safe for concurrent use; the order of appends
// is the order of the calls of Append.
type ManagedLedger struct {
	opts     Options
	record   *record
	appender *chain.Appender

	mu      sync.RWMutex
	links   links
	readers map[ledger.ID]*ensemble.Reader
}

// Add is an entry to append.
type Add struct {
	Body     []byte // broker part and producer part; nobody alters it from now on
	BodyCRC  uint32 // CRC-32C of Body
	Messages uint32 // how many indexes it takes
	Time     int64  // its broker time, milliseconds; never below that of the add before
}

// Append adds an entry. It never blocks; the ledger is created with the first
// one. An error means that the add was refused and is surely not in the topic
// (chain.Appender.Append says why). Otherwise done is called once, in order, one
// at a time, never from within Append: with the position of the acknowledged
// entry, or with an error when the outcome is unknown. done must be quick and may
// call Append.
func (m *ManagedLedger) Append(add Add, done func(position.Position, error)) error {
	return m.appender.Append(add.Body, add.BodyCRC, func(id ledger.ID, e ledger.EntryID, err error) {
		if err != nil {
			done(position.Position{}, err)
			return
		}
		p := position.Position{Ledger: id, Entry: e}
		m.opts.Cache.Put(p, add.Body)
		m.confirm(p, add)
		done(p, nil)
		m.opts.Notify()
	})
}

// confirm counts an acknowledged entry. Entries are confirmed in order, so p is
// the next of its ledger.
func (m *ManagedLedger) confirm(p position.Position, add Add) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.links.find(p.Ledger)
	if i == len(m.links) || m.links[i].ledger != p.Ledger {
		return // acknowledged in time, heard of after another owner took the ledger out
	}
	l := &m.links[i]
	if l.entries == 0 {
		l.firstTime = max(l.firstTime, add.Time)
	}
	l.entries = int64(p.Entry) + 1
	l.bytes += int64(len(add.Body))
	l.messages += uint64(add.Messages)
	l.lastTime = max(l.lastTime, l.firstTime, add.Time)
	if i+1 < len(m.links) { // created ahead: it will go on from here
		m.links[i+1].follow(l)
	}
}

// follow sets the lower bounds of a link without entries.
func (l *link) follow(before *link) {
	l.firstIndex, l.firstTime, l.lastTime = before.nextIndex(), before.lastTime, before.lastTime
}

// First is the first position that can be read, or where the next entry will
// stand.
func (m *ManagedLedger) First() position.Position {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.links.first()
}

// LastConfirmed is the position of the last acknowledged entry, though it may be
// trimmed by now. When no ledger that is left ever held one it is in front of the
// first of these, or Start. It never goes back.
func (m *ManagedLedger) LastConfirmed() position.Position {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.links.last()
}

// Next is the read position that follows p: the entry after it, or where that
// will stand. ErrBeyondEnd: p is not in the chain.
func (m *ManagedLedger) Next(p position.Position) (position.Position, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.links.after(p)
}

// Normalize moves a read position out of what was trimmed, or from the end of a
// ledger, to where the next entry stands or will stand. ErrBeyondEnd: p is after
// that; for a durable cursor this is damage.
func (m *ManagedLedger) Normalize(p position.Position) (position.Position, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.links.normalize(p)
}

// Between is what lies in from <= position < to: entries exactly; bytes and
// messages exactly for whole ledgers, else in proportion. It asks nobody; see
// Measure.
func (m *ManagedLedger) Between(from, to position.Position) Extent {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.links.between(from, to)
}

// NextIndex is the index of the message after the last confirmed one. When
// nothing is in flight it is that of the next message.
func (m *ManagedLedger) NextIndex() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.links) == 0 {
		return 0
	}
	return m.links[len(m.links)-1].nextIndex()
}

// LastTime is the broker time of the last confirmed entry; entries to come may
// not be before it.
func (m *ManagedLedger) LastTime() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.links) == 0 {
		return 0
	}
	return m.links[len(m.links)-1].lastTime
}

// Pending counts what was appended and not answered.
func (m *ManagedLedger) Pending() (entries int, bytes int64) { return m.appender.Pending() }

// Close takes no more appends, waits for those taken, and closes the ledger, so
// that the next owner has nothing to recover. When ctx ends first it gives up as
// Abandon does and returns the context's error.
func (m *ManagedLedger) Close(ctx context.Context) error { return m.appender.Close(ctx) }

// Abandon gives the topic up as it is: appends in flight are answered as
// unknown, and the next owner recovers.
func (m *ManagedLedger) Abandon() { m.appender.Abandon() }

// Stats describes the chain.
type Stats struct {
	First         position.Position
	LastConfirmed position.Position
	NextIndex     uint64
	Extent            // of all that can be read
	Pending       int // appends not answered
	PendingBytes  int64
	Trouble       error // why appends or a roll wait; nil: they do not
	Ledgers       []LedgerStats
}

// LedgerStats describes one ledger of the chain.
type LedgerStats struct {
	Ledger     ledger.ID
	FirstIndex uint64
	Extent
	FirstTime time.Time
	LastTime  time.Time
	Closed    bool
}

// Stats returns a picture of the chain.
func (m *ManagedLedger) Stats() Stats {
	var s Stats
	s.Pending, s.PendingBytes = m.appender.Pending()
	s.Trouble = m.appender.Trouble()
	m.mu.RLock()
	defer m.mu.RUnlock()
	s.First, s.LastConfirmed = m.links.first(), m.links.last()
	for i := range m.links {
		l := &m.links[i]
		s.NextIndex = l.nextIndex()
		if l.trimmed {
			continue
		}
		ls := LedgerStats{
			Ledger: l.ledger, FirstIndex: l.firstIndex, Closed: l.closed,
			Extent:    Extent{Entries: l.entries, Bytes: l.bytes, Messages: int64(l.messages)},
			FirstTime: time.UnixMilli(l.firstTime), LastTime: time.UnixMilli(l.lastTime),
		}
		s.Extent.add(ls.Extent)
		s.Ledgers = append(s.Ledgers, ls)
	}
	return s
}
