package managedledger

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// Shows that a topic is written across rolls and read back in one order, from the
// cache and from the bookies, and that a later owner sees the same after a clean
// close, with nothing left to recover.
func TestAppendAndReadAcrossLedgers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxEntries: 10}).open()
		if p := a.m.LastConfirmed(); p != position.Start {
			t.Errorf("last confirmed of an empty topic is %v", p)
		}
		for range 100 {
			a.publishMany(1)
			time.Sleep(100 * time.Microsecond)
		}
		settle()
		if ok, _ := a.answered(); ok != 100 || len(a.readAll()) != 100 {
			t.Errorf("%d of 100 acknowledged", ok)
		}
		s := a.m.Stats()
		if s.Entries != 100 || s.Messages != 200 || s.NextIndex != 200 || len(s.Ledgers) < 4 || s.Pending != 0 || s.Trouble != nil {
			t.Errorf("stats %+v", s)
		}
		if err := a.m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.checkStore()

		b := w.owner("b", Roll{MaxEntries: 10}).open()
		if got := len(b.readAll()); got != 100 || b.m.NextIndex() != 200 || b.m.LastTime() != 1000 {
			t.Errorf("the next owner reads %d entries, next index %d, last time %d", got, b.m.NextIndex(), b.m.LastTime())
		}
		for i := range 3 {
			if _, _, fences := w.bookies.At(i).Calls(); fences != 0 {
				t.Errorf("a clean close left something to fence")
			}
		}
		b.publishMany(5)
		settle()
		if got := len(b.readAll()); got != 105 {
			t.Errorf("%d entries after the next owner's publishes", got)
		}
		b.m.Abandon()
	})
}

// Shows that Notify is called after every acknowledgement, with the position
// readable.
func TestNotifyFollowsTheLastConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{})
		var mu sync.Mutex
		seen := position.Start
		a.opts.Notify = func() {
			mu.Lock()
			defer mu.Unlock()
			if p := a.m.LastConfirmed(); !seen.Before(p) {
				t.Errorf("notified with %v, before it was %v", p, seen)
			} else {
				seen = p
			}
		}
		a.open().publishMany(10)
		settle()
		if seen.Entry != 9 {
			t.Errorf("last notified at %v", seen)
		}
		a.m.Abandon()
	})
}

// Shows that open recovers every ledger that is not closed, oldest first, and
// learns index and broker time from the last entries, though the chain's keys do
// not tell them. The old owner dies between creating a ledger and closing the one
// before it, with kinds at the end that have no index.
func TestRuleM17_OpenRecoversEveryUnclosedLedgerOldestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxEntries: 10}).open()
		a.publishMany(12) // the roll is under way
		settle()
		a.publishMany(1) // the next ledger has an entry; now neither is closed
		for range 3 {
			if err := a.publish(0); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		a.store.Cut(true)
		a.publishMany(40) // as far as the ledger goes
		settle()
		a.m.Abandon()
		ok, _ := a.answered()

		b := w.owner("b", Roll{MaxEntries: 10})
		var recovered []string
		w.store.OnCall(func(c meta.Call) meta.Fault {
			if c.Client == "b" && c.Kind == meta.CallTxn && len(c.Txn.Ops) == 1 {
				if _, isLedger := w.layout.ParseLedger(c.Txn.Ops[0].Key); isLedger && (len(recovered) == 0 || recovered[len(recovered)-1] != c.Txn.Ops[0].Key) {
					recovered = append(recovered, c.Txn.Ops[0].Key)
				}
			}
			return meta.Fault{}
		})
		b.open()
		for i := 1; i < len(recovered); i++ {
			if recovered[i-1] > recovered[i] {
				t.Errorf("recovered in the order %v", recovered)
			}
		}
		if len(recovered) == 0 {
			t.Error("nothing was recovered")
		}
		all := b.readAll()
		if len(all) < ok {
			t.Errorf("%d entries, %d were acknowledged", len(all), ok)
		}
		_, last := numberOf(t, all[len(all)-1].Body)
		if b.m.LastTime() != last.Time {
			t.Errorf("last time %d, the last entry has %d", b.m.LastTime(), last.Time)
		}
		b.publishMany(20)
		settle()
		b.readAll()
		w.checkStore()
		b.m.Abandon()
	})
}

