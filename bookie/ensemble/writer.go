package ensemble

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// Writer is the one writer of a ledger. Safe for concurrent use.
//
// It has no goroutine of its own. Whoever brings an event (an append, an answer,
// the timer) gives it to the core under mu, and then does what the core asks for
// without mu: one goroutine at a time sends, one at a time answers the
// application, so that both keep the order of ids. Writes of the ledger's record
// run on a goroutine while they last, one at a time.
type Writer struct {
	c      *Client
	id     ledger.ID
	class  ledger.Class
	ctx    context.Context // ends with Abandon
	cancel context.CancelFunc
	lac    atomic.Int64
	failed chan struct{} // closed when the writer can do no more

	mu         sync.Mutex // guards what follows; never held over a bookie, the store or a callback
	core       *writerCore
	rev        meta.Revision // of the record as core.md has it
	refs       []refGen      // per slot
	spareSends []send
	spareAcks  []completion
	sending    bool // a goroutine is sending
	answering  bool // a goroutine is answering the application
	recording  bool // the record is being written, or is about to be
	repairing  bool // the short list is being worked on
	told       bool // failed is closed
	left       bool // nothing runs for it any more
	held       int64
	lagging    int64
	timer      *time.Timer
	timerAt    time.Duration // when it fires; 0: not armed
	repairAt   time.Duration // next attempt at the short list; 0: not set
	repairWait time.Duration
	final      *ledger.Metadata // set once this writer closed the ledger
	tail       []Unacked        // what Seal is to return
	complaint  string           // why no bookie could help, as last logged; owned by change
	waiters    int              // who waits for news
	news       chan struct{}    // closed and made anew when there are some
}

// refGen is the bookie of a slot, for sends of that generation.
type refGen struct {
	ref *bookieRef
	gen uint32
}

// newWriter starts the writer of a ledger just created.
func (c *Client) newWriter(md ledger.Metadata, rev meta.Revision) (*Writer, error) {
	w := &Writer{
		c: c, id: md.ID, class: md.Class, rev: rev, failed: make(chan struct{}), news: make(chan struct{}),
		refs: make([]refGen, md.Quorum.Write),
	}
	w.ctx, w.cancel = context.WithCancel(c.ctx)
	w.lac.Store(int64(ledger.NoEntry))
	over := func(slot int) bool {
		w.bindLocked()
		return w.refs[slot].ref.bytes.Load() > c.opts.BookieBytes
	}
	w.core = newWriterCore(c.now(), md, timing{addTimeout: c.opts.AddTimeout, refillAfter: c.opts.RefillAfter}, over)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		w.cancel()
		return nil, fmt.Errorf("ledger %d: client closed: %w", md.ID, ledger.ErrStopping)
	}
	c.writers[w] = struct{}{}
	return w, nil
}

// bindLocked gives each slot what is known of its present bookie.
func (w *Writer) bindLocked() {
	for s := range w.core.slots {
		if sl := &w.core.slots[s]; w.refs[s].gen != sl.gen {
			w.refs[s] = refGen{ref: w.c.ref(sl.member), gen: sl.gen}
		}
	}
}

// Append adds one entry and returns its id. Ids are given in the order of the
// calls, from 0. It never blocks: when too many bytes are in flight it returns
// ErrTooBusy (beside ErrNotEnoughBookies when bookies are missing) and no id is
// used. bodyCRC is the CRC-32C of body, which nobody may alter from now on.
//
// done is called once, in the order of ids, one at a time, never from within
// Append: with nil when an ack quorum has the entry on disk and all entries
// before it are acknowledged; with an error when its outcome is unknown
// (ErrFenced, ErrClosed, ErrDeleted: another process decides; ErrStopping:
// Abandon). It runs on a goroutine that brings answers of bookies, so it must be
// quick; it may call Append. The error of Append itself means that the entry has
// no id, and done is not called.
func (w *Writer) Append(body []byte, bodyCRC uint32, done func(ledger.EntryID, error)) (ledger.EntryID, error) {
	if len(body) > ledger.MaxBodyBytes {
		return 0, fmt.Errorf("ledger %d: body of %d bytes: %w", w.id, len(body), ledger.ErrTooLarge)
	}
	size := int64(len(body)) + entryOverhead
	reserved := w.c.reserve(size)
	now := w.c.now()
	w.mu.Lock()
	err := w.core.refusal()
	if err == nil && !reserved {
		err = w.tooBusyLocked()
	}
	if err != nil {
		w.mu.Unlock()
		if reserved {
			w.c.held.Add(-size)
		}
		return 0, err
	}
	w.held += size
	e := w.core.append(now, body, bodyCRC, done)
	w.settleLocked(now)
	w.runUnlock(false)
	return e, nil
}

