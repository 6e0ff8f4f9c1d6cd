package client

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// Errors that calls return wrapped, with what they concern. Decide with
// errors.Is. An error of Send is definite, the message is not stored, unless it
// wraps ErrUnknownOutcome.
var (
	// ErrUnknownOutcome reports a publish whose answer was not heard: the message
	// may or may not be stored. Publishing it again may store it twice, unless the
	// producer is named and numbers its messages itself (WithSequences).
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrNotFound reports a topic, namespace or subscription that does not exist.
	ErrNotFound = errors.New("not found")
	// ErrInvalid reports an argument that is wrong whatever the state.
	ErrInvalid = errors.New("invalid argument")
	// ErrTooLarge reports a message above the topic's limit or the memory budget.
	ErrTooLarge = errors.New("message too large")
	// ErrBusy reports a name that is taken: a producer of that name is connected,
	// or a subscription has consumers that leave no room for this one.
	ErrBusy = errors.New("busy")
	// ErrFenced reports a producer whose name another one took over.
	ErrFenced = errors.New("fenced")
	// ErrQuota reports a quota that is used up.
	ErrQuota = errors.New("quota exceeded")
	// ErrUnavailable reports a cluster that cannot serve the call just now.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnsupported reports what this cluster does not offer.
	ErrUnsupported = errors.New("not supported")
	// ErrCorrupt reports an entry whose bytes are damaged.
	ErrCorrupt = errors.New("corrupt")
	// ErrClosed reports a call on something that was closed.
	ErrClosed = errors.New("closed")
	// ErrVoid reports an acknowledgement of a message that a seek made void.
	ErrVoid = errors.New("message is void")
	// ErrInternal reports a fault on the other side.
	ErrInternal = errors.New("internal error")
)

// Retryable reports whether the same call may succeed later without anything
// being changed, and cannot do harm: it is false for ErrUnknownOutcome.
func Retryable(err error) bool {
	if errors.Is(err, ErrUnknownOutcome) {
		return false
	}
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBusy) || errors.Is(err, ErrQuota)
}

// sentinels of the codes in which a broker refuses or ends something. Codes that
// are not here the client handles itself, by looking up or opening again.
var sentinels = map[brokerv1.Code]error{
	brokerv1.Code_CODE_INVALID:                ErrInvalid,
	brokerv1.Code_CODE_CHECKSUM:               ErrInvalid,
	brokerv1.Code_CODE_TOPIC_NOT_FOUND:        ErrNotFound,
	brokerv1.Code_CODE_TOPIC_DELETED:          ErrNotFound,
	brokerv1.Code_CODE_SUBSCRIPTION_NOT_FOUND: ErrNotFound,
	brokerv1.Code_CODE_SUBSCRIPTION_BUSY:      ErrBusy,
	brokerv1.Code_CODE_PRODUCER_BUSY:          ErrBusy,
	brokerv1.Code_CODE_PRODUCER_FENCED:        ErrFenced,
	brokerv1.Code_CODE_TOO_LARGE:              ErrTooLarge,
	brokerv1.Code_CODE_QUOTA:                  ErrQuota,
	brokerv1.Code_CODE_UNSUPPORTED:            ErrUnsupported,
	brokerv1.Code_CODE_STALE_ROUTING:          ErrUnavailable,
	brokerv1.Code_CODE_UNAVAILABLE:            ErrUnavailable,
	brokerv1.Code_CODE_MOVED:                  ErrUnavailable,
	brokerv1.Code_CODE_INTERNAL:               ErrInternal,
}

// codeError is what a broker said. Unwrap gives the sentinel.
type codeError struct {
	code    brokerv1.Code
	message string
	movedTo string
}

func (e *codeError) Error() string {
	if e.message != "" {
		return e.message
	}
	return e.code.String()
}

func (e *codeError) Unwrap() error {
	if s := sentinels[e.code]; s != nil {
		return s
	}
	return ErrUnavailable
}

// permanent reports whether opening again cannot help.
func (e *codeError) permanent() bool {
	switch e.code {
	case brokerv1.Code_CODE_INVALID, brokerv1.Code_CODE_TOPIC_NOT_FOUND, brokerv1.Code_CODE_TOPIC_DELETED,
		brokerv1.Code_CODE_SUBSCRIPTION_NOT_FOUND, brokerv1.Code_CODE_PRODUCER_FENCED, brokerv1.Code_CODE_UNSUPPORTED:
		return true
	}
	return false
}

// definite reports whether a refused batch stays refused however often it is
// sent.
func (e *codeError) definite() bool {
	switch e.code {
	case brokerv1.Code_CODE_INVALID, brokerv1.Code_CODE_TOO_LARGE, brokerv1.Code_CODE_UNSUPPORTED, brokerv1.Code_CODE_QUOTA:
		return true
	}
	return false
}

// fromStatus turns the error of a unary call into one of ours.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	return fmt.Errorf("%s: %w", s.Message(), fromGRPCCode(s.Code()))
}

func fromGRPCCode(c codes.Code) error {
	switch c {
	case codes.NotFound:
		return ErrNotFound
	case codes.InvalidArgument:
		return ErrInvalid
	case codes.ResourceExhausted:
		return ErrQuota
	case codes.Unimplemented:
		return ErrUnsupported
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.AlreadyExists:
		return ErrInvalid
	case codes.Internal, codes.DataLoss, codes.Unknown:
		return ErrInternal
	}
	return ErrUnavailable
}

// giveUp reports whether an answer of the discovery service is final.
func giveUp(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnsupported)
}

// unknownOutcome says that what failed for cause may have been done.
func unknownOutcome(cause error) error { return fmt.Errorf("%w: %w", ErrUnknownOutcome, cause) }
