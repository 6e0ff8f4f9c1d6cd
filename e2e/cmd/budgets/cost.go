package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/magnetar-io/magnetar/e2e/cluster"
	"github.com/magnetar-io/magnetar/e2e/procstat"
)

const (
	publishedBytes    = "magnetar_topic_published_bytes_total"
	publishedMessages = "magnetar_topic_published_messages_total"
	loggedBytes       = "magnetar_bookie_log_written_bytes_total"
	coldBytes         = "magnetar_bookie_cold_written_bytes_total"
	movedBytes        = "magnetar_bookie_moved_bytes_total"
	writeMessages     = "magnetar_bookie_client_write_messages_total"
)

// costBatch is what the batches compared have in common, in bytes as sent.
const costBatch = 64 << 10

// filling is how batches of costBatch bytes, as sent, come about.
type filling struct {
	name     string
	messages int // in a batch
	args     []string
}

// fill says what a batch is made of, and how fast.
func fill(name string, messages, size int, more ...string) filling {
	return filling{name, messages, append([]string{"--size", fmt.Sprint(size), "--batch-messages", fmt.Sprint(messages),
		"--batch-bytes", fmt.Sprint(8 * costBatch)}, more...)}
}

// fillings are those that are compared, the plain one first. What is compressed
// comes as fast as one core compresses it, and what costs is in part how much comes
// at a time: so it is compared at a rate that both keep. What bench publishes
// shrinks to three tenths.
func fillings() (counts, compressed []filling) {
	rate := []string{"--rate", "400"} // 26 MB/s as sent
	return []filling{fill("1 message", 1, costBatch), fill("1000 messages", 1000, 56)},
		[]filling{fill("plain", 1, costBatch, rate...), fill("lz4", 1, costBatch*13/4, append(rate, "--compression", "lz4")...)}
}

// check says whether batches had costBatch bytes, for otherwise it is not the filling
// that makes the difference.
func (f filling) check(published, messages float64) error {
	if batch := published / (messages / float64(f.messages)); batch < 0.9*costBatch || batch > 1.1*costBatch {
		return fmt.Errorf("batches of %s have %.0f bytes, want about %d", f.name, batch, costBatch)
	}
	return nil
}

// sample is the state of a broker and a bookie at a moment.
type sample struct {
	cpu            time.Duration
	broker, bookie counters
}

func take(ctx context.Context, c *cluster.Cluster) (s sample, err error) {
	for _, name := range []string{"broker-1", "bookie-1"} {
		pid, err := c.PID(name)
		if err != nil {
			return s, err
		}
		cpu, err := procstat.CPU(pid)
		if err != nil {
			return s, err
		}
		s.cpu += cpu
	}
	if s.broker, err = readCounters(ctx, c.HTTP("broker-1")); err != nil {
		return s, err
	}
	s.bookie, err = readCounters(ctx, c.HTTP("bookie-1"))
	return s, err
}

// window publishes and samples while the rate is steady: after the warm-up, and
// before the end.
func window(ctx context.Context, s settings, c *cluster.Cluster, args []string) (before, after sample, err error) {
	done := make(chan error, 1)
	go func() {
		_, err := bench(ctx, s, c.Server, append([]string{"produce"}, args...)...)
		done <- err
	}()
	nap := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case err := <-done:
			return fmt.Errorf("publishing ended before it was measured: %w", errors.Join(err, ctx.Err()))
		}
	}
	if err = nap(s.warmup); err != nil {
		return before, after, err
	}
	before, err = take(ctx, c)
	if err == nil {
		err = nap(s.duration * 3 / 4)
	}
	if err == nil {
		after, err = take(ctx, c)
	}
	return before, after, errors.Join(err, <-done)
}

