package ensemble_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// ids gives out the ids listed, then those after the last.
type ids struct {
	mu   sync.Mutex
	list []uint64
	last uint64
}

func (i *ids) Next(_ context.Context, above uint64) (uint64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for {
		if len(i.list) > 0 {
			i.last, i.list = i.list[0], i.list[1:]
		} else {
			i.last++
		}
		if i.last > above {
			return i.last, nil
		}
	}
}

// TestRuleC2_TakenIdIsDrawnAgain shows that an id that already has a record is
// left alone and another is drawn.
func TestRuleC2_TakenIdIsDrawnAgain(t *testing.T) {
	playWith(t, 3, ensemble.Options{IDs: &ids{list: []uint64{5, 5, 6, 9}}}, func(t *testing.T, s *stage) {
		first := s.create(threeTwo)
		second := s.create(threeTwo)
		third := s.create(threeTwo)
		if first.ID() != 5 || second.ID() != 6 || third.ID() != 9 {
			t.Fatalf("ids %d, %d and %d", first.ID(), second.ID(), third.ID())
		}
		if md := s.record(5); md.Nonce == s.record(6).Nonce || md.Fragments[0].First != 0 {
			t.Fatalf("record of the first: %+v", md)
		}
	})
}

// TestRuleM4_CreateIsOneTransaction shows that the ledger's record and the
// caller's link appear together or not at all, that a failed guard writes
// nothing, and that a creator whose answer was lost knows its own ledger.
func TestRuleM4_CreateIsOneTransaction(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		request := func(owner meta.Revision) ensemble.CreateRequest {
			return ensemble.CreateRequest{
				Quorum: threeTwo, Guard: []meta.Cond{{Key: "owner", Revision: owner}},
				Extra: func(id ledger.ID) ([]meta.Cond, []meta.Op) {
					return []meta.Cond{{Key: "chain/1"}}, []meta.Op{{Key: "chain/1", Value: fmt.Append(nil, id)}}
				},
			}
		}
		if _, err := s.client.Create(t.Context(), request(77)); !errors.Is(err, ensemble.ErrConflict) {
			t.Fatalf("created under a guard that does not hold: %v", err)
		}
		if kvs, _, _ := s.store.Range(t.Context(), keys.Ledgers(), "", 0); len(kvs) != 0 {
			t.Fatalf("a failed guard left %d records", len(kvs))
		}
		lose := 2
		s.store.OnCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallTxn && strings.HasPrefix(c.Key, keys.Ledgers()) && lose > 0 {
				lose--
				if lose == 1 {
					return meta.Fault{Err: meta.ErrUncertain} // the request was lost
				}
				return meta.Fault{Lost: true} // the answer was
			}
			return meta.Fault{}
		})
		w, err := s.client.Create(t.Context(), request(0))
		if err != nil {
			t.Fatal(err)
		}
		kvs, _, _ := s.store.Range(t.Context(), keys.Ledgers(), "", 0)
		link, _ := s.store.Get(t.Context(), "chain/1")
		if len(kvs) != 1 || string(link.Value) != fmt.Sprint(w.ID()) || link.Revision != kvs[0].Revision {
			t.Fatalf("%d ledgers, link %q at revision %d", len(kvs), link.Value, link.Revision)
		}
		s.wantAcked(s.appendSome(w, 5, nil), 5)
		if _, err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantReadable(w.ID(), 4)
	})
}

