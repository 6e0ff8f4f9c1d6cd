package ensemble_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// closedLedger writes and closes a ledger of n entries.
func (s *stage) closedLedger(n int) ledger.Metadata {
	s.t.Helper()
	w := s.create(threeTwo)
	s.wantAcked(s.appendSome(w, n, nil), n)
	md, err := w.Close(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return md
}

func (s *stage) open(id ledger.ID) *ensemble.Reader {
	s.t.Helper()
	r, err := s.client.Open(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// TestRuleD1_AnyGoodCopyIsFound shows that a reader gets an entry as long as one
// bookie has a good copy, whatever the others say, and that an entry which none
// gives is an error that tells loss from doubt, never an end.
func TestRuleD1_AnyGoodCopyIsFound(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		id := s.closedLedger(5).ID
		r := s.open(id)
		s.cluster.At(0).Lose(id, 2)
		s.cluster.At(1).Damage(id, 2)
		for range 3 {
			entries, err := r.Read(t.Context(), 2, 2, 0, 0)
			if err != nil || string(entries[0].Body) != string(body(2)) {
				t.Fatalf("with one good copy: %v", err)
			}
		}
		s.cluster.At(2).Lose(id, 2)
		_, err := r.Read(t.Context(), 2, 2, 0, 0)
		if !errors.Is(err, ledger.ErrCorrupt) || errors.Is(err, ledger.ErrNoEntry) {
			t.Fatalf("no good copy anywhere: %v", err)
		}
		s.cluster.At(1).Cut(true)
		_, err = r.Read(t.Context(), 2, 2, 0, 0)
		if !errors.Is(err, ledger.ErrUnknown) || errors.Is(err, ledger.ErrNoEntry) {
			t.Fatalf("one bookie cannot be asked: %v", err)
		}
		// A run stops before the entry that cannot be had.
		entries, err := r.Read(t.Context(), 0, 4, 0, 0)
		if err != nil || len(entries) != 2 {
			t.Fatalf("%d entries before the lost one: %v", len(entries), err)
		}
	})
}

// TestRuleD2_SlowReadsAreHedged shows that a reader asks a second bookie when the
// first is slow, long before it would give up, and that it stops doing so when
// everything is slow.
func TestRuleD2_SlowReadsAreHedged(t *testing.T) {
	playWith(t, 3, ensemble.Options{HedgeAfter: 10 * time.Millisecond}, func(t *testing.T, s *stage) {
		id := s.closedLedger(5).ID
		r := s.open(id)
		for i := range 3 {
			s.cluster.At(i).SetLatency(time.Millisecond)
		}
		slow := func(read func()) time.Duration {
			began := time.Now()
			read()
			return time.Since(began)
		}
		read := func() {
			if _, err := r.Read(t.Context(), 0, 4, 0, 0); err != nil {
				t.Fatal(err)
			}
		}
		read()
		first := 0
		for i := range 3 {
			if _, reads, _ := s.cluster.At(i).Calls(); reads > 0 {
				first = i
			}
		}
		s.cluster.At(first).SetLatency(time.Second)
		if took := slow(read); took > 20*time.Millisecond {
			t.Fatalf("a read beside a slow bookie took %v", took)
		}
		for i := range 3 {
			s.cluster.At(i).SetLatency(100 * time.Millisecond)
		}
		before := s.reads()
		for range 100 {
			read()
		}
		if extra := s.reads() - before - 100; extra > 15 {
			t.Fatalf("%d extra reads for 100 when all bookies are slow", extra)
		}
		synctest.Wait()
	})
}

func (s *stage) reads() int {
	n := 0
	for i := range 3 {
		_, reads, _ := s.cluster.At(i).Calls()
		n += reads
	}
	return n
}

// TestRuleD3_OneBookieServesALedger shows that all reads of a ledger go to one
// bookie while it is well, that different ledgers use different ones, and that a
// bookie that failed is asked last for a minute.
func TestRuleD3_OneBookieServesALedger(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		used := make(map[int]bool)
		for range 30 {
			r := s.open(s.closedLedger(3).ID)
			var before [3]int
			for i := range 3 {
				_, before[i], _ = s.cluster.At(i).Calls()
			}
			for range 10 {
				if _, err := r.Read(t.Context(), 0, 2, 0, 0); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 3 {
				if _, reads, _ := s.cluster.At(i).Calls(); reads == before[i]+10 {
					used[i] = true
				} else if reads != before[i] {
					t.Fatalf("bookie %d served %d of ten reads", i, reads-before[i])
				}
			}
		}
		if len(used) != 3 {
			t.Fatalf("thirty ledgers use %d bookies", len(used))
		}
		id := s.closedLedger(3).ID
		r := s.open(id)
		for i := range 3 {
			s.cluster.At(i).Cut(true)
			for range 5 {
				if _, err := r.Read(t.Context(), 0, 2, 0, 0); err != nil {
					t.Fatal(err)
				}
			}
			s.cluster.At(i).Cut(false)
			_, before, _ := s.cluster.At(i).Calls()
			if _, err := r.Read(t.Context(), 0, 2, 0, 0); err != nil {
				t.Fatal(err)
			}
			if _, reads, _ := s.cluster.At(i).Calls(); reads != before {
				t.Fatalf("bookie %d is asked again at once", i)
			}
			after(2 * time.Minute)
		}
	})
}

