// Package sim runs a whole cluster in one process and tries to break it: real
// brokers, bookies, discovery and clients, over real gRPC on a network in memory,
// with disks that lose what was not synced and the metadata store's twin. One
// seed decides sizes, faults and workload. At the end all faults are undone, and
// everything that was acknowledged has to arrive.
//
// It lives in a synctest bubble, so a minute of a cluster takes a part of a
// second. The same seed makes the same choices; how goroutines take turns is the
// scheduler's, so a run is not equal to another to the bit. What failed once is
// looked into with the journal, which a failure prints.
package sim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/e2e/history"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// Options of a run.
type Options struct {
	Calm bool        // no faults
	Log  hclog.Level // of the nodes' journal; zero: warnings
}

// Result of a run.
type Result struct {
	Seed     uint64
	Problems []string // none: all is well
	Journal  string
	Counts   *counts
	Virtual  time.Duration
}

// patience is how long the cluster may take, once all faults are undone, until
// everything that was acknowledged has arrived everywhere.
const patience = 3 * time.Minute

// Run runs the cluster of a seed. It must be called in a synctest bubble.
func Run(seed uint64, o Options) Result {
	if o.Log == hclog.NoLevel {
		o.Log = hclog.Warn
	}
	start := time.Now()
	p := newPlan(seed, !o.Calm)
	c := newCluster(seed, p, o.Log)
	c.journal.note("plan", "%+v", p)
	c.story()
	c.end()
	r := Result{Seed: seed, Problems: c.problems, Counts: c.counts, Virtual: time.Since(start)}
	if len(r.Problems) > 0 {
		r.Journal = c.journal.String()
	}
	return r
}

// story is the run: start, work under faults, heal, drain, judge.
func (c *cluster) story() {
	ctx, cancel := context.WithTimeout(context.Background(), c.plan.Length+patience+c.plan.Settle+3*time.Minute)
	defer cancel()
	c.start(ctx)
	ownership, watched := context.WithCancel(ctx)
	defer watched()
	var watching sync.WaitGroup
	var logs []*history.Log
	for range c.plan.Topics {
		logs = append(logs, history.New())
	}
	watching.Go(func() { c.watchOwners(ownership, logs) })
	defer watching.Wait()
	defer watched()

	working, stop := context.WithTimeout(ctx, c.plan.Length)
	defer stop()
	var crowds []*crowd
	for i, t := range c.plan.Topics {
		w := &crowd{c: c, plan: t, log: logs[i], stop: working, drained: make(chan struct{})}
		preparing, cancel := context.WithTimeout(ctx, time.Minute)
		err := w.prepare(preparing)
		cancel()
		if err != nil {
			c.problem("prepare %s in a cluster without faults: %v", t.Name, err)
			return
		}
		crowds = append(crowds, w)
	}
	finished := make(chan struct{})
	draining, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var running sync.WaitGroup
	for _, w := range crowds {
		running.Go(func() { w.run(draining) })
	}
	running.Go(func() { c.administer(draining, working) })
	go func() { running.Wait(); close(finished) }()
	if c.plan.FaultEvery > 0 {
		(&storm{c: c, rand: newChance(c.seed, 4)}).run(working)
	}
	<-working.Done()
	c.heal()
	select {
	case <-finished:
	case <-time.After(patience):
		for _, w := range crowds {
			for _, s := range w.subscriptions() {
				if n := w.log.Missing(s.Name); n > 0 {
					c.problem("%d acknowledged messages have not come to %s of %s within %v", n, s.Name, w.plan.Name, patience)
				}
			}
		}
		giveUp()
		<-finished
	}
	for _, w := range crowds {
		v := w.log.Check()
		c.counts.add("messages acknowledged", v.OK)
		c.counts.add("messages delivered again", v.Redelivered)
		c.counts.add("messages delivered again after the answer of their ack", v.AfterAck)
		c.counts.add("messages delivered again behind a seek", v.Replayed)
		if v.Bad() {
			c.problem("%s: %v", w.plan.Name, v)
		}
	}
	if c.plan.Settle > 0 && len(c.problems) == 0 {
		c.counts.add("runs left to settle", 1)
		time.Sleep(c.plan.Settle)
	}
	c.inspect(ctx)
}

// heal undoes every fault that is not undone by then, and waits until every host
// runs.
func (c *cluster) heal() {
	c.net.Heal()
	c.store.SetUnavailable(false)
	c.store.SetNoSpace(false)
	c.journal.note("all", "healed")
	for _, h := range c.all() {
		if !h.running() {
			c.problem("%s does not run although all is healed", h.name)
		}
	}
}

// watchOwners counts the takeovers of bundles, and notes them in the histories.
func (c *cluster) watchOwners(ctx context.Context, logs []*history.Log) {
	epochs := map[string]uint64{}
	w := c.store.Watch(ctx, keys.Bundles(""), 0)
	for {
		b, err := w.Next()
		if err != nil {
			if ctx.Err() == nil { // compacted or out of reach: what changed meanwhile is not counted
				w = c.store.Watch(ctx, keys.Bundles(""), c.store.Revision())
				if sleep(ctx, 10*time.Millisecond) == nil {
					continue
				}
			}
			return
		}
		for _, e := range b.Events {
			if !e.Exists() || !strings.HasSuffix(e.Key, "/owner") {
				continue
			}
			owner, err := catalog.DecodeOwner(e.KV)
			if err != nil {
				c.problem("owner record %s: %v", e.Key, err)
				continue
			}
			if owner.Epoch > epochs[e.Key] && epochs[e.Key] > 0 {
				c.counts.add("takeovers", 1)
				for _, l := range logs { // which topics the bundle has is not told
					l.Owner(fmt.Sprintf("%s: %s, epoch %d", e.Key, owner.Broker, owner.Epoch))
				}
			}
			if owner.Epoch < epochs[e.Key] {
				c.problem("epoch of %s went from %d to %d", e.Key, epochs[e.Key], owner.Epoch)
			}
			epochs[e.Key] = max(epochs[e.Key], owner.Epoch)
		}
	}
}

// createTopic makes the topic, whatever the answers.
func (w *crowd) createTopic(ctx context.Context, name string) error {
	store := w.c.store.Client(name)
	defer store.Close()
	cat := catalog.New(catalog.Options{Store: store, Layout: keys, NewID: idblock.New(store, keys).Next})
	if _, err := cat.CreateTopic(ctx, topicname.MustParse(w.plan.Name), w.plan.Partitions); err != nil {
		return fmt.Errorf("create %s: %w", w.plan.Name, err)
	}
	return nil
}
