package ensemble

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

// ErrConflict reports that a condition the caller gave (a guard, or one of the
// extra conditions) did not hold. Nothing was written.
var ErrConflict = errors.New("ensemble: a condition of the caller no longer holds")

// IDs gives out ledger ids that are never given out again; idblock.Allocator is
// one.
type IDs interface {
	// Next returns an unused id above the one given.
	Next(ctx context.Context, above uint64) (uint64, error)
}

// Options of a Client. Store, Layout, Directory and IDs are required; zero is
// the documented default elsewhere.
type Options struct {
	Store     meta.Store
	Layout    layout.Layout
	Directory Directory
	IDs       IDs
	// Session names the process in the records of ledgers it creates, nil: "".
	Session func() string

	// BudgetBytes bounds the bodies held for all writers; 0: 256 MiB. An append
	// beyond it is refused with ErrTooBusy.
	BudgetBytes int64
	// BookieBytes bounds what is sent to one bookie and not yet answered, and the
	// acknowledged bodies kept for bookies that lag; 0: a quarter of BudgetBytes.
	BookieBytes int64
	// AddTimeout after which a bookie that does not answer is suspect; 0: 2 s.
	AddTimeout time.Duration
	// RefillAfter is how long a slot may be vacant, failing or silent, while the
	// ledger does without it, before another bookie is put there; 0: 5 s.
	RefillAfter time.Duration
	// RepairAfter is how long an entry may have fewer than write quorum copies
	// before it is copied again; 0: 1 s.
	RepairAfter time.Duration
	// SuspectChanges bounds how often in a minute one bookie is replaced for being
	// slow; 0: 300. A bookie that fails is not counted.
	SuspectChanges int
	// HedgeAfter is how long the first read of an entry waits for one bookie
	// before it asks another; 0: three times the 99th percentile seen lately.
	HedgeAfter time.Duration
	// RecoveryReadBytes bounds one read of recovery from one bookie; 0: 1 MiB.
	RecoveryReadBytes int

	Log     hclog.Logger // nil: none
	Metrics *Metrics     // nil: none
	Now     func() time.Time
	Rand    func() uint64
}

// CreateRequest says what kind of ledger to create.
type CreateRequest struct {
	Quorum ledger.Quorum
	Class  ledger.Class
	Parent ledger.Parent
	// MinID: the new ledger's id is at least this.
	MinID ledger.ID
	// Guard must hold in the transaction that creates the ledger.
	Guard []meta.Cond
	// Extra returns further conditions and operations of the same transaction,
	// such as the key that links the ledger into its chain. It is called once for
	// each id tried; nil: none.
	Extra func(id ledger.ID) ([]meta.Cond, []meta.Op)
}

// Client creates, opens, recovers and deletes ledgers. Safe for concurrent use.
type Client struct{ opts Options }

// New returns a client; the error lists every fault of the options.
func New(opts Options) (*Client, error) { panic("skeleton") }

// Create makes a ledger and returns its writer. The record and what Extra asks
// for are written in one transaction. It waits for an ack quorum of writable
// bookies until ctx ends, then fails with ErrNotEnoughBookies. ErrConflict: a
// guard or extra condition did not hold.
func (c *Client) Create(ctx context.Context, r CreateRequest) (*Writer, error) { panic("skeleton") }

// Open returns a reader of a ledger in any state; it never fences.
// ErrNoLedger, ErrDeleted: there is none.
func (c *Client) Open(ctx context.Context, id ledger.ID) (*Reader, error) { panic("skeleton") }

// Recover shuts out whoever writes to the ledger, finds its last entry, closes
// it, and returns the closed record. A ledger already closed is returned as it
// is. guard must hold in the transaction that starts the recovery (ErrConflict).
// It retries what it could not find out until ctx ends.
func (c *Client) Recover(ctx context.Context, id ledger.ID, guard []meta.Cond) (ledger.Metadata, error) {
	panic("skeleton")
}

// Delete turns a ledger's record into a tombstone, and applies extra, in one
// transaction under guard. A ledger already deleted is no error.
func (c *Client) Delete(ctx context.Context, id ledger.ID, guard []meta.Cond, extra []meta.Op) error {
	panic("skeleton")
}

// DeleteOps returns the condition and operation that turn the ledger record in
// kv into a tombstone, for a caller's own transaction. ErrDeleted: it is one
// already, with nothing to do. ErrNoLedger: kv does not exist.
func (c *Client) DeleteOps(kv meta.KV) ([]meta.Cond, []meta.Op, error) { panic("skeleton") }

// Metadata reads a ledger's record, linearizably, and its revision.
func (c *Client) Metadata(ctx context.Context, id ledger.ID) (ledger.Metadata, meta.Revision, error) {
	panic("skeleton")
}

// Close stops the client's background work and waits for it. Writers still open
// are abandoned.
func (c *Client) Close() { panic("skeleton") }