// tooBusyLocked says why there is no room, and makes some if this writer holds
// bodies that it only keeps for bookies that lag.
func (w *Writer) tooBusyLocked() error {
	w.core.drop(w.c.opts.BudgetBytes / 16)
	w.accountLocked()
	err := fmt.Errorf("ledger %d: %d bytes are in flight: %w", w.id, w.c.held.Load(), ledger.ErrTooBusy)
	p := w.c.placer(w.class)
	if refusals := refusals(w.core.slots); p.writable() < w.core.md.Quorum.Ack || refusals != "" {
		err = fmt.Errorf("%w: %w%s", err, p.missing(w.core.md.Quorum), refusals)
	}
	return err
}

// answered takes a bookie's answer. mayAnswer is false when the caller may be
// inside a send: the sender then looks after the application's answers.
func (w *Writer) answered(slot int, gen uint32, e ledger.EntryID, err error, mayAnswer bool) {
	now := w.c.now()
	w.mu.Lock()
	w.core.answered(now, slot, gen, e, err)
	w.settleLocked(now)
	if !mayAnswer && w.sending {
		w.mu.Unlock()
		return
	}
	w.runUnlock(mayAnswer)
}

// tick is the timer.
func (w *Writer) tick() {
	now := w.c.now()
	w.mu.Lock()
	w.timerAt = 0
	w.core.tick(now)
	w.settleLocked(now)
	w.runUnlock(true)
}

// settleLocked does after every event what the core's new state asks for, but
// for sends and answers.
func (w *Writer) settleLocked(now time.Duration) {
	w.accountLocked()
	if over := w.c.lagging.Load() - w.c.opts.BookieBytes; over > 0 && w.lagging > 0 {
		w.core.drop(over)
		w.accountLocked()
	}
	w.lac.Store(int64(w.core.lac))
	if !w.told && (w.core.failed != nil || w.core.stuck != nil) {
		w.told = true
		close(w.failed)
	}
	if w.core.failed != nil {
		w.leaveLocked()
	}
	if !w.recording && (w.core.needsChange(now) || w.core.wantsChange(now)) && !w.c.opts.Brake() {
		needed := w.core.needsChange(now)
		w.recording = w.c.background(func() { w.change(needed) })
	}
	w.planRepairLocked(now)
	w.armLocked(now)
	if w.waiters > 0 {
		close(w.news)
		w.news = make(chan struct{})
	}
}

// accountLocked brings the client's sums up to date with what the core holds.
func (w *Writer) accountLocked() {
	if d := w.core.heldBytes - w.held; d != 0 {
		w.c.held.Add(d)
		w.held = w.core.heldBytes
	}
	if d := w.core.laggingBytes - w.lagging; d != 0 {
		w.c.lagging.Add(d)
		w.lagging = w.core.laggingBytes
	}
}

// armLocked sets the timer for the next thing that only time brings.
func (w *Writer) armLocked(now time.Duration) {
	wait := w.core.nextTick(now)
	if w.repairAt != 0 && !w.repairing {
		if d := max(w.repairAt-now, time.Millisecond); wait == 0 || d < wait {
			wait = d
		}
	}
	if wait == 0 || w.timerAt != 0 && w.timerAt <= now+wait {
		return
	}
	w.timerAt = now + wait
	if w.timer == nil {
		w.timer = time.AfterFunc(wait, w.tick)
	} else {
		w.timer.Reset(wait)
	}
}

