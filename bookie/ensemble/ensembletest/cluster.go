// Package ensembletest has bookies in memory, for tests of whatever stands on
// package ensemble. They keep the promises of ensemble.Bookie, and can be told
// to break in the ways real ones do.
package ensembletest

import (
	"fmt"
	"sync"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

// Cluster is a set of bookies and the directory that lists them; it is an
// ensemble.Directory. Safe for concurrent use. Its bookies start goroutines only
// while they have something to answer.
type Cluster struct {
	mu      sync.Mutex
	bookies []*Bookie
	changed chan struct{}
}

// New returns a cluster of n bookies named bookie-1 to bookie-n.
func New(n int) *Cluster {
	c := &Cluster{changed: make(chan struct{})}
	for range n {
		c.Add("")
	}
	return c
}

// Add starts one more bookie in rack.
func (c *Cluster) Add(rack string) *Bookie {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := fmt.Sprintf("bookie-%d", len(c.bookies)+1)
	b := &Bookie{
		cluster: c, rack: rack, listed: true, ledgers: make(map[ledger.ID]*stored),
		member: ledger.Member{Bookie: name, Incarnation: name + "/1"}, format: 1, thawed: closedChannel(),
	}
	c.bookies = append(c.bookies, b)
	c.changeLocked()
	return b
}

// At returns bookie i, from 0.
func (c *Cluster) At(i int) *Bookie {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bookies[i]
}

// Named returns the bookie that a member of an ensemble names, in whatever
// incarnation; nil: none.
func (c *Cluster) Named(m ledger.Member) *Bookie {
	for _, b := range c.all() {
		if b.Member().Bookie == m.Bookie {
			return b
		}
	}
	return nil
}

func (c *Cluster) all() []*Bookie {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Bookie(nil), c.bookies...)
}

// Bookie implements ensemble.Directory.
func (c *Cluster) Bookie(m ledger.Member) (ensemble.Bookie, error) {
	b := c.Named(m)
	if b == nil {
		return nil, fmt.Errorf("bookie %v is not known", m)
	}
	return &conn{b: b, to: m}, nil
}

// Candidates implements ensemble.Directory.
func (c *Cluster) Candidates() []ensemble.Candidate {
	var out []ensemble.Candidate
	for _, b := range c.all() {
		b.mu.Lock()
		if b.listed {
			out = append(out, ensemble.Candidate{Member: b.member, Rack: b.rack, ReadOnly: b.readOnly, MaxBodyBytes: b.maxBody})
		}
		b.mu.Unlock()
	}
	return out
}

// Changed implements ensemble.Directory.
func (c *Cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *Cluster) change() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changeLocked()
}

func (c *Cluster) changeLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Copies counts the bookies among members that hold entry e of a ledger.
func (c *Cluster) Copies(members []ledger.Member, id ledger.ID, e ledger.EntryID) int {
	n := 0
	for _, m := range members {
		if b := c.Named(m); b != nil && b.Member() == m && b.Has(id, e) {
			n++
		}
	}
	return n
}

// Options completes opts for a client of this cluster: a store in memory, the
// layout of cluster "test", this directory and an id allocator, each unless it
// is set.
func (c *Cluster) Options(opts ensemble.Options) ensemble.Options {
	if opts.Store == nil {
		opts.Store = meta.NewMem()
	}
	if opts.Layout == (layout.Layout{}) {
		opts.Layout = layout.New("test")
	}
	if opts.Directory == nil {
		opts.Directory = c
	}
	if opts.IDs == nil {
		opts.IDs = idblock.New(opts.Store, opts.Layout)
	}
	return opts
}

// Client returns a client of this cluster that ends with the test.
func (c *Cluster) Client(t testing.TB, opts ensemble.Options) *ensemble.Client {
	t.Helper()
	client, err := ensemble.New(c.Options(opts))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func closedChannel() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}
