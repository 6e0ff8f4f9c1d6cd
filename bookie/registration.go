package bookie

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

var (
	// ErrReplaced reports storage whose bookie id has since been given to other
	// storage, or that is older than what the cluster saw of it.
	ErrReplaced = errors.New("bookie: storage was replaced")
	// ErrTaken reports a bookie id under which another live process is registered.
	ErrTaken = errors.New("bookie: id is in use by another bookie")
)

// RegistrationOptions say how a node makes itself known.
type RegistrationOptions struct {
	Store  meta.Store
	Layout layout.Layout
	// SessionTTL is how long the node stays listed after it was last heard of; 0: 5 s.
	SessionTTL time.Duration

	Address     string // where its gRPC service is reached
	HTTPAddress string
	Rack        string
	Version     string

	Log hclog.Logger
}

// Registration keeps a node's two records in the metadata store: the live one,
// which goes with its session, and the lasting one, which names its incarnation
// and counts its starts.
//
// A lapsed session is no reason to stop serving (M5): the node goes on and
// registers anew.
type Registration struct {
	node *Node
	opts RegistrationOptions
	log  hclog.Logger

	once       sync.Once
	registered chan struct{}
}

// NewRegistration returns a registration of node that begins with Run.
func NewRegistration(node *Node, opts RegistrationOptions) *Registration {
	if opts.SessionTTL == 0 {
		opts.SessionTTL = 5 * time.Second
	}
	if opts.Log == nil {
		opts.Log = hclog.NewNullLogger()
	}
	return &Registration{
		node:       node,
		opts:       opts,
		log:        opts.Log.Named("registration").With("bookie", node.identity.Bookie),
		registered: make(chan struct{}),
	}
}

// Registered is closed once the node has been registered for the first time.
func (r *Registration) Registered() <-chan struct{} { return r.registered }

// Run registers the node and keeps it registered until ctx ends, then takes the
// live record away and returns nil. It returns an error only where trying again
// cannot help: ErrForeign, ErrReplaced, ErrTaken.
func (r *Registration) Run(ctx context.Context) error {
	var wait backoff
	for ctx.Err() == nil {
		err := r.runSession(ctx, &wait)
		if errors.Is(err, ErrForeign) || errors.Is(err, ErrReplaced) || errors.Is(err, ErrTaken) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			r.log.Warn("not registered, trying again", "error", err)
			wait.sleep(ctx, r.node.opts.Rand)
		}
	}
	return nil
}

// startsEvery is how often a running node raises its count of starts.
const startsEvery = time.Hour

// runSession registers under a new session and stays until it or ctx ends.
func (r *Registration) runSession(ctx context.Context, wait *backoff) error {
	session, err := r.opts.Store.NewSession(ctx, r.opts.SessionTTL)
	if err != nil {
		return fmt.Errorf("start a session: %w", err)
	}
	defer r.closeSession(session)

	hourly := time.NewTicker(startsEvery)
	defer hourly.Stop()
	for {
		changed := r.node.Changed()
		if err := r.register(ctx, session); err != nil {
			return err
		}
		wait.reset()
		r.once.Do(func() { close(r.registered) })
		select {
		case <-ctx.Done():
			return nil
		case <-session.Ended():
			return meta.ErrSessionEnded
		case <-changed:
		case <-hourly.C:
			if err := r.node.raiseStarts(); err != nil {
				return err
			}
		}
	}
}

// closeSession takes the live record away at once instead of letting it lapse.
// It has a context of its own because the caller's may be over.
func (r *Registration) closeSession(session meta.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := session.Close(ctx); err != nil && !errors.Is(err, meta.ErrSessionEnded) {
		r.log.Debug("session not closed, it will lapse", "error", err)
	}
}

// register writes both records, in one transaction.
func (r *Registration) register(ctx context.Context, session meta.Session) error {
	id := r.node.identity
	if err := checkCluster(ctx, r.opts.Store, r.opts.Layout, id.Cluster); err != nil {
		return err
	}
	liveKey, lastingKey := r.opts.Layout.Bookie(id.Bookie), r.opts.Layout.BookieIdentity(id.Bookie)
	live, err := r.waitForOther(ctx, liveKey)
	if err != nil {
		return err
	}
	exists, known, revision, err := lastingIdentity(ctx, r.opts.Store, lastingKey)
	if err != nil {
		return err
	}
	local := r.node.startCounts()
	verdict, err := judgeIdentity(id, local, exists, known)
	if err != nil {
		return err
	}

	var past []string
	txn := meta.Txn{Conds: []meta.Cond{{Key: liveKey, Revision: live.Revision}, {Key: lastingKey, Revision: revision}}}
	if verdict == storeRolledBack {
		r.node.distrustStore()
		r.log.Error("the metadata store shows less than this bookie has registered: it was rolled back. Registered read-only, deleting nothing; restore the store from a newer backup",
			"registered", local.registered, "shown", known.GetStartCount())
	} else {
		record := lastingRecord(id, local.count, known)
		past = record.GetPastIncarnations()
		value, err := proto.Marshal(record)
		if err != nil {
			return fmt.Errorf("encode %s: %w", lastingKey, err)
		}
		txn.Ops = append(txn.Ops, meta.Op{Key: lastingKey, Value: value})
	}
	value, err := proto.Marshal(r.liveRecord(verdict == storeRolledBack))
	if err != nil {
		return fmt.Errorf("encode %s: %w", liveKey, err)
	}
	txn.Ops = append(txn.Ops, meta.Op{Key: liveKey, Value: value, Session: session})
	result, err := r.opts.Store.Txn(ctx, txn)
	if err != nil {
		return fmt.Errorf("write %s: %w", liveKey, err)
	}
	if !result.Done {
		return fmt.Errorf("write %s: changed meanwhile", liveKey)
	}
	if verdict == storeRolledBack {
		return nil
	}
	if err := r.node.noteRegistered(local.count); err != nil {
		return err
	}
	r.node.trustStore(past)
	return nil
}