// runUnlock sends and answers what the core asked for. Called with mu held, it
// returns without. With mayAnswer false the application is answered on another
// goroutine, because the caller's own locks may be held here.
func (w *Writer) runUnlock(mayAnswer bool) {
	if !w.sending {
		w.sending = true
		for len(w.core.sends) > 0 {
			w.sendBatchLocked()
		}
		w.sending = false
	}
	answer := len(w.core.acks) > 0 && !w.answering
	if answer {
		w.answering = true
		if !mayAnswer && !w.c.background(w.answerAll) {
			panic("ensemble: a client closed before its writers were abandoned")
		}
	}
	if w.left {
		w.c.forget(w) // not before the answers are handed over, for Close waits only for those of writers it knows
	}
	w.mu.Unlock()
	if answer && mayAnswer {
		w.answerAll()
	}
}

// sendBatchLocked sends what has gathered, giving mu up meanwhile.
func (w *Writer) sendBatchLocked() {
	batch := w.core.sends
	w.core.sends = w.spareSends[:0]
	w.bindLocked()
	var refs [16]refGen
	copy(refs[:], w.refs)
	w.mu.Unlock()
	for i := range batch {
		if s := &batch[i]; refs[s.slot].gen == s.gen { // else the slot has another bookie by now
			w.dispatch(s, refs[s.slot].ref)
		}
	}
	clear(batch)
	w.mu.Lock()
	w.spareSends = batch[:0]
}

// answerAll calls the application back until nothing is left to say. answering
// is set by its caller.
func (w *Writer) answerAll() {
	w.mu.Lock()
	for len(w.core.acks) > 0 {
		batch := w.core.acks
		w.core.acks = w.spareAcks[:0]
		w.mu.Unlock()
		for i := range batch {
			a := &batch[i]
			if a.err == nil {
				w.c.met.acked(a.took)
			}
			a.done(a.entry, a.err)
		}
		clear(batch)
		w.mu.Lock()
		w.spareAcks = batch[:0]
	}
	w.answering = false
	if w.waiters > 0 {
		close(w.news)
		w.news = make(chan struct{})
	}
	w.mu.Unlock()
}

// ID of the ledger.
func (w *Writer) ID() ledger.ID { return w.id }

// Metadata is the ledger's record as this writer knows it to be stored.
func (w *Writer) Metadata() ledger.Metadata {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.core.md.Clone()
}

// LAC is the last add confirmed.
func (w *Writer) LAC() ledger.EntryID { return ledger.EntryID(w.lac.Load()) }

// Next is the id the next append will take.
func (w *Writer) Next() ledger.EntryID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.core.window.next
}

// Bytes of all bodies appended.
func (w *Writer) Bytes() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.core.total
}

// Pending counts the entries appended and not yet acknowledged, and their bytes.
func (w *Writer) Pending() (entries int, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.core.failed != nil {
		return 0, 0
	}
	return int(w.core.window.next - w.core.lac - 1), w.core.total - w.core.lacTotal
}

// Failed is closed when the writer takes no more appends by itself; Err says
// why.
func (w *Writer) Failed() <-chan struct{} { return w.failed }

// Err is why the writer takes no more appends: nil while it works. With
// ErrFenced, ErrClosed, ErrDeleted and ErrStopping everything in flight was
// answered; with any other error it waits for Seal.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.core.failed != nil {
		return w.core.failed
	}
	return w.core.stuck
}

// Abandon gives the ledger up without closing it. Entries in flight are
// answered with ErrStopping, not from within Abandon: their outcome is unknown.
func (w *Writer) Abandon() {
	w.cancel()
	w.mu.Lock()
	w.core.die(fmt.Errorf("ledger %d was given up: %w", w.id, ledger.ErrStopping))
	w.settleLocked(w.c.now())
	w.runUnlock(false)
}

// leaveLocked ends what runs for this writer in the background, once.
func (w *Writer) leaveLocked() {
	if w.left {
		return
	}
	w.left = true
	w.cancel()
	w.repairAt = 0
	if w.timer != nil {
		w.timer.Stop()
	}
	w.timerAt = 0
}
