package ensemble

import (
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// DeleteOps returns the condition and operation that turn the ledger record in
// kv into a tombstone, for a caller's own transaction. The tombstone lists the
// bookies that have to confirm the deletion (M4). ErrDeleted: it is one already.
// ErrNoLedger: there is no record.
func (c *Client) DeleteOps(kv meta.KV) ([]meta.Cond, []meta.Op, error) {
	id, ok := c.opts.Layout.ParseLedger(kv.Key)
	if !ok {
		return nil, nil, fmt.Errorf("%q is no key of a ledger: %w", kv.Key, ledger.ErrNoLedger)
	}
	md, rev, err := decodeRecord(ledger.ID(id), kv)
	if err != nil {
		return nil, nil, err
	}
	tomb, err := c.tombstone(&md)
	if err != nil {
		return nil, nil, err
	}
	value, err := tomb.Encode()
	if err != nil {
		return nil, nil, err
	}
	return []meta.Cond{{Key: kv.Key, Revision: rev}}, []meta.Op{{Key: kv.Key, Value: value}}, nil
}

// tombstone returns the record that md becomes when it is deleted.
func (c *Client) tombstone(md *ledger.Metadata) (ledger.Metadata, error) {
	if md.State == ledger.Deleted {
		return ledger.Metadata{}, fmt.Errorf("ledger %d: %w", md.ID, ledger.ErrDeleted)
	}
	t := md.Clone()
	t.State, t.Owed, t.DeletedAt = ledger.Deleted, md.Members(), c.stamp()
	t.Fragments, t.LastEntry, t.Length, t.Verify = nil, ledger.NoEntry, 0, false
	return t, ledger.CheckTransition(md, &t)
}

// Delete turns a ledger's record into a tombstone, and applies extra, in one
// transaction under guard. When it is a tombstone already, extra is applied all
// the same. ErrConflict: the guard did not hold. ErrNoLedger: there is no record.
func (c *Client) Delete(ctx context.Context, id ledger.ID, guard []meta.Cond, extra []meta.Op) error {
	for {
		md, rev, err := c.Metadata(ctx, id)
		if err != nil {
			return fmt.Errorf("delete ledger %d: %w", id, err)
		}
		next := md
		if md.State != ledger.Deleted {
			if next, err = c.tombstone(&md); err != nil {
				return fmt.Errorf("delete ledger %d: %w", id, err)
			}
		} else if len(extra) == 0 {
			return nil
		}
		_, err = c.putRecord(ctx, rev, &next, guard, extra)
		var moved *movedError
		if !errors.As(err, &moved) {
			return err
		}
	}
}
