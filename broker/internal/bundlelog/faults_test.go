package bundlelog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// churn appends so many random changes: topics begin, go on and end.
func churn(o *owner, rng *rand.Rand, n int) {
	for range n {
		i := rng.IntN(12)
		var err error
		if t := topic(i); rng.IntN(15) == 0 {
			err = o.do(Record{Topic: t.ID, Hash: t.Hash, Kind: kindEnd})
		} else {
			err = o.set(i)
		}
		if err != nil && !errors.Is(err, errDead) && !errors.Is(err, ledger.ErrFenced) && !errors.Is(err, ledger.ErrStopping) {
			o.w.t.Errorf("append: %v", err)
		}
		if rng.IntN(3) == 0 {
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
		}
	}
}

var errDead = errors.New("dead")

// Shows that the owner may die at each entry it appends, stored or not, in the
// middle of snapshot passes, some with snapshots of several parts: the next owner
// replays a state that some prefix of the appends made, no shorter than what was
// acknowledged; and its own appends and passes go on from there.
func TestRuleM23_OwnerMayDieAtEveryEntry(t *testing.T) {
	const entries = 80
	passes := 0
	for k := range entries {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			rng := rand.New(rand.NewPCG(uint64(k), 2))
			pad := 0
			if k%4 == 3 {
				pad = chunkBytes + k*1000
			}
			a := w.owner("a", pad)
			if pad > 0 {
				a.opts.RollBytes, a.opts.QueueBytes = 2<<20, 32<<20
			}
			a.opts.PassBytes = 1500
			a.open()
			var mu sync.Mutex // guards what follows and rng
			dead := false
			bookies := [3]int{}
			for i := range 3 {
				w.bookies.At(i).OnAdd(func(ledger.Add) ensembletest.AddFault {
					mu.Lock()
					defer mu.Unlock()
					if bookies[i]++; dead || bookies[i] > k {
						// Whether the last entry gets in is chance, bookie by bookie.
						f := ensembletest.AddFault{Err: errDead, Store: !dead && rng.IntN(2) == 0}
						dead = true
						return f
					}
					return ensembletest.AddFault{Delay: time.Duration(rng.IntN(1000)) * time.Microsecond}
				})
			}
			choice := rand.New(rand.NewPCG(uint64(k), 3))
			alive := func() bool {
				mu.Lock()
				defer mu.Unlock()
				return !dead
			}
			for i := 0; i < 400 && alive(); i++ {
				churn(a, choice, 1)
			}
			time.Sleep(10 * time.Millisecond)
			a.log.Abandon()
			for i := range 3 {
				w.bookies.At(i).OnAdd(nil)
			}
			if a.log.StateBytes() > 0 {
				passes++
			}

			b := w.owner("b", pad)
			b.opts.PassBytes = 1500
			b.open()
			checkReplay(t, nil, a, b.book.topics)
			w.checkStore()
			b.resume(b.book.topics)
			began := maps.Clone(b.book.topics)
			for topic, numbers := range began {
				began[topic] = slices.Clone(numbers)
			}
			churn(b, choice, 100)
			settle()
			if b.acked != len(b.appended) {
				t.Errorf("the next owner got %d of %d acknowledged", b.acked, len(b.appended))
			}
			if err := b.log.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := w.owner("c", pad).open()
			checkReplay(t, began, b, c.book.topics)
			c.log.Abandon()
			w.checkStore()
		})
		if t.Failed() {
			t.Fatalf("died at entry %d", k)
		}
	}
	if passes < entries/4 {
		t.Errorf("only %d of %d owners had ended a pass", passes, entries)
	}
}

