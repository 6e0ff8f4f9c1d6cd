package chain

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// list is a Links in memory. It checks what the appender promises: no third
// ledger before the one before the last is closed.
type list struct {
	t *testing.T

	mu     sync.Mutex
	ids    []ledger.ID
	closed map[ledger.ID]ledger.Metadata
	held   bool // Prepare was called, and neither Linked nor Unlinked since
}

func (l *list) Prepare(context.Context) (ledger.ID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.ids); n >= 2 && l.closed[l.ids[n-2]].ID == 0 {
		l.t.Errorf("a third ledger is wanted before ledger %d is closed", l.ids[n-2])
	}
	l.held = true
	if n := len(l.ids); n > 0 {
		return l.ids[n-1] + 1, nil
	}
	return 1, nil
}

func (l *list) Link(id ledger.ID) ([]meta.Cond, []meta.Op) {
	key := fmt.Sprintf("/link/%d", id)
	return []meta.Cond{{Key: key}}, []meta.Op{{Key: key}}
}

func (l *list) end(id ledger.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.held {
		l.t.Error("Linked or Unlinked without Prepare")
	}
	l.held = false
	if id != 0 {
		l.ids = append(l.ids, id)
	}
}

func (l *list) Linked(w *ensemble.Writer) { l.end(w.ID()) }
func (l *list) Unlinked(bool)             { l.end(0) }

func (l *list) Closed(_ context.Context, md ledger.Metadata) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed[md.ID] = md
	return nil
}

// world is three bookies, a store and one chain.
type world struct {
	t       *testing.T
	store   *meta.Mem
	bookies *ensembletest.Cluster
	client  *ensemble.Client
	links   *list
	lost    chan error // what OnFenced was told
	a       *Appender
	answers *answers
}

func newWorld(t *testing.T, opts Options) *world {
	w := &world{t: t, store: meta.NewMem(), bookies: ensembletest.New(3), lost: make(chan error, 1), answers: &answers{t: t}}
	w.client = w.bookies.Client(t, ensemble.Options{Store: w.store})
	w.links = &list{t: t, closed: map[ledger.ID]ledger.Metadata{}}
	opts.Ledgers, opts.Store, opts.Links = w.client, w.store, w.links
	opts.Guard = func() []meta.Cond { return nil }
	opts.Quorum = ledger.Quorum{Write: 3, Ack: 2}
	opts.OnFenced = func(err error) { w.lost <- err }
	w.a = NewAppender(opts)
	return w
}

// answers collects what appends were told, and checks that they come in order,
// one at a time.
type answers struct {
	t      *testing.T
	inside atomic.Int32
	mu     sync.Mutex
	sent   int
	got    []answer
}

type answer struct {
	id  ledger.ID
	e   ledger.EntryID
	err error
}

// rest lets time pass, and ends when nothing more happens at that time.
func rest(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func body(n int) []byte { return fmt.Appendf(nil, "%04d", n) }

// append appends the next body; the error is that of a refusal.
func (w *world) append() error {
	s := w.answers
	n, b := s.sent, body(s.sent)
	err := w.a.Append(b, crc32.Checksum(b, ledger.Castagnoli), func(id ledger.ID, e ledger.EntryID, err error) {
		if s.inside.Add(1) != 1 {
			s.t.Error("two answers at a time")
		}
		defer s.inside.Add(-1)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.got) != n {
			s.t.Errorf("append %d was answered as number %d", n, len(s.got))
		}
		s.got = append(s.got, answer{id, e, err})
	})
	if err == nil {
		s.sent++
	}
	return err
}

