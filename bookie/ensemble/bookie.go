package ensemble

import (
	"context"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Bookie is one storage node as a ledger client sees it. Safe for concurrent
// use.
type Bookie interface {
	// Add stores one entry. It never blocks. done is called exactly once, on any
	// goroutine, also from within Add: with nil after the entry is on disk there,
	// with one of package ledger's errors when it was refused, with any other
	// error when the outcome is unknown.
	Add(a ledger.Add, done func(error))
	// Fence shuts writers below term out; the term is on disk there before the
	// answer. ErrUnknown comes with a reply: the bookie fenced the ledger but
	// cannot say what it holds. ErrFenced means that a higher term exists.
	Fence(ctx context.Context, id ledger.ID, term int64) (ledger.FenceReply, error)
	// Read returns a run of entries.
	Read(ctx context.Context, r ledger.ReadRequest) (ledger.ReadReply, error)
	// Info returns what the bookie knows of a ledger.
	Info(ctx context.Context, id ledger.ID) (ledger.Info, error)
	// List returns the ids of at most limit ledgers above after, in order.
	List(ctx context.Context, after ledger.ID, limit int) (ids []ledger.ID, more bool, err error)
}

// Directory says who can store. Safe for concurrent use.
type Directory interface {
	// Bookie returns the connection to a bookie; an error when it is not known. It
	// never dials while the caller waits.
	Bookie(m ledger.Member) (Bookie, error)
	// Candidates returns the live bookies.
	Candidates() []Candidate
	// Changed returns a channel that is closed at the next change of Candidates.
	// Take it before Candidates, so that no change falls between.
	Changed() <-chan struct{}
}

// Candidate is a live bookie.
type Candidate struct {
	Member   ledger.Member
	Rack     string // "": unknown, which counts as a rack of its own
	ReadOnly bool   // takes adds of Control ledgers only
	// MaxBodyBytes is the largest body it takes; 0: not known, and held to be
	// ledger.MaxBodyBytes.
	MaxBodyBytes int64
}

// takes reports whether a body of so many bytes fits.
func (c Candidate) takes(bodyBytes int64) bool {
	return c.MaxBodyBytes == 0 || bodyBytes <= c.MaxBodyBytes
}