// Shows that each metadata write of a log's life may fail once, in each way, or be
// the owner's last: all acknowledged records are replayed, and the log names
// exactly the ledgers there are.
func TestRuleM4_EveryMetadataWriteMayFail(t *testing.T) {
	for _, f := range []struct {
		name   string
		fault  meta.Fault
		outage time.Duration // of the store, from then on
		dies   bool
	}{
		{"not done", meta.Fault{Err: meta.ErrUnavailable}, 0, false},
		{"unknown, not done", meta.Fault{Err: meta.ErrUncertain}, 0, false},
		{"done, answer lost", meta.Fault{Lost: true}, 0, false},
		{"late", meta.Fault{Delay: 20 * time.Second}, 0, false},
		{"not done, then an outage", meta.Fault{Err: meta.ErrUncertain}, 20 * time.Second, false},
		{"done, then an outage", meta.Fault{Lost: true}, 20 * time.Second, false},
		{"dies before", meta.Fault{Err: meta.ErrUncertain}, 0, true},
		{"dies after", meta.Fault{Lost: true}, 0, true},
	} {
		t.Run(f.name, func(t *testing.T) {
			steps := 0
			for hit, k := true, 1; hit; k++ {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					rng := rand.New(rand.NewPCG(1, uint64(k)))
					a := w.owner("a", 0)
					n := 0
					hit = false
					var back time.Time
					var mu sync.Mutex
					w.store.OnCall(func(c meta.Call) meta.Fault {
						mu.Lock()
						defer mu.Unlock()
						switch {
						case c.Client != "a":
							return meta.Fault{}
						case time.Now().Before(back):
							return meta.Fault{Err: meta.ErrUnavailable}
						case c.Kind != meta.CallTxn:
							return meta.Fault{}
						}
						switch n++; {
						case n == k:
							hit, back = true, time.Now().Add(f.outage)
							return f.fault
						case n > k && f.dies:
							return meta.Fault{Err: meta.ErrUncertain}
						}
						return meta.Fault{}
					})
					a.opts.RollBytes, a.opts.PassBytes = 1000, 1000
					a.open()
					for range 8 {
						churn(a, rng, 20)
						settle()
					}
					if hit {
						steps++
					}
					if !f.dies && a.acked != len(a.appended) {
						t.Errorf("%d of %d acknowledged; trouble: %v", a.acked, len(a.appended), a.log.Trouble())
					}
					if f.dies {
						a.store.Cut(true)
						a.log.Abandon()
					} else if err := a.log.Close(t.Context()); err != nil {
						t.Error(err)
					}
					settle()
					b := w.owner("b", 0).open()
					checkReplay(t, nil, a, b.book.topics)
					w.checkStore()
					b.resume(b.book.topics)
					churn(b, rng, 50)
					settle()
					if b.acked != len(b.appended) {
						t.Errorf("the next owner got %d of %d acknowledged", b.acked, len(b.appended))
					}
					b.log.Abandon()
				})
				if t.Failed() {
					t.Fatalf("write %d", k)
				}
			}
			if steps < 10 {
				t.Errorf("only %d metadata writes were tried", steps)
			}
		})
	}
}

// Shows that records of topics that are not open, open topics, and topics that
// open and close meanwhile, all keep their state through passes and take-overs,
// with a Shelf that understands none of it.
func TestShelfKeepsTopicsThroughTakeOvers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		rng := rand.New(rand.NewPCG(7, 7))
		ends := func(r Record) bool { return r.Kind == kindEnd }
		model := newBook(t, 0) // one for all owners
		next := map[Topic]uint64{}
		for round := range 6 {
			o := w.owner(fmt.Sprint("owner-", round), 0)
			shelf := NewShelf(ends)
			o.opts.State, o.opts.PassBytes = shelf, 1500
			o.open()
			if round > 0 {
				replayed := newBook(t, 0)
				for _, topic := range shelf.Topics() {
					p, _, _ := shelf.Peek(topic)
					unpark(replayed, topic, p)
				}
				if !maps.EqualFunc(replayed.topics, model.topics, slices.Equal) {
					t.Fatalf("round %d replays %s, want %s", round, summary(replayed.topics), summary(model.topics))
				}
			}
			live := map[Topic]*liveTopic{}
			for range 300 {
				topic := topic(rng.IntN(10))
				switch at := live[topic]; {
				case rng.IntN(20) == 0 && at == nil:
					at = &liveTopic{book: newBook(t, 0), topic: topic}
					p, err := shelf.Open(topic, at)
					if err != nil {
						t.Fatal(err)
					}
					unpark(at.book, topic, p)
					live[topic] = at
				case rng.IntN(20) == 0 && at != nil:
					at.book.mu.Lock()
					var base []byte
					if _, ok := at.book.topics[topic]; ok {
						base = at.book.encode(topic)
					}
					shelf.Close(topic, base)
					at.book.mu.Unlock()
					delete(live, topic)
				default:
					r := Record{Topic: topic.ID, Hash: topic.Hash, Kind: model.kindOf(topic), Data: number(next[topic])}
					if rng.IntN(15) == 0 {
						r.Kind = kindEnd
					}
					next[topic]++
					var err error
					if at != nil {
						at.book.mu.Lock()
						if err = o.log.Append([]Record{r}, func(error) {}); err == nil {
							at.book.change(r)
						}
						at.book.mu.Unlock()
						if other := shelf.AppendTo(o.log, []Record{r}, nil); !errors.Is(other, ErrOpen) {
							t.Errorf("the shelf takes records of an open topic: %v", other)
						}
					} else {
						err = shelf.AppendTo(o.log, []Record{r}, func(error) {})
					}
					if err != nil {
						t.Fatal(err)
					}
					model.change(r)
				}
				if rng.IntN(3) == 0 {
					time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond)
				}
			}
			settle()
			if o.log.StateBytes() == 0 {
				t.Error("no pass has ended")
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := o.log.Close(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
		}
	})
}

