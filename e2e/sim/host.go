package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/roles"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// role is what runs on a host.
type role string

const (
	bookieRole    role = "bookie"
	brokerRole    role = "broker"
	discoveryRole role = "discovery"
)

// host is a machine: a name on the network, a clock, a disk where its role has
// one, and one process at a time.
type host struct {
	c    *cluster
	name string
	role role
	rand *chance

	clock clock

	// A fault takes the host before it harms it and gives it back when the harm is
	// undone, so that no host suffers two that would cancel each other.
	taken atomic.Bool

	mu        sync.Mutex
	life      int
	process   *process
	disk      *vfs.Mem
	syncDelay time.Duration
	syncFails bool
	paused    chan struct{} // closed when it goes on; nil: it runs
	broken    chan error    // gets what a bookie could not go on for
}

// address is where the host's process serves.
func (h *host) address() string { return h.name + ":6660" }

// clock runs beside the true one: ahead or behind, faster or slower.
type clock struct {
	mu     sync.Mutex
	since  time.Time // when it was last set
	offset time.Duration
	drift  float64 // seconds gained per second
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.since.IsZero() {
		return now
	}
	gained := time.Duration(float64(now.Sub(c.since)) * c.drift)
	return now.Add(c.offset + gained).Round(0) // without a monotonic reading, which would not jump
}

func (c *clock) set(offset time.Duration, drift float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since, c.offset, c.drift = time.Now(), offset, drift
}

// process is one life of a role.
type process struct {
	store    *meta.MemClient
	registry *prometheus.Registry
	dead     *atomic.Bool // says nothing any more
	server   *grpc.Server
	serving  sync.WaitGroup
	// close stops it in order; the server still serves. kill is its death.
	close func(context.Context) error
	kill  func()
	// ledgers lists what a bookie holds; nil for other roles.
	ledgers func(context.Context) ([]ledger.ID, error)
}

// start starts the host's process and returns once it is ready.
func (h *host) start(ctx context.Context) error {
	h.mu.Lock()
	h.life++
	life := h.life
	h.broken = make(chan error, 16)
	h.mu.Unlock()
	p := &process{store: h.c.store.Client(fmt.Sprintf("%s/%d", h.name, life)), registry: prometheus.NewRegistry(), dead: new(atomic.Bool)}
	common := roles.Common{
		Cluster: "sim", Store: p.store, Version: "sim", Log: h.c.journal.logger(h.name, p.dead), Metrics: p.registry,
		Now: h.clock.now, Rand: h.rand.Uint64, Dial: h.c.net.Dialer(h.name),
	}
	profile := rpc.ClientFacing
	if h.role == bookieRole {
		profile = rpc.BookieLink
	}
	p.server = grpc.NewServer(rpc.ServerOptions(rpc.Limits{Profile: profile}, rpcerr.ServerOptions()...)...)
	var err error
	switch h.role {
	case bookieRole:
		err = h.startBookie(ctx, p, common)
	case brokerRole:
		err = h.startBroker(ctx, p, common)
	case discoveryRole:
		err = h.startDiscovery(ctx, p, common)
	}
	if err != nil {
		h.c.net.Kill(h.name)
		p.server.Stop()
		p.serving.Wait()
		return errors.Join(err, p.store.Close())
	}
	h.mu.Lock()
	h.process = p
	h.mu.Unlock()
	h.c.journal.note(h.name, "started, life %d", life)
	return nil
}

// serve begins to serve what was registered.
func (h *host) serve(p *process) error {
	l, err := h.c.net.Listen(h.address())
	if err != nil {
		return err
	}
	p.serving.Go(func() { _ = p.server.Serve(l) }) // ends with the server
	return nil
}

func (h *host) startBookie(ctx context.Context, p *process, common roles.Common) error {
	h.mu.Lock()
	disk := h.disk
	h.mu.Unlock()
	s := h.c.plan.Storage
	b, err := roles.StartBookie(ctx, roles.BookieOptions{
		Common: common, FS: vfs.NewFaults(disk, h.onDisk), Dir: "/data", ID: h.name, Address: h.address(),
		MemoryBytes: s.MemoryBytes, DiskBytes: s.DiskBytes, HotBytes: s.HotBytes, SegmentBytes: s.SegmentBytes, ReserveBytes: s.ReserveBytes,
		Fatal: func(err error) {
			if !disk.Crashed() {
				h.fatal(err)
			}
		},
	})
	if err != nil {
		return err
	}
	b.Register(p.server)
	p.close = func(context.Context) error { return b.Close() }
	p.kill = func() { _ = b.Close() } // its disk has no power any more
	p.ledgers = func(ctx context.Context) ([]ledger.ID, error) {
		ids, _, err := b.Node.List(ctx, 0, 0)
		return ids, err
	}
	if err := h.serve(p); err == nil {
		select {
		case <-b.Registration.Registered():
			return nil
		case err = <-b.Failed():
		case <-ctx.Done():
			err = fmt.Errorf("register: %w", ctx.Err())
		}
		h.c.net.Kill(h.name)
		return errors.Join(err, b.Close())
	}
	return errors.Join(err, b.Close())
}