// TestRuleM4_TombstoneListsWhoOwes shows that deletion makes the record a
// tombstone naming every bookie that may hold entries, together with the
// caller's operations, and that nothing opens or recovers it again.
func TestRuleM4_TombstoneListsWhoOwes(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 3, nil), 3)
		if _, err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.store.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: "chain/1"}}}); err != nil {
			t.Fatal(err)
		}
		if err := s.client.Delete(t.Context(), w.ID(), []meta.Cond{{Key: "owner", AnyRevision: true}}, nil); !errors.Is(err, ensemble.ErrConflict) {
			t.Fatalf("deleted under a guard that does not hold: %v", err)
		}
		for range 2 { // again is no error
			if err := s.client.Delete(t.Context(), w.ID(), nil, []meta.Op{{Key: "chain/1", Delete: true}}); err != nil {
				t.Fatal(err)
			}
		}
		md := s.record(w.ID())
		if md.State != ledger.Deleted || len(md.Owed) != 3 || md.DeletedAt.IsZero() {
			t.Fatalf("tombstone %+v", md)
		}
		if link, _ := s.store.Get(t.Context(), "chain/1"); link.Exists() {
			t.Fatal("the link outlives the ledger")
		}
		if _, err := s.client.Open(t.Context(), w.ID()); !errors.Is(err, ledger.ErrDeleted) {
			t.Fatalf("open: %v", err)
		}
		if _, err := s.client.Recover(t.Context(), w.ID(), nil); !errors.Is(err, ledger.ErrDeleted) {
			t.Fatalf("recover: %v", err)
		}
		kv, _ := s.store.Get(t.Context(), keys.Ledger(int64(w.ID())))
		if _, _, err := s.client.DeleteOps(kv); !errors.Is(err, ledger.ErrDeleted) {
			t.Fatalf("delete ops of a tombstone: %v", err)
		}
		if _, err := s.client.Open(t.Context(), 4711); !errors.Is(err, ledger.ErrNoLedger) {
			t.Fatalf("open of no ledger: %v", err)
		}
	})
}

// TestRuleM12_TooFewBookies shows a cluster of three losing bookies one by one:
// with one gone ledgers are made with a vacant slot, work and can be recovered;
// with two gone creation waits and names what is missing, appends wait and go on
// by themselves when a bookie is back.
func TestRuleM12_TooFewBookies(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		s.cluster.At(0).Kill()
		w := s.create(threeTwo)
		first := w.Metadata()
		if first.Last().Vacant() != 1 {
			t.Fatalf("ensemble %v", first.Last().Ensemble)
		}
		o := s.appendSome(w, 10, nil)
		s.wantAcked(o, 10)
		s.cluster.At(1).Kill()
		s.appendSome(w, 5, o)
		after(time.Minute)
		if o.acked() != 10 {
			t.Fatalf("%d acknowledged with one bookie left of two needed", o.acked())
		}
		_, err := s.client.Create(s.ctx(5*time.Second), ensemble.CreateRequest{Quorum: threeTwo})
		if !errors.Is(err, ledger.ErrNotEnoughBookies) || !strings.Contains(err.Error(), "1 of 1 bookies writable") {
			t.Fatalf("create: %v", err)
		}
		made := make(chan error, 1)
		go func() {
			_, err := s.client.Create(t.Context(), ensemble.CreateRequest{Quorum: threeTwo})
			made <- err
		}()
		after(time.Minute)
		s.cluster.At(1).Restart()
		after(2 * time.Second)
		s.wantAcked(o, 15)
		if err := <-made; err != nil {
			t.Fatalf("a waiting creation: %v", err)
		}
		w.Abandon()
		if _, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil); err != nil {
			t.Fatal(err)
		}
		s.wantReadable(w.ID(), 14)
	})
}

// TestRuleM12_VacantSlotIsRefilled shows that the vacant slot of a running ledger
// is given to a bookie that comes, from LAC+1 on, and that the closed ledger asks
// for verification because older entries lack a copy.
func TestRuleM12_VacantSlotIsRefilled(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		s.cluster.At(2).Kill()
		w := s.create(threeTwo)
		o := s.appendSome(w, 10, nil)
		s.wantAcked(o, 10)
		s.cluster.At(2).Restart()
		for range 12 {
			after(time.Second)
			s.appendSome(w, 1, o)
		}
		after(time.Second)
		md, err := w.Close(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(md.Fragments) != 2 || md.Last().Vacant() != 0 || md.Last().First < 10 || !md.Verify {
			t.Fatalf("fragments %v, verify %v", md.Fragments, md.Verify)
		}
		if n := s.cluster.Copies(md.Last().Ensemble, w.ID(), 21); n != 3 {
			t.Fatalf("the last entry has %d copies", n)
		}
		s.wantReadable(w.ID(), 21)
	})
}

