package ensemble_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// TestRuleR1_RecordBeforeFence shows that the record is IN_RECOVERY before any
// bookie is fenced, so that a writer's ensemble change that comes later fails and
// ends the writer.
func TestRuleR1_RecordBeforeFence(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		w := s.create(ledger.Quorum{Write: 3, Ack: 3})
		o := s.appendSome(w, 5, nil)
		s.wantAcked(o, 5)
		members := w.Metadata().Fragments[0].Ensemble
		for _, m := range members {
			s.cluster.Named(m).OnFence(func(id ledger.ID, term int64) error {
				md, _, err := s.client.Metadata(context.Background(), id)
				if err != nil || md.State != ledger.InRecovery || md.Term != term {
					t.Errorf("fenced at term %d while the record is %v at term %d", term, md.State, md.Term)
				}
				return ensembletest.ErrDown // the fence itself does not come through
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := s.another().Recover(ctx, w.ID(), nil); err == nil {
			t.Fatal("recovered without a fence")
		}
		s.cluster.Named(members[0]).Kill() // the writer needs a change now
		s.appendSome(w, 1, o)
		after(5 * time.Second)
		if o.acked() != 5 || o.failed(ledger.ErrFenced) != 1 {
			t.Fatalf("%d acknowledged, %d fenced", o.acked(), o.failed(ledger.ErrFenced))
		}
		if md := s.record(w.ID()); len(md.Fragments) != 1 {
			t.Fatalf("the writer changed a ledger in recovery: %v", md.Fragments)
		}
	})
}

// A guard that does not hold keeps a recovery from starting: nobody is fenced.
func TestRuleM1_RecoveryUnderGuard(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 5, nil)
		s.wantAcked(o, 5)
		_, err := s.another().Recover(s.ctx(time.Minute), w.ID(), []meta.Cond{{Key: "owner", Revision: 5}})
		if !errors.Is(err, ensemble.ErrConflict) {
			t.Fatalf("recovered under a guard that does not hold: %v", err)
		}
		s.appendSome(w, 5, o)
		s.wantAcked(o, 10)
	})
}

// TestRuleR4_AFencedBookieStaysFenced shows the promise the protocol rests on, as
// the twin keeps it: a fence that found nothing to read is remembered through a
// restart, and a zombie's add is refused.
func TestRuleR4_AFencedBookieStaysFenced(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		if md, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil); err != nil || md.LastEntry != ledger.NoEntry {
			t.Fatalf("an empty ledger recovered at %d: %v", md.LastEntry, err)
		}
		for i := range 3 {
			s.cluster.At(i).Kill()
			s.cluster.At(i).Restart()
		}
		o := s.appendSome(w, 1, nil)
		synctest.Wait()
		if o.acked() != 0 || o.failed(ledger.ErrFenced) != 1 {
			t.Fatalf("a zombie after the close: %v", o.errs)
		}
	})
}

// TestRuleR6_ReadsFenceTheBookieThatWasMissed plays the schedule that the LAC
// fence alone does not cover: an entry is on one bookie, whose recovery read
// fails; the zombie's add to a bookie that was not fenced is on its way. The
// recovery read fences that bookie before it says "not here", so the add is
// refused.
func TestRuleR6_ReadsFenceTheBookieThatWasMissed(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 1, nil)
		s.wantAcked(o, 1)
		has, lacks, late := s.cluster.At(0), s.cluster.At(1), s.cluster.At(2)
		has.OnRead(func(r ledger.ReadRequest) error {
			if r.FenceTerm > 0 {
				return ensembletest.ErrDown
			}
			return nil
		})
		lacks.OnAdd(func(a ledger.Add) ensembletest.AddFault {
			if a.RecoveryTerm == 0 {
				return ensembletest.AddFault{Err: ensembletest.ErrDown}
			}
			return ensembletest.AddFault{}
		})
		late.OnAdd(func(ledger.Add) ensembletest.AddFault { return ensembletest.AddFault{Delay: time.Second} })
		late.OnFence(func(ledger.ID, int64) error { return ensembletest.ErrDown })
		s.appendSome(w, 1, o)
		synctest.Wait()
		md, err := s.another().Recover(s.ctx(500*time.Millisecond), w.ID(), nil)
		if err != nil || md.LastEntry != 0 {
			t.Fatalf("recovered at %d: %v", md.LastEntry, err)
		}
		after(time.Minute)
		if o.acked() != 1 || o.failed(ledger.ErrFenced) != 1 {
			t.Fatalf("answers of the zombie: %v", o.errs)
		}
	})
}

