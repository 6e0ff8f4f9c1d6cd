package idblock

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

var keys = layout.New("test")

func next(t *testing.T, a *Allocator, above uint64) uint64 {
	t.Helper()
	id, err := a.Next(t.Context(), above)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestRuleM2_IdsRiseAcrossOwners plays a bundle that moves from one broker to
// another and back: each owner discards what it holds, so the ids of the chain
// rise although both took blocks before. The test then leaves the discard out
// and sees the ids fall, as the rule says they would.
func TestRuleM2_IdsRiseAcrossOwners(t *testing.T) {
	store := meta.NewMem()
	a, b := New(store, keys), New(store, keys)
	first := next(t, a, 0)
	second := next(t, b, 0) // b's block lies above a's
	if second <= first {
		t.Fatalf("ids of the second owner start at %d, not above %d", second, first)
	}
	if back := next(t, a, 0); back >= second {
		t.Fatalf("without Discard the first owner should still draw from its old block, drew %d", back)
	}
	a.Discard()
	if back := next(t, a, 0); back <= second {
		t.Fatalf("after Discard the first owner drew %d, not above %d", back, second)
	}
}

// TestRuleM2_AnIdNotAboveTheChainIsRedrawn shows that Next stays above what it
// is told: inside the block, beyond the block, and beyond the counter.
func TestRuleM2_AnIdNotAboveTheChainIsRedrawn(t *testing.T) {
	a := New(meta.NewMem(), keys)
	last := uint64(0)
	for _, above := range []uint64{0, 0, 17, 17, 999, 1000, 5000, 123_456, 123_456, 0} {
		id := next(t, a, above)
		if id <= above || id <= last {
			t.Fatalf("asked above %d after %d, got %d", above, last, id)
		}
		last = id
	}
}

// TestRuleC5_IdsAreNeverUsedAgain shows that processes that come and go, each of which
// uses little of the block it took, are never given an id that was given out before,
// and that the counter has moved on before the first id of a block is used.
func TestRuleC5_IdsAreNeverUsedAgain(t *testing.T) {
	store := meta.NewMem()
	given := make(map[uint64]bool)
	for process := range 5 {
		a := New(store, keys)
		for range 3 {
			id := next(t, a, 0)
			if given[id] {
				t.Fatalf("process %d was given id %d, which was given out before", process, id)
			}
			given[id] = true
			kv, err := store.Get(t.Context(), keys.IDs())
			if err != nil {
				t.Fatal(err)
			}
			if free, err := decode(kv.Value); err != nil || free <= id {
				t.Fatalf("id %d is in use while the counter stands at %d, %v", id, free, err)
			}
		}
	}
}

// Many allocators under lost answers, late arrivals and discards never give an
// id twice, and each gives rising ids.
func TestNoIdTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := meta.NewMem()
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(1, 2))
		store.OnCall(func(c meta.Call) meta.Fault {
			mu.Lock()
			defer mu.Unlock()
			switch rng.IntN(6) {
			case 0:
				return meta.Fault{Lost: c.Kind == meta.CallTxn}
			case 1:
				return meta.Fault{Delay: time.Duration(rng.IntN(50)) * time.Millisecond}
			case 2:
				if c.Kind == meta.CallTxn {
					return meta.Fault{Err: meta.ErrUncertain}
				}
			}
			return meta.Fault{}
		})
		seen := make(map[uint64]bool)
		var wg sync.WaitGroup
		for range 4 {
			a := New(store, keys)
			wg.Go(func() {
				last := uint64(0)
				for i := range 1500 {
					id, err := a.Next(t.Context(), 0)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					if seen[id] || id <= last || id < 1 {
						t.Errorf("id %d after %d, given before: %v", id, last, seen[id])
					}
					seen[id], last = true, id
					mu.Unlock()
					if i%700 == 0 {
						a.Discard()
					}
				}
			})
		}
		wg.Wait()
	})
}

// A Discard while a block is being taken forgets that block too: its ids may lie
// below what another allocator took in between.
func TestDiscardDuringRefill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := meta.NewMem()
		a, b := New(store, keys), New(store, keys)
		store.OnCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallTxn && c.N < 3 {
				return meta.Fault{AnswerDelay: time.Second}
			}
			return meta.Fault{}
		})
		got := make(chan uint64, 1)
		go func() { got <- next(t, a, 0) }()
		time.Sleep(500 * time.Millisecond) // a's block is taken, its answer under way
		other := next(t, b, 0)
		a.Discard()
		if id := <-got; id <= other {
			t.Fatalf("got %d from a block taken before the discard, another allocator is at %d", id, other)
		}
	})
}

// The counter ends below 2^63, and what is not a counter is refused.
func TestCounterAtItsEnd(t *testing.T) {
	put := func(s meta.Store, value []byte) {
		if _, err := s.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: keys.IDs(), Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
	store := meta.NewMem()
	value, _ := proto.Marshal(metav1.IDCounter_builder{Next: proto.Uint64(math.MaxInt64 - 10)}.Build())
	put(store, value)
	if _, err := New(store, keys).Next(t.Context(), 0); !errors.Is(err, ErrExhausted) {
		t.Fatalf("got %v, want ErrExhausted", err)
	}
	if _, err := New(store, keys).Next(t.Context(), math.MaxUint64); !errors.Is(err, ErrExhausted) {
		t.Fatalf("above all ids: got %v, want ErrExhausted", err)
	}
	put(store, []byte{0xff})
	if _, err := New(store, keys).Next(t.Context(), 0); err == nil {
		t.Fatal("a corrupt counter was accepted")
	}
}

// A caller whose context ends does not hold up the others, and gets no id.
func TestNextEndsWithItsContext(t *testing.T) {
	store := meta.NewMem()
	store.SetUnavailable(true)
	a := New(store, keys)
	if _, err := a.Next(t.Context(), 0); !errors.Is(err, meta.ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	store.SetUnavailable(false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Next(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want the context's error", err)
	}
	next(t, a, 0)
}

// FuzzDecode shows that no bytes make the decoder panic or give id 0.
func FuzzDecode(f *testing.F) {
	value, _ := proto.Marshal(metav1.IDCounter_builder{Next: proto.Uint64(77)}.Build())
	f.Add(value)
	f.Add([]byte{})
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := decode(b); err == nil && id == 0 {
			t.Fatal("gave id 0")
		}
	})
}
