package subscription

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/internal/entry"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// fill appends n entries of one message and returns where they stand.
func fill(l *fakeLedger, n int) []position.Position {
	var out []position.Position
	for range n {
		out = append(out, l.append(body(1, 20)))
	}
	return out
}

func wantGot(t *testing.T, sink *fakeSink, want ...position.Position) []Delivery {
	t.Helper()
	synctest.Wait()
	got := sink.take()
	if !slices.Equal(positionsOf(got), want) {
		t.Fatalf("got %v, want %v", positionsOf(got), want)
	}
	return got
}

// Shows one consumer's life: nothing without permits, then what is there, across
// ledgers and in order, then what comes, and no more than permitted.
func TestDeliveryFollowsPermits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		first := fill(l, 3)
		l.roll()
		first = append(first, fill(l, 3)...)
		c, sink := join(t, s, "c", Exclusive)
		wantGot(t, sink)
		flow(t, c, 4)
		wantGot(t, sink, first[:4]...)
		flow(t, c, 4)
		wantGot(t, sink, first[4:]...)
		next := fill(l, 3)
		wantGot(t, sink) // nobody was told
		s.Notify()
		wantGot(t, sink, next[:2]...)
		flow(t, c, 10)
		wantGot(t, sink, next[2])
	})
}

// Shows that a batch takes as many permits as it has messages left, that permits
// may fall below zero by one batch and no more, and that they come back to where
// they were.
func TestPermitsCountMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		var ps []position.Position
		for range 3 {
			ps = append(ps, l.append(body(10, 5)))
		}
		c, sink := join(t, s, "c", Exclusive)
		ack := &answer{}
		c.Ack(Ack{Positions: []Acked{{Position: ps[1], Left: cursor.From(7, 10)}}}, ack.done)
		flow(t, c, 11)
		got := wantGot(t, sink, ps[0], ps[1])
		if got[0].Left != nil || got[1].Messages != 3 || got[1].Left.Count(10) != 3 {
			t.Fatalf("second batch: %d messages, left %b", got[1].Messages, got[1].Left)
		}
		if p := s.Stats().Consumers[0].Permits; p != -2 {
			t.Fatalf("%d permits, want -2", p)
		}
		flow(t, c, 2)
		wantGot(t, sink)
		flow(t, c, 1)
		wantGot(t, sink, ps[2])
	})
}

// TestRuleM31_WindowBoundsWhatIsOut shows that a consumer with permits to spare
// is sent no more than its window of bytes, that an entry larger than the window
// goes alone, and that bytes given back let it go on.
func TestRuleM31_WindowBoundsWhatIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		small, large := body(1, 100), body(1, 5000)
		var ps []position.Position
		for _, b := range [][]byte{small, small, small, large, small} {
			ps = append(ps, l.append(b))
		}
		sink := &fakeSink{}
		window := int64(2*len(small) + 10)
		c, err := s.Join(ConsumerOptions{Name: "c", WindowBytes: window}, sink)
		if err != nil {
			t.Fatal(err)
		}
		flow(t, c, 1000)
		wantGot(t, sink, ps[:2]...)
		if w := s.Stats().Waiting; !strings.Contains(w, "window") {
			t.Errorf("it waits for %q", w)
		}
		give := func(n int) {
			if err := c.Flow(0, uint64(n)); err != nil {
				t.Fatal(err)
			}
		}
		give(len(small))
		wantGot(t, sink, ps[2])
		give(len(small))
		wantGot(t, sink) // the large one waits until nothing is out
		give(len(small))
		wantGot(t, sink, ps[3])
		give(len(large))
		wantGot(t, sink, ps[4])
	})
}

// TestRuleM31_OverCreditIsAnError shows that bytes which were never sent cannot
// be given back.
func TestRuleM31_OverCreditIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		fill(l, 1)
		c, sink := join(t, s, "c", Exclusive)
		flow(t, c, 1)
		synctest.Wait()
		n := uint64(len(sink.take()[0].Body))
		if err := c.Flow(0, n+1); !errors.Is(err, ErrOverCredit) {
			t.Fatalf("got %v", err)
		}
		if err := c.Flow(0, n); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPromiseP5_AnsweredAckIsInTheJournal crashes at every moment of a stream of
