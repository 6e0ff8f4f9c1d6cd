package client

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"

	"google.golang.org/grpc/credentials"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// Defaults of options.
const (
	DefaultMemory        = 64 << 20
	DefaultBatchBytes    = 128 << 10
	DefaultBatchMessages = 1000
	DefaultQueueMessages = 1000
	DefaultQueueBytes    = 8 << 20
)

// Option changes a Client.
type Option func(*options)

type options struct {
	log    *slog.Logger
	memory int64
	dial   func(ctx context.Context, address string) (net.Conn, error)
	creds  credentials.TransportCredentials
	rand   func() uint64
}

// WithLogger logs what heals itself and what does not; without it the client is
// silent.
func WithLogger(log *slog.Logger) Option { return func(o *options) { o.log = log } }

// WithMemory bounds the bytes of all messages of all the client's producers that
// have no answer yet (DefaultMemory). Above it Send waits.
func WithMemory(bytes int64) Option { return func(o *options) { o.memory = bytes } }

// WithDialer replaces how connections are made. An address is as it was given to
// Connect, or as the cluster advertises it.
func WithDialer(dial func(ctx context.Context, address string) (net.Conn, error)) Option {
	return func(o *options) { o.dial = dial }
}

// WithCredentials secures all connections; without it they are plain.
func WithCredentials(creds credentials.TransportCredentials) Option {
	return func(o *options) { o.creds = creds }
}

// WithRandom replaces the source of names and of jitter, for tests that repeat;
// rand is safe for concurrent use.
func WithRandom(rand func() uint64) Option { return func(o *options) { o.rand = rand } }

func newOptions(opts []Option) options {
	o := options{memory: DefaultMemory, rand: rand.Uint64, log: slog.New(slog.DiscardHandler), dial: dialNetwork}
	for _, f := range opts {
		f(&o)
	}
	return o
}

// Compression of batches, done by the client. A batch that does not get smaller
// is sent as it is.
type Compression int32

const (
	NoCompression Compression = Compression(entryv1.CompressionType_COMPRESSION_TYPE_NONE)
	LZ4           Compression = Compression(entryv1.CompressionType_COMPRESSION_TYPE_LZ4)
	Zlib          Compression = Compression(entryv1.CompressionType_COMPRESSION_TYPE_ZLIB)
	Zstd          Compression = Compression(entryv1.CompressionType_COMPRESSION_TYPE_ZSTD)
	Snappy        Compression = Compression(entryv1.CompressionType_COMPRESSION_TYPE_SNAPPY)
)

// ProducerOption changes a Producer.
type ProducerOption func(*producerOptions)

type producerOptions struct {
	name          string
	sequences     bool
	compression   Compression
	batchBytes    int
	batchMessages int
	mustExist     bool
}

// WithName names the producer, which makes it idempotent across restarts: it
// goes on after the last sequence id stored for the name. One producer of a name
// can be connected at a time. Without it the cluster chooses a name.
func WithName(name string) ProducerOption { return func(o *producerOptions) { o.name = name } }

// WithSequences makes the application number its messages in Message.Sequence.
// For a named producer, a message whose number is stored already is not stored
// again, and its Send succeeds.
func WithSequences() ProducerOption { return func(o *producerOptions) { o.sequences = true } }

// WithCompression compresses batches.
func WithCompression(c Compression) ProducerOption {
	return func(o *producerOptions) { o.compression = c }
}

// WithBatchLimit bounds a batch (DefaultBatchBytes before compression,
// DefaultBatchMessages). One message more than bytes long is a batch by itself. No
// batch is larger than the largest message the topic takes.
func WithBatchLimit(bytes, messages int) ProducerOption {
	return func(o *producerOptions) { o.batchBytes, o.batchMessages = bytes, messages }
}

// WithExistingTopic fails with ErrNotFound rather than create the topic.
func WithExistingTopic() ProducerOption { return func(o *producerOptions) { o.mustExist = true } }

func newProducerOptions(opts []ProducerOption) producerOptions {
	o := producerOptions{batchBytes: DefaultBatchBytes, batchMessages: DefaultBatchMessages}
	for _, f := range opts {
		f(&o)
	}
	return o
}