func (w *world) appendMany(n int) {
	w.t.Helper()
	for range n {
		if err := w.append(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// check reads every ledger of the chain and compares it with what was
// acknowledged: all of it is there, in order, once, where the answers said.
func (w *world) check() {
	w.t.Helper()
	ctx := context.Background()
	acked := map[answer]int{}
	for n, a := range w.answers.got {
		if a.err == nil {
			acked[a] = n
		}
	}
	next := 0
	for _, id := range w.links.ids {
		md, err := w.client.Recover(ctx, id, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		r, err := w.client.Open(ctx, id)
		if err != nil {
			w.t.Fatal(err)
		}
		for e := ledger.EntryID(0); e <= md.LastEntry; {
			es, err := r.Read(ctx, e, md.LastEntry, 0, 0)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, entry := range es {
				if got := string(entry.Body); got != string(body(next)) {
					w.t.Fatalf("ledger %d entry %d is %q, want %q: lost, twice or out of order", id, e, got, body(next))
				}
				if n, ok := acked[answer{id: id, e: e}]; ok && n != next {
					w.t.Errorf("append %d was told the place of append %d", n, next)
				}
				delete(acked, answer{id: id, e: e})
				next, e = next+1, e+1
			}
		}
	}
	if len(acked) > 0 {
		w.t.Errorf("acknowledged and not in the chain: %v", acked)
	}
}

func (w *world) close() {
	w.t.Helper()
	if err := w.a.Close(context.Background()); err != nil {
		w.t.Errorf("close: %v", err)
	}
}

// Shows that a chain rolls by size while appends go on, that every append is
// answered in order, and that the next ledger is there before the old one is full
// four times over.
func TestRuleM17_PlannedRollKeepsOrderAndAtMostTwoOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{Roll: Roll{MaxEntries: 10}})
		sent := map[ledger.ID]ledger.EntryID{} // the last entry seen of each ledger
		for i := range 3 {
			w.bookies.At(i).OnAdd(func(a ledger.Add) ensembletest.AddFault {
				w.answers.mu.Lock()
				defer w.answers.mu.Unlock()
				id := a.Envelope.Ledger
				sent[id] = max(sent[id], a.Envelope.Entry)
				answered := ledger.EntryID(0)
				for _, got := range w.answers.got {
					if got.id == id-1 {
						answered++
					}
				}
				if last, ok := sent[id-1]; ok && answered <= last {
					t.Errorf("ledger %d is written while %d of %d entries of the one before are answered", id, answered, last+1)
				}
				return ensembletest.AddFault{Delay: time.Duration(1+i) * time.Millisecond}
			})
		}
		for range 300 {
			w.appendMany(1)
			rest(300 * time.Microsecond)
		}
		w.close()
		if n := len(w.links.ids); n < 8 {
			t.Errorf("300 entries in %d ledgers of about 10", n)
		}
		if len(w.links.closed) != len(w.links.ids) {
			t.Errorf("%d of %d ledgers were closed", len(w.links.closed), len(w.links.ids))
		}
		if len(w.answers.got) != 300 {
			t.Errorf("%d answers", len(w.answers.got))
		}
		w.check()
	})
}

// failing is a writer that can do no more after some entries, as one that is out
// of fragments.
type failing struct {
	writer
	after  int
	failed chan struct{}
}

var errStuck = errors.New("stuck")

func (f *failing) Append(b []byte, crc uint32, done func(ledger.EntryID, error)) (ledger.EntryID, error) {
	if f.after == 0 {
		return 0, errStuck
	}
	if f.after--; f.after == 0 {
		close(f.failed)
	}
	return f.writer.Append(b, crc, done)
}

func (f *failing) Failed() <-chan struct{} { return f.failed }

func (f *failing) Err() error {
	select {
	case <-f.failed:
		return errStuck
	default:
		return nil
	}
}

// Shows that when a writer fails with entries in flight, the ledger is closed
// first and the unacknowledged tail goes to the next one: nothing lost, nothing
// twice, order and answers kept. The bookies keep some entries from the quorum, so
// that there is a tail. It fails at every point of the first ledgers.
func TestRuleM17_RollOnFailureMovesTheTail(t *testing.T) {
	for after := 1; after <= 8; after++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, Options{})
			ledgers := 0
			w.a.wrap = func(ew *ensemble.Writer) writer {
				if ledgers++; ledgers > 6 { // one that fails at once is sealed before any answer
					return ew
				}
				return &failing{writer: ew, after: after, failed: make(chan struct{})}
			}
			for i := range 3 {
				w.bookies.At(i).OnAdd(func(a ledger.Add) ensembletest.AddFault {
					return ensembletest.AddFault{Delay: time.Duration(1+int(a.Envelope.Entry)%3) * time.Millisecond}
				})
			}
			w.appendMany(40)
			w.close()
			for n, a := range w.answers.got {
				if a.err != nil {
					t.Errorf("append %d: %v", n, a.err)
				}
			}
			if len(w.answers.got) != 40 || len(w.links.ids) < min(7, 40/after) {
				t.Errorf("%d answers, %d ledgers", len(w.answers.got), len(w.links.ids))
			}
			w.check()
		})
	}
}