// acknowledgements, with a journal that is slow and at times too busy: what was
// answered is acknowledged in what the disk holds, whole batches and parts.
func TestPromiseP5_AnsweredAckIsInTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		j := &fakeJournal{delay: 3 * time.Millisecond}
		s, base := newTest(t, l, j, nil)
		var ps []position.Position
		for range 60 {
			ps = append(ps, l.append(body(5, 5)))
		}
		c, _ := join(t, s, "c", Shared)
		type asked struct {
			a *answer
			p position.Position
			n int // messages of it acknowledged
		}
		var all []asked
		early := 0
		for i := range ps {
			req := asked{a: &answer{}, p: ps[(i*7)%len(ps)], n: 5}
			acked := Acked{Position: req.p}
			if i%3 == 0 {
				req.n = 1 + i%4
				acked.Left = cursor.From(req.n, 5)
			}
			c.Ack(Ack{Positions: []Acked{acked}}, req.a.done)
			if came, _ := req.a.get(); came {
				early++
			}
			all = append(all, req)
			j.set(func() { j.busy = i%5 == 0 })
			time.Sleep(time.Duration(i%4) * time.Millisecond)
			var answered []asked // by the time of the crash
			for _, r := range all {
				if came, err := r.a.get(); err != nil {
					t.Fatal(err)
				} else if came {
					answered = append(answered, r)
				}
			}
			disk := j.afterCrash(t, base, i%2 == 0).Cursor
			disk.Settle(chain{l})
			for _, r := range answered {
				left := disk.Remaining(r.p)
				if !disk.Acked(r.p) && (left == nil || left[0]&(1<<r.n-1) != 0) {
					t.Fatalf("%d messages of %v were answered as acknowledged; the disk has %b left", r.n, r.p, left)
				}
			}
		}
		if early != 0 {
			t.Errorf("%d acknowledgements were answered before the journal could have them", early)
		}
		j.set(func() { j.busy = false })
		time.Sleep(time.Second)
		for _, r := range all {
			if came, err := r.a.get(); !came || err != nil {
				t.Fatalf("acknowledgement of %v: answered %v, %v", r.p, came, err)
			}
		}
		if j.count() > 3*len(all) {
			t.Errorf("%d appends for %d acknowledgements", j.count(), len(all))
		}
	})
}

// Shows that acknowledgements gather while one is under way: a thousand of them
// cost the journal a few records.
func TestAcksGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		j := &fakeJournal{delay: time.Millisecond}
		s, _ := newTest(t, l, j, nil)
		c, _ := join(t, s, "c", Shared)
		for _, p := range fill(l, 1000) {
			ack(c, p)
		}
		time.Sleep(time.Second)
		if j.count() != 2 {
			t.Errorf("%d appends, want the first acknowledgement's and the rest's", j.count())
		}
		if st := s.Stats(); st.Unanswered != 0 || st.DurableMark != l.LastConfirmed() || st.Backlog != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Shows that an acknowledgement too large for one record is answered when the
// last of its records is durable.
func TestLargeAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		j := &fakeJournal{delay: time.Second}
		s, base := newTest(t, l, j, nil)
		c, _ := join(t, s, "c", Shared)
		var req Ack
		for range 100 {
			req.Positions = append(req.Positions, Acked{Position: l.append(body(cursor.MaxBits, 1)), Left: cursor.From(1, cursor.MaxBits)})
		}
		a := &answer{}
		c.Ack(req, a.done)
		time.Sleep(1500 * time.Millisecond)
		if came, _ := a.get(); came || j.count() != 2 {
			t.Fatalf("answered %v after %d records", came, j.count())
		}
		time.Sleep(time.Second)
		if came, err := a.get(); !came || err != nil {
			t.Fatalf("answered %v, %v", came, err)
		}
		disk := j.afterCrash(t, base, false).Cursor
		for _, p := range req.Positions {
			if disk.Remaining(p.Position) == nil {
				t.Fatalf("nothing is acknowledged of %v", p.Position)
			}
		}
	})
}

// Shows that a journal whose fate is unknown ends the subscription: what waits is
// answered with the error, consumers are told, the owner is told once.
func TestJournalLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		j := &fakeJournal{delay: time.Millisecond, broken: errDisk}
		failed := make(chan error, 2)
		s, _ := newTest(t, l, j, func(o *Options) { o.Failed = func(err error) { failed <- err } })
		ps := fill(l, 2)
		c, sink := join(t, s, "c", Exclusive)
		a, b := ack(c, ps[0]), ack(c, ps[1])
		time.Sleep(time.Second)
		for _, x := range []*answer{a, b} {
			if came, err := x.get(); !came || !errors.Is(err, errDisk) {
				t.Errorf("answered %v, %v", came, err)
			}
		}
		if !errors.Is(sink.closed, ErrClosed) || len(failed) != 1 {
			t.Errorf("consumer told %v, owner told %d times", sink.closed, len(failed))
		}
		if came, err := ack(c, ps[0]).get(); !came || !errors.Is(err, ErrClosed) {
			t.Errorf("a later acknowledgement: %v, %v", came, err)
		}
	})
}

