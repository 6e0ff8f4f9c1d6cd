package chain

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// Links is how the list of a chain's ledgers is recorded in the metadata store.
// The appender calls it from one goroutine at a time. Every transaction is made
// under the owner's guard; an error that is ErrNotOwner ends the chain, any other
// is tried again.
type Links interface {
	// Prepare is called before each attempt to create a ledger. It returns the least
	// id that ledger may have: above every ledger the chain ever had. When the list
	// is not surely known (after Unlinked) it reads it again, and drops a ledger that
	// got into it without a writer.
	Prepare(ctx context.Context) (ledger.ID, error)
	// Link returns the conditions and operations that make ledger id the newest of
	// the chain; they are part of the transaction that creates it.
	Link(id ledger.ID) ([]meta.Cond, []meta.Op)
	// Linked ends a successful Prepare: the ledger w writes surely is the newest of
	// the chain.
	Linked(w *ensemble.Writer)
	// Unlinked ends a successful Prepare otherwise. Unless surely, the ledger may
	// have been created all the same.
	Unlinked(surely bool)
	// Closed records that a ledger is closed; it is called before another is
	// created. An empty ledger is dropped here.
	Closed(ctx context.Context, md ledger.Metadata) error
}

// Roll says when to go on in a new ledger. While none can be created, the old
// one is written on, up to four times these figures.
type Roll struct {
	MaxBytes   int64 // of bodies; 0: 256 MiB
	MaxEntries int64 // 0: 262,144
}

// patience is how many times the size of a roll may be exceeded while the next
// ledger cannot be created.
const patience = 4

// Options of an Appender. Ledgers, Guard and Links are required.
type Options struct {
	Ledgers *ensemble.Client
	Store   meta.Store
	Links   Links
	Guard   func() []meta.Cond // what must hold in every transaction made as owner
	// StillOwner is asked when a transaction found that the guard did not hold: a
	// session that lapsed and is about to be renewed is no reason to end the chain.
	// True, or an error: the step is tried again under the guard of then. nil: the
	// guard's word is final.
	StillOwner func(context.Context) (bool, error)
	Quorum     ledger.Quorum
	Class      ledger.Class
	Parent     ledger.Parent
	Roll       Roll
	Budget     *Budget // of what waits for a ledger; nil: one of its own
	// SelfBounded says that the caller bounds what it appends: nothing is refused
	// with ErrTooBusy.
	SelfBounded bool
	// OnFenced is called once, from a goroutine of the appender, when the chain is
	// lost to this owner, after everything in flight was answered. It must not wait
	// for Close or Abandon.
	OnFenced func(error)
	// IdleAfter is how long the goroutine of an active chain stays; 0: 2 s.
	IdleAfter time.Duration
	// StepTimeout bounds one attempt to create, close or seal a ledger; then it is
	// said what is in the way, and the next one made. 0: 5 s.
	StepTimeout time.Duration
	Log         hclog.Logger
}

// Done answers an append. A nil error: acknowledged, as entry e of ledger id. Any
// other: its outcome is unknown.
type Done func(id ledger.ID, e ledger.EntryID, err error)

// add is an append that was accepted and not answered.
type add struct {
	body []byte
	crc  uint32
	done Done
}

// writer is what an Appender needs of an ensemble.Writer.
type writer interface {
	ID() ledger.ID
	Append(body []byte, crc uint32, done func(ledger.EntryID, error)) (ledger.EntryID, error)
	Next() ledger.EntryID
	Bytes() int64
	Failed() <-chan struct{}
	Err() error
	Close(ctx context.Context) (ledger.Metadata, error)
	Seal(ctx context.Context) (ledger.Metadata, []ensemble.Unacked, error)
	Abandon()
}

