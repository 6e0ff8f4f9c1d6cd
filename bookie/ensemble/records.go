package ensemble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// Metadata reads a ledger's record, linearizably, and its revision. ErrNoLedger:
// there is none. A tombstone is returned like any other record.
func (c *Client) Metadata(ctx context.Context, id ledger.ID) (ledger.Metadata, meta.Revision, error) {
	kv, err := c.opts.Store.Get(ctx, c.opts.Layout.Ledger(int64(id)))
	if err != nil {
		return ledger.Metadata{}, 0, fmt.Errorf("read the record of ledger %d: %w", id, err)
	}
	return decodeRecord(id, kv)
}

func decodeRecord(id ledger.ID, kv meta.KV) (ledger.Metadata, meta.Revision, error) {
	if !kv.Exists() {
		return ledger.Metadata{}, 0, fmt.Errorf("ledger %d has no record: %w", id, ledger.ErrNoLedger)
	}
	md, err := ledger.Decode(id, kv.Value)
	return md, kv.Revision, err
}

// movedError reports that a record is not, or no longer, at the revision a write
// expected; now is how it stands.
type movedError struct {
	id  ledger.ID
	now meta.KV
}

func (e *movedError) Error() string {
	return fmt.Sprintf("the record of ledger %d moved on to revision %d", e.id, e.now.Revision)
}

const (
	firstStorePause = 10 * time.Millisecond
	maxStorePause   = time.Second
)

// putRecord writes md over the record at revision rev (0: none yet), with the
// caller's conditions and operations in the same transaction, and returns its
// new revision. It knows its own write by its value when the answer was lost,
// and goes on until the outcome is definite or ctx ends: only an error that is
// meta.ErrUncertain leaves it open.
//
// movedError: the record is at another revision. ErrConflict: it is not, so a
// condition of the caller failed. Other errors: surely not written.
func (c *Client) putRecord(ctx context.Context, rev meta.Revision, md *ledger.Metadata, conds []meta.Cond, ops []meta.Op) (meta.Revision, error) {
	value, err := md.Encode()
	if err != nil {
		return 0, err
	}
	key := c.opts.Layout.Ledger(int64(md.ID))
	txn := meta.Txn{
		Conds: append([]meta.Cond{{Key: key, Revision: rev}}, conds...),
		Ops:   append([]meta.Op{{Key: key, Value: value}}, ops...),
	}
	for pause, open := firstStorePause, false; ; pause = min(2*pause, maxStorePause) {
		r, err := c.opts.Store.Txn(ctx, txn)
		switch {
		case err == nil && r.Done:
			return r.Revision, nil
		case err != nil && !open && !errors.Is(err, meta.ErrUncertain):
			return 0, fmt.Errorf("write the record of ledger %d: %w", md.ID, err)
		}
		// Lost, or not done. An earlier attempt whose answer was lost may still
		// arrive, so only what the store shows decides.
		open = open || err != nil
		kv, getErr := c.opts.Store.Get(ctx, key)
		switch {
		case getErr != nil:
			if !open {
				return 0, fmt.Errorf("write the record of ledger %d: %w", md.ID, getErr)
			}
		case kv.Revision != rev && open && bytes.Equal(kv.Value, value):
			return kv.Revision, nil
		case kv.Revision != rev:
			return 0, &movedError{id: md.ID, now: kv}
		case err == nil:
			return 0, fmt.Errorf("write the record of ledger %d: %w", md.ID, ErrConflict)
		}
		if sleepErr := sleep(ctx, pause); sleepErr != nil {
			return 0, fmt.Errorf("write the record of ledger %d: %w: %w", md.ID, meta.ErrUncertain, sleepErr)
		}
	}
}
