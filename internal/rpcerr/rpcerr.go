// Package rpcerr carries errors across gRPC: From turns a domain error into a
// status with a reason, To turns such a status back into an error that wraps the
// same sentinel. The table in this package is the only one.
//
// Only standard codes are used, and the caller's duty follows from the code
// alone; the reason, in an ErrorInfo detail, says which sentinel it was.
package rpcerr

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// Sentinels of nodes that no package below owns.
var (
	// ErrNotFound reports that what was named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrInvalid reports an argument that is wrong whatever the state.
	ErrInvalid = errors.New("invalid argument")
	// ErrExists reports that what was to be created exists.
	ErrExists = errors.New("already exists")
	// ErrRefused reports a call that the present state forbids: a namespace that
	// is not empty, a subscription with consumers.
	ErrRefused = errors.New("refused")
	// ErrNotOwner reports that this broker does not own the bundle. Look up again;
	// NotOwnerError may tell where.
	ErrNotOwner = errors.New("not the owner of the bundle")
	// ErrVersion reports that a record changed since it was read. Read again,
	// decide again.
	ErrVersion = errors.New("metadata version moved on")
	// ErrQuota reports a quota or budget that is used up. Back off.
	ErrQuota = errors.New("quota exceeded")
	// ErrUnavailable reports a node that is starting, draining or cut off from
	// what it needs. Retry with back-off.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnsupported reports a feature this build does not have.
	ErrUnsupported = errors.New("not supported")
)

// NotOwnerError is ErrNotOwner with what the one asked knows of the owner.
type NotOwnerError struct {
	Bundle  string
	Owner   string // broker id; empty: not known
	Address string
}

func (e *NotOwnerError) Error() string {
	if e.Owner == "" {
		return fmt.Sprintf("bundle %s: %v", e.Bundle, ErrNotOwner)
	}
	return fmt.Sprintf("bundle %s: %v: it is %s at %s", e.Bundle, ErrNotOwner, e.Owner, e.Address)
}

func (e *NotOwnerError) Unwrap() error { return ErrNotOwner }

// row ties a sentinel to what stands for it on the wire.
type row struct {
	err    error
	code   codes.Code
	reason string
}

// domain is that of our ErrorInfo details.
const domain = "magnetar"

// table is searched in order: where an error wraps several sentinels the first
// row counts, so what must not be mistaken for a retryable failure stands first.
var table = []row{
	{ledger.ErrFenced, codes.FailedPrecondition, "LEDGER_FENCED"},
	{ledger.ErrClosed, codes.FailedPrecondition, "LEDGER_CLOSED"},
	{ledger.ErrIncarnation, codes.FailedPrecondition, "WRONG_INCARNATION"},
	{ErrNotOwner, codes.FailedPrecondition, "NOT_OWNER"},
	{ErrRefused, codes.FailedPrecondition, "REFUSED"},
	{ledger.ErrDeleted, codes.NotFound, "LEDGER_DELETED"},
	{ledger.ErrNoLedger, codes.NotFound, "NO_LEDGER"},
	{ledger.ErrNoEntry, codes.NotFound, "NO_ENTRY"},
	{ErrNotFound, codes.NotFound, "NOT_FOUND"},
	{ErrExists, codes.AlreadyExists, "EXISTS"},
	{ledger.ErrCorrupt, codes.DataLoss, "CORRUPT"},
	{entry.ErrCorrupt, codes.DataLoss, "ENTRY_CORRUPT"},
	{ledger.ErrTooLarge, codes.InvalidArgument, "LEDGER_ENTRY_TOO_LARGE"},
	{entry.ErrTooLarge, codes.InvalidArgument, "ENTRY_TOO_LARGE"},
	{topicname.ErrInvalid, codes.InvalidArgument, "INVALID_NAME"},
	{ErrInvalid, codes.InvalidArgument, "INVALID"},
	{ErrUnsupported, codes.Unimplemented, "UNSUPPORTED"},
	{ErrVersion, codes.Aborted, "VERSION"},
	{ledger.ErrBeyondLAC, codes.OutOfRange, "BEYOND_LAC"},
	{ledger.ErrTooBusy, codes.ResourceExhausted, "TOO_BUSY"},
	{ledger.ErrReadOnly, codes.ResourceExhausted, "READ_ONLY"},
	{meta.ErrNoSpace, codes.ResourceExhausted, "METADATA_NO_SPACE"},
	{ErrQuota, codes.ResourceExhausted, "QUOTA"},
	{meta.ErrCompacted, codes.OutOfRange, "METADATA_COMPACTED"},
	{ledger.ErrUnknown, codes.Unavailable, "STATE_UNKNOWN"},
	{ledger.ErrNotEnoughBookies, codes.Unavailable, "NOT_ENOUGH_BOOKIES"},
	{ledger.ErrStopping, codes.Unavailable, "STOPPING"},
	{meta.ErrUncertain, codes.Unavailable, "METADATA_UNCERTAIN"},
	{meta.ErrUnavailable, codes.Unavailable, "METADATA_UNAVAILABLE"},
	{meta.ErrSessionEnded, codes.Unavailable, "SESSION_ENDED"},
	{ErrUnavailable, codes.Unavailable, "UNAVAILABLE"},
	{context.Canceled, codes.Canceled, "CANCELED"},
	{context.DeadlineExceeded, codes.DeadlineExceeded, "DEADLINE_EXCEEDED"},
}

