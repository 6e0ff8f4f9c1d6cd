package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// ErrNotOwner reports that a transaction made as owner found the owner key
// changed or the owner's session gone. Somebody else owns the bundle, or nobody
// does: drop it.
var ErrNotOwner = errors.New("chain: not the owner any more")

// Owned reads the keys of an owner's guard again, linearizably, and reports
// whether all of its conditions hold. It is the question to ask after a bookie
// said "fenced": yes, reopen the chain; no, drop the bundle at once; an error,
// ask again.
func Owned(ctx context.Context, store meta.Store, guard []meta.Cond) (bool, error) {
	for _, c := range guard {
		kv, err := store.Get(ctx, c.Key)
		if err != nil {
			return false, fmt.Errorf("read guard %s: %w", c.Key, err)
		}
		if c.AnyRevision && !kv.Exists() || !c.AnyRevision && kv.Revision != c.Revision {
			return false, nil
		}
	}
	return true, nil
}

// Commit makes a transaction under guard, as owner, and returns its revision.
// When it was refused, or its answer was lost, Commit reads again: if every key
// stands as the transaction would leave it, an earlier try of ours was done.
//
// ErrNotOwner: the guard no longer holds. ErrMoved: the guard holds, but another
// condition of t does not. Other errors: not known, make it again.
func Commit(ctx context.Context, store meta.Store, guard []meta.Cond, t meta.Txn) (meta.Revision, error) {
	t.Conds = append(append([]meta.Cond(nil), guard...), t.Conds...)
	res, err := store.Txn(ctx, t)
	switch {
	case err == nil && res.Done:
		return res.Revision, nil
	case err != nil && !errors.Is(err, meta.ErrUncertain):
		return 0, err
	}
	rev, there, readErr := stands(ctx, store, t.Ops)
	switch {
	case readErr != nil:
		return 0, errors.Join(readErr, err)
	case there:
		return rev, nil
	case err != nil:
		return 0, err
	}
	owned, err := Owned(ctx, store, guard)
	switch {
	case err != nil:
		return 0, err
	case !owned:
		return 0, ErrNotOwner
	}
	return 0, ErrMoved
}

// stands reports whether all keys are as ops would leave them, and the revision
// of those that were put.
func stands(ctx context.Context, store meta.Store, ops []meta.Op) (rev meta.Revision, there bool, err error) {
	for _, op := range ops {
		kv, err := store.Get(ctx, op.Key)
		switch {
		case err != nil:
			return 0, false, fmt.Errorf("read %s again: %w", op.Key, err)
		case op.Delete && kv.Exists(), !op.Delete && (!kv.Exists() || !bytes.Equal(kv.Value, op.Value)):
			return 0, false, nil
		case !op.Delete:
			rev = kv.Revision
		}
	}
	return rev, true, nil
}

// ErrMoved reports that a record changed under the owner's feet. Nobody but the
// owner writes it, so it was an earlier transaction of the owner itself: read
// the record again.
var ErrMoved = errors.New("chain: record has moved on")

// Recover is the ledger client's Recover made as owner: when the guard is what
// refused it, the error is ErrNotOwner.
func Recover(ctx context.Context, ledgers *ensemble.Client, store meta.Store, id ledger.ID, guard []meta.Cond) (ledger.Metadata, error) {
	md, err := ledgers.Recover(ctx, id, guard)
	if errors.Is(err, ensemble.ErrConflict) {
		if owned, ownErr := Owned(ctx, store, guard); ownErr == nil && !owned {
			return md, fmt.Errorf("%w: %w", ErrNotOwner, err)
		}
	}
	return md, err
}
