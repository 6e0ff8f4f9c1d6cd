package meta

import (
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
)

func fromEtcd(kv *mvccpb.KeyValue) KV {
	return KV{
		Key:      string(kv.Key),
		Value:    kv.Value,
		Revision: Revision(kv.ModRevision),
		Created:  Revision(kv.CreateRevision),
	}
}

// readError classifies the failure of a call that changes nothing.
func readError(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return fmt.Errorf("%w: %w", ErrCompacted, err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return fmt.Errorf("%w: %w", ErrSessionEnded, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// txnError classifies the failure of a Txn, of which something was sent or not.
// What the server refuses before it proposes the transaction was surely not
// done; of anything else that was sent nobody can say.
func txnError(err error, sent bool) error {
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return fmt.Errorf("%w: %w", ErrSessionEnded, err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, rpctypes.ErrTooManyRequests), errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var refused rpctypes.EtcdError
	if errors.As(err, &refused) && refused.Code() == codes.InvalidArgument {
		return fmt.Errorf("meta: transaction refused: %w", err) // the caller's mistake: too large
	}
	if !sent {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %w", ErrUncertain, err)
}