// Shows that the index goes on after entries that have none, when these are all
// that a recovered ledger's end holds.
func TestRuleM10_IndexFollowsFromTheLastRecoveredEntryThatHasOne(t *testing.T) {
	for halves := range 70 {
		if halves > 3 && halves < 62 {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a := w.owner("a", Roll{}).open()
			a.publishMany(3)
			for range halves {
				if err := a.publish(0); err != nil {
					t.Fatal(err)
				}
			}
			settle()
			a.m.Abandon()
			b := w.owner("b", Roll{}).open()
			if b.m.NextIndex() != 6 || b.m.LastTime() != int64(10*(3+halves)) {
				t.Errorf("next index %d, last time %d", b.m.NextIndex(), b.m.LastTime())
			}
			b.m.Abandon()
		})
	}
}

// Shows that a ledger in which nothing was ever stored goes in the transaction
// that finds it so, and that the only link of a chain leaves its key behind.
func TestRuleM17_AnEmptyLedgerIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 3 {
			w.bookies.At(i).OnAdd(func(ledger.Add) ensembletest.AddFault {
				return ensembletest.AddFault{Err: errors.New("lost"), Delay: time.Millisecond}
			})
		}
		a := w.owner("a", Roll{}).open()
		a.publishMany(1) // a ledger is made for it, and nothing gets in
		time.Sleep(100 * time.Millisecond)
		a.store.Cut(true)
		a.m.Abandon()
		for i := range 3 {
			w.bookies.At(i).OnAdd(nil)
		}
		b := w.owner("b", Roll{}).open()
		w.checkStore()
		if s := b.m.Stats(); len(s.Ledgers) != 0 || s.NextIndex != 0 {
			t.Errorf("stats %+v", s)
		}
		b.publishMany(3)
		settle()
		if got := len(b.readAll()); got != 3 {
			t.Errorf("%d entries", got)
		}
		w.checkStore()
		b.m.Abandon()
	})
}

// TestRuleM28_FullBookiesAreTrimmed shows the way out when the disks of all bookies
// are full: what was published and is not needed any more is trimmed, also from the
// ledger that is being written, and what waited is published where there is room
// again.
func TestRuleM28_FullBookiesAreTrimmed(t *testing.T) {
	for _, waiting := range []int{0, 3} {
		t.Run(fmt.Sprint(waiting, " wait"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.owner("a", Roll{MaxAge: 100 * 365 * 24 * time.Hour}).open() // what is published here is of 1970
				a.publishMany(5)
				settle()
				full := func(is bool) {
					for i := range 3 {
						w.bookies.At(i).SetReadOnly(is)
					}
				}
				full(true)
				a.publishMany(waiting)
				time.Sleep(time.Minute)
				end := a.m.LastConfirmed()
				for range 2 {
					if _, err := a.m.Trim(t.Context(), end.Next(), Retention{}); err != nil {
						t.Fatal(err)
					}
					settle()
				}
				if s := a.m.Stats(); s.Entries != 0 {
					t.Fatalf("nothing was trimmed: %+v", s)
				}
				if ok, all := a.answered(); ok != 5 || all != 5 {
					t.Errorf("%d of %d answers are ok while there is no room", ok, all)
				}
				full(false)
				a.publishMany(1)
				time.Sleep(time.Minute)
				if ok, all := a.answered(); ok != 6+waiting || all != ok {
					t.Errorf("%d of %d answers are ok once there is room, want %d", ok, all, 6+waiting)
				}
				if got := len(a.readAll()); got != 1+waiting {
					t.Errorf("%d entries, want %d", got, 1+waiting)
				}
				w.checkStore()
				a.m.Abandon()
			})
		})
	}
}

// TestRuleM20_AgeRollWaitsForTheStore shows that a ledger old enough to be closed is
// written on while the metadata store is away: without it the next one could not be
// made.
func TestRuleM20_AgeRollWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxAge: time.Second})
		a.opts.Now = func() time.Time { return time.UnixMilli(1 << 40) }
		a.open().publishMany(5)
		settle()
		a.store.Cut(true)
		if _, err := a.m.Trim(t.Context(), a.m.LastConfirmed().Next(), Retention{}); !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("trim without the store: %v", err)
		}
		a.publishMany(5)
		settle()
		if ok, all := a.answered(); ok != 10 || all != 10 {
			t.Errorf("%d of %d publishes went on", ok, all)
		}
		a.store.Cut(false)
		a.m.Abandon()
	})
}

