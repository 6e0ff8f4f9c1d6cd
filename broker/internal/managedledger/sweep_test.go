package managedledger

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// closedTopic is a topic of n closed ledgers of five entries each, and the owner
// that may sweep it.
func (w *world) closedTopic(n int) *owner {
	w.t.Helper()
	a := w.owner("a", Roll{MaxEntries: 5}).open()
	for range n {
		a.publishMany(5)
		settle()
	}
	if err := a.m.Close(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return a
}

// Shows that a sweep takes out no more than what goes in one transaction, nothing
// that is needed, nothing of a topic whose end is not known, and nothing where the
// log knows of entries that the chain never had.
func TestRuleM19_SweepStepByStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.closedTopic(removalSize + 8)
		end := a.m.LastConfirmed()
		needed := a.m.links[removalSize+3].ledger
		needs := Needs{From: position.Position{Ledger: needed, Entry: 2}, Known: []position.Position{end, position.Start}}
		sweep := func(want Swept) {
			t.Helper()
			if s, err := Sweep(t.Context(), a.opts, needs, Retention{}); s != want || err != nil {
				t.Fatalf("swept %+v, %v; want %+v", s, err, want)
			}
		}
		beyond := Needs{From: end.Next(), Known: []position.Position{end, end.Next().Next()}}
		if s, err := Sweep(t.Context(), a.opts, beyond, Retention{}); s != (Swept{}) || !errors.Is(err, ErrBeyondEnd) {
			t.Errorf("a position beyond the end: %+v, %v", s, err)
		}
		sweep(Swept{Ledgers: removalSize, More: true})
		sweep(Swept{Ledgers: 3})
		sweep(Swept{})
		w.checkStore()
		a.open()
		if first := a.m.First(); first.Ledger != needed {
			t.Errorf("the first entry is %v, want it in ledger %d", first, needed)
		}
		a.publishMany(1)
		settle()
		needs.From = end.Next()
		sweep(Swept{Unclosed: true})
		a.readAll()
		a.m.Abandon()
	})
}

// Shows that each write of a sweep may fail in each way: it returns when it knows
// what became of the write, and whoever opens the topic then finds a chain that
// nothing changes any more.
func TestRuleM19_SweepReturnsWhenNothingIsOnItsWay(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.closedTopic(4)
				end := a.m.LastConfirmed()
				hit, back := false, time.Time{}
				w.store.OnCall(func(c meta.Call) meta.Fault {
					switch {
					case time.Now().Before(back):
						return meta.Fault{Err: meta.ErrUnavailable}
					case c.Kind != meta.CallTxn || hit:
						return meta.Fault{}
					}
					hit, back = true, time.Now().Add(f.outage)
					return f.fault
				})
				s, err := Sweep(t.Context(), a.opts, Needs{From: end.Next(), Known: []position.Position{end}}, Retention{})
				if err != nil || !hit {
					t.Fatalf("swept %+v, %v; a write failed: %v", s, err, hit)
				}
				a.open()
				if first := a.m.First(); first != end.Next() {
					t.Errorf("the first entry is %v, want %v", first, end.Next())
				}
				a.publishMany(1)
				settle()
				w.checkStore()
				a.readAll()
				a.m.Abandon()
			})
		})
	}
}

// Shows that a trim which arrives late, from an owner's earlier life, does no harm
// to the topic as it was opened since: either it comes before the next ledger and
// is heard of, or it comes too late.
func TestRuleM18_LateTrimOfAnEarlierLife(t *testing.T) {
	for name, late := range map[string]time.Duration{"before the next ledger": 2 * time.Second, "after it": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.closedTopic(3)
				end := a.m.LastConfirmed()
				hit := false
				w.store.OnCall(func(c meta.Call) meta.Fault {
					if c.Kind != meta.CallTxn || hit {
						return meta.Fault{}
					}
					hit = true
					return meta.Fault{Delay: late}
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := a.m.Trim(ctx, end.Next(), Retention{}); !errors.Is(err, meta.ErrUncertain) {
					t.Fatalf("trim: %v", err)
				}
				a.open() // again, under the same guard
				time.Sleep(5 * time.Second)
				a.publishMany(1)
				settle()
				w.checkStore()
				if ok, _ := a.answered(); ok != 16 {
					t.Errorf("%d publishes acknowledged, want 16; trouble: %v", ok, a.m.Stats().Trouble)
				}
				if _, err := a.m.Trim(t.Context(), position.Position{Ledger: a.m.LastConfirmed().Ledger}, Retention{}); err != nil {
					t.Error(err)
				}
				w.checkStore()
				if es := a.readAll(); len(es) != 1 {
					t.Errorf("%d entries are left, want 1", len(es))
				}
				a.m.Abandon()
			})
		})
	}
}

// Shows that a trim which arrives late, when nothing of the chain is in doubt any
// more, keeps nobody from reading on: whoever stands in what it took out, or looks
// for a time there, is moved up to what is left.
func TestLateTrimIsFoundByReaders(t *testing.T) {
	for name, read := range map[string]func(ctx context.Context, m *ManagedLedger, from position.Position) (position.Position, error){
		"read": func(ctx context.Context, m *ManagedLedger, from position.Position) (position.Position, error) {
			es, err := m.Read(ctx, from, 10, 1<<20)
			if len(es) == 0 {
				return position.Start, err
			}
			return es[0].Position, err
		},
		"heads": func(ctx context.Context, m *ManagedLedger, from position.Position) (position.Position, error) {
			es, err := m.ReadHeads(ctx, from, 10, headBytes)
			if len(es) == 0 {
				return position.Start, err
			}
			return es[0].Position, err
		},
		"time": func(ctx context.Context, m *ManagedLedger, _ position.Position) (position.Position, error) {
			return m.SeekTime(ctx, time.UnixMilli(30))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.closedTopic(3)
				first, kept := a.m.First(), position.Position{Ledger: a.m.LastConfirmed().Ledger}
				hit := false
				w.store.OnCall(func(c meta.Call) meta.Fault {
					if c.Kind != meta.CallTxn || hit {
						return meta.Fault{}
					}
					hit = true
					return meta.Fault{Delay: 5 * time.Second}
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := a.m.Trim(ctx, kept, Retention{}); !errors.Is(err, meta.ErrUncertain) {
					t.Fatalf("trim: %v", err)
				}
				a.opts.Cache = nil
				a.open() // again, under the same guard
				time.Sleep(10 * time.Second)
				w.checkStore()
				if p, err := read(t.Context(), a.m, first); p != kept || err != nil {
					t.Errorf("from %v, which is trimmed: %v, %v; want %v", first, p, err, kept)
				}
				if at := a.m.First(); at != kept {
					t.Errorf("the first entry is %v, want %v", at, kept)
				}
				a.m.Abandon()
			})
		})
	}
}

// Shows that the next ledger is made at the first try also after one that stayed
// empty was dropped, when the revision of the link before it is not known.
func TestLinkBehindAnUnknownRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.closedTopic(2).open()
		a.m.mu.Lock()
		a.m.links[1].revision = 0
		a.m.mu.Unlock()
		var tries atomic.Int32
		w.store.OnCall(func(c meta.Call) meta.Fault {
			for _, op := range c.Txn.Ops {
				if op.Key == w.layout.ChainLink(testTopic, 3) {
					tries.Add(1)
				}
			}
			return meta.Fault{}
		})
		a.publishMany(1)
		settle()
		if tries.Load() != 1 {
			t.Errorf("%d tries to make the next ledger", tries.Load())
		}
		w.checkStore()
		a.m.Abandon()
	})
}