// TestRuleA9_ShortCopiesAreRepaired shows that entries acknowledged while a bookie
// was away reach it after it is back, by themselves, while the ledger is open and
// idle; the ledger then closes without asking for verification.
func TestRuleA9_ShortCopiesAreRepaired(t *testing.T) {
	playWith(t, 3, ensemble.Options{BookieBytes: 1000}, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 5, nil)
		s.wantAcked(o, 5)
		b := s.cluster.At(1)
		b.Cut(true)
		s.appendSome(w, 100, o) // far beyond what is kept for a bookie that lags
		s.wantAcked(o, 105)
		if b.Has(w.ID(), 50) {
			t.Fatal("a bookie that is cut off has the entry")
		}
		after(2 * time.Second)
		b.Cut(false)
		after(2 * time.Minute)
		for e := ledger.EntryID(0); e < 105; e++ {
			if !b.Has(w.ID(), e) {
				t.Fatalf("entry %d never reached its third bookie", e)
			}
		}
		md, err := w.Close(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if md.Verify || len(md.Fragments) != 1 {
			t.Fatalf("verify %v, fragments %v", md.Verify, md.Fragments)
		}
	})
}

// TestRuleM15_VerifyWhenACopyIsMissing shows that a ledger closed while a bookie
// lacks entries asks for verification, and closes without waiting for it.
func TestRuleM15_VerifyWhenACopyIsMissing(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.cluster.At(2).Freeze()
		s.wantAcked(s.appendSome(w, 5, nil), 5)
		began := time.Now()
		md, err := w.Close(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !md.Verify {
			t.Fatal("copies are missing, yet no verification")
		}
		if took := time.Since(began); took > 300*time.Millisecond {
			t.Fatalf("close waited %v for a hung bookie", took)
		}
		s.cluster.At(2).Thaw()
	})
}

// TestRuleA12_BoundedBytes shows that with a hung bookie the bodies held stay
// within the budget, while the ledger goes on with the others; and that with two
// hung an append is refused before it takes an id, naming what is the matter.
func TestRuleA12_BoundedBytes(t *testing.T) {
	opts := ensemble.Options{BudgetBytes: 64 << 10, BookieBytes: 16 << 10, RefillAfter: time.Hour}
	playWith(t, 3, opts, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		hung := s.cluster.At(0)
		hung.Freeze()
		o := &outcomes{}
		big := make([]byte, 1<<10)
		crc := sum(big)
		for range 1000 { // sixteen times the budget
			if _, err := w.Append(big, crc, o.done); err != nil {
				t.Fatalf("entry %d: %v", w.Next(), err)
			}
			synctest.Wait()
		}
		s.wantAcked(o, 1000)
		if adds, _, _ := hung.Calls(); adds > 20 {
			t.Fatalf("%d adds of 1 KiB on their way to a hung bookie, bound 16 KiB", adds)
		}
		s.cluster.At(1).Freeze()
		accepted := 0
		var err error
		for ; err == nil && accepted < 100; accepted++ {
			_, err = w.Append(big, crc, o.done)
		}
		if !errors.Is(err, ledger.ErrTooBusy) || accepted > 65 || w.Next() != ledger.EntryID(1000+accepted-1) {
			t.Fatalf("refused after %d with %v, next id %d", accepted, err, w.Next())
		}
		hung.Thaw()
		s.cluster.At(1).Thaw()
		s.wantAcked(o, 1000+accepted-1)
		w.Abandon()
		synctest.Wait()
	})
}

