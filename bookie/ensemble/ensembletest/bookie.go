package ensembletest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// ErrDown is what a bookie that is down or cut off answers: the outcome is
// unknown.
var ErrDown = errors.New("ensembletest: connection refused")

// AddFault is what befalls one add; the zero AddFault is that all goes well.
type AddFault struct {
	Err   error         // the answer
	Store bool          // with Err: the entry is stored all the same
	Delay time.Duration // before the bookie looks at it
	Twice bool          // it is stored a second time after its answer, as a resent frame would be
}

// Bookie is one bookie. Safe for concurrent use.
type Bookie struct {
	cluster *Cluster
	rack    string

	mu       sync.Mutex // guards what follows; not held over callbacks
	member   ledger.Member
	format   int // how often its storage was formatted
	listed   bool
	down     bool
	cut      bool
	readOnly bool
	maxBody  int64 // 0: takes all
	latency  time.Duration
	thawed   chan struct{} // closed unless it is frozen
	onAdd    func(ledger.Add) AddFault
	onRead   func(ledger.ReadRequest) error
	onFence  func(ledger.ID, int64) error
	ledgers  map[ledger.ID]*stored
	queue    []job // adds not looked at yet, in order
	working  bool
	adds     int
	reads    int
	fences   int
}

// stored is what a bookie holds of one ledger.
type stored struct {
	entries map[ledger.EntryID]ledger.Entry
	term    int64
	deleted bool
	limbo   bool
	damaged map[ledger.EntryID]bool
	last    ledger.EntryID // highest ever stored
	lac     ledger.EntryID // highest in any envelope ever stored
}

// put stores an entry.
func (l *stored) put(e ledger.Entry) {
	l.entries[e.Envelope.Entry] = e
	l.last, l.lac = max(l.last, e.Envelope.Entry), max(l.lac, e.Envelope.LAC)
}

type job struct {
	to   ledger.Member
	add  ledger.Add
	done func(error)
}

// Member is its name in ensembles.
func (b *Bookie) Member() ledger.Member {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.member
}

// Kill ends it as kill −9 does: what it has not answered fails, what it has
// stored stays, and it is no longer listed.
func (b *Bookie) Kill() {
	b.mu.Lock()
	b.down, b.listed = true, false
	lost := b.queue
	b.queue = nil
	b.mu.Unlock()
	for _, j := range lost {
		j.done(ErrDown)
	}
	b.cluster.change()
}

// Restart brings it back with what it had stored.
func (b *Bookie) Restart() {
	b.mu.Lock()
	b.down, b.listed = false, true
	b.mu.Unlock()
	b.cluster.change()
}

// Cut cuts its connections, or mends them; it stays listed.
func (b *Bookie) Cut(cut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cut = cut
}

// Unlist takes it out of the directory, or back in; it still answers.
func (b *Bookie) Unlist(unlisted bool) {
	b.mu.Lock()
	b.listed = !unlisted
	b.mu.Unlock()
	b.cluster.change()
}

// Freeze makes it accept everything and answer nothing until Thaw.
func (b *Bookie) Freeze() {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.thawed:
		b.thawed = make(chan struct{})
	default:
	}
}

// Thaw undoes Freeze: what was accepted is done and answered now.
func (b *Bookie) Thaw() {
	b.mu.Lock()
	select {
	case <-b.thawed:
	default:
		close(b.thawed)
	}
	b.workLocked()
	b.mu.Unlock()
}

// SetLatency delays every answer.
func (b *Bookie) SetLatency(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.latency = d
}

// SetReadOnly makes it refuse data, and says so in the directory.
func (b *Bookie) SetReadOnly(readOnly bool) {
	b.mu.Lock()
	b.readOnly = readOnly
	b.mu.Unlock()
	b.cluster.change()
}

// SetMaxBody makes it refuse bodies of more bytes, and says so in the directory, as
// a restart with other segments does; 0: it takes all and says nothing.
func (b *Bookie) SetMaxBody(bytes int64) {
	b.mu.Lock()
	b.maxBody = bytes
	b.mu.Unlock()
	b.cluster.change()
}

// Wipe formats its storage: it loses everything and comes back as another
// incarnation.
func (b *Bookie) Wipe() {
	b.mu.Lock()
	b.format++
	b.member.Incarnation = fmt.Sprintf("%s/%d", b.member.Bookie, b.format)
	b.ledgers = make(map[ledger.ID]*stored)
	b.mu.Unlock()
	b.cluster.change()
}

// Forget breaks its promise: it loses a ledger, fence and all, and does not know
// it.
func (b *Bookie) Forget(id ledger.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ledgers, id)
}

// Lose makes it lose one entry.
func (b *Bookie) Lose(id ledger.ID, e ledger.EntryID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ledgerLocked(id).entries, e)
}

// Damage makes reads of one entry give other bytes.
func (b *Bookie) Damage(id ledger.ID, e ledger.EntryID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ledgerLocked(id).damaged[e] = true
}

// SetLimbo makes its absences in a ledger unknown, or sure again.
func (b *Bookie) SetLimbo(id ledger.ID, limbo bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ledgerLocked(id).limbo = limbo
}

// Delete makes it keep a tombstone of a ledger.
func (b *Bookie) Delete(id ledger.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.ledgerLocked(id)
	l.deleted = true
	clear(l.entries)
}

// OnAdd asks hook what befalls each add; nil: nothing. It runs with the bookie's
// lock held.
func (b *Bookie) OnAdd(hook func(ledger.Add) AddFault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onAdd = hook
}

// OnRead asks hook for the error of each read, before it fences; nil: none.
func (b *Bookie) OnRead(hook func(ledger.ReadRequest) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onRead = hook
}

// OnFence asks hook for the error of each fence, before it takes effect; nil:
// none.
func (b *Bookie) OnFence(hook func(id ledger.ID, term int64) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onFence = hook
}

// Has reports whether it holds an entry.
func (b *Bookie) Has(id ledger.ID, e ledger.EntryID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.ledgers[id]
	if l == nil {
		return false
	}
	_, ok := l.entries[e]
	return ok
}

// Entry returns an entry as stored.
func (b *Bookie) Entry(id ledger.ID, e ledger.EntryID) (ledger.Entry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.ledgers[id]
	if l == nil {
		return ledger.Entry{}, false
	}
	entry, ok := l.entries[e]
	return entry, ok
}

// Put stores an entry behind everybody's back.
func (b *Bookie) Put(e ledger.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ledgerLocked(e.Envelope.Ledger).put(e)
}

// Term is the highest fence term of a ledger; 0: never fenced.
func (b *Bookie) Term(id ledger.ID) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.ledgers[id]; l != nil {
		return l.term
	}
	return 0
}

// Calls counts the adds, reads and fences it was sent.
func (b *Bookie) Calls() (adds, reads, fences int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adds, b.reads, b.fences
}

// ledgerLocked returns what it holds of a ledger, made if need be.
func (b *Bookie) ledgerLocked(id ledger.ID) *stored {
	l := b.ledgers[id]
	if l == nil {
		l = &stored{
			entries: make(map[ledger.EntryID]ledger.Entry), damaged: make(map[ledger.EntryID]bool),
			last: ledger.NoEntry, lac: ledger.NoEntry,
		}
		b.ledgers[id] = l
	}
	return l
}
