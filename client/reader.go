package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
)

// ErrEnd reports that a Reader has read all it was asked for.
var ErrEnd = errors.New("end of what was to be read")

// ReaderOption changes a Reader.
type ReaderOption func(*readerOptions)

type readerOptions struct {
	from     Position
	until    time.Time
	toEnd    bool
	consumer consumerOptions
}

// ReadFrom says where reading starts (Earliest).
func ReadFrom(p Position) ReaderOption { return func(o *readerOptions) { o.from = p } }

// ReadUntil ends reading before the first message of each partition that was
// published at t or later, and at the messages that the topic had when the reader
// was opened.
func ReadUntil(t time.Time) ReaderOption {
	return func(o *readerOptions) { o.until, o.toEnd = t, true }
}

// ReadToEnd ends reading with the last message that the topic had when the reader
// was opened.
func ReadToEnd() ReaderOption { return func(o *readerOptions) { o.toEnd = true } }

// ReadQueue is Queue for a reader.
func ReadQueue(messages, bytes int) ReaderOption {
	return func(o *readerOptions) { Queue(messages, bytes)(&o.consumer) }
}

// Reader reads a topic without a subscription. Nothing is acknowledged, and the
// server keeps nothing of it. It is safe for concurrent use.
type Reader struct {
	s     *Consumer
	until time.Time
}

// Reader opens a reader of all partitions of a topic that exists.
func (c *Client) Reader(ctx context.Context, topic string, opts ...ReaderOption) (*Reader, error) {
	o := readerOptions{from: Earliest(), consumer: newConsumerOptions(nil)}
	for _, f := range opts {
		f(&o)
	}
	o.consumer.from, o.consumer.noCreate, o.consumer.bounded = o.from, true, o.toEnd
	s, err := c.subscribe(ctx, topic, fmt.Sprintf("reader-%016x", c.rand()), o.consumer, true)
	if err != nil {
		return nil, err
	}
	return &Reader{s: s, until: o.until}, nil
}

// Receive waits for the next message. ErrEnd: there are no more of those asked
// for. Messages of a partition come in order.
func (r *Reader) Receive(ctx context.Context) (*Received, error) {
	for {
		m, err := r.s.Receive(ctx)
		if err != nil || r.until.IsZero() || m.PublishTime.Before(r.until) {
			return m, err
		}
		r.s.mu.Lock()
		m.feed.pos.ended = true
		r.s.mu.Unlock()
	}
}

// Messages iterates over the messages. After the last one of those asked for the
// loop ends; any other end is an error that it yields.
func (r *Reader) Messages(ctx context.Context) iter.Seq2[*Received, error] {
	return func(yield func(*Received, error) bool) {
		for {
			m, err := r.Receive(ctx)
			if errors.Is(err, ErrEnd) || !yield(m, err) || err != nil && !errors.Is(err, ErrCorrupt) {
				return
			}
		}
	}
}

// Seek moves the reader.
func (r *Reader) Seek(ctx context.Context, to Position) error { return r.s.Seek(ctx, to) }

// Close ends the reader.
func (r *Reader) Close(ctx context.Context) error { return r.s.Close(ctx) }