// Appender is the one writer of a chain. Safe for concurrent use; the order of
// entries is the order of the calls.
//
// Adds take this way: Append → waiting → inflight of the current ledger →
// answered. They pass waiting by when nothing waits and the current ledger takes
// adds. The entries of a ledger are sent only when those of all ledgers before it
// are answered.
//
// What may take long (creating, sealing, closing a ledger) is done by one
// goroutine, run, that lives while the chain is active.
type Appender struct {
	opts   Options
	budget *Budget
	wrap   func(*ensemble.Writer) writer // how a ledger just created is written
	log    hclog.Logger
	ctx    context.Context // of run
	cancel context.CancelFunc
	wake   chan struct{} // buffered by one: run has something to look at

	mu      sync.Mutex
	waiting fifo
	current *segment      // takes adds; nil: none yet
	next    *segment      // created ahead, follows current
	old     *segment      // all answered, not closed yet
	running chan struct{} // closed when run ends; nil: not running
	closing bool          // Close was called: no more appends
	ended   error         // no more adds are sent or acknowledged
	told    bool          // OnFenced was called, or is not to be
	trouble error         // why run cannot go on at the moment; nil: it can
	retry   *time.Timer   // set while it is to flush what waits
}

// segment is one ledger being written.
type segment struct {
	a        *Appender
	w        writer
	inflight fifo
	// leaving: it takes no more adds; once all are answered, next takes its place.
	leaving bool
	failed  bool             // its writer can do no more
	sealing bool             // run waits until what the writer answered is through
	closed  *ledger.Metadata // once it is; run alone looks at it
}

// NewAppender returns an appender that creates its first ledger on the first
// append. All ledgers of the chain must be closed.
func NewAppender(opts Options) *Appender {
	if opts.Roll.MaxBytes == 0 {
		opts.Roll.MaxBytes = 256 << 20
	}
	if opts.Roll.MaxEntries == 0 {
		opts.Roll.MaxEntries = 1 << 18
	}
	if opts.IdleAfter == 0 {
		opts.IdleAfter = 2 * time.Second
	}
	if opts.StepTimeout == 0 {
		opts.StepTimeout = 5 * time.Second
	}
	if opts.Log == nil {
		opts.Log = hclog.NewNullLogger()
	}
	if opts.Budget == nil {
		opts.Budget = NewBudget(0)
	}
	a := &Appender{opts: opts, budget: opts.Budget, log: opts.Log, wake: make(chan struct{}, 1)}
	a.wrap = func(w *ensemble.Writer) writer { return w }
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// Append adds one entry; nobody may alter body from now on. It never blocks.
// crc is the CRC-32C of body.
//
// An error means that the entry was refused and is surely not part of the chain:
// ErrTooBusy (with the reason why nothing can be written, if that is so),
// ErrTooLarge, ErrNotEnoughBookies (without ErrTooBusy) where too few bookies take
// the largest entries, which no waiting mends, ErrStopping, or why the chain ended.
// Otherwise done is called once, in the order of the calls, one at a time, never from
// within Append. It must be quick and may call Append.
func (a *Appender) Append(body []byte, crc uint32, done Done) error {
	if len(body) > ledger.MaxBodyBytes {
		return fmt.Errorf("append of %d bytes: %w", len(body), ledger.ErrTooLarge)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.ended != nil:
		return a.ended
	case a.closing:
		return ledger.ErrStopping
	}
	if a.current == nil && !a.opts.SelfBounded {
		if err := a.opts.Ledgers.TooSmall(a.opts.Class, a.opts.Quorum); err != nil {
			return fmt.Errorf("append: %w", err)
		}
	}
	one := add{body: body, crc: crc, done: done}
	if a.waiting.len() == 0 && a.takesLocked() {
		err := a.sendLocked(one)
		if err == nil {
			a.activeLocked()
			return nil
		}
		switch {
		case !errors.Is(err, ledger.ErrTooBusy):
			a.current.failed = true
		case !a.opts.SelfBounded:
			return err
		}
	}
	if a.opts.SelfBounded {
		a.budget.retake(int64(len(body)))
	} else if !a.budget.take(int64(len(body))) {
		if a.trouble != nil {
			return fmt.Errorf("append: %w: %w", ledger.ErrTooBusy, a.trouble)
		}
		return fmt.Errorf("append: %w", ledger.ErrTooBusy)
	}
	a.waiting.push(one)
	a.retryLocked()
	a.activeLocked()
	a.nudge()
	return nil
}

// Pending counts what was appended and not answered.
func (a *Appender) Pending() (entries int, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	entries, bytes = a.waiting.len(), a.waiting.bytes
	if a.current != nil {
		entries += a.current.inflight.len()
		bytes += a.current.inflight.bytes
	}
	return entries, bytes
}

// Trouble is why appends wait, or why a roll does; nil: they do not.
func (a *Appender) Trouble() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended != nil {
		return a.ended
	}
	return a.trouble
}

