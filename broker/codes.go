package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// errMoved ends the producers and consumers of a bundle that is given up.
var errMoved = errors.New("the topic moves to another broker")

// codeTable says how an error of a topic reads on a stream. The first row whose
// error is in the chain counts, so what says more comes first.
var codeTable = []struct {
	err  error
	code brokerv1.Code
}{
	{errMoved, brokerv1.Code_CODE_MOVED},
	{rpcerr.ErrNotOwner, brokerv1.Code_CODE_MOVED},
	{topic.ErrUnknownOutcome, brokerv1.Code_CODE_UNKNOWN_OUTCOME},
	{topic.ErrInvalid, brokerv1.Code_CODE_INVALID},
	{topic.ErrChecksum, brokerv1.Code_CODE_CHECKSUM},
	{topic.ErrTooLarge, brokerv1.Code_CODE_TOO_LARGE},
	{topic.ErrOutOfOrder, brokerv1.Code_CODE_OUT_OF_ORDER},
	{topic.ErrOverCredit, brokerv1.Code_CODE_OVER_CREDIT},
	{topic.ErrStaleRouting, brokerv1.Code_CODE_STALE_ROUTING},
	{topic.ErrNoBookies, brokerv1.Code_CODE_QUOTA},
	{topic.ErrHold, brokerv1.Code_CODE_UNAVAILABLE},
	{topic.ErrFenced, brokerv1.Code_CODE_PRODUCER_FENCED},
	{topic.ErrNoSubscription, brokerv1.Code_CODE_SUBSCRIPTION_NOT_FOUND},
	{producer.ErrBusy, brokerv1.Code_CODE_PRODUCER_BUSY},
	{producer.ErrFull, brokerv1.Code_CODE_QUOTA},
	{subscription.ErrBusy, brokerv1.Code_CODE_SUBSCRIPTION_BUSY},
	{subscription.ErrReplaced, brokerv1.Code_CODE_SUBSCRIPTION_BUSY},
	{subscription.ErrDeleted, brokerv1.Code_CODE_SUBSCRIPTION_NOT_FOUND},
	{subscription.ErrUnsupported, brokerv1.Code_CODE_UNSUPPORTED},
	{subscription.ErrInvalid, brokerv1.Code_CODE_INVALID},
	{subscription.ErrTooBusy, brokerv1.Code_CODE_UNAVAILABLE},
	{subscription.ErrOverCredit, brokerv1.Code_CODE_OVER_CREDIT},
	{errTopicDeleted, brokerv1.Code_CODE_TOPIC_DELETED},
	{rpcerr.ErrNotFound, brokerv1.Code_CODE_TOPIC_NOT_FOUND},
	{topicname.ErrInvalid, brokerv1.Code_CODE_INVALID},
	{rpcerr.ErrInvalid, brokerv1.Code_CODE_INVALID},
	{rpcerr.ErrUnsupported, brokerv1.Code_CODE_UNSUPPORTED},
	{topic.ErrClosed, brokerv1.Code_CODE_UNAVAILABLE},
	{subscription.ErrClosed, brokerv1.Code_CODE_UNAVAILABLE},
	{rpcerr.ErrUnavailable, brokerv1.Code_CODE_UNAVAILABLE},
	{meta.ErrUnavailable, brokerv1.Code_CODE_UNAVAILABLE},
	{meta.ErrUncertain, brokerv1.Code_CODE_UNAVAILABLE},
	{ledger.ErrNotEnoughBookies, brokerv1.Code_CODE_UNAVAILABLE},
	{ledger.ErrUnknown, brokerv1.Code_CODE_UNAVAILABLE},
	{ledger.ErrStopping, brokerv1.Code_CODE_UNAVAILABLE},
	{ledger.ErrFenced, brokerv1.Code_CODE_UNAVAILABLE},
	{context.DeadlineExceeded, brokerv1.Code_CODE_UNAVAILABLE},
	{context.Canceled, brokerv1.Code_CODE_UNAVAILABLE},
}

// codeOf is the code of an error on a stream.
func codeOf(err error) brokerv1.Code {
	for _, row := range codeTable {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return brokerv1.Code_CODE_INTERNAL
}

// rewrap adds to err the sentinel that table has for it.
func rewrap(err error, table []struct{ is, as error }) error {
	for _, row := range table {
		if errors.Is(err, row.is) {
			return fmt.Errorf("%w: %w", row.as, err)
		}
	}
	return err
}
