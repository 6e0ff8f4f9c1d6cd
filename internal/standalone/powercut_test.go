package standalone

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/e2e/history"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// powerCuts is how often the power is cut: MAGNETAR_POWERCUTS, or 30.
func powerCuts() int {
	if n, err := strconv.Atoi(os.Getenv("MAGNETAR_POWERCUTS")); err == nil && n > 0 {
		return n
	}
	return 30
}

// socket is the place in the wall that node after node is plugged into: clients
// dial one address and reach the node of the moment.
type socket struct {
	mu      sync.Mutex
	present *bufconn.Listener
}

const socketAddress = "node:1"

// listener is one node's end of a socket.
type listener struct{ *bufconn.Listener }

func (listener) Addr() net.Addr { return address{} }

type address struct{}

func (address) Network() string { return "memory" }
func (address) String() string  { return socketAddress }

// listen unplugs the node before and returns the listener of the next.
func (s *socket) listen() net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.present = bufconn.Listen(256 << 10)
	return listener{s.present}
}

func (s *socket) dial(ctx context.Context, _ string) (net.Conn, error) {
	s.mu.Lock()
	l := s.present
	s.mu.Unlock()
	return l.DialContext(ctx)
}

// house is a standalone node whose disk and metadata outlive it.
type house struct {
	t      *testing.T
	socket socket
	store  *meta.Mem
	disk   *vfs.Mem
	lives  int
	noSync bool
	node   *Node
}

// start starts the next node on the present disk.
func (h *house) start(ctx context.Context) error {
	h.lives++
	// What fails after a power cut is the power cut's doing; nothing is asked of the
	// disk but what Image says.
	disk := h.disk
	fatal := func(err error) {
		if !disk.Crashed() {
			h.t.Errorf("a bookie cannot go on with the power on: %v", err)
		}
	}
	node, err := Start(ctx, Options{
		DataDir: "/data", GRPC: h.socket.listen(), FS: disk, Store: h.store.Client(fmt.Sprintf("life-%d", h.lives)),
		MemoryBytes: 128 << 20, LedgerBytes: 64 << 10, HotBytes: 32 << 20, NoSync: h.noSync, Fatal: fatal,
	})
	h.node = node
	return err
}

// cut cuts the power; the next node finds what image leaves of the disk.
func (h *house) cut(image vfs.ImageOptions) {
	h.disk.Crash()
	h.node.Kill()
	if err := h.node.opts.Store.Close(); err != nil {
		h.t.Error(err)
	}
	h.disk = h.disk.Image(image)
}

// crowd is the load: producers and subscriptions of one topic, with their history.
type crowd struct {
	t   *testing.T
	log *history.Log

	ending   atomic.Bool // the load is over, what is left is on its way
	patience time.Duration
	enough   *time.Timer // gives up once nothing has come for patience, from ending on
}

// heard notes that something came. How long all of it takes says nothing of whether
// anything is lost: on a busy machine much is left to read at the end.
func (c *crowd) heard() {
	if c.ending.Load() {
		c.enough.Reset(c.patience)
	}
}

const crowdTopic = "powercuts"

// produce publishes until stop is closed, then waits for every answer. It returns
// with an error when the answers do not come.
func (c *crowd) produce(ctx context.Context, cl *client.Client, name string, stop <-chan struct{}) error {
	p, err := cl.Producer(ctx, crowdTopic, client.WithName(name))
	if err != nil {
		return fmt.Errorf("producer %s: %w", name, err)
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for number := 0; ; {
		select {
		case <-stop:
			return p.Close(ctx)
		case <-tick.C:
		}
		for range 3 {
			m := history.Message{Producer: name, Number: number}
			number++
			c.log.Publishing(m)
			p.Publish(ctx, client.Message{Value: m.Payload(100)}, func(id client.MessageID, err error) {
				c.heard()
				c.log.Answered(m, id, err)
			})
		}
	}
}

// consume receives until all that was acknowledged to producers has come, after
// done is closed. Every few messages it waits for an acknowledgement's answer, so
// that whoever comes later must not get the message.
func (c *crowd) consume(ctx context.Context, s *client.Consumer, records *history.Consumer, done <-chan struct{}) {
	for n := 0; ; n++ {
		receive, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		m, err := s.Receive(receive)
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			select {
			case <-done:
				if c.log.Missing(s.Subscription()) == 0 {
					return
				}
			default:
			}
			continue
		}
		if _, err := records.Receive(m); err != nil {
			c.t.Error(err)
			return
		}
		c.heard()
		ack := records.Acking(m.ID, false)
		if n%50 != 0 {
			m.AckAsync()
			continue
		}
		ack.Ended(m.Ack(ctx))
	}
}

