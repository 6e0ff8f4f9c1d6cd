// Package standalone runs all roles in one process: metadata, bookies, a broker
// and discovery. It is what `magnetar standalone` starts, and whole-system tests.
//
// The broker calls the bookies directly; nothing but clients goes over gRPC.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/metaserver"
	"github.com/magnetar-io/magnetar/internal/httpadmin"
	"github.com/magnetar-io/magnetar/internal/process"
	"github.com/magnetar-io/magnetar/internal/roles"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Options of a Node. DataDir and GRPC are required; zero is the documented
// default elsewhere.
type Options struct {
	DataDir string
	GRPC    net.Listener // the node closes it
	HTTP    net.Listener // nil: no health and metrics over HTTP
	Debug   net.Listener // nil: no pprof

	Bookies         int   // 0: 1; 1, 2 and 3 or more keep 1, 2 and 3 copies
	MemoryBytes     int64 // 0: 512 MiB
	MaxMessageBytes int64 // 0: 5 MiB
	LedgerBytes     int64 // 0: 256 MiB
	HotBytes        int64 // of each bookie; see bookie.Options
	DiskBytes       int64 // all bookies together may use so much; 0: what the disk has
	NoSync          bool
	Version         string
	Log             hclog.Logger

	// FS is where bookies keep their data; nil: the host's files.
	FS vfs.FS
	// Store is a metadata store to use, which the caller closes; nil: etcd in this
	// process, under DataDir.
	Store meta.Store
	// Fatal is called when a bookie may not go on; nil: the process ends.
	Fatal func(error)
	Now   func() time.Time
	Rand  func() uint64
}

// Quorum is how many copies a number of bookies keeps.
func Quorum(bookies int) ledger.Quorum {
	switch {
	case bookies <= 1:
		return ledger.Quorum{Write: 1, Ack: 1}
	case bookies == 2:
		return ledger.Quorum{Write: 2, Ack: 2}
	}
	return ledger.Quorum{Write: 3, Ack: 2}
}

// Validate refuses a largest message that the node's own bookies could not store.
func (o Options) Validate() error {
	copies := int64(max(o.Bookies, 1))
	body := broker.LargestBody(o.MaxMessageBytes)
	takes := bookie.Options{HotBytes: o.HotBytes, DiskBytes: o.DiskBytes / copies}.MaxEntryBytes()
	around := broker.LargestBody(1) - 1
	switch {
	case body <= takes:
		return nil
	case body > ledger.MaxBodyBytes:
		return fmt.Errorf("messages of up to %d bytes cannot be stored: lower --max-message-bytes to at most %d", o.MaxMessageBytes, ledger.MaxBodyBytes-around)
	}
	return fmt.Errorf("messages of up to %d bytes do not fit in the log segments of a bookie, which follow from the disk it may take: raise --disk-limit to at least %d, or lower --max-message-bytes to at most %d",
		body-around, copies*bookie.LeastDiskBytes(body), takes-around)
}

// Node is a running node.
type Node struct {
	opts    Options
	servers *process.Servers
	lock    interface{ Close() error }
	server  *metaserver.Server
	store   meta.Store
	unwatch func() // ends the watch over the store's answers
	bookies []*roles.Bookie
	broker  *roles.Broker
}

// brokerID names the broker of a standalone node; there is one.
const brokerID = "standalone"

