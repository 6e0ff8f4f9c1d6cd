// Package wire is what a bookie and its client must agree on beyond the generated
// messages: which error is which status, and how entries stand in a payload.
package wire

import (
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

// ErrInvalid reports a request that no bookie could answer.
var ErrInvalid = errors.New("bookie: invalid request")

// statuses is the one table of errors that travel as a status.
var statuses = []struct {
	err    error
	status bookiev1.Status
}{
	{ledger.ErrNoEntry, bookiev1.Status_STATUS_ABSENT},
	{ledger.ErrUnknown, bookiev1.Status_STATUS_UNKNOWN},
	{ledger.ErrFenced, bookiev1.Status_STATUS_FENCED},
	{ledger.ErrNoLedger, bookiev1.Status_STATUS_NO_LEDGER},
	{ledger.ErrDeleted, bookiev1.Status_STATUS_DELETED},
	{ledger.ErrTooBusy, bookiev1.Status_STATUS_TOO_BUSY},
	{ledger.ErrReadOnly, bookiev1.Status_STATUS_READ_ONLY},
	{ledger.ErrCorrupt, bookiev1.Status_STATUS_CORRUPT},
	{ledger.ErrIncarnation, bookiev1.Status_STATUS_WRONG_INCARNATION},
	{ledger.ErrStopping, bookiev1.Status_STATUS_STOPPING},
	{ErrInvalid, bookiev1.Status_STATUS_INVALID},
	{ledger.ErrTooLarge, bookiev1.Status_STATUS_TOO_LARGE},
}

// StatusOf returns the status that stands for err; false when none does: then
// the outcome is unknown and the call has to fail as a whole.
func StatusOf(err error) (bookiev1.Status, bool) {
	if err == nil {
		return bookiev1.Status_STATUS_OK, true
	}
	for _, row := range statuses {
		if errors.Is(err, row.err) {
			return row.status, true
		}
	}
	return 0, false
}

// remoteError is an error that a bookie answered, with its words.
type remoteError struct {
	sentinel error
	message  string
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.sentinel }

// ErrorOf returns the error that a status stands for; nil for OK. A status this
// build does not know is an error that wraps no sentinel: outcome unknown.
func ErrorOf(status bookiev1.Status, message string) error {
	if status == bookiev1.Status_STATUS_OK {
		return nil
	}
	for _, row := range statuses {
		if row.status == status {
			if message == "" {
				return row.err
			}
			return &remoteError{sentinel: row.err, message: message}
		}
	}
	return fmt.Errorf("bookie: answered status %d: %s", status, message)
}

// ReadStatus returns how a status of a read entry reads; ok is false where it
// stands for an error of the whole read.
func ReadStatus(status bookiev1.Status) (s ledger.ReadStatus, ok bool) {
	switch status {
	case bookiev1.Status_STATUS_OK:
		return ledger.Found, true
	case bookiev1.Status_STATUS_ABSENT:
		return ledger.Absent, true
	case bookiev1.Status_STATUS_UNKNOWN:
		return ledger.Unknown, true
	}
	return ledger.Unknown, false
}

// StatusOfRead is the other direction of ReadStatus.
func StatusOfRead(s ledger.ReadStatus) bookiev1.Status {
	switch s {
	case ledger.Found:
		return bookiev1.Status_STATUS_OK
	case ledger.Absent:
		return bookiev1.Status_STATUS_ABSENT
	}
	return bookiev1.Status_STATUS_UNKNOWN
}