// TestRuleM21_AckBeyondTheEndIsRefused shows that nothing is written about
// entries the topic does not have, and nothing of such a request is applied.
func TestRuleM21_AckBeyondTheEndIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		j := &fakeJournal{}
		s, _ := newTest(t, l, j, nil)
		ps := fill(l, 2)
		l.roll()
		last := fill(l, 1)[0]
		c, _ := join(t, s, "c", Exclusive)
		for _, p := range []position.Position{last.Next(), {Ledger: 99, Entry: 0}, position.Start, position.BeforeLedger(1)} {
			if came, err := ack(c, ps[0], p).get(); !came || !errors.Is(err, ErrInvalid) {
				t.Errorf("acknowledgement of %v: %v, %v", p, came, err)
			}
		}
		if st := s.Stats(); st.MarkDelete != position.Start || st.Holes != 0 || j.count() != 0 {
			t.Errorf("something was applied: %+v", st)
		}
		// A place between two ledgers is no entry; it is passed over.
		ack(c, ps[1].Next())
		if st := s.Stats(); st.Backlog != 3 {
			t.Errorf("backlog %d, want 3", st.Backlog)
		}
	})
}

// TestRuleM18_CursorBeyondTheEndIsDamage shows that a cursor which has
// acknowledged what the recovered topic does not hold is refused, not clamped.
func TestRuleM18_CursorBeyondTheEndIsDamage(t *testing.T) {
	l := newFakeLedger()
	fill(l, 3)
	for _, change := range []func(*cursor.Cursor){
		func(c *cursor.Cursor) { c.AckCumulative(chain{l}, position.Position{Ledger: 1, Entry: 3}) },
		func(c *cursor.Cursor) { c.Ack(chain{l}, position.Position{Ledger: 1, Entry: 4}) },
		func(c *cursor.Cursor) { c.AckPart(chain{l}, position.Position{Ledger: 2, Entry: 0}, cursor.From(1, 2)) },
	} {
		c := cursor.New(position.Start)
		change(c)
		if _, err := New(Options{Ledger: l}.Filled(), nil, Saved{ID: 1, Name: "s", Cursor: c}); !errors.Is(err, managedledger.ErrBeyondEnd) {
			t.Errorf("cursor at %v: %v", c.Last(), err)
		}
	}
}

// TestRuleM18_KeepsWhatIsNotDurablyAcknowledged shows that a topic may let go
// only of what the journal knows to be acknowledged, and of nothing a seek is
// about to need.
func TestRuleM18_KeepsWhatIsNotDurablyAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, &fakeJournal{delay: time.Second}, nil)
		ps := fill(l, 5)
		c, _ := join(t, s, "c", Exclusive)
		want := func(p position.Position) {
			t.Helper()
			if got := s.KeepFrom(); got != p {
				t.Errorf("everything before %v may go, want %v", got, p)
			}
		}
		ack(c, ps[0], ps[1])
		want(position.Start)
		time.Sleep(2 * time.Second)
		want(ps[2])
		ack(c, ps[2], ps[3])
		want(ps[2])
		s.Seek(Target{Mark: ps[0]}, func(error) {})
		want(ps[1])
		time.Sleep(5 * time.Second)
		want(ps[1])
	})
}

// TestPromiseP6_SaysForWhatItWaits shows the reason given for each kind of wait.
func TestPromiseP6_SaysForWhatItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, &fakeJournal{}, func(o *Options) { o.CursorBytes = 1000 })
		ps := fill(l, 4)
		want := func(text string) {
			t.Helper()
			synctest.Wait()
			if w := s.Stats().Waiting; !strings.Contains(w, text) {
				t.Errorf("it waits for %q, want %q in it", w, text)
			}
		}
		want("no consumer is connected")
		c, _ := join(t, s, "c", Shared)
		want("none of 1 consumers has permits")
		flow(t, c, 10)
		want("caught up")
		l.mu.Lock()
		l.readErr = func(position.Position) error { return errDisk }
		l.mu.Unlock()
		c.Redeliver(ps[:1])
		want("reading failed, it is tried again: disk on fire")
		l.mu.Lock()
		l.readErr = nil
		l.mu.Unlock()
		time.Sleep(time.Minute)
		want("caught up")
		var odd []position.Position
		for i, p := range fill(l, 20_000) {
			if i%2 == 1 {
				odd = append(odd, p)
			}
		}
		ack(c, odd...)
		fill(l, 10)
		s.Notify()
		want("nothing new is handed out")
	})
}

// Shows that the bytes of a cursor with too many holes stop only what is new:
// what is missing is still delivered, and then all goes on.
func TestHolesStopOnlyWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, &fakeJournal{}, func(o *Options) { o.CursorBytes = 100 })
		ps := fill(l, 100)
		c, sink := join(t, s, "c", Shared)
		flow(t, c, 100)
		wantGot(t, sink, ps...)
		ack(c, ps[1:]...)
		next := fill(l, 1)
		flow(t, c, 10)
		s.Notify()
		wantGot(t, sink)
		c.Redeliver(nil)
		if got := wantGot(t, sink, ps[0]); got[0].Attempts != 1 {
			t.Errorf("%d attempts", got[0].Attempts)
		}
		ack(c, ps[0])
		wantGot(t, sink, next...)
	})
}

