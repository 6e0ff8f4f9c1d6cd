package managedledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// A metadata write fails in these ways.
var faults = []struct {
	name   string
	fault  meta.Fault
	outage time.Duration // of the store, from then on
}{
	{"not done", meta.Fault{Err: meta.ErrUnavailable}, 0},
	{"unknown, not done", meta.Fault{Err: meta.ErrUncertain}, 0},
	{"done, answer lost", meta.Fault{Lost: true}, 0},
	{"late: its caller has given up", meta.Fault{Delay: 20 * time.Second}, 0},
	{"not done, then an outage", meta.Fault{Err: meta.ErrUncertain}, 20 * time.Second},
	{"done, then an outage", meta.Fault{Lost: true}, 20 * time.Second},
}

// workload publishes across several rolls, trims, retires and closes, as far as
// it gets. It is the same each time, up to what faults make of it.
func workload(o *owner) {
	for i := range 30 {
		_ = o.publish(1)
		time.Sleep(time.Millisecond)
		if i%10 == 9 {
			settle()
			ctx, cancel := context.WithTimeout(o.w.t.Context(), time.Minute)
			_, _ = o.m.Trim(ctx, position.Position{Ledger: o.m.LastConfirmed().Ledger}, Retention{})
			cancel()
		}
	}
	settle()
	o.m.appender.Retire()
	settle()
	ctx, cancel := context.WithTimeout(o.w.t.Context(), time.Minute)
	defer cancel()
	_, _ = o.m.Trim(ctx, o.m.LastConfirmed().Next(), Retention{})
	_ = o.publish(1)
	settle()
}

// Shows that each metadata write of a topic's life may fail once, in each way,
// and the topic goes on: everything published is acknowledged in the end and read
// back in order, by its owner and by the next, and the chain names exactly the
// ledgers there are.
func TestRuleM4_EveryMetadataWriteMayFailOnce(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			hit := true
			steps := 0
			for k := 1; hit; k++ {
				synctest.Test(t, func(t *testing.T) {
					hit = failAt(t, k, f.fault, f.outage)
					if hit {
						steps++
					}
				})
			}
			if steps < 15 {
				t.Errorf("only %d metadata writes were tried", steps)
			}
		})
	}
}

func failAt(t *testing.T, k int, fault meta.Fault, outage time.Duration) (hit bool) {
	w := newWorld(t)
	a := w.owner("a", Roll{MaxEntries: 6})
	var mu sync.Mutex
	n := 0
	var back time.Time
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
		if n++; n == k {
			hit, back = true, time.Now().Add(outage)
			return fault
		}
		return meta.Fault{}
	})
	a.open()
	workload(a)
	if ok, all := a.answered(); ok != 31 || all != 31 {
		t.Fatalf("write %d: %d acknowledged, %d answered of 31; trouble: %v", k, ok, all, a.m.Stats().Trouble)
	}
	a.readAll()
	if err := a.m.Close(t.Context()); err != nil {
		t.Errorf("write %d: close: %v", k, err)
	}
	settle()
	b := w.owner("b", Roll{}).open()
	b.readAll()
	w.checkStore()
	if b.m.NextIndex() != 31 || b.m.LastTime() != 310 {
		t.Errorf("write %d: next index %d, last time %d", k, b.m.NextIndex(), b.m.LastTime())
	}
	b.m.Abandon()
	if t.Failed() {
		t.Fatalf("write %d", k)
	}
	return hit
}

// Shows that an owner may die at each of its metadata writes, before or after it
// took place: the next owner opens the topic, reads everything acknowledged, at
// the positions that were told, and goes on with index, time and ids; and nothing
// is left behind that nobody may collect.
func TestRuleM17_OwnerMayDieAtEveryMetadataWrite(t *testing.T) {
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprintf("done=%v", done), func(t *testing.T) {
			hit := true
			for k := 1; hit; k++ {
				synctest.Test(t, func(t *testing.T) { hit = dieAt(t, k, done) })
			}
		})
	}
}

func dieAt(t *testing.T, k int, done bool) (hit bool) {
	w := newWorld(t)
	a := w.owner("a", Roll{MaxEntries: 6})
	var mu sync.Mutex
	n := 0
	w.store.OnCall(func(c meta.Call) meta.Fault {
		mu.Lock()
		defer mu.Unlock()
		if c.Client != "a" || c.Kind != meta.CallTxn {
			return meta.Fault{}
		}
		if n++; n < k {
			return meta.Fault{}
		}
		if n == k && done {
			hit = true
			return meta.Fault{Lost: true}
		}
		hit = true
		return meta.Fault{Err: meta.ErrUncertain} // dead: nothing more arrives
	})
	a.open()
	workload(a)
	a.store.Cut(true)
	a.m.Abandon()
	ok, _ := a.answered()

	b := w.owner("b", Roll{MaxEntries: 6}).open()
	first := b.m.First()
	all := b.readAll()
	w.checkStore()
	last := b.m.LastConfirmed()
	for p := range w.acked {
		if last.Before(p) && !p.Before(first) {
			t.Errorf("write %d: acknowledged at %v, the topic ends at %v", k, p, last)
		}
	}
	if got := b.m.NextIndex(); got < uint64(ok) || got > 31 {
		t.Errorf("write %d: next index %d, %d entries were acknowledged", k, got, ok)
	}
	workload(b)
	if good, _ := b.answered(); good != 31 {
		t.Errorf("write %d: the next owner got %d of 31 acknowledged", k, good)
	}
	b.readAll()
	w.checkStore()
	b.m.Abandon()
	if t.Failed() {
		t.Fatalf("write %d, %d entries recovered", k, len(all))
	}
	return hit
}