// TestRuleE10_Brake shows that while the operator's brake is on, a writer changes
// nothing, tries the same bookies again and goes on when they are back.
func TestRuleE10_Brake(t *testing.T) {
	playWith(t, 4, ensemble.Options{Brake: func() bool { return true }}, func(t *testing.T, s *stage) {
		w := s.create(ledger.Quorum{Write: 2, Ack: 2})
		ensemble := w.Metadata().Fragments[0].Ensemble
		b := s.cluster.Named(ensemble[0])
		b.Cut(true)
		o := s.appendSome(w, 10, nil)
		after(time.Minute)
		if md := w.Metadata(); o.acked() != 0 || len(md.Fragments) != 1 || !slices.Equal(md.Last().Ensemble, ensemble) {
			t.Fatalf("%d acknowledged, fragments %v", o.acked(), md.Fragments)
		}
		b.Cut(false)
		after(2 * time.Second)
		s.wantAcked(o, 10)
	})
}

// A bookie killed under load costs no error and one write of the record.
func TestKillABookieUnderLoad(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		w := s.create(ledger.Quorum{Write: 3, Ack: 3})
		o := s.appendSome(w, 100, nil)
		synctest.Wait()
		s.appendSome(w, 100, o)
		s.cluster.Named(w.Metadata().Fragments[0].Ensemble[1]).Kill()
		s.appendSome(w, 100, o)
		after(time.Second)
		s.wantAcked(o, 300)
		if md := s.record(w.ID()); len(md.Fragments) != 2 && !(len(md.Fragments) == 1 && md.Last().First == 0) {
			t.Fatalf("fragments %v", md.Fragments)
		}
		if _, err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantReadable(w.ID(), 299)
	})
}

// TestRuleE1_StalledStoreLosesNothing shows a change whose write of the record
// takes ten seconds: nothing is acknowledged meanwhile, and all of it afterwards.
// The answer to that write is lost, too, and the writer knows its own change.
func TestRuleE1_StalledStoreLosesNothing(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		w := s.create(ledger.Quorum{Write: 3, Ack: 3})
		o := s.appendSome(w, 10, nil)
		s.wantAcked(o, 10)
		writes := 0
		s.store.OnCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallTxn {
				writes++
				return meta.Fault{Delay: 10 * time.Second, Lost: true}
			}
			return meta.Fault{}
		})
		s.cluster.Named(w.Metadata().Fragments[0].Ensemble[2]).Kill()
		s.appendSome(w, 10, o)
		after(9 * time.Second)
		if o.acked() != 10 || w.LAC() != 9 {
			t.Fatalf("%d acknowledged, LAC %d while the change is open", o.acked(), w.LAC())
		}
		after(2 * time.Second)
		s.wantAcked(o, 20)
		if writes != 1 || len(s.record(w.ID()).Fragments) != 2 {
			t.Fatalf("%d writes, fragments %v", writes, s.record(w.ID()).Fragments)
		}
		s.store.OnCall(nil)
		if _, err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.wantReadable(w.ID(), 19)
	})
}

// Without the metadata store a ledger goes on, also through the failure of a
// bookie it can do without (M20), and takes the change it wanted afterwards.
func TestRuleM20_WritesGoOnWithoutTheStore(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 10, nil)
		s.wantAcked(o, 10)
		back := make(chan struct{}) // until then the store takes calls and answers none
		s.store.OnCall(func(meta.Call) meta.Fault { return meta.Fault{Until: back} })
		s.cluster.Named(w.Metadata().Fragments[0].Ensemble[0]).Kill()
		for range 60 {
			s.appendSome(w, 1, o)
			after(time.Second)
		}
		s.wantAcked(o, 70)
		s.store.OnCall(nil)
		close(back)
		for range 20 {
			s.appendSome(w, 1, o)
			after(time.Second)
		}
		s.wantAcked(o, 90)
		if md := w.Metadata(); len(md.Fragments) != 2 {
			t.Fatalf("the dead bookie is still in the ensemble: %v", md.Fragments)
		}
	})
}