// Shows that acknowledged parts of batches count against the bound as well.
func TestPartsStopWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, &fakeJournal{}, func(o *Options) { o.CursorBytes = 20_000 })
		c, sink := join(t, s, "c", Shared)
		p := l.append(body(100_000, 5))
		flow(t, c, 1_000_000)
		wantGot(t, sink, p)
		c.Ack(Ack{Positions: []Acked{{Position: p, Left: cursor.From(1, 100_000)}}}, nil)
		q := l.append(body(100_000, 5))
		s.Notify()
		wantGot(t, sink, q)
		c.Ack(Ack{Positions: []Acked{{Position: q, Left: cursor.From(1, 100_000)}}}, nil)
		next := fill(l, 1)
		s.Notify()
		wantGot(t, sink)
		ack(c, p)
		wantGot(t, sink, next...)
	})
}

// Shows that reading goes on by itself after failures, and that one that never
// ends is retried at a bounded rate.
func TestReadFailuresAreRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		ps := fill(l, 1)
		l.readErr = func(position.Position) error { return errDisk }
		c, sink := join(t, s, "c", Exclusive)
		flow(t, c, 1)
		time.Sleep(time.Minute)
		s.Notify() // does not hurry it
		l.mu.Lock()
		reads := l.reads
		l.readErr = nil
		l.mu.Unlock()
		if reads < 10 || reads > 25 {
			t.Errorf("%d reads in a minute of failures", reads)
		}
		time.Sleep(lastBackoff)
		wantGot(t, sink, ps...)
	})
}

// Shows that an entry which is no data stops delivery with a reason: to skip it
// would be to lose it, to deliver it would show what is not decided.
func TestUnknownKindIsNotSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		ok := fill(l, 1)
		_, producer, err := entry.ParseBody(body(1, 1))
		if err != nil {
			t.Fatal(err)
		}
		l.append(append(entry.BrokerPart{Kind: entryv1.Kind_KIND_HALF, Time: 1}.AppendTo(nil), producer...))
		fill(l, 1)
		c, sink := join(t, s, "c", Exclusive)
		flow(t, c, 10)
		wantGot(t, sink, ok...)
		if w := s.Stats().Waiting; !strings.Contains(w, "1:1") || !strings.Contains(w, "KIND_HALF") {
			t.Errorf("it waits for %q", w)
		}
	})
}

// Shows who may join whom, and what the refused are told.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTest(t, newFakeLedger(), nil, nil)
		refused := func(o ConsumerOptions, want error, text string) {
			t.Helper()
			if _, err := s.Join(o, &fakeSink{}); !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
				t.Errorf("join %+v: %v", o, err)
			}
		}
		refused(ConsumerOptions{Name: "k", Type: KeyShared}, ErrUnsupported, "key_shared is not offered")
		refused(ConsumerOptions{Name: "k", Type: 9}, ErrInvalid, "type")
		first, _ := join(t, s, "first", Exclusive)
		refused(ConsumerOptions{Name: "x"}, ErrBusy, "consumer first is connected")
		refused(ConsumerOptions{Name: "x", Type: Shared}, ErrBusy, "exclusive")
		first.Leave()
		a, _ := join(t, s, "a", Shared) // free again
		join(t, s, "b", Shared)
		refused(ConsumerOptions{Name: "x", Type: Failover}, ErrBusy, "shared")
		a.Leave()
		refused(ConsumerOptions{Name: "x", Type: Exclusive}, ErrBusy, "shared")
	})
}

// Shows that a holder at whose other end nobody is any more gives way, as does
// one of the same client; what it held goes to the newcomer.
func TestDeadHolderGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		ps := fill(l, 2)
		old, oldSink := join(t, s, "old", Exclusive)
		flow(t, old, 10)
		wantGot(t, oldSink, ps...)
		oldSink.mu.Lock()
		oldSink.dead = true
		oldSink.mu.Unlock()
		sink := &fakeSink{}
		c, err := s.Join(ConsumerOptions{Name: "c", Instance: "i"}, sink)
		if err != nil {
			t.Fatal(err)
		}
		if !errors.Is(oldSink.closed, ErrReplaced) {
			t.Errorf("the dead holder was told %v", oldSink.closed)
		}
		flow(t, c, 10)
		if got := wantGot(t, sink, ps...); got[0].Attempts != 1 {
			t.Errorf("%d attempts", got[0].Attempts)
		}
		again, err := s.Join(ConsumerOptions{Name: "c", Instance: "i"}, &fakeSink{})
		if err != nil || !errors.Is(sink.closed, ErrReplaced) {
			t.Errorf("the same client: %v; the one before was told %v", err, sink.closed)
		}
		old.Leave() // does nothing
		c.Leave()
		if n := s.Consumers(); n != 1 {
			t.Errorf("%d consumers", n)
		}
		again.Leave()
	})
}