// Shows that ids, index and broker time go on after everything was trimmed, for
// the same owner and for the next, and that old positions move up to what comes.
func TestRuleM18_NothingRestartsAfterTrimmingEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxAge: time.Second})
		a.opts.Now = func() time.Time { return time.UnixMilli(1 << 40) }
		a.open().publishMany(35)
		settle()
		old := a.m.First()
		end := a.m.LastConfirmed()
		for range 5 {
			if _, err := a.m.Trim(t.Context(), end.Next(), Retention{}); err != nil {
				t.Fatal(err)
			}
			settle()
		}
		if s := a.m.Stats(); len(s.Ledgers) != 0 || s.Entries != 0 || s.NextIndex != 70 || s.LastConfirmed != end {
			t.Errorf("after trimming: %+v", s)
		}
		w.checkStore()
		if kvs, _, err := w.store.Range(t.Context(), w.layout.Chain(testTopic), "", 0); err != nil || len(kvs) != 1 {
			t.Errorf("%d keys of the chain stay, %v", len(kvs), err)
		}
		if es, err := a.m.Read(t.Context(), old, 10, 1<<20); err != nil || len(es) != 0 {
			t.Errorf("read from a trimmed position: %v, %v", es, err)
		}
		a.publishMany(1)
		settle()
		es, err := a.m.Read(t.Context(), old, 10, 1<<20)
		if err != nil || len(es) != 1 || !end.Before(es[0].Position) {
			t.Fatalf("read from a trimmed position: %v, %v", es, err)
		}
		if _, b := numberOf(t, es[0].Body); b.Index != 71 {
			t.Errorf("index %d after trimming, want 71", b.Index)
		}
		if err := a.m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}

		b := w.owner("b", Roll{})
		needs := Needs{From: position.Position{Ledger: 1 << 40}}
		if s, err := Sweep(t.Context(), b.opts, needs, Retention{}); s != (Swept{Ledgers: 1}) || err != nil {
			t.Errorf("sweep: %+v, %v", s, err)
		}
		b.open()
		last := b.m.LastConfirmed()
		if b.m.NextIndex() != 72 || b.m.LastTime() != 360 || !end.Before(last) {
			t.Errorf("next owner: index %d, time %d, last %v", b.m.NextIndex(), b.m.LastTime(), last)
		}
		b.publishMany(1)
		settle()
		if p := b.m.LastConfirmed(); p.Ledger <= last.Ledger {
			t.Errorf("ledger ids go back: %v after %v", p, last)
		}
		if _, err := b.m.Normalize(position.Position{Ledger: last.Ledger + 1<<30}); !errors.Is(err, ErrBeyondEnd) {
			t.Errorf("a position that never was: %v", err)
		}
		w.checkStore()
		b.m.Abandon()
	})
}

// Shows that ledger ids rise along the chain though the new owner held older ids
// than the old one used.
func TestRuleM2_LedgerIdsRiseAcrossOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.owner("b", Roll{})
		b.open().publishMany(1) // b draws a block with its first ledger
		settle()
		if err := b.m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		a := w.owner("a", Roll{}).open() // a draws a later block
		a.publishMany(1)
		settle()
		last := a.m.LastConfirmed()
		if err := a.m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		kv, err := w.store.Get(t.Context(), ownerKey)
		if err != nil {
			t.Fatal(err)
		}
		res, err := w.store.Txn(t.Context(), meta.Txn{Conds: []meta.Cond{{Key: ownerKey, Revision: kv.Revision}}, Ops: []meta.Op{{Key: ownerKey}}})
		if err != nil || !res.Done {
			t.Fatal(err)
		}
		b.guard[0].Revision = res.Revision // b again, with the rest of its old block
		b.open().publishMany(1)
		settle()
		if p := b.m.LastConfirmed(); p.Ledger <= last.Ledger || p.Entry != 0 {
			t.Errorf("%v after %v", p, last)
		}
		b.readAll()
		b.m.Abandon()
	})
}