// TestRuleK1_CloseByTheWriter shows the outcomes of a close: drained first; the
// same close by another is success; a recovery is reported as fenced; another end
// as closed.
func TestRuleK1_CloseByTheWriter(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		for i := range 3 {
			s.cluster.At(i).SetLatency(50 * time.Millisecond)
		}
		o := s.appendSome(w, 20, nil)
		md, err := w.Close(t.Context())
		if err != nil || md.LastEntry != 19 || o.acked() != 20 {
			t.Fatalf("closed at %d with %d acknowledged: %v", md.LastEntry, o.acked(), err)
		}
		if again, err := w.Close(t.Context()); err != nil || again.LastEntry != 19 {
			t.Fatalf("a second close: %v", err)
		}
		for i := range 3 {
			s.cluster.At(i).SetLatency(0)
		}

		same := s.create(threeTwo)
		s.wantAcked(s.appendSome(same, 5, nil), 5)
		if _, err := s.another().Recover(s.ctx(time.Minute), same.ID(), nil); err != nil {
			t.Fatal(err)
		}
		if md, err := same.Close(t.Context()); err != nil || md.LastEntry != 4 || md.Term != 2 {
			t.Fatalf("the same end by a recovery: %v", err)
		}

		fenced := s.create(threeTwo)
		s.wantAcked(s.appendSome(fenced, 5, nil), 5)
		md, rev, _ := s.client.Metadata(t.Context(), fenced.ID())
		md.State, md.Term = ledger.InRecovery, 2
		value, _ := md.Encode()
		key := keys.Ledger(int64(fenced.ID()))
		if r, err := s.store.Txn(t.Context(), meta.Txn{Conds: []meta.Cond{{Key: key, Revision: rev}}, Ops: []meta.Op{{Key: key, Value: value}}}); err != nil || !r.Done {
			t.Fatal("recovery did not begin")
		}
		if _, err := fenced.Close(t.Context()); !errors.Is(err, ledger.ErrFenced) {
			t.Fatalf("close during a recovery: %v", err)
		}
	})
}

// TestRuleK2_CloseIsMadeDefinite shows that a close whose answer was lost, or
// that was not done for a while, ends definite: the record is read again, and
// nothing is assumed.
func TestRuleK2_CloseIsMadeDefinite(t *testing.T) {
	for name, fault := range map[string]meta.Fault{
		"answer lost":    {Lost: true},
		"request lost":   {Err: meta.ErrUncertain},
		"not done":       {Err: meta.ErrUnavailable},
		"arrives late":   {Delay: 3 * time.Second, Lost: true},
		"answered later": {AnswerDelay: 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, 3, func(t *testing.T, s *stage) {
				w := s.create(threeTwo)
				s.wantAcked(s.appendSome(w, 5, nil), 5)
				times := 2
				s.store.OnCall(func(c meta.Call) meta.Fault {
					if c.Kind == meta.CallTxn && times > 0 {
						times--
						return fault
					}
					return meta.Fault{}
				})
				if md, err := w.Close(s.ctx(time.Minute)); err != nil || md.LastEntry != 4 {
					t.Fatalf("closed at %d: %v", md.LastEntry, err)
				}
				s.wantReadable(w.ID(), 4)
			})
		})
	}
	// A close that ran out of time leaves nothing decided: it can be tried again.
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 5, nil), 5)
		s.store.SetUnavailable(true)
		if _, err := w.Close(s.ctx(5 * time.Second)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("close without a store: %v", err)
		}
		s.store.SetUnavailable(false)
		if _, err := w.Close(s.ctx(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
	})
}