// Shows shared delivery: in turn, at most twenty in a row for one consumer, only
// to those with permits; what one held goes to others when it leaves, counted.
func TestSharedGoesRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		a, sinkA := join(t, s, "a", Shared)
		_, sinkIdle := join(t, s, "idle", Shared)
		b, sinkB := join(t, s, "b", Shared)
		s.mu.Lock() // so that both have permits before anything moves
		s.pumping = true
		s.mu.Unlock()
		flow(t, a, 1000)
		flow(t, b, 1000)
		s.mu.Lock()
		s.pumping = false
		s.mu.Unlock()
		ps := fill(l, 80)
		s.Notify()
		synctest.Wait()
		gotA, gotB := sinkA.take(), sinkB.take()
		wantA := append(slices.Clone(ps[:20]), ps[40:60]...)
		wantB := append(slices.Clone(ps[20:40]), ps[60:]...)
		if !slices.Equal(positionsOf(gotA), wantA) || !slices.Equal(positionsOf(gotB), wantB) {
			t.Fatalf("a got %v, b got %v", positionsOf(gotA), positionsOf(gotB))
		}
		ack(a, wantA[:39]...)
		a.Leave()
		if got := wantGot(t, sinkB, wantA[39]); got[0].Attempts != 1 {
			t.Errorf("%d attempts", got[0].Attempts)
		}
		ack(a, wantB...) // anybody may acknowledge, also one that has left
		ack(b, wantA[39])
		if st := s.Stats(); st.Backlog != 0 || st.MarkDelete != ps[79] || len(sinkIdle.take()) != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Shows negative acknowledgements: of entries held, each comes again, before what
// is new, with its attempts; of what another holds, nothing happens.
func TestRedeliver(t *testing.T) {
	for _, kind := range []Type{Exclusive, Shared, Failover} {
		synctest.Test(t, func(t *testing.T) {
			l := newFakeLedger()
			s, _ := newTest(t, l, nil, nil)
			ps := fill(l, 6)
			c, sink := join(t, s, "c", kind)
			flow(t, c, 6)
			wantGot(t, sink, ps...)
			ack(c, ps[4])
			next := fill(l, 1)
			c.Redeliver([]position.Position{ps[3], ps[1], ps[4], next[0], {Ledger: 50, Entry: 1}})
			flow(t, c, 3)
			s.Notify()
			got := wantGot(t, sink, ps[1], ps[3], next[0])
			if got[0].Attempts != 1 || got[2].Attempts != 0 {
				t.Errorf("attempts %d and %d", got[0].Attempts, got[2].Attempts)
			}
			c.Redeliver(nil)
			flow(t, c, 100)
			got = wantGot(t, sink, ps[0], ps[1], ps[2], ps[3], ps[5], next[0])
			for i, want := range []uint32{1, 2, 1, 2, 1, 1} {
				if got[i].Attempts != want {
					t.Errorf("%v %s: %d attempts, want %d", kind, got[i].Position, got[i].Attempts, want)
				}
			}
		})
	}
}

// Shows a hand-over: the new consumer waits until the one before has
// acknowledged what it was given, and gets nothing twice.
func TestFailoverHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, func(o *Options) { o.Partition = 0 })
		ps := fill(l, 4)
		b, sinkB := join(t, s, "b", Failover)
		flow(t, b, 2)
		wantGot(t, sinkB, ps[:2]...)
		a, sinkA := join(t, s, "a", Failover) // first by name: partition 0 is its
		flow(t, a, 10)
		flow(t, b, 10)
		wantGot(t, sinkA)
		wantGot(t, sinkB)
		if sinkB.isActive() || sinkA.isActive() {
			t.Error("somebody was told to be active during the hand-over")
		}
		if w := s.Stats().Waiting; !strings.Contains(w, "hand-over: consumer b") {
			t.Errorf("it waits for %q", w)
		}
		ack(b, ps[:2]...)
		wantGot(t, sinkA, ps[2:]...)
		if !sinkA.isActive() || !slices.Equal(sinkB.active, []bool{true, false}) {
			t.Errorf("a was told %v, b %v", sinkA.active, sinkB.active)
		}
		_, sinkC := join(t, s, "c", Failover) // stands by and disturbs nobody
		if more := fill(l, 1); len(more) == 1 {
			s.Notify()
			wantGot(t, sinkA, more...)
			ack(a, more...)
		}
		if !sinkA.isActive() || len(sinkA.active) != 2 || !slices.Equal(sinkC.active, []bool{false}) {
			t.Errorf("a was told %v, c %v", sinkA.active, sinkC.active)
		}
		a.Leave()
		if got := wantGot(t, sinkB, ps[2:]...); got[0].Attempts != 1 || !sinkB.isActive() {
			t.Errorf("after a left: %d attempts, active %v", got[0].Attempts, sinkB.isActive())
		}
	})
}

