package bookie_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/bookie/remote"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/vfs"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

var keys = layout.New("test")

// cluster is real bookies behind real gRPC over an in-memory network, registered in
// an in-memory store, and a ledger client that finds them there.
type cluster struct {
	t       *testing.T
	store   *meta.Mem
	client  *ensemble.Client
	mu      sync.Mutex
	bookies map[string]*host
}

// host is a machine with one bookie; power can be cut.
type host struct {
	name     string
	disk     *vfs.Mem
	listener *bufconn.Listener
	node     *bookie.Node
	stop     func()
}

func newCluster(t *testing.T, size int) *cluster {
	c := &cluster{t: t, store: meta.NewMem(), bookies: make(map[string]*host)}
	value, err := proto.Marshal(metav1.Cluster_builder{Id: new("cluster-1")}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.store.Txn(context.Background(), meta.Txn{Ops: []meta.Op{{Key: keys.Cluster(), Value: value}}}); err != nil {
		t.Fatal(err)
	}
	for i := range size {
		c.start(fmt.Sprintf("bookie-%d", i+1), vfs.NewMem())
	}
	directory := remote.NewDirectory(remote.DirectoryOptions{Store: c.store, Layout: keys, Client: remote.Options{Dial: c.dial}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { directory.Run(ctx); close(ended) }()
	c.client, err = ensemble.New(ensemble.Options{Store: c.store, Layout: keys, Directory: directory, IDs: idblock.New(c.store, keys)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.client.Close()
		cancel()
		<-ended
		for name := range c.bookies {
			c.cut(name, vfs.ImageOptions{})
		}
		c.store.Close()
	})
	return c
}

func (c *cluster) dial(ctx context.Context, address string) (net.Conn, error) {
	c.mu.Lock()
	h := c.bookies[address]
	c.mu.Unlock()
	if h == nil {
		return nil, errors.New("connection refused")
	}
	return h.listener.DialContext(ctx)
}

// start starts a bookie on a disk and waits until it is registered.
func (c *cluster) start(name string, disk *vfs.Mem) {
	c.t.Helper()
	n, err := bookie.Open(bookie.Options{FS: disk, Dir: "/data", ID: name, Cluster: "cluster-1", MemoryBytes: 32 << 20,
		HotBytes: 8 << 20, SegmentBytes: 1 << 20, ReserveBytes: 16 << 20, Fatal: func(error) {}})
	if err != nil {
		c.t.Fatal(err)
	}
	h := &host{name: name, disk: disk, node: n, listener: bufconn.Listen(1 << 20)}
	server := grpc.NewServer(rpc.ServerOptions(rpc.Limits{Profile: rpc.BookieLink})...)
	n.Register(server)
	registration := bookie.NewRegistration(n, bookie.RegistrationOptions{Store: c.store, Layout: keys, Address: name})
	collector := bookie.NewCollector(n, bookie.CollectorOptions{Store: c.store, Layout: keys})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { server.Serve(h.listener) })
	running.Go(func() {
		if err := registration.Run(ctx); err != nil {
			c.t.Error(err)
		}
	})
	running.Go(func() { collector.Run(ctx) })
	h.stop = func() { cancel(); server.Stop(); running.Wait(); n.Close() }
	c.mu.Lock()
	c.bookies[name] = h
	c.mu.Unlock()
	<-registration.Registered()
}

// cut cuts the power of a bookie and returns what its disk holds.
func (c *cluster) cut(name string, image vfs.ImageOptions) *vfs.Mem {
	c.mu.Lock()
	h := c.bookies[name]
	delete(c.bookies, name)
	c.mu.Unlock()
	h.disk.Crash()
	h.stop()
	return h.disk.Image(image)
}

func body(e int) []byte {
	return []byte(fmt.Sprintf("entry %d %s", e, make([]byte, 2000)))
}

// TestLedgerOverRealBookies shows a ledger's life over four bookies with all the
// layers in place: one is cut off while it is written, then the power of all is cut
// while the writer is away; recovery closes it with everything that was
// acknowledged, it reads back the same, and once it is deleted every bookie forgets
// it and the record goes.
func TestLedgerOverRealBookies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 4)
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		w, err := c.client.Create(ctx, ensemble.CreateRequest{Quorum: ledger.Quorum{Write: 3, Ack: 2}})
		if err != nil {
			t.Fatal(err)
		}
		made := w.Metadata()
		dead := made.Last().Ensemble[1].Bookie
		var disks sync.Map
		acked := ledger.NoEntry
		results := make(chan error, 300)
		for e := range 300 {
			b := body(e)
			_, err := w.Append(b, crc32.Checksum(b, ledger.Castagnoli), func(id ledger.EntryID, err error) {
				if err == nil {
					acked = id // in order, from one goroutine at a time
				}
				results <- err
			})
			if err != nil {
				t.Fatalf("append %d: %v", e, err)
			}
			switch e {
			case 100:
				disks.Store(dead, c.cut(dead, vfs.ImageOptions{}))
			case 200:
				time.Sleep(10 * time.Second) // the ledger does without it for a while, then takes another
			}
		}
		for range 300 {
			if err := <-results; err != nil {
				t.Fatalf("an append failed though only one bookie did: %v", err)
			}
		}
		// In a fragment of its own, or, with nothing acknowledged by then, in the first.
		if md := w.Metadata(); slices.ContainsFunc(md.Last().Ensemble, func(m ledger.Member) bool { return m.Bookie == dead }) {
			t.Errorf("%s was never replaced: %+v", dead, md.Fragments)
		}
		for _, name := range []string{"bookie-1", "bookie-2", "bookie-3", "bookie-4"} {
			if name != dead {
				disks.Store(name, c.cut(name, vfs.ImageOptions{}))
			}
		}
		w.Abandon()
		disks.Range(func(name, disk any) bool {
			c.start(name.(string), disk.(*vfs.Mem))
			return true
		})
		var md ledger.Metadata
		for md, err = c.client.Recover(ctx, w.ID(), nil); err != nil && ctx.Err() == nil; md, err = c.client.Recover(ctx, w.ID(), nil) {
			time.Sleep(time.Second)
		}
		if err != nil || md.State != ledger.Closed || md.LastEntry < acked {
			t.Fatalf("recovered to %v at entry %d, %v; %d was acknowledged", md.State, md.LastEntry, err, acked)
		}
		r, err := c.client.Open(ctx, w.ID())
		if err != nil {
			t.Fatal(err)
		}
		for e := ledger.EntryID(0); e <= md.LastEntry; {
			entries, err := r.Read(ctx, e, md.LastEntry, 1<<20, 0)
			if err != nil {
				t.Fatalf("read from entry %d: %v", e, err)
			}
			for _, got := range entries {
				if string(got.Body) != string(body(int(e))) {
					t.Fatalf("entry %d reads otherwise than written", e)
				}
				e++
			}
		}
		if err := c.client.Delete(ctx, w.ID(), nil, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Minute)
		if kv, err := c.store.Get(ctx, keys.Ledger(int64(w.ID()))); err != nil || kv.Exists() {
			t.Errorf("the record is still there: %v", err)
		}
		for name, h := range c.bookies {
			if ids, _, err := h.node.List(context.Background(), 0, 0); err != nil || len(ids) != 0 {
				t.Errorf("%s still holds ledgers %v, %v", name, ids, err)
			}
		}
	})
}
