// Package idblock gives out ids of ledgers and topics from the one counter in
// the metadata store, a block at a time.
//
// Ids are never given out twice, in any process: a block is taken by
// compare-and-swap before its first id is used, and what is left of a block is
// forgotten, never returned. Within one allocator ids rise; between allocators
// they do not, so whoever continues a chain that another process wrote has to
// Discard first, and states the id it must stay above.
package idblock

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// BlockSize is how many ids are taken from the counter at once.
const BlockSize = 1000

// ErrExhausted reports that the counter reached 2^63.
var ErrExhausted = errors.New("idblock: no ids are left")

// Allocator gives out ids. Safe for concurrent use; callers wait for one
// another while a block is taken.
type Allocator struct {
	store meta.Store
	key   string
	busy  chan struct{} // holds one token; taken for the whole of a store access

	mu       sync.Mutex
	next     uint64 // next id to give out
	end      uint64 // end of the block held; next == end: none is left
	discards uint64 // calls of Discard so far
}

// New returns an allocator that holds no block yet.
func New(store meta.Store, l layout.Layout) *Allocator {
	return &Allocator{store: store, key: l.IDs(), busy: make(chan struct{}, 1)}
}

// Next returns an id that was never given out, above the one given. It takes a
// new block when the one held is used up or does not reach above; a counter that
// stands lower than above is lifted past it.
func (a *Allocator) Next(ctx context.Context, above uint64) (uint64, error) {
	if above >= math.MaxInt64 {
		return 0, ErrExhausted
	}
	if id, ok := a.take(above); ok {
		return id, nil
	}
	select {
	case a.busy <- struct{}{}:
		defer func() { <-a.busy }()
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for a block of ids: %w", ctx.Err())
	}
	for {
		if id, ok := a.take(above); ok {
			return id, nil
		}
		if err := a.refill(ctx, above); err != nil {
			return 0, fmt.Errorf("take a block of ids: %w", err)
		}
	}
}

// Discard forgets the block held. The next id comes from a block taken after
// this call, above every id that any allocator took before it.
func (a *Allocator) Discard() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = a.end
	a.discards++
}

func (a *Allocator) take(above uint64) (uint64, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = max(a.next, min(above+1, a.end))
	if a.next >= a.end {
		return 0, false
	}
	a.next++
	return a.next - 1, true
}

// refill takes one block. A write whose answer was lost is not looked into: the
// block may be ours or not, so it is left unused and the next one is taken.
func (a *Allocator) refill(ctx context.Context, above uint64) error {
	for {
		a.mu.Lock()
		discards := a.discards
		a.mu.Unlock()
		kv, err := a.store.Get(ctx, a.key)
		if err != nil {
			return err
		}
		first, err := decode(kv.Value)
		if err != nil {
			return err
		}
		first = max(first, above+1)
		if first > math.MaxInt64-BlockSize {
			return ErrExhausted
		}
		value, err := proto.Marshal(metav1.IDCounter_builder{Next: proto.Uint64(first + BlockSize)}.Build())
		if err != nil {
			return err
		}
		r, err := a.store.Txn(ctx, meta.Txn{
			Conds: []meta.Cond{{Key: a.key, Revision: kv.Revision}},
			Ops:   []meta.Op{{Key: a.key, Value: value}},
		})
		switch {
		case err == nil && r.Done:
			if a.install(first, discards) {
				return nil
			}
		case err == nil: // another allocator was faster
		case errors.Is(err, meta.ErrUncertain) && ctx.Err() == nil:
			if err := pause(ctx); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// install makes [first, first+BlockSize) the block held, unless Discard was
// called since the counter was read.
func (a *Allocator) install(first, discards uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.discards != discards {
		return false
	}
	a.next, a.end = first, first+BlockSize
	return true
}

// decode returns the first id not given out yet; ids start at 1.
func decode(value []byte) (uint64, error) {
	var c metav1.IDCounter
	if err := proto.Unmarshal(value, &c); err != nil {
		return 0, fmt.Errorf("the id counter is corrupt: %w", err)
	}
	return max(c.GetNext(), 1), nil
}

// pause spaces out attempts at a store that loses answers.
func pause(ctx context.Context) error {
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