// Shows that bookies may fail in the middle of everything, one at a time, and
// that an owner dying then loses nothing acknowledged.
func TestBookiesFailInTurn(t *testing.T) {
	for seed := range 12 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.bookies.Add("")
			a := w.owner("a", Roll{MaxEntries: 20}).open()
			rng := uint64(seed)*0x9e3779b97f4a7c15 + 1
			var mu sync.Mutex
			next := func(n uint64) uint64 {
				mu.Lock()
				defer mu.Unlock()
				rng = rng*6364136223846793005 + 1
				return (rng >> 33) % n
			}
			for range 100 {
				a.publishMany(1)
				time.Sleep(time.Duration(next(3000)) * time.Microsecond)
				b := w.bookies.At(int(next(4)))
				switch next(20) {
				case 0:
					b.Kill()
					time.Sleep(time.Duration(next(3000)) * time.Millisecond)
					b.Restart()
				case 1:
					b.OnAdd(func(ledger.Add) ensembletest.AddFault {
						if next(3) == 0 {
							return ensembletest.AddFault{Err: errors.New("connection lost"), Store: next(2) == 0}
						}
						return ensembletest.AddFault{}
					})
				case 2:
					b.OnAdd(nil)
				}
			}
			a.m.Abandon() // dies with whatever is in flight
			for i := range 4 {
				w.bookies.At(i).OnAdd(nil)
			}
			b := w.owner("b", Roll{}).open()
			b.readAll()
			b.publishMany(3)
			settle()
			b.readAll()
			w.checkStore()
			b.m.Abandon()
		})
	}
}

// Shows that deleting a topic can be interrupted at each of its writes and
// resumed, and leaves no link and no ledger that is not a tombstone.
func TestRuleM3_DeletionResumes(t *testing.T) {
	for _, f := range faults[:3] {
		for k := 1; k <= 4; k++ {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.owner("a", Roll{MaxEntries: 2}).open()
				for range 160 {
					a.publishMany(1)
					time.Sleep(time.Millisecond)
				}
				settle()
				a.m.Abandon()
				n := 0
				w.store.OnCall(func(c meta.Call) meta.Fault {
					if c.Kind == meta.CallTxn && c.Client == "a" {
						if len(c.Txn.Ops) > meta.MaxOps || len(c.Txn.Conds) > meta.MaxOps {
							t.Errorf("%d operations under %d conditions", len(c.Txn.Ops), len(c.Txn.Conds))
						}
						if n++; n == k {
							return f.fault
						}
					}
					return meta.Fault{}
				})
				for range 10 {
					if Delete(t.Context(), a.opts) == nil {
						break
					}
				}
				if n < 3 {
					t.Errorf("deleted in %d steps", n)
				}
				kvs, _, err := w.store.Range(t.Context(), w.layout.Chain(testTopic), "", 0)
				if err != nil || len(kvs) != 0 {
					t.Errorf("%d links left, %v", len(kvs), err)
				}
				w.checkStore()
			})
		}
	}
}

// Shows that owners come and go while calls of the metadata store fail in every
// way, bookies die and come back, and the head is trimmed: everything acknowledged
// from the earliest position still needed on is there in the end, in one order.
func TestOwnersComeAndGoUnderFaults(t *testing.T) {
	for seed := range uint64(25) {
		synctest.Test(t, func(t *testing.T) { comeAndGo(t, seed) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
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
	var calm atomic.Bool
	w.store.OnCall(func(c meta.Call) meta.Fault {
		if c.Client == "" || calm.Load() || chance(8) != 0 {
			return meta.Fault{}
		}
		if c.Kind == meta.CallTxn {
			return faults[chance(len(faults))].fault
		}
		return meta.Fault{Err: meta.ErrUnavailable}
	})
	var needed position.Position
	for life := range 4 {
		o := w.owner(fmt.Sprint("owner-", life), Roll{MaxEntries: 8, MaxAge: time.Millisecond})
		if life == 3 {
			calm.Store(true)
			for i := range 4 {
				w.bookies.At(i).Restart()
			}
		}
		for o.tryOpen(t.Context()) != nil {
			time.Sleep(time.Second)
		}
		for range 60 {
			_ = o.publish(uint32(chance(4)))
			time.Sleep(time.Duration(chance(20)) * time.Millisecond)
			switch b := w.bookies.At(chance(4)); chance(15) {
			case 0:
				b.Kill()
				time.Sleep(time.Duration(chance(5)) * time.Second)
				b.Restart()
			case 1, 2:
				last := o.m.LastConfirmed()
				last.Entry -= ledger.EntryID(chance(10))
				needed = position.Max(needed, last)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				_, _ = o.m.Trim(ctx, needed, Retention{})
				cancel()
			}
		}
		if life < 3 && chance(2) == 0 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(chance(10))*time.Second)
			_ = o.m.Close(ctx)
			cancel()
		} else if life < 3 {
			o.m.Abandon()
		}
		if life < 3 {
			continue
		}
		settle()
		if ok, _ := o.answered(); ok != 60 {
			t.Errorf("the last owner, in calm, got %d of 60 acknowledged; trouble: %v", ok, o.m.Stats().Trouble)
		}
		first := o.m.First()
		at := map[position.Position]bool{}
		for _, e := range o.readAll() {
			at[e.Position] = true
		}
		for p := range w.acked {
			if !p.Before(needed) && !at[p] {
				t.Errorf("acknowledged at %v, needed from %v, gone; the topic begins at %v", p, needed, first)
			}
		}
		w.checkStore()
		o.m.Abandon()
	}
}