// connect returns a client of the house.
func (h *house) connect(ctx context.Context) *client.Client {
	h.t.Helper()
	c, err := client.Connect(ctx, socketAddress, client.WithDialer(h.socket.dial))
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// run puts a house under load, cuts its power n times, and judges the history.
// patience bounds how long nothing at all may come after the last cut.
func (h *house) run(n int, seed uint64, patience time.Duration) *history.Verdict {
	h.t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute+time.Duration(n)*10*time.Second)
	defer cancel()
	if err := h.start(ctx); err != nil {
		h.t.Fatal(err)
	}
	defer func() {
		if h.node != nil {
			h.node.Kill()
		}
	}()
	cl := h.connect(ctx)
	draining, give := context.WithCancel(ctx)
	defer give()
	load := &crowd{t: h.t, log: history.New(), patience: patience, enough: time.AfterFunc(time.Hour, give)}
	defer load.enough.Stop()
	// The archive is only read at the end: what it gets then was on disk all along.
	load.log.Subscription("archive", history.Exclusive)
	archive, err := cl.Subscribe(ctx, crowdTopic, "archive", client.From(client.Earliest()))
	if err != nil {
		h.t.Fatal(err)
	}
	if err := archive.Close(ctx); err != nil {
		h.t.Fatal(err)
	}
	orderly := load.log.Join("ordered", history.Exclusive, "ordered")
	ordered, err := cl.Subscribe(ctx, crowdTopic, "ordered", client.From(client.Earliest()))
	if err != nil {
		h.t.Fatal(err)
	}

	stop, done := make(chan struct{}), make(chan struct{})
	var producers, consumers sync.WaitGroup
	var failed sync.Map
	for i := range 3 {
		name := fmt.Sprintf("p%d", i)
		producers.Go(func() {
			if err := load.produce(draining, cl, name, stop); err != nil {
				failed.Store(name, err)
			}
		})
	}
	consumers.Go(func() { load.consume(draining, ordered, orderly, done) })

	for cut := range n {
		// The power goes at a random moment after something was acknowledged in this life.
		before := load.log.Acknowledged()
		for deadline := time.Now().Add(20 * time.Second); load.log.Acknowledged() == before; {
			if time.Now().After(deadline) {
				h.t.Fatalf("cut %d of seed %d: nothing is acknowledged any more", cut, seed)
			}
			<-time.After(time.Millisecond)
		}
		<-time.After(time.Duration(random.IntN(200_000)) * time.Microsecond)
		image := vfs.ImageOptions{Rand: random.Uint64, OrderedNames: true}
		if cut%2 == 1 {
			image.KeepUnsynced, image.TornSectors = random.Float64(), true
		}
		h.cut(image)
		if err := h.start(ctx); err != nil {
			h.node = nil
			if h.noSync { // what was promised to the metadata is not on the disk
				h.t.Logf("the node does not start again: %v", err)
				break
			}
			h.t.Fatalf("cut %d of seed %d: start again: %v", cut, seed, err)
		}
	}
	load.ending.Store(true)
	load.heard()
	close(stop)
	producers.Wait()
	if h.node != nil {
		late := load.log.Join("archive", history.Exclusive, "archive")
		if archive, err = cl.Subscribe(draining, crowdTopic, "archive"); err == nil {
			consumers.Go(func() { load.consume(draining, archive, late, done) })
		} else {
			failed.Store("archive", err)
		}
	}
	close(done)
	consumers.Wait()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := cl.Close(closing); err != nil && !h.noSync {
		h.t.Errorf("close the client: %v", err)
	}
	if !h.noSync {
		failed.Range(func(who, err any) bool { h.t.Errorf("%v: %v", who, err); return true })
	}
	return load.log.Check()
}

// TestPowerCuts cuts a whole node's power again and again under load, at random
// moments, and starts the next node on what the disk holds: exactly what was
// synced, or a random and torn part of the rest as well. Nothing acknowledged is
// lost, neither messages nor acknowledgements, each producer's order is kept, and
// nothing appears that nobody published.
func TestPowerCuts(t *testing.T) {
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("MAGNETAR_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("MAGNETAR_SEED=%d", seed)
	h := &house{t: t, store: meta.NewMem(), disk: vfs.NewMem()}
	v := h.run(powerCuts(), seed, 20*time.Second)
	t.Log(v)
	if v.Bad() || v.OK < powerCuts() {
		t.Errorf("seed %d: history is bad: %v", seed, v)
	}
}

// TestPowerCutWithoutSyncLosesData shows that the test above can fail: the same
// node, told not to sync, loses what it acknowledged when the disk keeps only what
// was synced.
func TestPowerCutWithoutSyncLosesData(t *testing.T) {
	h := &house{t: t, store: meta.NewMem(), disk: vfs.NewMem(), noSync: true}
	v := h.run(1, 1, 5*time.Second)
	t.Log(v)
	if v.OK == 0 || v.Lost() == 0 {
		t.Errorf("no data lost without syncs: %v", v)
	}
}
