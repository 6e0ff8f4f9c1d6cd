package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
)

// removal takes away a record that others are created under: mark it, so that
// nothing new is created; look; then remove it, or take the mark back. A process
// that dies in between leaves the mark, and whoever removes it next goes on.
type removal struct {
	key  string
	what string
	// empty returns the name of something that is still there, or "".
	empty func(ctx context.Context) (string, error)
	// mark returns the record with its mark set or cleared.
	mark func(kv meta.KV, deleting bool) ([]byte, error)
	// before is done once the record is marked and empty; nil: nothing.
	before func(ctx context.Context) error
}

func (c *Catalog) remove(ctx context.Context, r removal) error {
	done, err := c.removeOnce(ctx, r)
	for err == nil && !done { // someone else took the mark back meanwhile
		done, err = c.removeOnce(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", r.what, err)
	}
	return nil
}

func (c *Catalog) removeOnce(ctx context.Context, r removal) (bool, error) {
	marked, err := c.setMark(ctx, r, true)
	if err != nil {
		return false, err
	}
	left, err := r.empty(ctx)
	if err != nil {
		return false, err
	}
	if left != "" {
		if _, err := c.setMark(ctx, r, false); err != nil {
			return false, err
		}
		return false, fmt.Errorf("not empty, it has %s: %w", left, rpcerr.ErrRefused)
	}
	if r.before != nil {
		if err := r.before(ctx); err != nil {
			return false, err
		}
	}
	return c.commit(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: r.key, Revision: marked}},
		Ops:   []meta.Op{{Key: r.key, Delete: true}},
	})
}

// setMark writes the record with its mark set or cleared, and returns the
// revision it has then. It writes even when nothing changes: what others decided
// on the record before is void.
func (c *Catalog) setMark(ctx context.Context, r removal, deleting bool) (meta.Revision, error) {
	for {
		kv, err := c.store.Get(ctx, r.key)
		if err != nil {
			return 0, err
		}
		if !kv.Exists() {
			return 0, rpcerr.ErrNotFound
		}
		value, err := r.mark(kv, deleting)
		if err != nil {
			return 0, err
		}
		result, err := c.store.Txn(ctx, meta.Txn{
			Conds: []meta.Cond{{Key: r.key, Revision: kv.Revision}},
			Ops:   []meta.Op{{Key: r.key, Value: value}},
		})
		if err != nil && !errors.Is(err, meta.ErrUncertain) {
			return 0, err
		}
		if err == nil && result.Done {
			return result.Revision, nil
		}
	}
}
