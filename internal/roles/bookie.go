// Package roles assembles each role from its parts: what a process of that role
// runs, and what standalone runs several of. Wiring only; each part says itself
// what it promises.
package roles

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Common is what every member of a cluster needs.
type Common struct {
	Cluster string // name
	Store   meta.Store
	// Lease is how long others wait before they take this process for dead; 0: 5 s.
	Lease   time.Duration
	Version string
	Log     hclog.Logger
	Metrics prometheus.Registerer // nil: none
	Now     func() time.Time
	Rand    func() uint64
	// Dial opens connections to other members; nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

func (c Common) layout() layout.Layout { return layout.New(c.Cluster) }

// join returns the catalog of the cluster and its record, made if need be, and
// the ids that both draw from. It tries until ctx ends.
func (c Common) join(ctx context.Context) (*catalog.Catalog, catalog.Cluster, *idblock.Allocator, error) {
	ids := idblock.New(c.Store, c.layout())
	cat := catalog.New(catalog.Options{Store: c.Store, Layout: c.layout(), NewID: ids.Next, Now: c.Now, Rand: c.Rand})
	var last error
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		cluster, err := cat.Bootstrap(ctx, c.Cluster)
		if err == nil {
			return cat, cluster, ids, nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if !errors.Is(err, meta.ErrUnavailable) && !errors.Is(err, meta.ErrUncertain) {
			return nil, catalog.Cluster{}, nil, fmt.Errorf("join cluster %q: %w", c.Cluster, err)
		}
		c.Log.Warn("metadata store does not answer yet", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, catalog.Cluster{}, nil, fmt.Errorf("join cluster %q: %w", c.Cluster, last)
		}
	}
}

// BookieOptions of a Bookie.
type BookieOptions struct {
	Common
	FS          vfs.FS // nil: the host's
	Dir         string
	ID          string
	Rack        string
	Address     string // where its gRPC service is reached
	HTTPAddress string
	// Of the storage; see bookie.Options.
	MemoryBytes  int64
	DiskBytes    int64
	HotBytes     int64
	SegmentBytes int64
	ReserveBytes int64
	NoSync       bool
	Fatal        func(error)
}

// Bookie is a storage node and what keeps it known and clean.
type Bookie struct {
	Node         *bookie.Node
	Registration *bookie.Registration

	cancel context.CancelFunc
	loops  sync.WaitGroup
	failed chan error
}

// StartBookie opens a node's storage and begins to register it. ctx bounds the
// start only.
func StartBookie(ctx context.Context, o BookieOptions) (*Bookie, error) {
	_, cluster, _, err := o.join(ctx)
	if err != nil {
		return nil, err
	}
	node, err := bookie.Open(bookie.Options{
		FS: o.FS, Dir: o.Dir, ID: o.ID, Cluster: cluster.ID, MemoryBytes: o.MemoryBytes, DiskBytes: o.DiskBytes,
		HotBytes: o.HotBytes, SegmentBytes: o.SegmentBytes, ReserveBytes: o.ReserveBytes, NoSync: o.NoSync, Log: o.Log, Metrics: o.Metrics, Fatal: o.Fatal, Now: o.Now, Rand: o.Rand,
	})
	if err != nil {
		return nil, err
	}
	b := &Bookie{Node: node, failed: make(chan error, 1)}
	b.Registration = bookie.NewRegistration(node, bookie.RegistrationOptions{
		Store: o.Store, Layout: o.layout(), SessionTTL: o.Lease, Address: o.Address, HTTPAddress: o.HTTPAddress,
		Rack: o.Rack, Version: o.Version, Log: o.Log,
	})
	collector := bookie.NewCollector(node, bookie.CollectorOptions{Store: o.Store, Layout: o.layout(), Log: o.Log})
	running, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.loops.Go(func() {
		if err := b.Registration.Run(running); err != nil && running.Err() == nil {
			b.failed <- err
		}
	})
	b.loops.Go(func() { collector.Run(running) })
	return b, nil
}

// Register adds the node's service to a server.
func (b *Bookie) Register(s grpc.ServiceRegistrar) { b.Node.Register(s) }

// Failed gives the error for which the node cannot be registered, ever.
func (b *Bookie) Failed() <-chan error { return b.failed }

// Close takes the node out of the cluster's list and closes its storage. The
// server that serves it is stopped before.
func (b *Bookie) Close() error {
	b.cancel()
	b.loops.Wait()
	return b.Node.Close()
}
