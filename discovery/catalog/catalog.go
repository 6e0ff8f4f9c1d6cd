// Package catalog is typed access to what exists in a cluster: tenants,
// namespaces with their policies, topics, bundles. It caches nothing: each call
// reads the metadata store.
//
// Every change is a transaction whose conditions name what it was decided on. A
// change whose answer was lost is tried again, unaltered, until the store shows
// whether it was done; only a context that ends leaves it open, and then the
// error is meta.ErrUncertain.
//
// Errors a caller can act on are those of package rpcerr: ErrNotFound, ErrExists,
// ErrInvalid, ErrRefused (not empty, being deleted), and meta's.
package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

// Options of a Catalog; Store, Layout and NewID are needed.
type Options struct {
	Store  meta.Store
	Layout layout.Layout
	// NewID gives an id above the one given that was never given before, in any
	// process (idblock.Allocator.Next).
	NewID func(ctx context.Context, above uint64) (uint64, error)
	Now   func() time.Time // nil: time.Now; its value is stored
	Rand  func() uint64    // nil: math/rand/v2
}

// Catalog reads and changes what exists. Safe for concurrent use.
type Catalog struct {
	store  meta.Store
	layout layout.Layout
	newID  func(context.Context, uint64) (uint64, error)
	now    func() time.Time
	rand   func() uint64
}

// New returns a Catalog.
func New(o Options) *Catalog {
	c := &Catalog{store: o.Store, layout: o.Layout, newID: o.NewID, now: o.Now, rand: o.Rand}
	if c.now == nil {
		c.now = time.Now
	}
	if c.rand == nil {
		c.rand = rand.Uint64
	}
	return c
}

const (
	firstPause = 10 * time.Millisecond
	maxPause   = time.Second
)

// commit makes one transaction and reports whether it is in effect; false means
// that a condition does not hold. After a lost answer it tries the same again,
// which does no harm because its conditions name revisions, and knows an earlier
// attempt by what its first operation leaves behind.
func (c *Catalog) commit(ctx context.Context, txn meta.Txn) (bool, error) {
	lost := false
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		r, err := c.store.Txn(ctx, txn)
		switch {
		case err == nil && (r.Done || !lost):
			return r.Done, nil
		case err != nil && !lost && !errors.Is(err, meta.ErrUncertain):
			return false, err
		}
		lost = true
		there, readErr := c.inEffect(ctx, txn.Ops[0])
		if readErr == nil && (there || err == nil) {
			return there, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, fmt.Errorf("%w: %w", meta.ErrUncertain, ctx.Err())
		}
	}
}

func (c *Catalog) inEffect(ctx context.Context, op meta.Op) (bool, error) {
	kv, err := c.store.Get(ctx, op.Key)
	if err != nil {
		return false, err
	}
	if op.Delete {
		return !kv.Exists(), nil
	}
	return kv.Exists() && bytes.Equal(kv.Value, op.Value), nil
}

// encode gives a record's bytes, the same for the same record. It panics on what
// cannot be: a message of ours that does not encode.
func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("catalog: %T does not encode: %v", m, err))
	}
	return b
}

// decode reads a record; bytes that are none are ledger.ErrCorrupt.
func decode(kv meta.KV, m proto.Message) error {
	if err := proto.Unmarshal(kv.Value, m); err != nil {
		return fmt.Errorf("record at %s: %v: %w", kv.Key, err, ledger.ErrCorrupt)
	}
	return nil
}

func (c *Catalog) millis() int64 { return c.now().UnixMilli() }