// lastingIdentity reads what the store knows of a bookie.
func lastingIdentity(ctx context.Context, store meta.Store, key string) (exists bool, known *metav1.BookieIdentity, revision meta.Revision, err error) {
	kv, err := store.Get(ctx, key)
	if err != nil {
		return false, nil, 0, fmt.Errorf("read %s: %w", key, err)
	}
	known = new(metav1.BookieIdentity)
	if err := proto.Unmarshal(kv.Value, known); err != nil {
		return false, nil, 0, fmt.Errorf("decode %s: %w", key, err)
	}
	return kv.Exists(), known, kv.Revision, nil
}

func (r *Registration) liveRecord(readOnly bool) *metav1.Bookie {
	d := r.node.Describe()
	return metav1.Bookie_builder{
		Incarnation:    new(r.node.identity.Incarnation),
		Address:        new(r.opts.Address),
		HttpAddress:    new(r.opts.HTTPAddress),
		Rack:           new(r.opts.Rack),
		Version:        new(r.opts.Version),
		ReadOnly:       new(d.ReadOnly || readOnly),
		Pid:            new(int64(os.Getpid())),
		DiskFreeBytes:  new(d.DiskFreeBytes),
		DiskTotalBytes: new(d.DiskTotalBytes),
		MaxEntryBytes:  new(d.MaxEntryBytes),
	}.Build()
}

// waitForOther returns the live record as it stands, once it is not that of a
// living process with other storage. One with the same storage is an earlier
// life of this node: the lock on its directory says that it is over.
func (r *Registration) waitForOther(ctx context.Context, key string) (meta.KV, error) {
	var other metav1.Bookie
	for waited := time.Duration(0); waited <= 3*r.opts.SessionTTL; waited += r.opts.SessionTTL / 4 {
		kv, err := r.opts.Store.Get(ctx, key)
		if err != nil {
			return kv, fmt.Errorf("read %s: %w", key, err)
		}
		if err := proto.Unmarshal(kv.Value, &other); err != nil {
			return kv, fmt.Errorf("decode %s: %w", key, err)
		}
		if !kv.Exists() || other.GetIncarnation() == r.node.identity.Incarnation {
			return kv, nil
		}
		if !sleep(ctx, r.opts.SessionTTL/4) {
			return kv, ctx.Err()
		}
	}
	return meta.KV{}, fmt.Errorf("%w: %s is registered from %s (pid %d) with other storage; stop that one, or start this one under another id",
		ErrTaken, r.node.identity.Bookie, other.GetAddress(), other.GetPid())
}

// checkCluster refuses a store that is of another cluster than the storage.
func checkCluster(ctx context.Context, store meta.Store, keys layout.Layout, want string) error {
	kv, err := store.Get(ctx, keys.Cluster())
	if err != nil {
		return fmt.Errorf("read %s: %w", keys.Cluster(), err)
	}
	if !kv.Exists() {
		return fmt.Errorf("%s does not exist: the metadata store is empty", keys.Cluster())
	}
	var cluster metav1.Cluster
	if err := proto.Unmarshal(kv.Value, &cluster); err != nil {
		return fmt.Errorf("decode %s: %w", keys.Cluster(), err)
	}
	if cluster.GetId() != want {
		return fmt.Errorf("%w: the metadata store is of cluster %s, the data directory of cluster %s; start the bookie with its own cluster's metadata",
			ErrForeign, cluster.GetId(), want)
	}
	return nil
}

type identityVerdict int

const (
	storeCurrent identityVerdict = iota
	storeRolledBack
)

// judgeIdentity compares what the node remembers with the store's lasting record
// of it (M7, B4). A store that shows less than was registered was rolled back;
// one that shows more than was ever counted here says that this storage was.
func judgeIdentity(id Identity, local starts, exists bool, known *metav1.BookieIdentity) (identityVerdict, error) {
	switch {
	case !exists && local.registered > 0:
		return storeRolledBack, nil
	case !exists:
		return storeCurrent, nil
	case slices.Contains(known.GetPastIncarnations(), id.Incarnation):
		return 0, fmt.Errorf("%w: bookie %s now has incarnation %s, this directory is its earlier %s; empty it to use it again",
			ErrReplaced, id.Bookie, known.GetIncarnation(), id.Incarnation)
	case known.GetIncarnation() != id.Incarnation && local.registered > 0:
		return storeRolledBack, nil
	case known.GetIncarnation() != id.Incarnation:
		return storeCurrent, nil
	case known.GetStartCount() > local.count:
		return 0, fmt.Errorf("%w: the cluster saw start %d of bookie %s, this directory knows %d: it is an older copy and may have forgotten fences and entries; empty it so that it starts as a new incarnation",
			ErrReplaced, known.GetStartCount(), id.Bookie, local.count)
	case known.GetStartCount() < local.registered:
		return storeRolledBack, nil
	}
	return storeCurrent, nil
}

func lastingRecord(id Identity, count uint64, known *metav1.BookieIdentity) *metav1.BookieIdentity {
	past := known.GetPastIncarnations()
	if known.GetIncarnation() != "" && known.GetIncarnation() != id.Incarnation {
		past = append(past, known.GetIncarnation())
	}
	return metav1.BookieIdentity_builder{
		Incarnation:      new(id.Incarnation),
		StartCount:       new(count),
		PastIncarnations: past,
	}.Build()
}