// costs measures what broker and bookie spend on batches of equal bytes that hold
// few or many messages, and what the bookie writes meanwhile.
func (p *plan) costs(ctx context.Context, s settings) error {
	dir, err := os.MkdirTemp(s.dir, "costs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := oneCopy(ctx, s, dir)
	if err != nil {
		return err
	}
	defer c.Stop()
	counts, compressed := fillings()
	if err := p.even.compare(ctx, s, c, counts, p.written); err != nil {
		return err
	}
	return p.compressed.compare(ctx, s, c, compressed, nil)
}

// compare adds how much dearer the dearest of some fillings is than the cheapest, and
// to written, unless it is nil, what the bookie wrote for each byte.
func (b *budget) compare(ctx context.Context, s settings, c *cluster.Cluster, fillings []filling, written *budget) error {
	var perMiB []float64
	var details []string
	for _, f := range fillings {
		before, after, err := window(ctx, s, c, f.args)
		if err != nil {
			return err
		}
		published, err := after.broker.since(before.broker, publishedBytes)
		if err != nil {
			return err
		}
		messages, err := after.broker.since(before.broker, publishedMessages)
		if err == nil {
			err = f.check(published, messages)
		}
		if err != nil {
			return err
		}
		logged, err := after.bookie.since(before.bookie, loggedBytes)
		if err != nil {
			return err
		}
		// How much travels at a time is the better part of what a batch costs.
		writes, err := after.broker.since(before.broker, writeMessages)
		if err != nil {
			return err
		}
		cost := (after.cpu - before.cpu).Seconds() * 1e6 / (published / (1 << 20))
		perMiB, details = append(perMiB, cost), append(details, fmt.Sprintf("%.0f (%s, %.1f batches a write)", cost, f.name, messages/float64(f.messages)/writes))
		if written != nil {
			written.add(logged / published)
		}
	}
	b.add(100 * (slices.Max(perMiB)/slices.Min(perMiB) - 1))
	b.detail = "µs per MiB: " + strings.Join(details, ", ")
	return nil
}

// oneCopy starts a broker and a bookie that keep one copy.
func oneCopy(ctx context.Context, s settings, dir string, bookieArgs ...string) (*cluster.Cluster, error) {
	c, err := cluster.New(dir, s.binary, cluster.Shape{Bookies: 1, Brokers: 1, ExtraArgs: s.memoryArgs(),
		BrokerArgs: []string{"--copies", "1"}, BookieArgs: bookieArgs})
	if err != nil {
		return nil, err
	}
	if err := c.StartAll(ctx); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// moves measures what a bookie writes in all for a byte that outlives the hot
// store: the log, and the cold segment it is moved to.
func (p *plan) moves(ctx context.Context, s settings) error {
	dir, err := os.MkdirTemp(s.dir, "moves-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := oneCopy(ctx, s, dir, "--disk-limit", "6GiB") // a hot store of a quarter of it
	if err != nil {
		return err
	}
	defer c.Stop()
	for {
		counts, _ := fillings()
		args := append([]string{"produce", "--keep"}, counts[0].args...)
		if _, err := bench(ctx, s, c.Server, args...); err != nil {
			return err
		}
		now, err := settled(ctx, c)
		if err != nil {
			return err
		}
		if moved := now.bookie[movedBytes]; moved > 512<<20 {
			p.movedTwice.add(now.bookie[loggedBytes]/now.broker[publishedBytes] + now.bookie[coldBytes]/moved)
			p.movedTwice.detail = fmt.Sprintf("%.0f MB of %.0f MB published were moved", moved/1e6, now.broker[publishedBytes]/1e6)
			return nil
		}
		if now.bookie[loggedBytes] > 4<<30 {
			return fmt.Errorf("%.0f bytes in the log, and none were moved", now.bookie[loggedBytes])
		}
	}
}

// settled samples once the bookie has stopped moving entries: between two writes
// its counters are not of the same entries.
func settled(ctx context.Context, c *cluster.Cluster) (sample, error) {
	for last := -1.0; ; {
		now, err := take(ctx, c)
		if err != nil || now.bookie[coldBytes] == last {
			return now, err
		}
		last = now.bookie[coldBytes]
		select {
		case <-time.After(3 * time.Second):
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}
