package ensemble

import (
	"context"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Reader reads entries of one ledger, checks them, and asks another bookie when
// one fails. Safe for concurrent use; it holds nothing that must be closed.
type Reader struct{ c *Client }

// ID of the ledger.
func (r *Reader) ID() ledger.ID { panic("skeleton") }

// Metadata is the ledger's record as last read.
func (r *Reader) Metadata() ledger.Metadata { panic("skeleton") }

// Read returns entries from first on, at least one, at most up to last. The run
// may end early: at maxBytes of bodies (0: the bookie's limit) or at the end of
// a fragment. With headBytes above 0 each body is cut to so many bytes, and its
// checksum cannot be checked.
//
// ErrBeyondLAC: first is beyond what is known to be acknowledged. An entry that
// no bookie gives is an error, never the end of the ledger.
func (r *Reader) Read(ctx context.Context, first, last ledger.EntryID, maxBytes, headBytes int) ([]ledger.Entry, error) {
	panic("skeleton")
}

// LAC is the highest entry known to be acknowledged; the last entry once the
// ledger is closed.
func (r *Reader) LAC() ledger.EntryID { panic("skeleton") }

// Poll asks for news of an open ledger: it returns the LAC, which never falls,
// and whether the ledger is closed, which makes that its last entry.
func (r *Reader) Poll(ctx context.Context) (lac ledger.EntryID, closed bool, err error) {
	panic("skeleton")
}