// TestRuleR7_UnknownNeverShortensALedger shows recoveries that cannot tell: they
// go on trying, the ledger stays as it is, and closes whole once the bookies are
// back.
func TestRuleR7_UnknownNeverShortensALedger(t *testing.T) {
	for name, cut := range map[string]func(*ensembletest.Bookie){
		"down":    (*ensembletest.Bookie).Kill,
		"cut off": func(b *ensembletest.Bookie) { b.Cut(true) },
		"frozen":  (*ensembletest.Bookie).Freeze,
	} {
		t.Run(name, func(t *testing.T) {
			play(t, 3, func(t *testing.T, s *stage) {
				w := s.create(threeTwo)
				s.wantAcked(s.appendSome(w, 20, nil), 20)
				w.Abandon()
				cut(s.cluster.At(0))
				cut(s.cluster.At(1))
				_, err := s.another().Recover(s.ctx(30*time.Second), w.ID(), nil)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("recovered with one of three bookies: %v", err)
				}
				if md := s.record(w.ID()); md.State != ledger.InRecovery {
					t.Fatalf("the ledger is %v", md.State)
				}
				done := make(chan error, 1)
				go func() {
					_, err := s.another().Recover(t.Context(), w.ID(), nil)
					done <- err
				}()
				after(10 * time.Second)
				b := s.cluster.At(1)
				b.Cut(false)
				b.Thaw()
				b.Restart()
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				s.wantReadable(w.ID(), 19)
				s.cluster.At(0).Thaw()
			})
		})
	}
}

// A bookie in limbo gives what it has, and its absences end nothing.
func TestRuleR7_LimboIsNoAbsence(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 5, nil), 5)
		w.Abandon()
		for i := range 2 {
			s.cluster.At(i).SetLimbo(w.ID(), true)
		}
		if md, err := s.another().Recover(s.ctx(10*time.Second), w.ID(), nil); err == nil {
			t.Fatalf("closed at %d on one absence and two bookies that cannot tell", md.LastEntry)
		}
		s.cluster.At(0).SetLimbo(w.ID(), false)
		if _, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil); err != nil {
			t.Fatal(err)
		}
		s.wantReadable(w.ID(), 4)
	})
}

// TestRuleR8_AHungBookieDoesNotDelayRecovery shows that a recovery with one hung
// bookie takes round trips, not timeouts.
func TestRuleR8_AHungBookieDoesNotDelayRecovery(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 100, nil), 100)
		w.Abandon()
		s.cluster.At(0).SetLatency(time.Millisecond)
		s.cluster.At(1).SetLatency(time.Millisecond)
		s.cluster.At(2).Freeze()
		began := time.Now()
		if _, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Fatalf("recovery took %v", took)
		}
		s.wantReadable(w.ID(), 99)
		s.cluster.At(2).Thaw()
	})
}

// TestRuleR9_RecoveryMovesToAnotherBookie shows a recovery one of whose bookies
// takes reads but no adds: the copies go to another one, which the record names
// only once it is closed.
func TestRuleR9_RecoveryMovesToAnotherBookie(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 5, nil)
		s.wantAcked(o, 5)
		w.Abandon()
		members := w.Metadata().Fragments[0].Ensemble
		// An entry that one bookie has, and that the others will not take.
		e, _ := s.cluster.Named(members[0]).Entry(w.ID(), 4)
		e.Envelope.Entry, e.Envelope.LAC = 5, 4
		e.Body = body(5)
		e.Envelope.BodyCRC, e.Envelope.TotalBytes = sum(e.Body), e.Envelope.TotalBytes+int64(len(e.Body))
		s.cluster.Named(members[0]).Put(e)
		for _, m := range members[1:] {
			// The one that has it speaks first: two that surely lack it would end the
			// ledger before it, rightly, as it was never acknowledged (R8).
			s.cluster.Named(m).SetLatency(time.Millisecond)
			s.cluster.Named(m).OnAdd(func(ledger.Add) ensembletest.AddFault {
				if md := s.recordNow(w.ID()); len(md.Fragments) != 1 || !ledger.SameFragment(md.Last(), s.original(w)) {
					t.Errorf("the record names the new bookies before it is closed: %v", md.Fragments)
				}
				return ensembletest.AddFault{Err: ensembletest.ErrDown}
			})
		}
		md, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if ledger.SameFragment(md.Last(), s.original(w)) || s.cluster.Copies(md.Last().Ensemble, w.ID(), 5) < 2 {
			t.Fatalf("closed with %v", md.Fragments)
		}
		s.wantReadable(w.ID(), 5)
	})
}