// Shows that a hand-over does not wait for ever: after the delay the new consumer
// gets everything after the mark-delete position, in order.
func TestFailoverHandOverIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, func(o *Options) { o.Partition = 0 })
		ps := fill(l, 3)
		b, sinkB := join(t, s, "b", Failover)
		flow(t, b, 10)
		wantGot(t, sinkB, ps...)
		a, sinkA := join(t, s, "a", Failover)
		flow(t, a, 10)
		ack(b, ps[1])
		time.Sleep(999 * time.Millisecond)
		wantGot(t, sinkA)
		time.Sleep(2 * time.Millisecond)
		if got := wantGot(t, sinkA, ps[0], ps[2]); got[0].Attempts != 1 {
			t.Errorf("%d attempts", got[0].Attempts)
		}
		ack(b, ps[0]) // late, but welcome
		if st := s.Stats(); st.MarkDelete != ps[1] {
			t.Errorf("mark-delete %v", st.MarkDelete)
		}
	})
}

// Shows that a cumulative acknowledgement works where one consumer is served and
// is refused where several are.
func TestCumulative(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		var ps []position.Position
		for range 4 {
			ps = append(ps, l.append(body(4, 4)))
		}
		c, sink := join(t, s, "c", Exclusive)
		flow(t, c, 100)
		wantGot(t, sink, ps...)
		a := &answer{}
		c.Ack(Ack{Cumulative: true, Positions: []Acked{{Position: ps[2], Left: cursor.From(2, 4)}}}, a.done)
		if came, err := a.get(); !came || err != nil {
			t.Fatalf("%v, %v", came, err)
		}
		c.Redeliver(nil)
		got := wantGot(t, sink, ps[2], ps[3])
		if got[0].Messages != 2 || got[0].Left.Count(4) != 2 {
			t.Errorf("%d messages of the batch acknowledged in part", got[0].Messages)
		}
		b := &answer{}
		c.Ack(Ack{Cumulative: true, Positions: []Acked{{Position: ps[0]}, {Position: ps[1]}}}, b.done)
		if _, err := b.get(); !errors.Is(err, ErrInvalid) {
			t.Errorf("two positions: %v", err)
		}
		c.Leave()
		c, _ = join(t, s, "c", Shared)
		d := &answer{}
		c.Ack(Ack{Cumulative: true, Positions: []Acked{{Position: ps[3]}}}, d.done)
		if _, err := d.get(); !errors.Is(err, ErrInvalid) || s.Stats().Backlog != 2 {
			t.Errorf("on shared: %v, backlog %d", err, s.Stats().Backlog)
		}
	})
}

// Shows that a cumulative acknowledgement up to an entry that was acknowledged by
// itself before, whole or in part, holds for those before it.
func TestCumulativeUpToWhatWasAcknowledged(t *testing.T) {
	for _, left := range []cursor.Bits{nil, cursor.From(2, 4)} {
		synctest.Test(t, func(t *testing.T) {
			l := newFakeLedger()
			s, _ := newTest(t, l, nil, nil)
			ps := fill(l, 4)
			c, sink := join(t, s, "c", Exclusive)
			flow(t, c, 100)
			wantGot(t, sink, ps...)
			ack(c, ps[2])
			c.Ack(Ack{Cumulative: true, Positions: []Acked{{Position: ps[2], Left: left}}}, nil)
			c.Redeliver(nil)
			wantGot(t, sink, ps[3])
		})
	}
}

// Shows that an acknowledgement of what was delivered before a subscription's
// first seek says nothing after it.
func TestAckFromBeforeTheFirstSeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, &fakeJournal{}, nil)
		ps := fill(l, 3)
		c, sink := join(t, s, "c", Exclusive)
		flow(t, c, 100)
		synctest.Wait()
		if len(sink.epochs) != 3 || sink.epochs[0] == 0 {
			t.Fatalf("deliveries of epochs %v, want three, none of 0", sink.epochs)
		}
		before := sink.epochs[0]
		s.Seek(Target{Mark: ps[0].Prev(), First: ps[0]}, func(error) {})
		c.Ack(Ack{Epoch: before, Positions: []Acked{{Position: ps[1]}}}, nil)
		synctest.Wait()
		if n := s.Stats().Backlog; n != 3 {
			t.Errorf("backlog %d after a stale acknowledgement, want 3", n)
		}
	})
}