// Retire closes the current ledger without waiting for its size; the next append
// creates another. It returns at once, and does nothing while a roll is under
// way.
func (a *Appender) Retire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended != nil || a.closing || a.current == nil || a.next != nil || a.old != nil || a.current.leaving {
		return
	}
	a.current.leaving = true
	a.turnLocked()
	a.activeLocked()
	a.nudge()
}

// takesLocked reports whether the current ledger takes adds now.
func (a *Appender) takesLocked() bool {
	s := a.current
	return s != nil && !s.leaving && !s.failed && !s.full(patience)
}

// full reports whether the segment has reached times the size of a roll.
func (s *segment) full(times int64) bool {
	r := s.a.opts.Roll
	return s.w.Bytes() >= times*r.MaxBytes || int64(s.w.Next()) >= times*r.MaxEntries
}

// sendLocked gives one add to the current ledger. ErrTooBusy: later; any other
// error: the writer can do no more.
func (a *Appender) sendLocked(one add) error {
	s := a.current
	s.inflight.push(one)
	if _, err := s.w.Append(one.body, one.crc, s.answered); err != nil {
		s.inflight.unpush()
		return err
	}
	if s.full(1) && a.next == nil && a.trouble == nil {
		a.nudge()
	}
	return nil
}

// flushLocked sends what waits, as far as the current ledger takes it.
func (a *Appender) flushLocked() {
	for a.waiting.len() > 0 && a.ended == nil && a.takesLocked() {
		one := a.waiting.front()
		if err := a.sendLocked(one); err != nil {
			if !errors.Is(err, ledger.ErrTooBusy) {
				a.current.failed = true
				a.nudge()
			}
			a.retryLocked()
			return // too busy: the next answer, or the retry, comes back here
		}
		a.waiting.pop()
		a.budget.give(int64(len(one.body)))
	}
}

// retryLocked has what waits flushed again in a while, where the ledger client was
// too busy and no answer of ours is due that would do it. Not run's to do: what it
// is at may wait for the metadata store.
func (a *Appender) retryLocked() {
	if a.retry != nil || a.ended != nil || a.waiting.len() == 0 || !a.takesLocked() || a.current.inflight.len() > 0 {
		return
	}
	a.retry = time.AfterFunc(busyRetry, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.retry = nil
		a.flushLocked()
	})
}

// answered is the done function of every add of the segment. The writer calls it
// in the order of ids, one at a time, so the first in flight is the one meant.
//
// The caller of the add hears of it before the next ledger may be sent anything:
// answers of two ledgers never overtake each other.
func (s *segment) answered(e ledger.EntryID, err error) {
	a := s.a
	a.mu.Lock()
	one := s.inflight.front()
	a.mu.Unlock()

	if err != nil {
		err = fmt.Errorf("append to ledger %d: %w", s.w.ID(), err)
	}
	one.done(s.w.ID(), e, err)

	a.mu.Lock()
	defer a.mu.Unlock()
	s.inflight.pop()
	if err != nil {
		a.endLocked(err)
	}
	a.turnLocked()
	a.flushLocked()
	if s.sealing || a.closing || a.ended != nil {
		a.nudge()
	}
}

// turnLocked lets the next ledger take the place of one that is leaving, once
// everything in that one is answered.
func (a *Appender) turnLocked() {
	s := a.current
	if s == nil || !s.leaving || s.failed || s.inflight.len() > 0 || a.old != nil || a.ended != nil {
		return
	}
	a.old, a.current, a.next = s, a.next, nil
	a.nudge()
}

// endLocked stops the chain for good.
func (a *Appender) endLocked(err error) {
	if a.ended == nil {
		a.ended = err
		if a.retry != nil {
			a.retry.Stop()
		}
		a.nudge()
	}
}

// nudge makes run look again.
func (a *Appender) nudge() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// activeLocked starts run when it is not running.
func (a *Appender) activeLocked() {
	if a.running == nil {
		a.running = make(chan struct{})
		go a.run(a.running)
	}
}