// liveTopic is an open topic with a lock of its own.
type liveTopic struct {
	book  *book
	topic Topic
}

func (l *liveTopic) Snapshot(emit func([]byte)) {
	l.book.mu.Lock()
	defer l.book.mu.Unlock()
	if _, ok := l.book.topics[l.topic]; !ok {
		emit(nil)
		return
	}
	emit(l.book.encode(l.topic))
}

// unpark brings a topic of a book to what was parked.
func unpark(b *book, t Topic, p Parked) {
	if p.Base == nil {
		for _, r := range p.Records {
			_ = b.Apply(r)
		}
		return
	}
	_ = b.Restore(t, p)
}

// Shows that owners come and go while calls of the metadata store fail in every
// way and bookies die and come back: each owner begins with a state that some
// prefix of the appends of the one before made, no shorter than what was
// acknowledged.
func TestOwnersComeAndGoUnderFaults(t *testing.T) {
	for seed := range uint64(15) {
		synctest.Test(t, func(t *testing.T) { comeAndGo(t, seed) })
	}
}

func comeAndGo(t *testing.T, seed uint64) {
	w := newWorld(t)
	w.bookies.Add("")
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 1))
	chance := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
	faults := []meta.Fault{{Err: meta.ErrUnavailable}, {Err: meta.ErrUncertain}, {Lost: true}, {Delay: 20 * time.Second}}
	w.store.OnCall(func(c meta.Call) meta.Fault {
		if c.Client == "" || chance(8) != 0 {
			return meta.Fault{}
		}
		if c.Kind == meta.CallTxn {
			return faults[chance(len(faults))]
		}
		return meta.Fault{Err: meta.ErrUnavailable}
	})
	var before *owner
	var began map[Topic][]uint64
	for life := range 5 {
		o := w.owner(fmt.Sprint("owner-", life), 0)
		o.opts.RollBytes, o.opts.PassBytes = 800, 1200
		for err := errors.New("not opened"); err != nil; {
			o.book = newBook(t, 0)
			o.opts.State = o.book
			if o.log, err = Open(t.Context(), o.opts); err != nil {
				time.Sleep(time.Second)
			}
		}
		if before != nil {
			checkReplay(t, began, before, o.book.topics)
		}
		before, began = o, map[Topic][]uint64{}
		for topic, numbers := range o.book.topics {
			began[topic] = slices.Clone(numbers)
		}
		o.resume(began)
		choice := rand.New(rand.NewPCG(seed, uint64(life)))
		for range 12 {
			churn(o, choice, 15)
			if b := w.bookies.At(chance(4)); chance(4) == 0 {
				b.Kill()
				time.Sleep(time.Duration(chance(5)) * time.Second)
				b.Restart()
			}
		}
		if chance(2) == 0 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(chance(10))*time.Second)
			_ = o.log.Close(ctx)
			cancel()
		} else {
			o.log.Abandon()
		}
	}
	w.store.OnCall(nil)
	settle()
	last := w.owner("last", 0).open()
	checkReplay(t, began, before, last.book.topics)
	last.log.Abandon()
	w.checkStore()
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
}
