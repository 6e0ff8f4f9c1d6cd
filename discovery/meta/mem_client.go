package meta

import (
	"context"
	"fmt"
)

// MemClient is one process's connection to a Mem. Safe for concurrent use.
type MemClient struct {
	m    *Mem
	name string
	cut  bool // guarded by m.mu

	life  context.Context // ends with Close
	close context.CancelFunc
}

var (
	_ Store = (*Mem)(nil)
	_ Store = (*MemClient)(nil)
)

// errClosed answers what is asked of a closed store.
var errClosed = fmt.Errorf("client is closed: %w", ErrUnavailable)

// Client returns a new client. Clients see the same state; one can be cut off,
// or closed as if its process had died, without the others.
func (m *Mem) Client(name string) *MemClient {
	life, close := context.WithCancel(context.Background())
	return &MemClient{m: m, name: name, life: life, close: close}
}

// Cut makes this client's calls fail with ErrUnavailable, not done, until it is
// called with false. Its watches see nothing meanwhile and catch up afterwards;
// its sessions cannot be renewed.
func (c *MemClient) Cut(cut bool) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.cut = cut
	c.m.wakeLocked()
}

// Close ends the client as the death of its process would: its watches and
// sessions end for their owners, and the store keeps the sessions' keys until
// their ttl has passed.
func (c *MemClient) Close() error {
	c.close()
	return nil
}

func (c *MemClient) Get(ctx context.Context, key string) (KV, error) {
	kv, err := do(ctx, c, Call{Kind: CallGet, Key: key}, ErrUnavailable, func() (KV, error) {
		return c.m.getLocked(key), nil
	})
	if err != nil {
		return KV{}, fmt.Errorf("get %s: %w", key, err)
	}
	return kv, nil
}

func (c *MemClient) Range(ctx context.Context, start, end string, limit int) ([]KV, Revision, error) {
	type found struct {
		kvs []KV
		at  Revision
	}
	f, err := do(ctx, c, Call{Kind: CallRange, Key: start}, ErrUnavailable, func() (found, error) {
		return found{c.m.rangeLocked(start, end, limit), c.m.revision}, nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("range from %s: %w", start, err)
	}
	return f.kvs, f.at, nil
}

func (c *MemClient) Txn(ctx context.Context, t Txn) (TxnResult, error) {
	if err := t.check(); err != nil {
		return TxnResult{}, err
	}
	r, err := do(ctx, c, Call{Kind: CallTxn, Key: t.firstKey(), Txn: t}, ErrUncertain, func() (TxnResult, error) {
		return c.m.txnLocked(t)
	})
	if err != nil {
		return TxnResult{}, fmt.Errorf("txn on %s: %w", t.firstKey(), err)
	}
	return r, nil
}

// firstKey names a transaction in errors.
func (t Txn) firstKey() string {
	switch {
	case len(t.Ops) > 0:
		return t.Ops[0].Key
	case len(t.Conds) > 0:
		return t.Conds[0].Key
	}
	return ""
}
