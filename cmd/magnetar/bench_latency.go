package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/internal/latency"
)

func (a *app) benchLatency() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "latency",
		Short: "Publish one message at a time and time each",
		Long: `Publish one message at a time: the next is sent once the one before is answered, or
when it is due with --rate. With --deliver a consumer in this process times the whole way.`,
		Args: cobra.NoArgs,
	}
	b.declareTopic(cmd.Flags(), 2*time.Second)
	b.declareLoad(cmd.Flags())
	deliver := cmd.Flags().Bool("deliver", false, "also time the way to a consumer")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if err := b.checkLoad(c); err != nil {
			return err
		}
		if *deliver && b.size < stampBytes {
			return usagef(c, "--size %d: --deliver needs at least %d, for a time stamp", b.size, stampBytes)
		}
		ctx, cancel := a.stream(c.Context())
		defer cancel()
		cl, err := a.connect(ctx, client.WithMemory(int64(b.memory)))
		if err != nil {
			return err
		}
		defer closeClient(cl)
		return a.withTopic(ctx, &b, func(topic string) error {
			r, err := a.oneByOne(ctx, cl, topic, &b, *deliver)
			if err != nil {
				return err
			}
			r.Topic = topic
			return a.printBench(r, "publish to answer")
		})
	}
	return cmd
}

// oneByOne publishes single messages and measures them.
func (a *app) oneByOne(ctx context.Context, cl *client.Client, topic string, b *benchFlags, deliver bool) (r benchResult, err error) {
	m := newMeter()
	p, err := cl.Producer(ctx, topic, b.producerOptions()...)
	if err != nil {
		return r, err
	}
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	received := make(chan struct{})
	if deliver {
		s, err := cl.Subscribe(ctx, topic, "bench", client.From(client.Latest()))
		if err != nil {
			return r, err
		}
		go func() {
			defer close(received)
			stop(timeDeliveries(running, s, m.delivery))
		}()
		defer func() {
			stop(nil)
			<-received
		}()
	}
	published := make(chan struct{})
	go func() {
		defer close(published)
		stop(publishEach(running, p, b, m))
	}()
	r = m.measure(running, a.err, b.warmup, b.duration, nil)
	err = stopped(running)
	stop(nil)
	<-published
	return r, errors.Join(err, p.Close(context.WithoutCancel(ctx)))
}

// publishEach publishes one message after the other until ctx ends.
func publishEach(ctx context.Context, p *client.Producer, b *benchFlags, m *meter) error {
	value := benchValues(b.size)[0]
	var pacer *latency.Pacer
	if b.rate > 0 {
		pacer = latency.NewPacer(b.rate, 0)
	}
	for {
		due := time.Now()
		if pacer != nil {
			var err error
			if due, err = pacer.Next(ctx); err != nil {
				return nil
			}
		}
		stamp(value, due)
		_, err := p.Send(ctx, client.Message{Value: value})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		m.times.Record(time.Since(due))
		m.did(b.size)
	}
}

// timeDeliveries takes the time of each message received until ctx ends.
func timeDeliveries(ctx context.Context, s *client.Consumer, times *latency.Recorder) error {
	for {
		r, err := s.Receive(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if at, ok := stamped(r.Value); ok {
			times.Record(time.Since(at))
		}
		r.AckAsync()
	}
}