// Shows a seek: consumers stay, get what lies after it with a new epoch, and an
// acknowledgement of what was delivered before it moves nothing; the answer
// comes when the journal has it, and a restart finds it.
func TestSeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		j := &fakeJournal{delay: 5 * time.Millisecond}
		s, base := newTest(t, l, j, nil)
		ps := fill(l, 5)
		c, sink := join(t, s, "c", Shared)
		flow(t, c, 100)
		wantGot(t, sink, ps...)
		before := s.Stats().Epoch + 1 // as deliveries name it
		ack(c, ps...)
		target, err := Find(t.Context(), l, Place{Anchor: At, Position: ps[2], Index: -1})
		if err != nil {
			t.Fatal(err)
		}
		sought := &answer{}
		s.Seek(target, sought.done)
		if came, _ := sought.get(); came {
			t.Error("the seek was answered before the journal had it")
		}
		if got, want := s.KeepFrom(), ps[2]; want.Before(got) {
			t.Errorf("%v is let go while a seek to %v is under way", got, want)
		}
		got := wantGot(t, sink, ps[2:]...)
		if got[0].Attempts != 0 {
			t.Errorf("%d attempts after a seek", got[0].Attempts)
		}
		stale := &answer{}
		c.Ack(Ack{Epoch: before, Positions: []Acked{{Position: ps[3]}}}, stale.done)
		if came, err := stale.get(); !came || err != nil {
			t.Errorf("stale acknowledgement: %v, %v", came, err)
		}
		time.Sleep(time.Second)
		if came, err := sought.get(); !came || err != nil {
			t.Errorf("seek: %v, %v", came, err)
		}
		if got := j.afterCrash(t, base, false).Cursor; got.MarkDelete() != ps[1] || got.Holes() != 0 {
			t.Errorf("after a restart the cursor is at %v with %d holes", got.MarkDelete(), got.Holes())
		}
	})
}

// Shows that an acknowledgement of an earlier epoch is ignored, one of this epoch
// counts, and one that does not tell its epoch counts.
func TestStaleAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		ps := fill(l, 3)
		c, sink := join(t, s, "c", Exclusive)
		flow(t, c, 100)
		s.Seek(Target{}, func(error) {})
		s.Seek(Target{}, func(error) {})
		synctest.Wait()
		sink.mu.Lock()
		epoch := sink.epochs[len(sink.epochs)-1]
		sink.mu.Unlock()
		send := func(epoch uint64, p position.Position) {
			c.Ack(Ack{Epoch: epoch, Positions: []Acked{{Position: p}}}, nil)
		}
		send(epoch-1, ps[0])
		if b := s.Stats().Backlog; b != 3 {
			t.Errorf("backlog %d after a stale acknowledgement", b)
		}
		send(epoch, ps[0])
		send(0, ps[1])
		if b := s.Stats().Backlog; b != 1 {
			t.Errorf("backlog %d", b)
		}
	})
}

// Shows where each way to name a place leads, also into batches, gaps that were
// trimmed, and past the end.
func TestFind(t *testing.T) {
	l := newFakeLedger()
	at := func(ms int64, messages int) position.Position {
		_, producer, err := entry.ParseBody(body(messages, 1))
		if err != nil {
			t.Fatal(err)
		}
		return l.append(append(entry.BrokerPart{Time: ms}.AppendTo(nil), producer...))
	}
	var ps []position.Position
	for i := range 3 {
		ps = append(ps, at(int64(100*i), 3))
	}
	l.roll()
	ps = append(ps, at(300, 3), at(400, 3))
	left := func(p position.Position, first int) Target {
		return Target{Mark: p.Prev(), First: p, Left: cursor.From(first, 3)}
	}
	for _, c := range []struct {
		at   Place
		want position.Position // the first entry not acknowledged
		left cursor.Bits
	}{
		{Place{Anchor: Earliest}, ps[0], nil},
		{Place{Anchor: Latest}, ps[4].Next(), nil},
		{Place{Anchor: At, Position: ps[1], Index: -1}, ps[1], nil},
		{Place{Anchor: At, Position: ps[1], Index: 0}, ps[1], nil},
		{Place{Anchor: At, Position: ps[1], Index: 2}, ps[1], left(ps[1], 2).Left},
		{Place{Anchor: At, Position: ps[1], Index: 3}, ps[2], nil},
		{Place{Anchor: AfterID, Position: ps[2], Index: -1}, ps[3], nil},
		{Place{Anchor: AfterID, Position: ps[2], Index: 2}, ps[3], nil},
		{Place{Anchor: AfterID, Position: ps[2], Index: 0}, ps[2], left(ps[2], 1).Left},
		{Place{Anchor: AfterID, Position: ps[4], Index: -1}, ps[4].Next(), nil},
		{Place{Anchor: At, Position: ps[4].Next(), Index: -1}, ps[4].Next(), nil},
		{Place{Anchor: At, Position: position.Start, Index: -1}, ps[0], nil},
		{Place{Anchor: AtTime, Time: time.UnixMilli(0)}, ps[0], nil},
		{Place{Anchor: AtTime, Time: time.UnixMilli(101)}, ps[2], nil},
		{Place{Anchor: AtTime, Time: time.UnixMilli(300)}, ps[3], nil},
		{Place{Anchor: AtTime, Time: time.UnixMilli(999)}, ps[4].Next(), nil},
	} {
		target, err := Find(t.Context(), l, c.at)
		if err != nil {
			t.Errorf("%+v: %v", c.at, err)
			continue
		}
		cur := target.Cursor()
		if got := cur.NextUnacked(chain{l}, position.Start); got != c.want || !slices.Equal(cur.Remaining(got), c.left) {
			t.Errorf("%+v leads to %v with %b left, want %v with %b", c.at, got, cur.Remaining(got), c.want, c.left)
		}
	}
	for _, p := range []position.Position{ps[4].Next().Next(), {Ledger: 77, Entry: 0}} {
		if _, err := Find(t.Context(), l, Place{Anchor: At, Position: p, Index: -1}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", p, err)
		}
	}
	l.trim(1)
	target, err := Find(t.Context(), l, Place{Anchor: At, Position: ps[1], Index: 2})
	if got := target.Cursor().NextUnacked(chain{l}, position.Start); err != nil || got != ps[3] {
		t.Errorf("a trimmed position leads to %v, %v", got, err)
	}
}