// original is the fragment the ledger was created with.
func (s *stage) original(w *ensemble.Writer) *ledger.Fragment {
	md := w.Metadata()
	return &md.Fragments[0]
}

// recordNow is for hooks, which run on any goroutine.
func (s *stage) recordNow(id ledger.ID) ledger.Metadata {
	md, _, err := s.client.Metadata(context.Background(), id)
	if err != nil {
		s.t.Error(err)
	}
	return md
}

// TestRuleR10_ManyRecoverersAgree shows that several processes recovering one
// ledger at once, each killed at another moment and replaced, end with one
// record, and that a close whose answer was lost is adopted.
func TestRuleR10_ManyRecoverersAgree(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 50, nil), 50)
		w.Abandon()
		for i := range 4 {
			s.cluster.At(i).SetLatency(time.Duration(i+1) * time.Millisecond)
		}
		var writes atomic.Int64
		s.store.OnCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallTxn {
				n := writes.Add(1)
				return meta.Fault{Lost: n%3 == 0, Delay: time.Duration(n%4) * time.Millisecond}
			}
			return meta.Fault{}
		})
		var mu sync.Mutex
		var ends []ledger.Metadata
		var wg sync.WaitGroup
		for i := range 12 {
			client := s.another()
			ctx := t.Context()
			if i%2 == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(i)*2*time.Millisecond)
				defer cancel()
			}
			wg.Go(func() {
				md, err := client.Recover(ctx, w.ID(), nil)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					ends = append(ends, md)
				} else if ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(ends) < 6 {
			t.Fatalf("%d of 12 recoveries came to an end", len(ends))
		}
		for _, md := range ends {
			if md.LastEntry != ends[0].LastEntry || md.Length != ends[0].Length || md.Term != ends[0].Term {
				t.Fatalf("two ends: %+v and %+v", md, ends[0])
			}
		}
		s.store.OnCall(nil)
		s.wantReadable(w.ID(), 49)
	})
}

// TestRuleR12_LengthIsRecovered shows that a recovered ledger knows its length:
// from the entries added again, from the last acknowledged one when there are
// none, and 0 for an empty one; also when the last fragment is empty.
func TestRuleR12_LengthIsRecovered(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		for _, entries := range []int{0, 1, 7} {
			w := s.create(threeTwo)
			s.wantAcked(s.appendSome(w, entries, nil), entries)
			w.Abandon()
			md, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
			if err != nil || md.Length != w.Bytes() {
				t.Fatalf("%d entries: length %d, want %d: %v", entries, md.Length, w.Bytes(), err)
			}
			s.wantReadable(w.ID(), ledger.EntryID(entries-1))
		}
		// An ensemble change behind the last entry, nothing after it (R5).
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 5, nil), 5)
		members := w.Metadata().Fragments[0].Ensemble
		md := s.record(w.ID())
		for i := range 4 {
			if m := s.cluster.At(i).Member(); s.cluster.Copies([]ledger.Member{m}, w.ID(), 0) == 0 {
				ensemble := append([]ledger.Member(nil), members...)
				ensemble[0] = m
				md.Fragments = append(md.Fragments, ledger.Fragment{First: 5, Ensemble: ensemble})
			}
		}
		value, err := md.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.store.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: keys.Ledger(int64(w.ID())), Value: value}}}); err != nil {
			t.Fatal(err)
		}
		w.Abandon()
		md, err = s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
		if err != nil || md.LastEntry != 4 || md.Length != w.Bytes() || len(md.Fragments) != 2 {
			t.Fatalf("closed at %d with length %d and fragments %v: %v", md.LastEntry, md.Length, md.Fragments, err)
		}
		s.wantReadable(w.ID(), 4)
	})
}

