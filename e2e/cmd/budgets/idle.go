package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/cluster"
	"github.com/magnetar-io/magnetar/e2e/procstat"
)

// How many idle things one round adds; what each costs is the difference they
// make to the broker's memory.
const (
	idleTopics        = 2000
	idleSubscriptions = 2000
	idleConnections   = 200
)

// idling measures, on one broker, what topics, subscriptions and connections cost
// that do nothing.
func (p *plan) idling(ctx context.Context, s settings) error {
	dir, err := os.MkdirTemp(s.dir, "idle-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	debug := fmt.Sprintf("127.0.0.1:%d", ports[0])
	c, err := cluster.New(dir, s.binary, cluster.Shape{Bookies: 1, Brokers: 1, ExtraArgs: s.memoryArgs(),
		BrokerArgs: []string{"--copies", "1", "--debug-port", fmt.Sprint(ports[0])}})
	if err != nil {
		return err
	}
	defer c.Stop()
	if err := c.StartAll(ctx); err != nil {
		return err
	}
	cl, err := client.Connect(ctx, c.Server)
	if err != nil {
		return err
	}
	defer cl.Close(context.WithoutCancel(ctx))
	topics := 0
	open := func(n int) error {
		topics += n
		return openTopics(ctx, cl, topics-n, topics)
	}
	if err := open(100); err != nil { // all bundles and links are there before anything is counted
		return err
	}
	for round := range s.rounds {
		held, err := heldBytes(ctx, c, debug)
		if err != nil {
			return err
		}
		cost := func(b *budget, n int) error {
			now, err := heldBytes(ctx, c, debug)
			b.add((now - held) / float64(n))
			held = now
			return err
		}
		if err := open(idleTopics); err != nil {
			return err
		}
		if err := cost(p.topic, idleTopics); err != nil {
			return err
		}
		if err := subscribe(ctx, cl, round, idleSubscriptions); err != nil {
			return err
		}
		if err := cost(p.subscription, idleSubscriptions); err != nil {
			return err
		}
		hangUp, err := connect(ctx, c.Address("broker-1"), idleConnections)
		if err == nil {
			err = cost(p.connection, idleConnections)
		}
		if err = errors.Join(err, hangUp()); err != nil {
			return err
		}
	}
	if err := open(max(s.topics-topics, 0)); err != nil {
		return err
	}
	for range s.rounds {
		if err := p.idleCPU(ctx, c, s, topics); err != nil {
			return err
		}
	}
	return nil
}

// idleCPU lets the broker alone for a while.
func (p *plan) idleCPU(ctx context.Context, c *cluster.Cluster, s settings, topics int) error {
	pid, err := c.PID("broker-1")
	if err != nil {
		return err
	}
	before, err := procstat.CPU(pid)
	if err != nil {
		return err
	}
	select {
	case <-time.After(s.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := procstat.CPU(pid)
	if err != nil {
		return err
	}
	p.idle.add((after - before).Seconds() / s.idle.Seconds())
	p.idle.detail = fmt.Sprintf("with %d topics open", topics)
	return nil
}

// heldBytes is what the broker holds in heap and stacks once garbage is gone, and
// what was only busy a moment ago has come to rest.
func heldBytes(ctx context.Context, c *cluster.Cluster, debug string) (float64, error) {
	for last := math.Inf(1); ; {
		if _, err := get(ctx, "http://"+debug+"/debug/pprof/heap?gc=1"); err != nil {
			return 0, err
		}
		m, err := readCounters(ctx, c.HTTP("broker-1"))
		if err != nil {
			return 0, err
		}
		held := m["go_memstats_heap_alloc_bytes"] + m["go_memstats_stack_inuse_bytes"]
		if held > last*0.999 && held < last*1.001 {
			return held, nil
		}
		last = held
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// openTopics publishes a message to each of the topics from number first on, and
// leaves them open.
func openTopics(ctx context.Context, cl *client.Client, first, end int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := first; i < end; i++ {
		g.Go(func() error {
			p, err := cl.Producer(ctx, fmt.Sprintf("idle-%d", i))
			if err != nil {
				return err
			}
			_, err = p.Send(ctx, client.Message{Value: []byte("x")})
			return errors.Join(err, p.Close(ctx))
		})
	}
	return g.Wait()
}

// subscribe makes subscriptions, twenty a topic, and leaves them without consumers.
func subscribe(ctx context.Context, cl *client.Client, round, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			s, err := cl.Subscribe(ctx, fmt.Sprintf("idle-%d", i/20), fmt.Sprintf("sub-%d-%d", round, i%20))
			if err != nil {
				return err
			}
			return s.Close(ctx)
		})
	}
	return g.Wait()
}

// connect opens clients, each with a connection of its own and a producer on it.
func connect(ctx context.Context, server string, n int) (hangUp func() error, err error) {
	var clients []*client.Client
	hangUp = func() error {
		var errs []error
		for _, cl := range clients {
			errs = append(errs, cl.Close(context.WithoutCancel(ctx)))
		}
		return errors.Join(errs...)
	}
	for range n {
		cl, err := client.Connect(ctx, server)
		if err != nil {
			return hangUp, err
		}
		clients = append(clients, cl)
		if _, err := cl.Producer(ctx, "idle-0"); err != nil {
			return hangUp, err
		}
	}
	return hangUp, nil
}
