package discovery

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// ErrOutrun reports that a record changed before it could be replaced: somebody
// else was faster, or our own session is over.
var ErrOutrun = errors.New("discovery: the record has changed")

// WriteOwner replaces the owner record of a bundle, at revision from (0: there
// is none), by one that names owner, as long as the bundle exists and own, the
// writer's registration, holds. It returns the new record's revision.
//
// ErrOutrun: it was surely not written. Other errors: not known; look again.
func WriteOwner(ctx context.Context, store meta.Store, l layout.Layout, own meta.Cond, b bundle.Bundle, from meta.Revision, owner catalog.Owner) (meta.Revision, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(metav1.BundleOwner_builder{
		Broker:  proto.String(owner.Broker),
		Session: proto.String(owner.Session),
		Epoch:   proto.Uint64(owner.Epoch),
	}.Build())
	if err != nil {
		return 0, fmt.Errorf("encode the owner of bundle %s: %w", b, err)
	}
	key := l.BundleOwner(b.String())
	result, err := store.Txn(ctx, meta.Txn{
		Conds: []meta.Cond{own, {Key: key, Revision: from}, {Key: l.BundleLog(b.String()), AnyRevision: true}},
		Ops:   []meta.Op{{Key: key, Value: value}},
	})
	switch {
	case err == nil && result.Done:
		return result.Revision, nil
	case err != nil && !errors.Is(err, meta.ErrUncertain):
		return 0, fmt.Errorf("write the owner of bundle %s: %w", b, err)
	}
	// Outrun, unless by an earlier attempt of our own.
	kv, readErr := store.Get(ctx, key)
	if readErr != nil {
		return 0, fmt.Errorf("read the owner of bundle %s again: %w", b, readErr)
	}
	if now, decodeErr := catalog.DecodeOwner(kv); kv.Exists() && decodeErr == nil && now == owner {
		return kv.Revision, nil
	}
	if err != nil && kv.Revision == from {
		return 0, fmt.Errorf("write the owner of bundle %s: %w", b, err) // it may arrive yet
	}
	return 0, fmt.Errorf("bundle %s: %w", b, ErrOutrun)
}

// endSession ends the session of a broker that was proven gone, as long as own,
// the writer's registration, holds (M6). ErrOutrun: either has changed.
func endSession(ctx context.Context, store meta.Store, l layout.Layout, own meta.Cond, gone BrokerInfo) error {
	key := l.Broker(gone.ID)
	result, err := store.Txn(ctx, meta.Txn{
		Conds: []meta.Cond{own, {Key: key, Revision: gone.Revision}},
		Ops:   []meta.Op{{Key: key, Delete: true}},
	})
	if err == nil && !result.Done {
		err = ErrOutrun
	}
	if err != nil {
		return fmt.Errorf("end the session of broker %s: %w", gone.ID, err)
	}
	return nil
}
