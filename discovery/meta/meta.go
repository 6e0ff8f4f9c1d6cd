// Package meta is the seam to the metadata store: a small linearizable map with
// compare-and-swap transactions, watches by prefix, and sessions whose keys go
// when their process does.
//
// Etcd is the real one, and this package alone imports its client. Mem is a
// twin in memory that passes the same suite (metatest) and can be told to fail
// in every way the real one does.
package meta

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrUnavailable reports that the store could not be reached or did not
	// answer. A read has no answer; a Txn that returns it was surely not done.
	ErrUnavailable = errors.New("meta: metadata store is unavailable")
	// ErrUncertain reports that a Txn was sent and its answer was lost: it may
	// have been done. Read again before deciding.
	ErrUncertain = errors.New("meta: outcome of the transaction is unknown")
	// ErrCompacted reports that a watch asked for a revision the store no longer
	// keeps: range again, then watch from there.
	ErrCompacted = errors.New("meta: revision is compacted")
	// ErrSessionEnded reports that the session's lease ended.
	ErrSessionEnded = errors.New("meta: session has ended")
	// ErrNoSpace reports that the store refuses writes because its quota is full.
	ErrNoSpace = errors.New("meta: metadata store is out of space")
)

// Revision orders all changes of a store. A key that does not exist has
// revision 0.
type Revision int64

// KV is a key as it stands.
type KV struct {
	Key      string
	Value    []byte
	Revision Revision // of its last change; 0: does not exist
	Created  Revision // of its creation
}

// Exists reports whether the key is there.
func (kv KV) Exists() bool { return kv.Revision != 0 }

// Cond holds while the key's revision is exactly Revision; 0 asks that the key
// does not exist. With AnyRevision it asks only that the key exists.
type Cond struct {
	Key         string
	Revision    Revision
	AnyRevision bool
}

// Op puts or deletes one key.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
	// Session, when set, ties the key to that session: it goes when the session
	// ends.
	Session Session
}

// MaxOps is how many conditions and how many operations one Txn may have.
const MaxOps = 128

// Txn applies all of Ops if all of Conds hold, else nothing.
type Txn struct {
	Conds []Cond
	Ops   []Op
}

// TxnResult says whether the conditions held, and at which revision the store
// stood after the transaction.
type TxnResult struct {
	Done     bool
	Revision Revision
}

// Event is a change of one key; KV.Exists is false for a deletion.
type Event struct{ KV }

// Store is a linearizable map. Safe for concurrent use. Every call ends when
// its context does, with the context's error wrapped beside ErrUnavailable
// (reads) or ErrUncertain (a Txn already sent).
type Store interface {
	// Get reads one key, linearizably. A missing key is no error: KV.Exists.
	Get(ctx context.Context, key string) (KV, error)
	// Range reads the keys with start <= key < end in order, linearizably, at most
	// limit of them (0: all), and the revision it read at. end "" means the prefix
	// start.
	Range(ctx context.Context, start, end string, limit int) ([]KV, Revision, error)
	// Txn compares and swaps.
	Txn(ctx context.Context, t Txn) (TxnResult, error)
	// Watch delivers the changes under prefix after revision from, in order, each
	// batch complete up to its revision, until ctx ends or it fails.
	Watch(ctx context.Context, prefix string, from Revision) Watcher
	// NewSession starts a session that ends when it is closed or when the process
	// could not renew it for ttl.
	NewSession(ctx context.Context, ttl time.Duration) (Session, error)
	Close() error
}

// Watcher is a running watch, for one goroutine.
type Watcher interface {
	// Next waits for changes. It returns a batch with no events now and then to
	// tell how far the watch has come. After an error (ErrCompacted, the context's,
	// ErrUnavailable when it gave up) the watch is over.
	Next() (Batch, error)
}

// Batch is what a watch saw: all changes up to Revision since the batch before.
type Batch struct {
	Events   []Event
	Revision Revision
}

// Session is a lease kept alive in the background. Safe for concurrent use.
type Session interface {
	// ID names the lease, unique in this store for all time.
	ID() string
	// Ended is closed once the session is known to be over: closed, revoked, or
	// not renewed within its ttl by this process's clock.
	Ended() <-chan struct{}
	// Close ends the session and its keys now.
	Close(ctx context.Context) error
}
