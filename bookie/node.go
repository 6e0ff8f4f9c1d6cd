package bookie

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/magnetar-io/magnetar/bookie/internal/coldstore"
	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/internal/ledgertable"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Node is one storage node. It has the methods of ensemble.Bookie for callers in
// the same process; Register serves others. Safe for concurrent use.
type Node struct {
	opts     Options
	log      hclog.Logger
	metrics  *metrics
	lock     io.Closer // of the data directory
	identity Identity

	table *ledgertable.Table
	hot   *hotlog.Log
	cold  *coldstore.Store
	index *index.Index

	// deletes is held from noting a deletion to handing it to the log, and while the
	// set of deleted ledgers is copied into it. Taken before the table's locks.
	deletes sync.Mutex

	gate     gate // of what appends
	readGate gate // of what reads
	inFlight budget
	reading  readBudget
	streams  atomic.Int64 // of adds, open now
	disk     *disk

	registry registry
	upkeep   upkeep
}

// registry is what the node and the metadata store know of each other.
type registry struct {
	mu      sync.Mutex // guards all; the file of starts is written under it
	starts  starts
	trusted bool     // registered, and the store is not older than what it was told (M7)
	past    []string // earlier incarnations of this bookie
}

// Open opens the node's directory, formats it if it is empty, and reads back what
// was stored. An error says what is wrong, where, and what to do: ErrLocked,
// ErrDataDir, ErrForeign, ErrNewer, ledger.ErrCorrupt.
func Open(opts Options) (*Node, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	if opts.Metrics != nil {
		opts.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"bookie": opts.ID}, opts.Metrics)
	}
	n := &Node{opts: opts, log: opts.Log.Named("bookie").With("bookie", opts.ID)}
	if err := vfs.MkdirAllSync(opts.FS, opts.Dir); err != nil {
		return nil, fmt.Errorf("%w: make %s: %w; pass another with --data-dir", ErrDataDir, opts.Dir, err)
	}
	lock, err := opts.FS.Lock(filepath.Join(opts.Dir, lockFile))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w: another process has %s open; stop it, or name another directory: %w", ErrLocked, opts.Dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: lock %s: %w; check its owner and mode, or pass another with --data-dir", ErrDataDir, opts.Dir, err)
	}
	n.lock = lock
	if err := n.open(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return n, nil
}

func (n *Node) open() error {
	o := &n.opts
	usage, err := o.FS.Usage(o.Dir)
	if err != nil {
		return fmt.Errorf("size of the disk under %s: %w", o.Dir, err)
	}
	n.identity, err = openIdentity(o.FS, o.Dir, Identity{
		Cluster:      o.Cluster,
		Bookie:       o.ID,
		Incarnation:  fmt.Sprintf("%016x%016x", o.Rand(), o.Rand()),
		ReserveBytes: o.reserve(usage.TotalBytes),
	})
	if err != nil {
		return err
	}
	n.disk = newDisk(n.identity.ReserveBytes)
	n.upkeep.init()
	n.table = new(ledgertable.Table)
	// What was taken before the disk was found full is still written: it must leave
	// most of the reserve (M28).
	n.inFlight.limit = min(o.MemoryBytes/8, n.identity.ReserveBytes/4)
	n.reading = newReadBudget(o.MemoryBytes / 8)
	if n.metrics, err = newMetrics(o.Metrics, n); err != nil {
		return fmt.Errorf("bookie: register metrics: %w", err)
	}
	if n.registry.starts, err = readStarts(o.FS, o.Dir); err != nil {
		return err
	}
	if err := n.raiseStarts(); err != nil {
		return err
	}
	if err := n.openStorage(); err != nil {
		return err
	}
	n.measure()
	n.upkeep.start(n)
	n.log.Info("bookie is open", "dir", o.Dir, "incarnation", n.identity.Incarnation, "ledgers", n.table.Len())
	return nil
}

// reserve is how much disk is kept back, for a disk of total bytes.
func (o *Options) reserve(total uint64) int64 {
	if o.ReserveBytes > 0 {
		return o.ReserveBytes
	}
	disk := int64(min(total, 1<<62))
	if o.DiskBytes > 0 {
		disk = min(disk, o.DiskBytes)
	}
	return min(max(disk/20, 4*o.SegmentBytes), disk/4)
}

