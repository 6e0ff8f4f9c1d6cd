package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/magnetar-io/magnetar/client"
)

// connectTimeout is how long produce, consume and bench wait for a first answer
// when --timeout does not say.
const connectTimeout = 10 * time.Second

// connect connects a client for produce, consume and bench. Unlike the client, a
// person does not want to wait for ever for a server that may not exist.
func (a *app) connect(ctx context.Context, opts ...client.Option) (*client.Client, error) {
	if _, err := a.serverList(); err != nil {
		return nil, err
	}
	limit, cancel := ctx, context.CancelFunc(func() {})
	if a.timeout == 0 {
		limit, cancel = context.WithTimeout(ctx, connectTimeout)
	}
	defer cancel()
	cl, err := client.Connect(limit, a.servers, opts...)
	switch {
	case err == nil:
		return cl, nil
	case ctx.Err() == nil && limit.Err() != nil:
		return nil, &coded{exitError, fmt.Errorf("connect: %w within %s", errNoAnswer, connectTimeout)}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("connect: %w: %w", errNoAnswer, ctx.Err())
	}
	return nil, err
}

var compressions = map[string]client.Compression{
	"none": client.NoCompression, "lz4": client.LZ4, "zlib": client.Zlib, "zstd": client.Zstd, "snappy": client.Snappy,
}

// maxLine bounds a line read from a file; what the topic takes is bounded by the
// broker.
const maxLine = 64 << 20

func (a *app) produceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "produce TOPIC",
		Short: "Publish lines, one message a line",
		Long: `Publish the lines of a file or of standard input, one message a line.

With --key-separator each line is KEY, separator, value; the first separator counts.
It exits with 0 once every message is acknowledged, and says on stderr what it did.`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	file := flags.StringP("file", "f", "-", "`FILE` to read; - is standard input")
	key := flags.String("key", "", "key of every message")
	separator := flags.String("key-separator", "", "what stands between key and value in a line")
	name := flags.String("producer-name", "", "name of the producer, which goes on after the last message stored under it")
	compression := flags.String("compression", "none", "none, lz4, zlib, zstd or snappy")
	perSecond := flags.Float64("rate", 0, "messages a second; 0: as fast as they are taken")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		comp, ok := compressions[*compression]
		if !ok {
			return usagef(c, "--compression %q: want none, lz4, zlib, zstd or snappy", *compression)
		}
		if *key != "" && *separator != "" {
			return usagef(c, "--key and --key-separator exclude each other")
		}
		if *perSecond < 0 {
			return usagef(c, "--rate %g is negative", *perSecond)
		}
		in := a.in
		if *file != "-" {
			f, err := os.Open(*file)
			if errors.Is(err, fs.ErrNotExist) {
				return notFoundf("%w; name the file to publish with -f, or - for standard input", err)
			}
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		ctx, cancel := a.stream(c.Context())
		defer cancel()
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer closeClient(cl)
		opts := []client.ProducerOption{client.WithCompression(comp)}
		if *name != "" {
			opts = append(opts, client.WithName(*name))
		}
		p, err := cl.Producer(ctx, args[0], opts...)
		if err != nil {
			return err
		}
		run := produceRun{p: p, key: *key, separator: []byte(*separator), start: time.Now()}
		if *perSecond > 0 {
			run.limit = rate.NewLimiter(rate.Limit(*perSecond), max(1, int(*perSecond/100)))
		}
		showing := run.progress(ctx, a.err)
		stall := stall{app: a, done: run.acknowledged}
		watched := stall.watch(ctx, run.waiting)
		err = run.lines(ctx, in)
		if flushErr := p.Close(ctx); err == nil {
			err = flushErr
		}
		run.open.Wait() // a producer that is closed has answered everything
		watched()
		showing()
		run.summary(a.err, args[0])
		return errors.Join(run.failed(), err)
	}
	return cmd
}

// closeClient gives what is left a moment; everything that matters was waited for
// before.
func closeClient(cl *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = cl.Close(ctx)
}

