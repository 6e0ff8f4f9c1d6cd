package catalog

import (
	"context"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/meta"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// Owner says who owns a bundle.
type Owner struct {
	Broker  string
	Session string
	Epoch   uint64 // raised by each change of owner
}

// Bundle is a bundle's two records. A bundle exists as long as its log record
// does, and has an owner as long as its owner record does.
type Bundle struct {
	bundle.Bundle
	Owner         Owner // zero when OwnerRevision is 0
	OwnerRevision meta.Revision
	Ledgers       []ledger.ID // of its log, oldest first
	LogRevision   meta.Revision
}

// DecodeOwner reads an owner record. It has an epoch, and a broker with its session
// or neither.
func DecodeOwner(kv meta.KV) (Owner, error) {
	var r metav1.BundleOwner
	if err := decode(kv, &r); err != nil {
		return Owner{}, err
	}
	o := Owner{Broker: r.GetBroker(), Session: r.GetSession(), Epoch: r.GetEpoch()}
	if o.Epoch == 0 || (o.Broker == "") != (o.Session == "") {
		return Owner{}, fmt.Errorf("owner record at %s: broker %q, session %q, epoch %d: %w", kv.Key, o.Broker, o.Session, o.Epoch, ledger.ErrCorrupt)
	}
	return o, nil
}

// Bundles reads the bundles of a namespace, of all for "", in order, as they
// were at one revision.
func (c *Catalog) Bundles(ctx context.Context, namespace string) ([]Bundle, error) {
	kvs, _, err := c.store.Range(ctx, c.layout.Bundles(namespace), "", 0)
	if err != nil {
		return nil, fmt.Errorf("list bundles: %w", err)
	}
	var out []Bundle
	for _, kv := range kvs {
		name, kind, ok := c.layout.ParseBundle(kv.Key)
		if !ok {
			continue
		}
		id, err := bundle.Parse(name)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", kv.Key, err)
		}
		if len(out) == 0 || out[len(out)-1].Bundle != id {
			out = append(out, Bundle{Bundle: id})
		}
		b := &out[len(out)-1]
		switch kind {
		case "owner":
			b.Owner, err = DecodeOwner(kv)
			b.OwnerRevision = kv.Revision
		case "log":
			b.Ledgers, err = decodeLog(kv)
			b.LogRevision = kv.Revision
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func decodeLog(kv meta.KV) ([]ledger.ID, error) {
	var r metav1.BundleLog
	if err := decode(kv, &r); err != nil {
		return nil, err
	}
	var ids []ledger.ID
	for _, s := range r.GetSegments() {
		if id := ledger.ID(s.GetLedger()); len(ids) == 0 || ids[len(ids)-1] != id {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// deleteBundles removes the bundles of a namespace that is closed and empty. The
// ledgers of a log become tombstones first, which its owner cannot hinder; the
// keys go in one transaction once all of them are.
func (c *Catalog) deleteBundles(ctx context.Context, namespace string) error {
	for {
		bundles, err := c.Bundles(ctx, namespace)
		if err != nil {
			return err
		}
		if len(bundles) == 0 {
			return nil
		}
		for _, b := range bundles {
			if err := c.deleteBundle(ctx, b); err != nil {
				return fmt.Errorf("bundle %s: %w", b, err)
			}
		}
	}
}

// deleteBundle removes a bundle unless its log or owner changed since b was
// read; the caller reads again.
func (c *Catalog) deleteBundle(ctx context.Context, b Bundle) error {
	owner, log := c.layout.BundleOwner(b.String()), c.layout.BundleLog(b.String())
	if b.OwnerRevision != 0 { // the owner drops the bundle before its log goes
		done, err := c.commit(ctx, meta.Txn{
			Conds: []meta.Cond{{Key: owner, Revision: b.OwnerRevision}},
			Ops:   []meta.Op{{Key: owner, Delete: true}},
		})
		if err != nil || !done {
			return err
		}
	}
	for _, id := range b.Ledgers {
		if err := c.tombstone(ctx, id); err != nil {
			return err
		}
	}
	_, err := c.commit(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: owner}, {Key: log, Revision: b.LogRevision}},
		Ops:   []meta.Op{{Key: log, Delete: true}},
	})
	return err
}

// tombstone marks a ledger as deleted, naming the bookies that have to confirm.
func (c *Catalog) tombstone(ctx context.Context, id ledger.ID) error {
	key := c.layout.Ledger(int64(id))
	for {
		kv, err := c.store.Get(ctx, key)
		if err != nil || !kv.Exists() {
			return err
		}
		md, err := ledger.Decode(id, kv.Value)
		if err != nil || md.State == ledger.Deleted {
			return err
		}
		tomb := md.Clone()
		tomb.State, tomb.Owed, tomb.DeletedAt = ledger.Deleted, md.Members(), c.now()
		tomb.Fragments, tomb.LastEntry, tomb.Length, tomb.Verify = nil, ledger.NoEntry, 0, false
		value, err := tomb.Encode()
		if err != nil {
			return err
		}
		done, err := c.commit(ctx, meta.Txn{
			Conds: []meta.Cond{{Key: key, Revision: kv.Revision}},
			Ops:   []meta.Op{{Key: key, Value: value}},
		})
		if err != nil || done {
			return err
		}
	}
}
