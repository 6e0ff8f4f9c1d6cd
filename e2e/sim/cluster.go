package sim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/simnet"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

var keys = layout.New("sim")

// cluster is the hosts, what is between them, and what happened. It lives inside
// a synctest bubble.
type cluster struct {
	plan    plan
	seed    uint64
	store   *meta.Mem
	net     *simnet.Network
	journal *journal
	counts  *counts
	trouble *metaTrouble

	mu       sync.Mutex
	hosts    []*host  // those that are gone for good not included
	names    []string // of clients
	problems []string
}

// newCluster returns a cluster whose hosts have not started.
func newCluster(seed uint64, p plan, level hclog.Level) *cluster {
	c := &cluster{
		plan: p, seed: seed, store: meta.NewMem(), net: simnet.New(newChance(seed, 2).Uint64),
		journal: newJournal(level), counts: newCounts(),
	}
	c.trouble = &metaTrouble{c: c, rand: newChance(seed, 3)}
	c.store.OnCall(c.trouble.befalls)
	c.net.SetUsual(simnet.Link{Delay: p.Delay, Jitter: p.Jitter})
	for r, n := range map[role]int{bookieRole: p.Bookies, brokerRole: p.Brokers, discoveryRole: p.Discoveries} {
		for i := range n {
			c.add(r, i+1)
		}
	}
	return c
}

// add adds a host; its number makes its name and its chance.
func (c *cluster) add(r role, number int) *host {
	name := fmt.Sprintf("%s-%d", r, number)
	h := &host{c: c, name: name, role: r, rand: newChance(c.seed, 1000*uint64(len(r))+uint64(number))}
	if r == bookieRole {
		h.disk = vfs.NewMem()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts = append(c.hosts, h)
	return h
}

// of returns the hosts of a role, in the order of their names.
func (c *cluster) of(r role) []*host {
	c.mu.Lock()
	defer c.mu.Unlock()
	var of []*host
	for _, h := range c.hosts {
		if h.role == r {
			of = append(of, h)
		}
	}
	slices.SortFunc(of, func(a, b *host) int { return strings.Compare(a.name, b.name) })
	return of
}

// host finds one by name; nil when there is none.
func (c *cluster) host(name string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		if h.name == name {
			return h
		}
	}
	return nil
}

// remove takes a host out for good.
func (c *cluster) remove(gone *host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, h := range c.hosts {
		if h == gone {
			c.hosts = append(c.hosts[:i], c.hosts[i+1:]...)
			return
		}
	}
}

// all returns every host, by name.
func (c *cluster) all() []*host {
	return append(append(c.of(bookieRole), c.of(brokerRole)...), c.of(discoveryRole)...)
}

// problem notes something that must not happen.
func (c *cluster) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.journal.note("PROBLEM", "%s", text)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.problems) < 50 {
		c.problems = append(c.problems, text)
	}
}

// start starts all hosts.
func (c *cluster) start(ctx context.Context) {
	var wg sync.WaitGroup
	for _, h := range c.all() {
		wg.Go(func() { h.restart(ctx) })
	}
	wg.Wait()
}

// end kills all hosts.
func (c *cluster) end() {
	for _, h := range append(append(c.of(discoveryRole), c.of(brokerRole)...), c.of(bookieRole)...) {
		h.kill(vfs.ImageOptions{})
	}
}

// servers is what clients are given to start from.
func (c *cluster) servers() string {
	var s []string
	for _, h := range append(c.of(discoveryRole), c.of(brokerRole)...) {
		s = append(s, h.address())
	}
	return strings.Join(s, ",")
}

// clients are the names of those that connected.
func (c *cluster) clients() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.names)
}

// connect connects a client on a host of its own, and tries until ctx ends.
func (c *cluster) connect(ctx context.Context, name string, rand *chance) (*client.Client, error) {
	c.mu.Lock()
	if !slices.Contains(c.names, name) {
		c.names = append(c.names, name)
	}
	c.mu.Unlock()
	for {
		connecting, cancel := context.WithTimeout(ctx, 10*time.Second)
		cl, err := client.Connect(connecting, c.servers(), client.WithDialer(c.net.Dialer(name)), client.WithRandom(rand.Uint64),
			client.WithLogger(slog.New(slog.NewTextHandler(journalWriter{c.journal, name, nil}, &slog.HandlerOptions{Level: slogLevel(c.journal.level)}))))
		cancel()
		if err == nil || ctx.Err() != nil {
			return cl, err
		}
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func slogLevel(l hclog.Level) slog.Level {
	if l <= hclog.Debug {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// sleep waits, or returns ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