// Close refuses new work, answers what was taken, and closes the files. The gRPC
// server that serves the node is stopped before.
func (n *Node) Close() error {
	if !n.gate.close() {
		return nil
	}
	n.upkeep.stop()
	n.readGate.close()
	return errors.Join(n.closeStorage(), n.lock.Close())
}

// Member is the node as ensembles name it.
func (n *Node) Member() ledger.Member { return n.identity.Member() }

// Identity is whose storage the node's directory is.
func (n *Node) Identity() Identity { return n.identity }

// Changed returns a channel that is closed at the next change of whether the node
// takes data.
func (n *Node) Changed() <-chan struct{} { return n.disk.next() }

// Describe is what the node says of itself.
func (n *Node) Describe() ledger.Description {
	s := n.disk.state()
	d := ledger.Description{
		Member:         n.identity.Member(),
		ReadOnly:       s.level != levelOpen,
		ReadOnlyReason: n.disk.reason(s),
		Ledgers:        uint64(n.table.Len()),
		HotBytes:       uint64(n.hotBytes()),
		ColdBytes:      uint64(n.cold.Usage().FileBytes),
		DiskFreeBytes:  s.freeBytes,
		DiskTotalBytes: s.totalBytes,
		MaxEntryBytes:  uint64(n.opts.MaxEntryBytes()),
	}
	if n.table.Limbo() {
		d.ReadOnly, d.ReadOnlyReason = true, "the log lost records: replace this bookie's storage"
	}
	return d
}

// hotBytes is what the log takes on disk, without files kept for reuse.
func (n *Node) hotBytes() int64 {
	u := n.hot.Usage()
	return u.DiskBytes - u.SpareBytes
}

// window is how many unanswered bytes a stream of adds may have: its share of what
// may be in flight, less as the log fills faster than it is emptied (M30, M31).
func (n *Node) window() uint64 {
	share := min(max(n.inFlight.limit/max(n.streams.Load(), 1), minWindow), maxWindow)
	return uint64(max(int64(float64(share)*n.upkeep.room()), minWindow))
}

const (
	minWindow = 256 << 10
	maxWindow = 16 << 20
)

// raiseStarts counts a start, durably.
func (n *Node) raiseStarts() error {
	n.registry.mu.Lock()
	defer n.registry.mu.Unlock()
	next := n.registry.starts
	next.count++
	return n.writeStartsLocked(next)
}

// noteRegistered remembers, durably, that the metadata store has count.
func (n *Node) noteRegistered(count uint64) error {
	n.registry.mu.Lock()
	defer n.registry.mu.Unlock()
	if n.registry.starts.registered >= count {
		return nil
	}
	next := n.registry.starts
	next.registered = count
	return n.writeStartsLocked(next)
}

func (n *Node) writeStartsLocked(s starts) error {
	if err := writeStarts(n.opts.FS, n.opts.Dir, s); err != nil {
		return err
	}
	n.registry.starts = s
	return nil
}

func (n *Node) startCounts() starts {
	n.registry.mu.Lock()
	defer n.registry.mu.Unlock()
	return n.registry.starts
}

// trustStore says that the node is registered in a store that has forgotten
// nothing, and which earlier incarnations it knows.
func (n *Node) trustStore(past []string) {
	n.registry.mu.Lock()
	defer n.registry.mu.Unlock()
	n.registry.trusted, n.registry.past = true, past
}

// distrustStore says that the store was rolled back.
func (n *Node) distrustStore() {
	n.registry.mu.Lock()
	defer n.registry.mu.Unlock()
	n.registry.trusted = false
}

func (n *Node) storeTrusted() bool {
	n.registry.mu.Lock()
	defer n.registry.mu.Unlock()
	return n.registry.trusted
}

// succeeds reports whether incarnation is an earlier one of this bookie.
func (n *Node) succeeds(incarnation string) bool {
	n.registry.mu.Lock()
	defer n.registry.mu.Unlock()
	return slices.Contains(n.registry.past, incarnation)
}