// Shows that a paused owner gets nothing acknowledged once another has opened the
// topic: neither in the ledger it was writing, nor in one it would have to create.
// What both were told makes one order, and the paused one is told to ask who owns
// the topic.
func TestRuleM1_PausedOwnerIsShutOut(t *testing.T) {
	for _, c := range []struct {
		name   string
		before int // publishes before the pause; 0: it has no ledger yet
	}{{"with a ledger", 15}, {"without a ledger", 0}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.owner("a", Roll{MaxEntries: 10}).open()
				a.publishMany(c.before)
				settle()
				b := w.owner("b", Roll{MaxEntries: 10}).open() // a is paused meanwhile
				for range 30 {
					b.publishMany(1)
					_ = a.publish(2)
					time.Sleep(time.Millisecond)
				}
				settle()
				if ok, all := a.answered(); ok != c.before || all != len(a.results) {
					t.Errorf("the paused owner got %d acknowledged, %d answered of %d", ok, all, len(a.results))
				}
				if ok, _ := b.answered(); ok != 30 {
					t.Errorf("the new owner got %d of 30 acknowledged", ok)
				}
				if err := <-a.lost; err == nil {
					t.Error("lost without a reason")
				}
				if owned, err := chain.Owned(t.Context(), w.store, a.guard); owned || err != nil {
					t.Errorf("the paused owner still owns: %v, %v", owned, err)
				}
				if owned, err := chain.Owned(t.Context(), w.store, b.guard); !owned || err != nil {
					t.Errorf("the new owner does not own: %v, %v", owned, err)
				}
				if got := len(b.readAll()); got != c.before+30 {
					t.Errorf("%d entries, want %d", got, c.before+30)
				}
				w.checkStore()
				a.m.Abandon()
				b.m.Abandon()
			})
		})
	}
}

// Shows that a take-over in the middle of publishes loses nothing acknowledged:
// while the new owner opens, the old one goes on publishing, and each entry was
// acknowledged to one of them at most.
func TestRuleM1_TakeOverInTheMiddleOfPublishes(t *testing.T) {
	for delay := range 12 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			for i := range 3 {
				w.bookies.At(i).SetLatency(time.Duration(1+i) * time.Millisecond)
			}
			a := w.owner("a", Roll{MaxEntries: 10}).open()
			opened := make(chan *owner)
			go func() {
				time.Sleep(time.Duration(delay) * 3 * time.Millisecond)
				opened <- w.owner("b", Roll{MaxEntries: 10}).open()
			}()
			var b *owner
			for b == nil {
				_ = a.publish(1)
				select {
				case b = <-opened:
				case <-time.After(300 * time.Microsecond):
				}
			}
			for range 20 {
				_ = a.publish(1)
				b.publishMany(1)
				time.Sleep(time.Millisecond)
			}
			settle()
			b.readAll()
			if ok, _ := b.answered(); ok != 20 {
				t.Errorf("the new owner got %d of 20 acknowledged", ok)
			}
			if _, all := a.answered(); all != len(a.results) {
				t.Errorf("%d of %d publishes of the old owner were answered", all, len(a.results))
			}
			w.checkStore()
			a.m.Abandon()
			b.m.Abandon()
		})
	}
}

// Shows that an owner whose session ended can open, close and trim nothing, even
// while the owner key still names it.
func TestRuleM1_NoSessionNoTransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxEntries: 5}).open()
		for range 20 {
			a.publishMany(1)
			time.Sleep(time.Millisecond)
		}
		settle()
		if res, err := w.store.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: "/sessions/a", Delete: true}}}); err != nil || !res.Done {
			t.Fatal(err)
		}
		if _, err := a.m.Trim(t.Context(), a.m.LastConfirmed(), Retention{}); !errors.Is(err, chain.ErrNotOwner) {
			t.Errorf("trim: %v", err)
		}
		a.m.Abandon()
		if err := a.tryOpen(t.Context()); !errors.Is(err, chain.ErrNotOwner) {
			t.Errorf("open: %v", err)
		}
		w.checkStore()
	})
}