// Shows that once a ledger was recovered by somebody else nothing more is
// acknowledged: all that was in flight or waiting is answered with an error, in
// order, then OnFenced is told once, and appends are refused.
func TestRuleM1_FencedEndsTheChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{})
		w.appendMany(5)
		synctest.Wait()
		for i := range 3 {
			w.bookies.At(i).SetLatency(10 * time.Millisecond)
		}
		w.appendMany(5) // on their way when the fence comes
		if _, err := w.client.Recover(t.Context(), w.links.ids[0], nil); err != nil {
			t.Fatal(err)
		}
		// Some may have got in before the fence; all later ones cannot.
		for range 3 {
			rest(100 * time.Millisecond)
			_ = w.append()
		}
		err := <-w.lost
		if !errors.Is(err, ledger.ErrFenced) && !errors.Is(err, ledger.ErrClosed) {
			t.Errorf("OnFenced was told %v", err)
		}
		if err := w.append(); err == nil {
			t.Error("an append after the end was accepted")
		}
		if len(w.answers.got) != w.answers.sent {
			t.Errorf("%d of %d appends were answered", len(w.answers.got), w.answers.sent)
		}
		bad := false
		for n, a := range w.answers.got {
			if bad = bad || a.err != nil; bad && a.err == nil {
				t.Errorf("append %d was acknowledged after one that was not", n)
			}
		}
		w.check()
		w.a.Abandon()
	})
}

// Shows that without the metadata store appends go on in the current ledger up to
// four times the size of a roll, then wait within the budget, are refused beyond
// it with the reason, and go on by themselves when the store is back.
func TestRuleM20_RollsWaitForTheMetadataStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{Roll: Roll{MaxEntries: 10}, Budget: NewBudget(4 * 25)})
		w.appendMany(5)
		synctest.Wait()
		w.store.SetUnavailable(true)
		w.appendMany(35)
		rest(time.Minute)
		if n := len(w.answers.got); n != 40 {
			t.Fatalf("%d of 40 appends acknowledged without the store", n)
		}
		w.appendMany(25)
		rest(time.Minute)
		if n := len(w.answers.got); n != 40 {
			t.Errorf("%d appends acknowledged in a ledger of 40 entries", n)
		}
		if err := w.append(); !errors.Is(err, ledger.ErrTooBusy) || !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("beyond the budget: %v", err)
		}
		w.store.SetUnavailable(false)
		rest(10 * time.Second)
		if n := len(w.answers.got); n != 65 {
			t.Errorf("%d of 65 appends acknowledged with the store back", n)
		}
		w.close()
		w.check()
	})
}

// Shows that appends wait while fewer than an ack quorum of bookies can be
// written, and go on by themselves.
func TestAppendsWaitForBookies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{Budget: NewBudget(4 * 10)})
		w.bookies.At(0).Kill()
		w.bookies.At(1).Kill()
		w.appendMany(10)
		rest(time.Minute)
		if len(w.answers.got) != 0 {
			t.Errorf("%d appends acknowledged by one bookie", len(w.answers.got))
		}
		if err := w.append(); !errors.Is(err, ledger.ErrNotEnoughBookies) {
			t.Errorf("beyond the budget: %v", err)
		}
		w.bookies.At(0).Restart()
		rest(10 * time.Second)
		if len(w.answers.got) != 10 {
			t.Errorf("%d of 10 appends acknowledged", len(w.answers.got))
		}
		w.close()
		w.check()
	})
}

// Shows that a transaction as owner is refused once the owner key has changed:
// the chain ends before it has written anything to a new ledger.
func TestRuleM1_CreatingALedgerNeedsTheOwnerKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{})
		w.a.opts.Guard = func() []meta.Cond { return []meta.Cond{{Key: "/owner", Revision: 77}} }
		w.appendMany(1) // a second one may come too late
		if err := <-w.lost; !errors.Is(err, ErrNotOwner) {
			t.Errorf("OnFenced was told %v", err)
		}
		if len(w.links.ids) != 0 || len(w.answers.got) != 1 || w.answers.got[0].err == nil {
			t.Errorf("ledgers %v, answers %v", w.links.ids, w.answers.got)
		}
		w.a.Abandon()
	})
}