// plain says what a status without a reason of ours stands for.
var plain = map[codes.Code]error{
	codes.NotFound:           ErrNotFound,
	codes.InvalidArgument:    ErrInvalid,
	codes.AlreadyExists:      ErrExists,
	codes.FailedPrecondition: ErrRefused,
	codes.Aborted:            ErrVersion,
	codes.ResourceExhausted:  ErrQuota,
	codes.Unavailable:        ErrUnavailable,
	codes.Unimplemented:      ErrUnsupported,
	codes.Canceled:           context.Canceled,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
}

// From returns err as a status error for the wire; nil and io.EOF as they are.
// An error of no known kind that carries a status keeps it, any other becomes
// INTERNAL.
func From(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	for _, r := range table {
		if !errors.Is(err, r.err) {
			continue
		}
		info := &errdetails.ErrorInfo{Domain: domain, Reason: r.reason}
		var not *NotOwnerError
		if errors.As(err, &not) {
			info.Metadata = map[string]string{"bundle": not.Bundle, "owner": not.Owner, "address": not.Address}
		}
		s, detailErr := status.New(r.code, err.Error()).WithDetails(info)
		if detailErr != nil {
			return status.Error(r.code, err.Error())
		}
		return s.Err()
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// To returns a status error that came over the wire as an error that wraps its
// sentinel, and the text the other side gave it. Other errors, nil and io.EOF
// come back as they are.
func To(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range s.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != domain {
			continue
		}
		for _, r := range table {
			if r.reason == info.GetReason() && r.code == s.Code() {
				return &remoteError{s, sentinel(r.err, info), true}
			}
		}
	}
	if sentinel, ok := plain[s.Code()]; ok {
		return &remoteError{s, sentinel, false}
	}
	return err
}

func sentinel(err error, info *errdetails.ErrorInfo) error {
	if m := info.GetMetadata(); err == ErrNotOwner && m["bundle"] != "" {
		return &NotOwnerError{Bundle: m["bundle"], Owner: m["owner"], Address: m["address"]}
	}
	return err
}

// remoteError is an error another process told us.
type remoteError struct {
	status   *status.Status
	sentinel error
	reasoned bool // it came with a reason of ours
}

// Told reports whether a process of ours gave err as its answer: what gRPC says of
// its own, such as that nobody listens, carries no reason.
func Told(err error) bool {
	var remote *remoteError
	return errors.As(err, &remote) && remote.reasoned
}

func (e *remoteError) Error() string {
	if e.status.Message() == "" {
		return e.sentinel.Error()
	}
	return e.status.Message()
}

func (e *remoteError) Unwrap() error { return e.sentinel }

// GRPCStatus lets a process that passes the error on keep its code.
func (e *remoteError) GRPCStatus() *status.Status { return e.status }