// Shows that a reader passes over what is trimmed before it got there, also what
// was to come again.
func TestReaderPassesOverWhatIsTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		s, _ := newTest(t, l, nil, nil)
		first := fill(l, 3)
		l.roll()
		second := fill(l, 2)
		c, sink := join(t, s, "c", Exclusive)
		flow(t, c, 2)
		wantGot(t, sink, first[:2]...)
		c.Redeliver(first[:1])
		l.trim(1)
		flow(t, c, 10)
		wantGot(t, sink, second...)
		if st := s.Stats(); st.Backlog != 2 || st.Returned != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Shows that closing answers everybody: acknowledgements under way, consumers,
// and whoever comes later; and that it ends a read that hangs.
func TestCloseAnswersEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		j := &fakeJournal{delay: time.Hour}
		s, _ := newTest(t, l, j, nil)
		ps := fill(l, 1)
		l.readErr = func(position.Position) error { <-s.reads.ctx.Done(); return s.reads.ctx.Err() }
		c, sink := join(t, s, "c", Exclusive)
		flow(t, c, 1)
		a, b := ack(c, ps[0]), &answer{}
		s.Flush(b.done)
		s.Close(ErrClosed)
		for _, x := range []*answer{a, b} {
			if came, err := x.get(); !came || !errors.Is(err, ErrClosed) {
				t.Errorf("%v, %v", came, err)
			}
		}
		if !errors.Is(sink.closed, ErrClosed) {
			t.Errorf("the consumer was told %v", sink.closed)
		}
		if _, err := s.Join(ConsumerOptions{Name: "x"}, &fakeSink{}); !errors.Is(err, ErrClosed) {
			t.Errorf("join: %v", err)
		}
		late := &answer{}
		s.Seek(Target{}, late.done)
		if _, err := late.get(); !errors.Is(err, ErrClosed) {
			t.Errorf("seek: %v", err)
		}
		c.Leave()
	})
}

// Shows that too many acknowledgements under way are refused whole, and that the
// refused one can be sent again.
func TestUnansweredAcksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLedger()
		j := &fakeJournal{delay: time.Second}
		s, _ := newTest(t, l, j, func(o *Options) { o.UnansweredAcks = 3 })
		ps := fill(l, 4)
		c, _ := join(t, s, "c", Exclusive)
		for _, p := range ps[:3] {
			ack(c, p)
		}
		if _, err := ack(c, ps[3]).get(); !errors.Is(err, ErrTooBusy) || s.Stats().Backlog != 1 {
			t.Fatalf("%v, backlog %d", err, s.Stats().Backlog)
		}
		time.Sleep(3 * time.Second)
		a := ack(c, ps[3])
		time.Sleep(3 * time.Second)
		if came, err := a.get(); !came || err != nil {
			t.Fatalf("%v, %v", came, err)
		}
	})
}

// Shows that an idle subscription has no goroutine and stays within 440 bytes, for
// its topic needs 72 more, however many there are.
func TestIdleSubscriptionsAreSmall(t *testing.T) {
	l := newFakeLedger()
	end := fill(l, 3)[2]
	opts := Options{Ledger: l}.Filled()
	journal := &fakeJournal{}
	const n = 2000
	all := make([]*Subscription, n)
	goroutines := runtime.NumGoroutine()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range all {
		s, err := New(opts, journal, Saved{ID: uint64(i), Name: "s", Cursor: Target{Mark: end}.Cursor()})
		if err != nil {
			t.Fatal(err)
		}
		s.Notify()
		all[i] = s
	}
	runtime.ReadMemStats(&after)
	// What was garbage at once counts too, but there is little of it.
	if bytes := (after.TotalAlloc - before.TotalAlloc) / n; bytes > 440 {
		t.Errorf("%d bytes a subscription", bytes)
	}
	if got := runtime.NumGoroutine(); got > goroutines {
		t.Errorf("%d goroutines more", got-goroutines)
	}
}