// TestRuleD4_RunsOfEntries shows reads of many entries: bounded by bytes, never
// empty, ending with their fragment, and heads alone when only those are wanted.
func TestRuleD4_RunsOfEntries(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		w := s.create(ledger.Quorum{Write: 3, Ack: 3})
		o := s.appendSome(w, 10, nil)
		s.wantAcked(o, 10)
		s.cluster.Named(w.Metadata().Fragments[0].Ensemble[0]).Kill()
		s.appendSome(w, 10, o)
		after(time.Second)
		s.wantAcked(o, 20)
		r := w.Reader()
		for _, c := range []struct {
			first, last    ledger.EntryID
			maxBytes, head int
			want           int
		}{{0, 99, 0, 0, 10}, {3, 5, 0, 0, 3}, {10, 99, 0, 0, 10}, {0, 9, 40, 0, 2}, {0, 9, 1, 0, 1}, {12, 15, 0, 4, 4}} {
			entries, err := r.Read(t.Context(), c.first, c.last, c.maxBytes, c.head)
			if err != nil || len(entries) != c.want {
				t.Fatalf("%+v: %d entries: %v", c, len(entries), err)
			}
			for i, e := range entries {
				want := body(c.first + ledger.EntryID(i))
				if c.head > 0 {
					want = want[:c.head]
				}
				if string(e.Body) != string(want) {
					t.Fatalf("%+v: entry %d is %q", c, i, e.Body)
				}
			}
		}
		for _, c := range [][2]ledger.EntryID{{-1, 3}, {3, 2}} {
			if _, err := r.Read(t.Context(), c[0], c[1], 0, 0); err == nil {
				t.Fatalf("read from %d to %d", c[0], c[1])
			}
		}
		if _, err := r.Read(t.Context(), 20, 20, 0, 0); !errors.Is(err, ledger.ErrBeyondLAC) {
			t.Fatalf("read beyond the LAC: %v", err)
		}
	})
}

// TestRuleD5_TailingByLAC shows a reader that follows a ledger which another
// process writes, through an ensemble change to the close, without fencing it:
// its LAC never falls and never runs ahead.
func TestRuleD5_TailingByLAC(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		r, err := s.another().Open(t.Context(), w.ID())
		if err != nil {
			t.Fatal(err)
		}
		o := &outcomes{}
		seen := ledger.NoEntry
		poll := func() bool {
			lac, closed, err := r.Poll(t.Context())
			if err != nil || lac < seen || lac > w.LAC() {
				t.Fatalf("LAC %d after %d, the writer is at %d: %v", lac, seen, w.LAC(), err)
			}
			for e := seen + 1; e <= lac; e++ {
				if _, err := r.Read(t.Context(), e, e, 0, 0); err != nil {
					t.Fatal(err)
				}
			}
			seen = lac
			return closed
		}
		for round := range 20 {
			s.appendSome(w, 5, o)
			synctest.Wait()
			if poll() {
				t.Fatal("closed while it is written")
			}
			if round == 10 {
				s.cluster.Named(w.Metadata().Fragments[0].Ensemble[0]).Kill()
				s.cluster.Named(w.Metadata().Fragments[0].Ensemble[1]).Kill()
				s.cluster.Add("")
			}
			after(time.Second)
		}
		s.wantAcked(o, 100)
		if seen < 90 {
			t.Fatalf("after 100 entries the reader is at %d", seen)
		}
		if _, err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		after(2 * time.Second)
		if !poll() || seen != 99 {
			t.Fatalf("after the close the reader is at %d", seen)
		}
		for i := range 4 {
			if term := s.cluster.At(i).Term(w.ID()); term != 0 {
				t.Fatalf("reading fenced bookie %d", i)
			}
		}
	})
}

// TestRuleD6_StaleRecordIsReadAgain shows a reader whose record is out of date: a
// repair moved the fragment to another bookie, and it finds the entries there.
func TestRuleD6_StaleRecordIsReadAgain(t *testing.T) {
	play(t, 4, func(t *testing.T, s *stage) {
		md := s.closedLedger(5)
		r := s.open(md.ID)
		spare := ledger.Member{}
		for i := range 4 {
			if b := s.cluster.At(i); !b.Has(md.ID, 0) {
				spare = b.Member()
				for e := range ledger.EntryID(5) {
					entry, _ := s.cluster.Named(md.Last().Ensemble[0]).Entry(md.ID, e)
					b.Put(entry)
				}
			}
		}
		moved := md.Clone()
		moved.Fragments[0].Ensemble[0] = spare
		value, err := moved.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.store.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: keys.Ledger(int64(md.ID)), Value: value}}}); err != nil {
			t.Fatal(err)
		}
		for _, m := range md.Last().Ensemble {
			s.cluster.Named(m).Kill()
		}
		entries, err := r.Read(s.ctx(time.Minute), 0, 4, 0, 0)
		if err != nil || len(entries) != 5 {
			t.Fatalf("%d entries after the move: %v", len(entries), err)
		}
	})
}
