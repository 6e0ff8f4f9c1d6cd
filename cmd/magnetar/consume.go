package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/client"
)

var subscriptionTypes = map[string]client.Type{
	"exclusive": client.Exclusive, "shared": client.Shared, "failover": client.Failover,
}

const (
	// consumeFlushEvery and consumeFlushMessages bound how long a message that was
	// received waits to be written out and acknowledged.
	consumeFlushEvery    = 50 * time.Millisecond
	consumeFlushMessages = 1000
	// drainedEvery is how often the backlog is asked for by --until-drained.
	drainedEvery = 200 * time.Millisecond
)

var (
	// errDrained ends a consume whose backlog is empty.
	errDrained = errors.New("drained")
	// errTimeOver ends a consume that did what it could in the time it was given.
	errTimeOver = errors.New("the time that --timeout gives is over")
)

func (a *app) consumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "consume TOPIC -s SUBSCRIPTION",
		Short: "Print messages and acknowledge them",
		Long: `Print messages and acknowledge each once it was written out.

-o raw (the default) prints values, a line each; -o json and jsonl print an object a line.
-F prints by a format: %t topic, %p partition, %i id, %k key, %v value, %s bytes of the
value, %T publish time, %h properties; \n and \t.`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	subscription := flags.StringP("subscription", "s", "", "name of the subscription (required)")
	kind := flags.String("type", "exclusive", "exclusive, shared or failover")
	from := flags.String("from", "latest", "where a new subscription starts: earliest, latest, a message id, a time or an age such as -10m")
	count := flags.IntP("count", "n", 0, "stop after so many messages; 0: never")
	drained := flags.Bool("until-drained", false, "stop once the subscription has no backlog and every acknowledgement is answered")
	format := flags.StringP("format", "F", "", "how to print a message, such as '%k\\t%v\\n'")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if *subscription == "" {
			return usagef(c, "--subscription is missing: -s NAME")
		}
		if *count < 0 {
			return usagef(c, "--count %d is negative", *count)
		}
		t, ok := subscriptionTypes[*kind]
		if !ok {
			return usagef(c, "--type %q: want exclusive, shared or failover", *kind)
		}
		start, err := parsePlace(*from)
		if err != nil {
			return usagef(c, "--from: %v", err)
		}
		print, err := a.messagePrinter(*format)
		if err != nil {
			return usagef(c, "%v", err)
		}
		ctx, cancel := a.stream(c.Context())
		defer cancel()
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer closeClient(cl)
		s, err := cl.Subscribe(ctx, args[0], *subscription, client.OfType(t), client.From(start.position()))
		if errors.Is(err, client.ErrBusy) {
			return fmt.Errorf("%w\n'magnetar subscription describe %s %s' shows who is connected: join with the same --type, or wait until they are gone", err, args[0], *subscription)
		}
		if err != nil {
			return err
		}
		run := consumeRun{s: s, print: print, out: a.out, limit: *count, start: time.Now()}
		if *drained {
			run.isDrained = func(ctx context.Context) (bool, error) { return a.isDrained(ctx, args[0], *subscription) }
		}
		err = run.run(ctx)
		fmt.Fprintf(a.err, "consumed %d messages, %d bytes from %s in %s\n", run.messages, run.bytes, args[0], time.Since(run.start).Round(time.Millisecond))
		if errors.Is(err, context.Canceled) && c.Context().Err() != nil {
			return nil // asked to stop
		}
		return err
	}
	return cmd
}

// position is the place in the client's words.
func (p place) position() client.Position {
	switch {
	case p.earliest:
		return client.Earliest()
	case p.latest:
		return client.Latest()
	case p.id != nil:
		return client.At(client.MessageID{Ledger: p.id.Ledger, Entry: p.id.Entry, Partition: p.id.Partition, BatchIndex: p.id.BatchIndex})
	}
	return client.Since(p.time)
}

func (a *app) messagePrinter(format string) (printer, error) {
	if format != "" {
		return parseFormat(format)
	}
	switch a.format {
	case "", "raw":
		return printRaw, nil
	case "json", "jsonl":
		return printJSON, nil
	}
	return nil, fmt.Errorf("--output %q: consume prints raw, json or jsonl", a.format)
}

// isDrained asks the owners whether a subscription has anything left on any
// partition.
func (a *app) isDrained(ctx context.Context, topic, subscription string) (bool, error) {
	drained := true
	err := a.ask(ctx, func(ctx context.Context, q *asker) error {
		topics, err := q.stats(ctx, topic)
		if err != nil {
			return err
		}
		for _, t := range topics {
			found := false
			for _, s := range t.Subscriptions {
				if s.Subscription == subscription {
					found = true
					drained = drained && s.backlogEntries == 0
				}
			}
			drained = drained && found
		}
		return nil
	})
	return drained && err == nil, err
}

// consumeRun prints and acknowledges. Messages are acknowledged only after they
// were written out.
type consumeRun struct {
	s         *client.Consumer
	print     printer
	out       io.Writer
	limit     int
	isDrained func(context.Context) (bool, error)
	start     time.Time

	mu       sync.Mutex
	text     []byte
	pending  []*client.Received
	messages int
	bytes    int64
	failed   error // of writing out
}

func (r *consumeRun) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var helpers sync.WaitGroup
	helpers.Go(func() { r.flushLoop(ctx, cancel) })
	if r.isDrained != nil {
		helpers.Go(func() { r.drainLoop(ctx, cancel) })
	}
	err := r.receive(ctx)
	if cause := context.Cause(ctx); errors.Is(cause, context.DeadlineExceeded) {
		err = errTimeOver
	} else if cause != nil {
		err = cause
	}
	cancel(nil)
	helpers.Wait()
	r.flush()
	closing, done := context.WithTimeout(context.Background(), 30*time.Second)
	defer done()
	closeErr := r.s.Close(closing) // answers every acknowledgement
	if errors.Is(err, errDrained) {
		err = nil
	}
	return errors.Join(err, r.failed, closeErr)
}

func (r *consumeRun) receive(ctx context.Context) error {
	for r.limit == 0 || r.messages < r.limit {
		m, err := r.s.Receive(ctx)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.text = r.print(r.text, m)
		r.pending = append(r.pending, m)
		r.messages++
		r.bytes += int64(len(m.Value))
		full := len(r.pending) >= consumeFlushMessages || len(r.text) > 1<<20
		r.mu.Unlock()
		if full {
			r.flush()
		}
	}
	return nil
}

// flush writes out what was received, then acknowledges it.
func (r *consumeRun) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == nil {
		if _, err := r.out.Write(r.text); err != nil {
			r.failed = fmt.Errorf("write out: %w; the last %d messages are not acknowledged", err, len(r.pending))
		}
	}
	if r.failed == nil {
		for _, m := range r.pending {
			m.AckAsync()
		}
	}
	r.text, r.pending = r.text[:0], r.pending[:0]
}

func (r *consumeRun) flushLoop(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(consumeFlushEvery):
		}
		r.flush()
		r.mu.Lock()
		failed := r.failed
		r.mu.Unlock()
		if failed != nil {
			cancel(failed)
			return
		}
	}
}

func (r *consumeRun) drainLoop(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(drainedEvery):
		}
		// An owner that cannot be asked just now is asked again.
		if done, err := r.isDrained(ctx); err == nil && done {
			cancel(errDrained)
			return
		}
	}
}