// TestRuleK3_ClosedIsFinal shows that a closed ledger takes no add, whoever sends
// it, and that a recovery of it changes nothing.
func TestRuleK3_ClosedIsFinal(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 5, nil)
		s.wantAcked(o, 5)
		closed, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.appendSome(w, 1, o)
		synctest.Wait()
		if o.acked() != 5 || o.failed(ledger.ErrFenced) != 1 || !errors.Is(w.Err(), ledger.ErrFenced) {
			t.Fatalf("after the close: %d acknowledged, %d fenced, writer %v", o.acked(), o.failed(ledger.ErrFenced), w.Err())
		}
		_, rev, _ := s.client.Metadata(t.Context(), w.ID())
		again, err := s.client.Recover(s.ctx(time.Minute), w.ID(), nil)
		_, revAfter, _ := s.client.Metadata(t.Context(), w.ID())
		if err != nil || again.LastEntry != closed.LastEntry || again.Term != closed.Term || rev != revAfter {
			t.Fatalf("recovered again at %d, term %d: %v", again.LastEntry, again.Term, err)
		}
	})
}

// TestRuleM17_SealIsDefiniteBeforeTheTailMoves shows a roll on failure: the
// ledger is closed at its LAC, although its answer is lost; the tail is returned
// unanswered, whole and in order; what bookies store of it afterwards is not part
// of the ledger.
func TestRuleM17_SealIsDefiniteBeforeTheTailMoves(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 5, nil)
		s.wantAcked(o, 5)
		for i := range 3 {
			s.cluster.At(i).Freeze()
		}
		s.appendSome(w, 3, o)
		lost := 1
		s.store.OnCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallTxn && lost > 0 {
				lost--
				return meta.Fault{Lost: true}
			}
			return meta.Fault{}
		})
		md, tail, err := w.Seal(s.ctx(time.Minute))
		if err != nil || md.LastEntry != 4 || len(tail) != 3 || o.acked() != 5 || len(o.entries) != 5 {
			t.Fatalf("sealed at %d with a tail of %d, %d answered: %v", md.LastEntry, len(tail), len(o.entries), err)
		}
		for i := range 3 {
			s.cluster.At(i).Thaw()
		}
		synctest.Wait()
		if len(o.entries) != 5 {
			t.Fatal("the tail was answered by the sealed writer")
		}
		next := s.create(threeTwo)
		for _, u := range tail {
			if _, err := next.Append(u.Body, u.CRC, u.Done); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if o.acked() != 8 || !slices.Equal(o.entries[5:], []ledger.EntryID{0, 1, 2}) {
			t.Fatalf("the tail in its new ledger: %v", o.entries)
		}
		s.wantReadable(w.ID(), 4)
	})
}

// A sealed writer that was shut out answers its tail as unknown.
func TestRuleM17_SealOfAFencedLedger(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 5, nil)
		s.wantAcked(o, 5)
		for i := range 2 {
			s.cluster.At(i).OnAdd(func(a ledger.Add) ensembletest.AddFault {
				if a.RecoveryTerm > 0 {
					return ensembletest.AddFault{}
				}
				return ensembletest.AddFault{Err: ensembletest.ErrDown, Store: true}
			})
		}
		s.appendSome(w, 3, o)
		synctest.Wait()
		recovered, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
		if err != nil {
			t.Fatal(err)
		}
		// How much of the tail is recovered depends on who was heard first: the third
		// bookie has all of it, the others what was sent before they failed (R15).
		if recovered.LastEntry < 4 || recovered.LastEntry > 7 {
			t.Fatalf("closed at %d, acknowledged was 4 and appended 7", recovered.LastEntry)
		}
		_, tail, err := w.Seal(s.ctx(time.Minute))
		synctest.Wait()
		if !errors.Is(err, ledger.ErrClosed) && !errors.Is(err, ledger.ErrFenced) || tail != nil || len(o.entries) != 8 || o.acked() != 5 {
			t.Fatalf("sealed: %v, tail %d, answers %v", err, len(tail), o.errs)
		}
		s.wantReadable(w.ID(), recovered.LastEntry)
	})
}