// Shows that a topic without the metadata store is written and read on, and that
// only trimming has to wait.
func TestRuleM20_WithoutTheStoreATopicIsWrittenAndRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxEntries: 10})
		a.opts.Cache = nil // everything from the bookies
		a.open().publishMany(25)
		settle()
		w.store.SetUnavailable(true)
		a.publishMany(10)
		settle()
		if ok, _ := a.answered(); ok != 35 || len(a.readAll()) != 35 {
			t.Errorf("%d of 35 acknowledged", ok)
		}
		if _, err := a.m.Trim(t.Context(), a.m.LastConfirmed(), Retention{}); !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("trim without the store: %v", err)
		}
		w.store.SetUnavailable(false)
		a.publishMany(30)
		settle()
		if ok, _ := a.answered(); ok != 65 || len(a.readAll()) != 65 {
			t.Errorf("%d of 65 acknowledged", ok)
		}
		w.checkStore()
		a.m.Abandon()
	})
}

// Shows that one bookie of three may be dead through publishes, rolls and a
// take-over.
func TestOneOfThreeBookiesMayBeDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxEntries: 10}).open()
		for i := range 60 {
			if i == 25 {
				w.bookies.At(1).Kill()
			}
			a.publishMany(1)
			time.Sleep(time.Millisecond)
		}
		settle()
		if ok, _ := a.answered(); ok != 60 {
			t.Errorf("%d of 60 acknowledged", ok)
		}
		a.m.Abandon()
		b := w.owner("b", Roll{}).open()
		b.publishMany(5)
		settle()
		if got := len(b.readAll()); got != 65 {
			t.Errorf("%d entries", got)
		}
		b.m.Abandon()
	})
}

// Shows that positions are found by broker time, and that counts between
// positions are exact when asked to be.
func TestSeekAndMeasure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxEntries: 10}).open()
		for i := range 40 {
			if err := a.publish(uint32(i % 4)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		settle()
		all := a.readAll()
		for i, e := range all { // entry i has broker time 10·(i+1)
			for _, ms := range []int64{int64(10*i) + 1, int64(10*i) + 10} {
				if got, err := a.m.SeekTime(t.Context(), time.UnixMilli(ms)); err != nil || got != e.Position {
					t.Errorf("time %d is at %v, %v; want %v", ms, got, err, e.Position)
				}
			}
		}
		if got, err := a.m.SeekTime(t.Context(), time.UnixMilli(401)); err != nil || got != a.m.LastConfirmed().Next() {
			t.Errorf("a time after the end is at %v, %v", got, err)
		}
		for i := 0; i < len(all); i += 3 {
			for j := i; j <= len(all); j += 5 {
				to, want := a.m.LastConfirmed().Next(), Extent{}
				if j < len(all) {
					to = all[j].Position
				}
				for k := i; k < j; k++ {
					want.add(Extent{Entries: 1, Bytes: int64(len(all[k].Body)), Messages: int64(k % 4)})
				}
				if got, err := a.m.Measure(t.Context(), all[i].Position, to); err != nil || got != want {
					t.Errorf("from %d to %d: %+v, %v; want %+v", i, j, got, err, want)
				}
				if got := a.m.Between(all[i].Position, to); got.Entries != want.Entries {
					t.Errorf("from %d to %d: %d entries, want %d", i, j, got.Entries, want.Entries)
				}
			}
		}
		heads, err := a.m.ReadHeads(t.Context(), position.Start, 100, 20)
		if err != nil || len(heads) == 0 || len(heads[0].Body) != 20 {
			t.Errorf("heads: %d, %v", len(heads), err)
		}
		a.m.Abandon()
	})
}

// Shows that a run that is not cached takes one request to one bookie, and none
// the second time.
func TestReadOfARunIsOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{}).open()
		a.publishMany(50)
		settle()
		a.m.Abandon()
		b := w.owner("b", Roll{}).open()
		count := func() (n int) {
			for i := range 3 {
				_, reads, _ := w.bookies.At(i).Calls()
				n += reads
			}
			return n
		}
		for round, want := range []int{1, 0} {
			before := count()
			if es, err := b.m.Read(t.Context(), position.Start, 100, 1<<20); err != nil || len(es) != 50 {
				t.Fatalf("%d entries, %v", len(es), err)
			}
			if got := count() - before; got != want {
				t.Errorf("round %d: %d requests, want %d", round, got, want)
			}
		}
		b.m.Abandon()
	})
}
