package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/internal/latency"
)

func (a *app) benchProduce() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "produce",
		Short: "Publish as fast as it goes, or at a fixed rate",
		Long: `Publish as fast as it goes, or at a fixed rate, and time every answer.

At a fixed rate the time of a message counts from when it was due, so a stall counts
for all messages it held up. At the maximum rate it counts from the call that
publishes it, and one message in each 4 KiB is timed.`,
		Args: cobra.NoArgs,
	}
	b.declareTopic(cmd.Flags(), 2*time.Second)
	b.declareLoad(cmd.Flags())
	producers := cmd.Flags().Int("producers", 1, "producers, each with a goroutine")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if err := b.checkLoad(c); err != nil {
			return err
		}
		if *producers < 1 {
			return usagef(c, "--producers %d: want at least 1", *producers)
		}
		ctx, cancel := a.stream(c.Context())
		defer cancel()
		cl, err := a.connect(ctx, client.WithMemory(int64(b.memory)))
		if err != nil {
			return err
		}
		defer closeClient(cl)
		return a.withTopic(ctx, &b, func(topic string) error {
			r, err := a.publishLoad(ctx, cl, topic, &b, *producers)
			if err != nil {
				return err
			}
			r.Topic = topic
			return a.printBench(r, "publish to answer")
		})
	}
	return cmd
}

// publishLoad publishes from several producers and measures them.
func (a *app) publishLoad(ctx context.Context, cl *client.Client, topic string, b *benchFlags, producers int) (benchResult, error) {
	m := newMeter()
	loads := make([]*publisher, producers)
	for i := range loads {
		p, err := cl.Producer(ctx, topic, b.producerOptions()...)
		if err != nil {
			return benchResult{}, err
		}
		loads[i] = &publisher{p: p, m: m, values: benchValues(b.size), rate: b.rate / float64(producers), phase: float64(i) / float64(producers)}
	}
	group, publishing := errgroup.WithContext(ctx)
	publishing, stop := context.WithCancel(publishing)
	defer stop()
	for _, l := range loads {
		group.Go(func() error { return l.run(publishing) })
	}
	r := m.measure(publishing, a.err, b.warmup, b.duration, nil)
	stop()
	err := errors.Join(stopped(ctx), group.Wait())
	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	for _, l := range loads {
		err = errors.Join(err, l.p.Close(flushing))
	}
	return r, err
}

// publisher publishes with one producer.
type publisher struct {
	p           *client.Producer
	m           *meter
	values      [][]byte
	rate, phase float64

	mu     sync.Mutex
	failed error // the first that was not stored
}

// timedBytes is how many bytes are published, at the maximum rate, for each
// message that is timed: taking the time of each would be a good part of what is
// measured.
const timedBytes = 4096

// run publishes until ctx ends or a message is not stored.
func (l *publisher) run(ctx context.Context) error {
	size := len(l.values[0])
	var pacer *latency.Pacer
	timed := max(1, timedBytes/size)
	if l.rate > 0 {
		pacer, timed = latency.NewPacer(l.rate, l.phase), 1
	}
	count := func(_ client.MessageID, err error) { l.answered(size, err) }
	for i := 0; ctx.Err() == nil; i++ {
		var due time.Time
		if pacer != nil {
			var err error
			if due, err = pacer.Next(ctx); err != nil {
				break
			}
		} else if i%timed == 0 {
			due = time.Now()
		}
		value, done := l.values[1+i%(len(l.values)-1)], count
		if i%timed == 0 {
			value = l.values[0] // the only one with a stamp
			stamp(value, due)   // the client copies it
			done = func(_ client.MessageID, err error) {
				l.m.times.Record(time.Since(due))
				l.answered(size, err)
			}
		}
		l.p.Publish(ctx, client.Message{Value: value}, done)
		if i%1024 == 0 || pacer != nil {
			if err := l.failure(); err != nil {
				return err
			}
		}
	}
	return l.failure()
}

func (l *publisher) answered(size int, err error) {
	if err == nil {
		l.m.did(size)
		return
	}
	if errors.Is(err, context.Canceled) {
		return // it waited for room when the run ended
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = err
	}
}

func (l *publisher) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}