func (h *host) startBroker(ctx context.Context, p *process, common roles.Common) error {
	b, err := roles.NewBroker(ctx, roles.BrokerOptions{
		Common: common, ID: h.name, Address: h.address(),
		MemoryBytes: 64 << 20, MaxMessageBytes: maxMessageBytes, LedgerBytes: h.c.plan.LedgerBytes,
		LogRollBytes: h.c.plan.LogBytes, LogPassBytes: h.c.plan.LogBytes / 2, Quorum: h.c.plan.Quorum,
	})
	if err != nil {
		return err
	}
	b.Register(p.server)
	p.close, p.kill = b.Close, b.Kill
	if err = h.serve(p); err == nil {
		err = b.Start(ctx)
	}
	if err != nil {
		b.Kill()
	}
	return err
}

func (h *host) startDiscovery(ctx context.Context, p *process, common roles.Common) error {
	d, err := roles.NewDiscovery(ctx, roles.DiscoveryOptions{Common: common})
	if err != nil {
		return err
	}
	d.Register(p.server)
	p.close = func(context.Context) error { d.EndWatches(); return nil }
	p.kill = d.Close
	if err := h.serve(p); err != nil {
		d.Close()
		return err
	}
	return nil
}

// kill ends the host's process at once. A bookie's files are closed as the image
// says.
func (h *host) kill(image vfs.ImageOptions) {
	h.mu.Lock()
	p, disk := h.process, h.disk
	h.process = nil
	h.mu.Unlock()
	if p == nil {
		return
	}
	p.dead.Store(true)
	if disk != nil {
		disk.Crash()
	}
	h.c.net.Kill(h.name)
	_ = p.store.Close() // dies with the process
	h.resume()          // the dead wait for nothing
	p.server.Stop()
	p.kill()
	p.serving.Wait()
	if disk != nil {
		h.mu.Lock()
		h.disk = disk.Image(image)
		h.mu.Unlock()
	}
	h.c.counts.gather(p.registry)
}

// stop ends the host's process in order, as a signal does.
func (h *host) stop(ctx context.Context) error {
	h.mu.Lock()
	p := h.process
	h.process = nil
	h.mu.Unlock()
	if p == nil {
		return nil
	}
	var err error
	if h.role == bookieRole { // the server goes first: see roles.Bookie
		p.server.Stop()
		err = p.close(ctx)
	} else {
		err = p.close(ctx)
		p.server.Stop()
		if h.role == discoveryRole {
			p.kill()
		}
	}
	h.c.net.Kill(h.name)
	p.serving.Wait()
	h.c.counts.gather(p.registry)
	return errors.Join(err, p.store.Close())
}

// restart starts the process until it stays, as an init system does.
func (h *host) restart(ctx context.Context) {
	for {
		starting, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := h.start(starting)
		cancel()
		if err == nil {
			return
		}
		h.c.journal.note(h.name, "did not start: %v", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// running reports whether the host has a process.
func (h *host) running() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.process != nil
}

// pause makes the process stand still, as SIGSTOP does, as far as others can
// tell: it sends and takes nothing, its disk and the metadata store do not answer
// it. Its timers run on.
func (h *host) pause() {
	h.mu.Lock()
	h.paused = make(chan struct{})
	h.mu.Unlock()
	h.c.net.Stop(h.name)
}

func (h *host) resume() {
	h.mu.Lock()
	if h.paused != nil {
		close(h.paused)
		h.paused = nil
	}
	h.mu.Unlock()
	h.c.net.Resume(h.name)
}

// standstill is closed once the host goes on; nil: it runs.
func (h *host) standstill() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.paused
}

// onDisk is asked about everything the bookie does with its disk. Only the log,
// which all that is acknowledged goes through, is made to wait: the key-value
// engine holds mutexes while it writes, and the time of a bubble does not pass
// while somebody waits for one.
func (h *host) onDisk(op vfs.Op) error {
	if op.Kind != vfs.OpSync && op.Kind != vfs.OpWrite || !strings.Contains(op.Name, "/hot/") {
		return nil
	}
	if p := h.standstill(); p != nil {
		<-p
	}
	h.mu.Lock()
	delay, fails := h.syncDelay, h.syncFails
	h.mu.Unlock()
	if fails {
		return fmt.Errorf("injected: %w", syscall.EIO)
	}
	if delay > 0 {
		time.Sleep(delay)
	}
	return nil
}

func (h *host) setDisk(syncDelay time.Duration, syncFails bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.syncDelay, h.syncFails = syncDelay, syncFails
}

// fatal notes that a bookie may not go on.
func (h *host) fatal(err error) {
	h.mu.Lock()
	expected, broken := h.syncFails, h.broken
	h.mu.Unlock()
	if !expected {
		h.c.problem("%s cannot go on: %v", h.name, err)
	}
	select {
	case broken <- err:
	default:
	}
}