// TestRuleR13_NothingBeyondTheEnd shows that a reader stops at the last entry of
// a closed ledger although bookies hold more.
func TestRuleR13_NothingBeyondTheEnd(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 5, nil), 5)
		if _, err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			b := s.cluster.At(i)
			e, _ := b.Entry(w.ID(), 4)
			for k := range ledger.EntryID(3) {
				e.Envelope.Entry, e.Envelope.LAC = 5+k, 4+k
				b.Put(e)
			}
		}
		r, err := s.client.Open(t.Context(), w.ID())
		if err != nil {
			t.Fatal(err)
		}
		entries, err := r.Read(t.Context(), 3, 100, 0, 0)
		if err != nil || len(entries) != 2 || r.LAC() != 4 {
			t.Fatalf("%d entries from the last two, LAC %d: %v", len(entries), r.LAC(), err)
		}
		if _, err := r.Read(t.Context(), 5, 5, 0, 0); !errors.Is(err, ledger.ErrBeyondLAC) {
			t.Fatalf("an entry beyond the end: %v", err)
		}
		if lac, closed, err := r.Poll(t.Context()); lac != 4 || !closed || err != nil {
			t.Fatalf("poll: %d, closed %v, %v", lac, closed, err)
		}
	})
}

// TestRuleR14_LongTailInBatches shows that a tail of 10,000 entries is recovered
// with reads of many entries each, in a time of round trips far below one per
// entry, and in order.
func TestRuleR14_LongTailInBatches(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		const tail = 10_000
		w := s.create(threeTwo)
		total := int64(0)
		for e := range ledger.EntryID(tail) { // all in flight when the writer died: no LAC is known
			b := body(e)
			total += int64(len(b))
			entry := ledger.Entry{Body: b, Envelope: ledger.Envelope{
				Ledger: w.ID(), Entry: e, LAC: ledger.NoEntry, TotalBytes: total, BodyBytes: uint32(len(b)), BodyCRC: sum(b),
			}}
			s.cluster.At(0).Put(entry)
			s.cluster.At(1 + int(e%2)).Put(entry)
		}
		w.Abandon()
		_, before, _ := s.cluster.At(0).Calls()
		for i := range 3 {
			s.cluster.At(i).SetLatency(time.Millisecond)
		}
		began := time.Now()
		md, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, reads, _ := s.cluster.At(0).Calls()
		if took := time.Since(began); md.LastEntry != tail-1 || reads-before > 100 || took > time.Second {
			t.Fatalf("closed at %d after %d reads of one bookie in %v", md.LastEntry, reads-before, took)
		}
		s.wantReadable(w.ID(), tail-1)
	})
}

// TestRuleR15_AcknowledgedIsRecovered shows that an entry acknowledged by any ack
// quorum is recovered whichever one bookie is lost, and that a reader who saw a
// LAC finds that entry after the close.
func TestRuleR15_AcknowledgedIsRecovered(t *testing.T) {
	for lost := range 3 {
		for slow := range 3 {
			t.Run(fmt.Sprintf("lost %d slow %d", lost, slow), func(t *testing.T) {
				play(t, 3, func(t *testing.T, s *stage) {
					w := s.create(threeTwo)
					s.cluster.At(slow).Freeze()
					s.wantAcked(s.appendSome(w, 5, nil), 5)
					r, err := s.another().Open(t.Context(), w.ID())
					if err != nil {
						t.Fatal(err)
					}
					seen, _, err := r.Poll(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					w.Abandon()
					s.cluster.At(slow).Thaw()
					s.cluster.At(lost).Kill()
					md, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
					if err != nil || md.LastEntry < 4 || md.LastEntry < seen {
						t.Fatalf("closed at %d, seen LAC %d: %v", md.LastEntry, seen, err)
					}
					s.wantReadable(w.ID(), 4)
				})
			})
		}
	}
}

// A bookie whose storage was formatted anew says nothing about the ledgers of
// its former life: with it alone beside one that lacks the entry, recovery waits.
func TestWipedBookieIsNoAbsence(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.cluster.At(2).Freeze() // the entries are on 0 and 1 only
		s.wantAcked(s.appendSome(w, 5, nil), 5)
		w.Abandon()
		s.cluster.At(2).Kill()
		s.cluster.At(2).Thaw()
		s.cluster.At(2).Restart()
		s.cluster.At(0).Wipe()
		s.cluster.At(1).Cut(true)
		if md, err := s.another().Recover(s.ctx(10*time.Second), w.ID(), nil); err == nil {
			t.Fatalf("closed at %d: the wiped bookie was believed", md.LastEntry)
		}
		s.cluster.At(1).Cut(false)
		if _, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil); err != nil {
			t.Fatal(err)
		}
		s.wantReadable(w.ID(), 4)
	})
}
