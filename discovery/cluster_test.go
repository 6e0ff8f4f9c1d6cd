package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/internal/place"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var keys = layout.New("test")

func testLog() hclog.Logger {
	level := hclog.Off
	if testing.Verbose() {
		level = hclog.Warn
	}
	return hclog.New(&hclog.LoggerOptions{Level: level, Output: os.Stderr})
}

// cluster is several brokers over one metadata store. It checks at each change
// that no bundle is served on one owner record by two of them.
type cluster struct {
	t     *testing.T
	store *meta.Mem
	mu    sync.Mutex // guards nodes against those who look on; the story writes
	nodes map[string]*node
	// reach says what from sees when it tries to reach to; nil: what is so. When it
	// is set brokers look after each other.
	reach func(from string, to BrokerInfo) Observation
}

// node is a broker without topics: it takes bundles, serves them, and gives them
// up, as Decide and the owner records say.
type node struct {
	id     string
	c      *cluster
	client *meta.MemClient
	view   *View
	reg    *Registration
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	serves map[string]BundleInfo    // with the record this broker wrote
	wrote  map[string]meta.Revision // of the last record it wrote; the view may not show it yet
	taken  int                      // bundles taken so far
	ended  int                      // sessions that others ended
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	m := meta.NewMem()
	c := catalog.New(catalog.Options{Store: m, Layout: keys, NewID: idblock.New(m, keys).Next})
	if _, err := c.Bootstrap(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	return &cluster{t: t, store: m, nodes: make(map[string]*node)}
}

func (c *cluster) start(id string) *node {
	c.t.Helper()
	n := &node{id: id, c: c, client: c.store.Client(id), serves: make(map[string]BundleInfo), wrote: make(map[string]meta.Revision)}
	n.ctx, n.stop = context.WithCancel(context.Background())
	n.view = NewView(ViewOptions{Store: n.client, Layout: keys, Log: testLog()})
	n.wg.Go(func() { n.view.Run(n.ctx) })
	reg, err := Register(c.t.Context(), RegisterOptions{
		Store: n.client, Layout: keys, ID: id, Address: id + ":6650", OnEnded: n.dropAll, Log: testLog(),
		Rand: func() uint64 { return 0 },
	})
	if err != nil {
		c.t.Fatal(err)
	}
	n.reg = reg
	n.wg.Go(n.loop)
	if c.reach != nil {
		prober := NewProber(ProberOptions{
			Store: n.client, Layout: keys, View: n.view, Registration: reg, ID: id, Log: testLog(),
			Probe: func(_ context.Context, b BrokerInfo) Observation { return c.reach(id, b) },
		})
		n.wg.Go(func() { prober.Run(n.ctx) })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[id] = n
	return n
}

// kill ends a node as the death of its process would.
func (c *cluster) kill(n *node) {
	c.mu.Lock()
	delete(c.nodes, n.id)
	c.mu.Unlock()
	n.client.Close()
	n.stop()
	n.reg.Abandon()
	n.wg.Wait()
}

// truth is what anyone sees who can reach everyone.
func (c *cluster) truth(_ string, to BrokerInfo) Observation {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[to.ID]
	if n == nil {
		return Observation{Refused: true}
	}
	return Observation{Session: n.reg.Session()}
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		c.kill(n)
	}
}

func (n *node) dropAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended++
	clear(n.serves)
}

func (n *node) loop() {
	for {
		viewChanged, sessionChanged := n.view.Changed(), n.reg.Changed()
		n.act(n.view.Snapshot(), n.reg.Session(), n.reg.Cond())
		select {
		case <-n.ctx.Done():
			return
		case <-viewChanged:
		case <-sessionChanged:
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (n *node) act(s *Snapshot, session string, own meta.Cond) {
	n.mu.Lock()
	held := make(map[string]BundleInfo, len(n.serves))
	for name, h := range n.serves {
		held[name] = h
	}
	n.mu.Unlock()
	for name, h := range held {
		if s.Bundles[name].Revision > h.Revision && s.Bundles[name].Owner.Broker != n.id {
			n.drop(name)
		} else if session != "" && h.Owner.Session != session {
			n.write(h, own, catalog.Owner{Broker: n.id, Session: session, Epoch: h.Owner.Epoch + 1})
		}
	}
	for name, b := range s.Bundles {
		if _, serving := held[name]; !serving && session != "" && b.Owner.Broker == n.id && b.Owner.Session == session && b.Revision > n.wrote[name] {
			n.serve(b)
		}
	}
	for _, a := range Decide(s, n.id, session) {
		owner := catalog.Owner{Broker: n.id, Session: session, Epoch: a.Epoch + 1}
		if a.GiveUp {
			n.drop(a.Bundle.String())
			owner.Broker, owner.Session = a.To.ID, a.To.Session
		}
		n.write(BundleInfo{Bundle: a.Bundle, Revision: a.Revision}, own, owner)
	}
}

func (n *node) write(b BundleInfo, own meta.Cond, owner catalog.Owner) {
	ctx, cancel := context.WithTimeout(n.ctx, time.Second)
	defer cancel()
	rev, err := WriteOwner(ctx, n.client, keys, own, b.Bundle, b.Revision, owner)
	switch {
	case errors.Is(err, ErrOutrun):
		n.drop(b.Bundle.String())
		return
	case err != nil:
		return
	}
	n.wrote[b.Bundle.String()] = rev // only the loop writes
	if owner.Broker == n.id {
		n.serve(BundleInfo{Bundle: b.Bundle, Owner: owner, Revision: rev})
	}
}

func (n *node) serve(b BundleInfo) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, already := n.serves[b.Bundle.String()]; !already {
		n.taken++
	}
	n.serves[b.Bundle.String()] = b
}

// takings is how many bundles it took so far.
func (n *node) takings() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.taken
}

// endings is how many of its sessions others ended.
func (n *node) endings() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ended
}

func (n *node) drop(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.serves, name)
}

func (n *node) owns() map[string]BundleInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[string]BundleInfo, len(n.serves))
	for name, b := range n.serves {
		out[name] = b
	}
	return out
}

// misplaced counts the bundles that are not served by exactly the broker that
// ranks first, and by nobody else.
func (c *cluster) misplaced() int {
	var ids []string
	for id := range c.nodes {
		ids = append(ids, id)
	}
	wrong := catalog.DefaultBundles
	for id, n := range c.nodes {
		for name := range n.owns() {
			if place.Owner(name, ids) == id {
				wrong--
			} else {
				wrong++
			}
		}
	}
	return wrong
}

// settle waits until every bundle is where it belongs and says how long it took.
func (c *cluster) settle(atMost time.Duration) time.Duration {
	c.t.Helper()
	start := time.Now()
	for c.misplaced() != 0 {
		if time.Since(start) > atMost {
			c.t.Fatalf("%d bundles are out of place after %v", c.misplaced(), atMost)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// until waits for something that must come to be.
func (c *cluster) until(what string, atMost time.Duration, holds func() bool) {
	c.t.Helper()
	for start := time.Now(); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > atMost {
			c.t.Fatalf("%s: not within %v", what, atMost)
		}
	}
}

func (c *cluster) counts() string {
	s := ""
	for id, n := range c.nodes {
		s += fmt.Sprintf("%s=%d ", id, len(n.owns()))
	}
	return s
}

// story runs a test in virtual time.
func story(t *testing.T, tell func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		tell(t, c)
	})
}