// Shows that an idle chain has no goroutine, and that it wakes up.
func TestIdleChainHasNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{IdleAfter: time.Second})
		for round := range 3 {
			w.appendMany(2)
			rest(5 * time.Second)
			w.a.mu.Lock()
			if w.a.running != nil {
				t.Errorf("round %d: the chain's goroutine still runs", round)
			}
			w.a.mu.Unlock()
		}
		w.close()
		w.check()
	})
}

// Shows that a ledger retired for its age is closed though nothing follows, and
// that the next append gets a new one.
func TestRetireClosesWithoutASuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{})
		w.appendMany(2)
		w.a.Retire()
		rest(time.Second)
		if len(w.links.closed) != 0 && len(w.links.ids) != 1 {
			t.Errorf("ledgers %v, closed %v", w.links.ids, w.links.closed)
		}
		w.appendMany(2)
		w.a.Retire()
		rest(time.Second)
		if len(w.links.closed) != len(w.links.ids) {
			t.Errorf("ledgers %v, closed %v", w.links.ids, w.links.closed)
		}
		w.appendMany(1)
		w.close()
		if n := w.links.ids; len(n) < 2 {
			t.Errorf("ledgers %v", n)
		}
		w.check()
	})
}

// Shows that Close gives up when its context ends, answers everything, and leaves
// nothing behind; and that Abandon does so at once.
func TestCloseAndAbandonAnswerEverything(t *testing.T) {
	for _, graceful := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, Options{})
			w.appendMany(1)
			synctest.Wait()
			w.bookies.At(0).Freeze()
			w.bookies.At(1).Freeze()
			w.appendMany(9)
			if graceful {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := w.a.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("close: %v", err)
				}
			} else {
				w.a.Abandon()
			}
			if len(w.answers.got) != 10 || w.answers.got[0].err != nil || w.answers.got[9].err == nil {
				t.Errorf("answers %v", w.answers.got)
			}
			if err := w.append(); !errors.Is(err, ledger.ErrStopping) {
				t.Errorf("append after the end: %v", err)
			}
			select {
			case err := <-w.lost:
				t.Errorf("OnFenced was told %v", err)
			default:
			}
			w.bookies.At(0).Thaw()
			w.bookies.At(1).Thaw()
			w.check()
		})
	}
}

// Shows that appends go on while the ledger before the current one cannot be
// closed because the metadata store is away: those that found the ledger client
// busy too, and it is said why a roll waits.
func TestRuleM20_AppendsGoOnWhileARollWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{Roll: Roll{MaxEntries: 5}, SelfBounded: true})
		w.client = w.bookies.Client(t, ensemble.Options{Store: w.store, BudgetBytes: 10_000})
		w.a.opts.Ledgers = w.client
		w.appendMany(1)
		rest(time.Second)
		first := layout.New("test").Ledger(int64(w.links.ids[0]))
		w.store.OnCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallTxn && len(c.Txn.Ops) > 0 && c.Txn.Ops[0].Key == first {
				return meta.Fault{Err: meta.ErrUnavailable}
			}
			return meta.Fault{}
		})
		w.appendMany(9)
		rest(time.Minute)
		if len(w.links.ids) != 2 || len(w.answers.got) != 10 {
			t.Fatalf("ledgers %v, %d of 10 appends acknowledged", w.links.ids, len(w.answers.got))
		}
		if err := w.a.Trouble(); !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("what is in the way: %v", err)
		}
		other, err := w.client.Create(t.Context(), ensemble.CreateRequest{Quorum: w.a.opts.Quorum, Parent: ledger.Parent{Topic: 9, Role: "data"}})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Abandon()
		for i := range 3 {
			w.bookies.At(i).Freeze()
		}
		full := make([]byte, 9_800)
		if _, err := other.Append(full, crc32.Checksum(full, ledger.Castagnoli), func(ledger.EntryID, error) {}); err != nil {
			t.Fatal(err)
		}
		w.appendMany(1)
		for i := range 3 {
			w.bookies.At(i).Thaw()
		}
		rest(100 * time.Millisecond)
		if len(w.answers.got) != 11 {
			t.Errorf("%d of 11 appends acknowledged", len(w.answers.got))
		}
		w.store.OnCall(nil)
		w.close()
		w.check()
	})
}
