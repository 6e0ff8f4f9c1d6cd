package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/internal/config"
	"github.com/magnetar-io/magnetar/internal/latency"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

func (a *app) benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure how fast a cluster publishes and delivers",
		Long: `Measure how fast a cluster publishes and delivers, from this machine.

Each second a line on standard error says what went on; the result goes to standard
output. MB are millions of bytes of values. Without --topic a topic is made for the
run and deleted afterwards.`,
	}
	cmd.AddCommand(a.benchProduce(), a.benchConsume(), a.benchLatency())
	return cmd
}

// benchFlags are what the benchmarks have in common.
type benchFlags struct {
	topic            string
	keep             bool
	partitions       uint32
	size             int
	batchBytes       config.ByteSize
	batchMessages    int
	memory           config.ByteSize
	compression      string
	rate             float64
	duration, warmup time.Duration
}

// declareTopic declares what names the topic and how long the run takes.
func (b *benchFlags) declareTopic(f *pflag.FlagSet, warmup time.Duration) {
	f.StringVar(&b.topic, "topic", "", "topic to use (default: one made for the run and deleted after it)")
	f.BoolVar(&b.keep, "keep", false, "do not delete the topic made for the run")
	f.Uint32Var(&b.partitions, "partitions", 0, "partitions of the topic made for the run; 0: not partitioned")
	f.DurationVar(&b.duration, "duration", 10*time.Second, "how long to measure")
	f.DurationVar(&b.warmup, "warmup", warmup, "how long to run before that")
}

// declareLoad declares what is published.
func (b *benchFlags) declareLoad(f *pflag.FlagSet) {
	b.batchBytes, b.memory = client.DefaultBatchBytes, 4<<20
	f.IntVar(&b.size, "size", 1024, "bytes of a message's value")
	f.Var(&b.batchBytes, "batch-bytes", "most bytes of messages in a batch")
	f.IntVar(&b.batchMessages, "batch-messages", 10_000, "most messages in a batch")
	f.Var(&b.memory, "memory", "most bytes without an answer, of all producers; how many are is what latency at the maximum rate consists of")
	f.StringVar(&b.compression, "compression", "none", "none, lz4, zlib, zstd or snappy")
	f.Float64Var(&b.rate, "rate", 0, "messages a second of all producers, each timed from when it was due; 0: as many as go")
}

func (b *benchFlags) checkTopic(c *cobra.Command) error {
	if b.topic != "" && b.partitions > 0 {
		return usagef(c, "--partitions is for the topic made for the run, not for --topic %s", b.topic)
	}
	if b.duration <= 0 || b.warmup < 0 {
		return usagef(c, "--duration %v --warmup %v: want time to measure, and no negative time", b.duration, b.warmup)
	}
	return nil
}

func (b *benchFlags) checkLoad(c *cobra.Command) error {
	if _, ok := compressions[b.compression]; !ok {
		return usagef(c, "--compression %q: want none, lz4, zlib, zstd or snappy", b.compression)
	}
	if b.size < 1 || b.batchBytes < 1 || b.batchMessages < 1 || b.memory < config.ByteSize(b.size)+1024 {
		return usagef(c, "--size %d --batch-bytes %v --batch-messages %d --memory %v: want at least 1 each, and memory for a message and 1KiB",
			b.size, &b.batchBytes, b.batchMessages, &b.memory)
	}
	if b.rate < 0 {
		return usagef(c, "--rate %g is negative", b.rate)
	}
	return b.checkTopic(c)
}

// stopped is the error of a run whose context ended early: none when a person
// interrupted it, for what was measured until then is what they want to see.
func stopped(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (b *benchFlags) producerOptions() []client.ProducerOption {
	return []client.ProducerOption{
		client.WithCompression(compressions[b.compression]),
		client.WithBatchLimit(int(b.batchBytes), b.batchMessages),
	}
}

// withTopic runs work on the topic that was named, or on one made for it.
func (a *app) withTopic(ctx context.Context, b *benchFlags, work func(topic string) error) (err error) {
	if b.topic != "" {
		return work(b.topic)
	}
	topic := "bench-" + rand.Text()[:10]
	err = a.ask(ctx, func(ctx context.Context, q *asker) error {
		_, err := q.admin.CreateTopic(ctx, adminv1.CreateTopicRequest_builder{Topic: &topic, Partitions: &b.partitions}.Build())
		return err
	})
	if err != nil {
		return fmt.Errorf("create topic %s: %w", topic, err)
	}
	fmt.Fprintln(a.err, "topic", topic)
	if !b.keep {
		defer func() {
			// Also when the run was interrupted.
			e := a.ask(context.WithoutCancel(ctx), func(ctx context.Context, q *asker) error {
				_, err := q.admin.DeleteTopic(ctx, adminv1.DeleteTopicRequest_builder{Topic: &topic}.Build())
				return err
			})
			if e != nil {
				err = errors.Join(err, fmt.Errorf("delete topic %s: %w", topic, e))
			}
		}()
	}
	return work(topic)
}

// benchResult is what a run came to.
type benchResult struct {
	Topic             string           `json:"topic"`
	Seconds           float64          `json:"seconds"`
	Messages          int64            `json:"messages"`
	Bytes             int64            `json:"bytes"`
	MessagesPerSecond float64          `json:"messagesPerSecond"`
	MegabytesPerSec   float64          `json:"megabytesPerSecond"`
	Latency           latency.Summary  `json:"latency"`
	Delivery          *latency.Summary `json:"delivery,omitempty"`
}

// printBench prints a result; what says what its latency is of.
func (a *app) printBench(r benchResult, what string) error {
	rows := []column[benchResult]{
		{"topic", func(r benchResult) string { return r.Topic }},
		{"seconds", func(r benchResult) string { return fmt.Sprintf("%.2f", r.Seconds) }},
		{"messages", func(r benchResult) string { return fmt.Sprint(r.Messages) }},
		{"messages/s", func(r benchResult) string { return fmt.Sprintf("%.0f", r.MessagesPerSecond) }},
		{"MB/s", func(r benchResult) string { return fmt.Sprintf("%.1f", r.MegabytesPerSec) }},
	}
	if r.Latency.Count > 0 {
		rows = append(rows, column[benchResult]{what, func(r benchResult) string { return r.Latency.String() }})
	}
	if r.Delivery != nil {
		rows = append(rows, column[benchResult]{"to consumer", func(r benchResult) string { return r.Delivery.String() }})
	}
	return printOne(a, r, rows)
}