// produceRun publishes lines and counts what becomes of them.
type produceRun struct {
	p         *client.Producer
	key       string
	separator []byte
	limit     *rate.Limiter
	start     time.Time

	open                   sync.WaitGroup // messages without an answer
	mu                     sync.Mutex
	sent                   int
	stored, bad, uncertain int
	bytes                  int64
	first                  error // of those that were not stored
}

// lines publishes every line of in; the last need not end with a newline. It
// stops at the first message that is refused.
func (r *produceRun) lines(ctx context.Context, in io.Reader) error {
	lines := bufio.NewReaderSize(in, 1<<20)
	for number := 1; ; number++ {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		m := client.Message{Key: r.key, Value: line}
		if len(r.separator) > 0 {
			key, value, found := bytes.Cut(line, r.separator)
			if !found {
				return fmt.Errorf("line %d has no key separator %q; lines before it were published", number, r.separator)
			}
			m.Key, m.Value = string(key), value
		}
		if r.limit != nil {
			if err := r.limit.Wait(ctx); err != nil {
				return err
			}
		}
		size := int64(len(m.Value))
		r.open.Add(1)
		r.noteSent()
		r.p.Publish(ctx, m, func(_ client.MessageID, err error) { r.answered(number, size, err) })
		if r.failed() != nil || ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// readLine returns the next line without its newline; io.EOF when there is none.
// The slice is good until the next call.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		whole := append([]byte(nil), line...)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(whole) > maxLine {
				return nil, fmt.Errorf("longer than %d bytes", maxLine)
			}
			line, err = r.ReadSlice('\n')
			whole = append(whole, line...)
		}
		line = whole
	}
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = nil
	}
	return bytes.TrimSuffix(line, []byte("\n")), err
}

func (r *produceRun) answered(line int, size int64, err error) {
	defer r.open.Done()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.stored++
		r.bytes += size
		return
	case errors.Is(err, client.ErrUnknownOutcome):
		r.uncertain++
	default:
		r.bad++
	}
	if r.first == nil {
		r.first = fmt.Errorf("message of line %d: %w", line, err)
	}
}

// progressEvery is how often long work says on a terminal how far it is.
const progressEvery = time.Second

// progress says on w, if that is a terminal, how many messages are stored, until
// the function it returns is called.
func (r *produceRun) progress(ctx context.Context, w io.Writer) (end func()) {
	return showProgress(ctx, w, func() string {
		r.mu.Lock()
		defer r.mu.Unlock()
		return fmt.Sprintf("published %d messages, %d bytes", r.stored, r.bytes)
	})
}

// showProgress rewrites one line of w, if that is a terminal, until the function
// it returns is called or ctx ends.
func showProgress(ctx context.Context, w io.Writer, line func() string) (end func()) {
	if !isTerminal(w) {
		return func() {}
	}
	return progressLines(ctx, w, progressEvery, line)
}

func progressLines(ctx context.Context, w io.Writer, every time.Duration, line func() string) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		shown := false
		for {
			select {
			case <-ctx.Done():
				if shown {
					fmt.Fprint(w, "\r\x1b[K") // the summary takes its place
				}
				return
			case <-time.After(every):
				shown = true
				fmt.Fprintf(w, "\r\x1b[K%s", line())
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

func (r *produceRun) noteSent() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent++
}

// acknowledged is how many messages are stored.
func (r *produceRun) acknowledged() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stored
}

// waiting reports whether messages were sent that have no answer.
func (r *produceRun) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent > r.stored+r.bad+r.uncertain
}

func (r *produceRun) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first
}

func (r *produceRun) summary(w io.Writer, topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	took := time.Since(r.start)
	fmt.Fprintf(w, "published %d messages, %d bytes to %s in %s (%.0f a second)", r.stored, r.bytes, topic,
		took.Round(time.Millisecond), float64(r.stored)/took.Seconds())
	if r.bad > 0 {
		fmt.Fprintf(w, "; %d were refused", r.bad)
	}
	if r.uncertain > 0 {
		fmt.Fprintf(w, "; of %d the outcome is not known", r.uncertain)
	}
	fmt.Fprintln(w)
}