// Start starts a node and returns once it is ready to serve. ctx bounds the start
// only.
func Start(ctx context.Context, o Options) (*Node, error) {
	if o.Bookies == 0 {
		o.Bookies = 1
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 512 << 20
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	n := &Node{opts: o}
	if err := o.Validate(); err != nil {
		n.closeListeners()
		return nil, fmt.Errorf("options of the node: %w", err)
	}
	if err := n.start(ctx); err != nil {
		n.abandon()
		return nil, err
	}
	return n, nil
}

func (n *Node) start(ctx context.Context) error {
	o := &n.opts
	limits := rpc.Limits{Profile: rpc.ClientFacing}
	n.servers = process.New(o.Log, rpc.ServerOptions(limits, rpcerr.ServerOptions()...), "metadata", "bookies", "broker")
	if err := n.openDir(); err != nil {
		return err
	}
	n.servers.StartHTTP(o.HTTP, o.Debug) // what takes long now is told there
	if err := n.openStore(ctx); err != nil {
		return err
	}
	n.unwatch = roles.WatchMetadata(n.store, n.servers.Health)
	common := roles.Common{
		Cluster: "magnetar", Store: meta.Measured(n.store, n.servers.Registry), Version: o.Version, Log: o.Log, Metrics: n.servers.Registry, Now: o.Now, Rand: o.Rand,
	}
	members := map[ledger.Member]ensemble.Bookie{}
	for i := range o.Bookies {
		b, err := n.startBookie(ctx, common, i)
		if err != nil {
			return err
		}
		n.bookies = append(n.bookies, b)
		members[b.Node.Member()] = b.Node
	}
	for _, b := range n.bookies {
		select {
		case <-b.Registration.Registered():
		case err := <-b.Failed():
			return err
		case <-ctx.Done():
			return fmt.Errorf("register the bookies: %w", ctx.Err())
		}
	}
	n.servers.Health.Set("bookies", "")
	address := o.GRPC.Addr().String()
	http := ""
	if o.HTTP != nil {
		http = o.HTTP.Addr().String()
	}
	var err error
	n.broker, err = roles.NewBroker(ctx, roles.BrokerOptions{
		Common: common, ID: brokerID, Address: address, HTTPAddress: http,
		MemoryBytes: o.MemoryBytes / 2, MaxMessageBytes: o.MaxMessageBytes, LedgerBytes: o.LedgerBytes, Quorum: Quorum(o.Bookies),
		Local: func(m ledger.Member) (ensemble.Bookie, bool) { b, ok := members[m]; return b, ok },
	})
	if err != nil {
		return err
	}
	n.broker.Register(n.servers.GRPC)
	n.servers.HandleHTTP(httpadmin.Pattern, n.broker.HTTPAdmin())
	n.servers.StartGRPC(o.GRPC)
	if err := n.broker.Start(ctx); err != nil {
		return err
	}
	n.servers.Health.Set("broker", "")
	return nil
}

// ErrDataDir reports a data directory that cannot be made or written. Nothing was
// changed.
var ErrDataDir = errors.New("data directory cannot be used")

// openDir makes and locks the data directory. Its name is on disk before anything
// is stored under it: else a power cut takes all of it, whatever was synced inside.
func (n *Node) openDir() error {
	dir := n.opts.DataDir
	if err := vfs.MkdirAllSync(n.opts.FS, dir); err != nil {
		return fmt.Errorf("%w: make %s: %w; pass another with --data-dir", ErrDataDir, dir, err)
	}
	lock, err := n.opts.FS.Lock(filepath.Join(dir, "LOCK"))
	switch {
	case errors.Is(err, vfs.ErrLocked):
		return fmt.Errorf("data directory %s is in use by another process; stop that one, or pass another with --data-dir: %w", dir, err)
	case err != nil:
		return fmt.Errorf("%w: lock %s: %w; check its owner and mode, or pass another with --data-dir", ErrDataDir, dir, err)
	}
	n.lock = lock
	return nil
}

func (n *Node) openStore(ctx context.Context) error {
	if n.opts.Store != nil {
		n.store = n.opts.Store
		return nil
	}
	server, err := metaserver.Start(metaserver.Options{
		Dir: filepath.Join(n.opts.DataDir, "metadata"), NoFsync: n.opts.NoSync, Log: n.opts.Log,
	})
	if err != nil {
		return err
	}
	n.server = server
	if err := server.Wait(ctx); err != nil {
		return err
	}
	n.store = server.Store()
	return nil
}

func (n *Node) startBookie(ctx context.Context, common roles.Common, i int) (*roles.Bookie, error) {
	o := &n.opts
	id := fmt.Sprintf("bookie-%d", i+1)
	if i > 0 {
		common.Metrics = nil // metrics are those of the first; names would clash
	}
	return roles.StartBookie(ctx, roles.BookieOptions{
		Common: common, FS: o.FS, Dir: filepath.Join(o.DataDir, id), ID: id,
		Address: o.GRPC.Addr().String(), MemoryBytes: o.MemoryBytes / 2 / int64(o.Bookies),
		HotBytes: o.HotBytes, DiskBytes: o.DiskBytes / int64(o.Bookies), NoSync: o.NoSync, Fatal: o.Fatal,
	})
}

// Address is where clients reach the node.
func (n *Node) Address() string { return n.opts.GRPC.Addr().String() }

// Servers are the node's servers, with its health and metrics.
func (n *Node) Servers() *process.Servers { return n.servers }

// Close stops the node in order: topics are closed, what is in flight is
// answered, files are closed.
func (n *Node) Close(ctx context.Context) error {
	n.servers.Health.Set("broker", "stopping")
	err := n.broker.Close(ctx)
	stopping, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	n.servers.Stop(stopping)
	return errors.Join(err, n.closeStorage())
}

// Kill ends the node as a crash of its process would, but for the files that are
// open: cut their power for that.
func (n *Node) Kill() {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	n.servers.Stop(gone)
	n.broker.Kill()
	_ = n.closeStorage() // nothing is promised to anybody
}

// abandon releases what a start that failed had taken.
func (n *Node) abandon() {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if n.broker != nil {
		n.broker.Kill()
	}
	n.servers.Stop(gone)
	_ = n.closeStorage() // the error of the start is what counts
	n.closeListeners()
}

func (n *Node) closeListeners() {
	for _, l := range []net.Listener{n.opts.GRPC, n.opts.HTTP, n.opts.Debug} {
		if l != nil {
			_ = l.Close()
		}
	}
}

func (n *Node) closeStorage() error {
	var errs []error
	for _, b := range n.bookies {
		errs = append(errs, b.Close())
	}
	if n.unwatch != nil {
		n.unwatch()
	}
	if n.server != nil {
		if n.store != nil {
			errs = append(errs, n.store.Close())
		}
		errs = append(errs, n.server.Close())
	}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}
