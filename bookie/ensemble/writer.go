package ensemble

import (
	"context"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Writer is the one writer of a ledger. Safe for concurrent use.
type Writer struct{ c *Client }

// ID of the ledger.
func (w *Writer) ID() ledger.ID { panic("skeleton") }

// Metadata is the ledger's record as this writer last wrote it.
func (w *Writer) Metadata() ledger.Metadata { panic("skeleton") }

// Append adds one entry and returns its id. Ids are given in the order of the
// calls, from 0. It never blocks: when too many bytes are in flight it returns
// ErrTooBusy (beside ErrNotEnoughBookies when bookies are missing) and no id is
// used. bodyCRC is the CRC-32C of body, which nobody may alter from now on.
//
// done is called once, in the order of ids, one at a time, never from within
// Append: with nil when an ack quorum has the entry on disk and all entries
// before it are acknowledged; with an error when its outcome is unknown
// (ErrFenced, ErrClosed, ErrDeleted: another process decides; ErrStopping:
// Abandon). It must be quick and may call Append. The error of Append itself
// means that the entry has no id, and done is not called.
func (w *Writer) Append(body []byte, bodyCRC uint32, done func(ledger.EntryID, error)) (ledger.EntryID, error) {
	panic("skeleton")
}

// LAC is the last add confirmed.
func (w *Writer) LAC() ledger.EntryID { panic("skeleton") }

// Next is the id the next append will take.
func (w *Writer) Next() ledger.EntryID { panic("skeleton") }

// Bytes of all bodies appended.
func (w *Writer) Bytes() int64 { panic("skeleton") }

// Pending counts the entries appended and not yet answered, and their bytes.
func (w *Writer) Pending() (entries int, bytes int64) { panic("skeleton") }

// Failed is closed when the writer can do no more; Err says why.
func (w *Writer) Failed() <-chan struct{} { panic("skeleton") }

// Err is why the writer failed: nil while it works.
func (w *Writer) Err() error { panic("skeleton") }

// Reader reads the ledger while it is written, up to this writer's LAC.
func (w *Writer) Reader() *Reader { panic("skeleton") }

// Close takes no more appends, waits until those in flight are answered, and
// closes the ledger at its last entry. When ctx ends first the ledger is not
// closed, and Close or Seal may be called again. ErrFenced, ErrClosed,
// ErrDeleted: another process decided what the ledger holds.
func (w *Writer) Close(ctx context.Context) (ledger.Metadata, error) { panic("skeleton") }

// Unacked is an entry that was appended and never acknowledged.
type Unacked struct {
	Body []byte
	CRC  uint32
	Done func(ledger.EntryID, error) // as given to Append, not called yet
}

// Seal closes the ledger at its LAC without waiting for what is in flight, and
// returns that: these entries are surely not part of the ledger, their done
// functions are the caller's to call. When it returns an error that is ErrFenced,
// ErrClosed or ErrDeleted they are of unknown outcome and were answered so; after any other
// error nothing was answered, nothing will be acknowledged, and Seal may be
// called again.
func (w *Writer) Seal(ctx context.Context) (ledger.Metadata, []Unacked, error) { panic("skeleton") }

// Abandon gives the ledger up without closing it. Entries in flight are
// answered with ErrStopping: their outcome is unknown.
func (w *Writer) Abandon() { panic("skeleton") }
