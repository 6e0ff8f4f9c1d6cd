package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/internal/config"
)

func (a *app) benchConsume() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "consume",
		Short: "Receive and acknowledge as fast as it goes",
		Long: `Receive and acknowledge as fast as it goes.

With --topic it takes what is there and what comes while it runs; of messages that
'magnetar bench' published it tells how long they took to come. Without, it first fills
a topic, untimed, and ends once it has read all of that.`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	b.declareTopic(flags, 0)
	subscription := flags.StringP("subscription", "s", "bench", "name of the subscription")
	kind := flags.String("type", "exclusive", "exclusive, shared or failover")
	from := flags.String("from", "earliest", "where a new subscription starts: earliest, latest, a message id, a time or an age such as -10m")
	fill := config.ByteSize(256 << 20)
	flags.Var(&fill, "fill", "how much to publish to the topic made for the run")
	size := flags.Int("size", 1024, "bytes of a message's value published by --fill")
	consumers := flags.Int("consumers", 1, "consumers of the subscription, for types that share")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if err := b.checkTopic(c); err != nil {
			return err
		}
		t, ok := subscriptionTypes[*kind]
		if !ok {
			return usagef(c, "--type %q: want exclusive, shared or failover", *kind)
		}
		start, err := parsePlace(*from)
		if err != nil {
			return usagef(c, "--from: %v", err)
		}
		if *size < 1 || *consumers < 1 || fill < config.ByteSize(*size) {
			return usagef(c, "--size %d --fill %v --consumers %d: want at least 1, and room for a message", *size, &fill, *consumers)
		}
		ctx, cancel := a.stream(c.Context())
		defer cancel()
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer closeClient(cl)
		return a.withTopic(ctx, &b, func(topic string) error {
			run := consumeBench{m: newMeter(), done: make(chan struct{})}
			if b.topic == "" {
				// Before the messages, so that they are kept for it.
				s, err := cl.Subscribe(ctx, topic, *subscription, client.OfType(t), client.From(client.Earliest()))
				if err == nil {
					err = s.Close(ctx)
				}
				if err == nil {
					run.want = int64(fill) / int64(*size)
					err = a.fillTopic(ctx, cl, topic, *size, run.want)
				}
				if err != nil {
					return err
				}
			}
			var open []*client.Consumer
			for range *consumers {
				s, err := cl.Subscribe(ctx, topic, *subscription, client.OfType(t), client.From(start.position()))
				if err != nil {
					return err
				}
				open = append(open, s)
			}
			r, err := a.consumeLoad(ctx, open, &b, &run)
			if err != nil {
				return err
			}
			r.Topic = topic
			return a.printBench(r, "publish to here")
		})
	}
	return cmd
}

// fillTopic publishes so many messages of the given size.
func (a *app) fillTopic(ctx context.Context, cl *client.Client, topic string, size int, messages int64) error {
	fmt.Fprintf(a.err, "publishing %d messages of %d bytes\n", messages, size)
	p, err := cl.Producer(ctx, topic)
	if err != nil {
		return err
	}
	values := benchValues(size)
	for i := range messages {
		p.SendAsync(ctx, client.Message{Value: values[i%int64(len(values))]})
	}
	return errors.Join(p.Flush(ctx), p.Close(ctx))
}

// consumeBench counts what consumers receive.
type consumeBench struct {
	m    *meter
	want int64 // messages after which the run is over; 0: none
	done chan struct{}
	over sync.Once
}

// consumeLoad receives with all consumers and measures them.
func (a *app) consumeLoad(ctx context.Context, consumers []*client.Consumer, b *benchFlags, run *consumeBench) (benchResult, error) {
	receiving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for _, s := range consumers {
		wg.Go(func() {
			if err := run.receive(receiving, s); err != nil {
				stop(err)
			}
		})
	}
	r := run.m.measure(receiving, a.err, b.warmup, b.duration, run.done)
	err := stopped(receiving)
	stop(nil)
	wg.Wait()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	for _, s := range consumers {
		err = errors.Join(err, s.Close(closing))
	}
	return r, err
}

func (r *consumeBench) receive(ctx context.Context, s *client.Consumer) error {
	for {
		m, err := s.Receive(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if at, ok := stamped(m.Value); ok {
			r.m.times.Record(time.Since(at))
		}
		m.AckAsync()
		r.m.did(len(m.Value))
		if r.want > 0 && r.m.messages.Load() >= r.want {
			r.over.Do(func() { close(r.done) })
		}
	}
}
