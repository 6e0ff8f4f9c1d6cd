package entry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// MaxPayloadBytes bounds the payload of an entry, before and after compression.
const MaxPayloadBytes = 64 << 20

// Encoders and decoders are costly to make and keep tables of up to some
// megabytes; idle ones are dropped by the garbage collector. None of them starts
// a goroutine.
var (
	zstdEncoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constant
		}
		return e
	}}
	zstdDecoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxPayloadBytes), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err)
		}
		return d
	}}
	zlibWriters    = sync.Pool{New: func() any { return zlib.NewWriter(io.Discard) }}
	lz4Compressors = sync.Pool{New: func() any { return new(lz4.Compressor) }}
)

// compress appends src, compressed, to dst. It reports false, with dst as it
// was, where src does not get smaller: it is then sent as it is.
func compress(dst, src []byte, how entryv1.CompressionType) ([]byte, bool) {
	at := len(dst)
	out := dst
	switch how {
	case entryv1.CompressionType_COMPRESSION_TYPE_LZ4:
		c := lz4Compressors.Get().(*lz4.Compressor)
		out = grow(out, len(src))
		n, err := c.CompressBlock(src, out[at:at+len(src)])
		lz4Compressors.Put(c)
		if err != nil || n == 0 { // 0: does not fit, that is, does not get smaller
			return dst, false
		}
		out = out[:at+n]
	case entryv1.CompressionType_COMPRESSION_TYPE_ZLIB:
		w := zlibWriters.Get().(*zlib.Writer)
		buf := bytes.NewBuffer(out)
		w.Reset(buf)
		_, err := w.Write(src)
		err = errors.Join(err, w.Close())
		zlibWriters.Put(w)
		if err != nil {
			return dst, false
		}
		out = buf.Bytes()
	case entryv1.CompressionType_COMPRESSION_TYPE_ZSTD:
		e := zstdEncoders.Get().(*zstd.Encoder)
		out = e.EncodeAll(src, out)
		zstdEncoders.Put(e)
	case entryv1.CompressionType_COMPRESSION_TYPE_SNAPPY:
		bound := s2.MaxEncodedLen(len(src))
		if bound < 0 {
			return dst, false
		}
		out = grow(out, bound)
		out = out[:at+len(s2.EncodeSnappy(out[at:at+bound], src))]
	default:
		return dst, false
	}
	if len(out)-at >= len(src) {
		return dst, false
	}
	return out, true
}

// grow returns b with room for n more bytes.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	return append(make([]byte, 0, len(b)+n), b...)
}

// The most a payload can grow when it is decompressed, for formats that have
// such a bound; a header that claims more is wrong, and found so before
// anything is allocated.
const (
	maxRatioLZ4    = 255
	maxRatioZlib   = 1032
	maxRatioSnappy = 64
)

// decompress returns the payload behind h, at most limit bytes of it. It fails
// unless that has exactly the size that h states. Without compression it is the
// argument itself.
func decompress(h *Header, payload []byte, limit int) ([]byte, error) {
	if h.Compression == entryv1.CompressionType_COMPRESSION_TYPE_NONE {
		if len(payload) > limit {
			return nil, fmt.Errorf("payload of %d bytes, at most %d: %w", len(payload), limit, ErrTooLarge)
		}
		return payload, nil
	}
	size := int64(h.UncompressedBytes)
	if size > int64(min(limit, MaxPayloadBytes)) {
		return nil, fmt.Errorf("payload of %d bytes uncompressed, at most %d: %w", size, min(limit, MaxPayloadBytes), ErrTooLarge)
	}
	ratio := func(most int64) error {
		if size > most*int64(len(payload)) {
			return fmt.Errorf("payload of %d bytes cannot hold %d: %w", len(payload), size, ErrCorrupt)
		}
		return nil
	}
	var out []byte
	var err error
	switch h.Compression {
	case entryv1.CompressionType_COMPRESSION_TYPE_LZ4:
		if err := ratio(maxRatioLZ4); err != nil {
			return nil, err
		}
		out = make([]byte, size)
		var n int
		n, err = lz4.UncompressBlock(payload, out)
		out = out[:max(n, 0)]
	case entryv1.CompressionType_COMPRESSION_TYPE_ZLIB:
		if err := ratio(maxRatioZlib); err != nil {
			return nil, err
		}
		out, err = inflate(payload, int(size))
	case entryv1.CompressionType_COMPRESSION_TYPE_ZSTD:
		d := zstdDecoders.Get().(*zstd.Decoder)
		out, err = d.DecodeAll(payload, make([]byte, 0, size))
		zstdDecoders.Put(d)
	case entryv1.CompressionType_COMPRESSION_TYPE_SNAPPY:
		if err := ratio(maxRatioSnappy); err != nil {
			return nil, err
		}
		if n, lenErr := s2.DecodedLen(payload); lenErr != nil || int64(n) != size {
			return nil, fmt.Errorf("snappy payload of %d bytes, header states %d: %w", n, size, ErrCorrupt)
		}
		out, err = s2.Decode(make([]byte, size), payload)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w: %w", err, ErrCorrupt)
	}
	if int64(len(out)) != size {
		return nil, fmt.Errorf("payload of %d bytes uncompressed, header states %d: %w", len(out), size, ErrCorrupt)
	}
	return out, nil
}

// inflate reads exactly size bytes.
func inflate(payload []byte, size int) ([]byte, error) {
	r, err := zlib.NewReader(bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, err
	}
	// The checksum behind the data is read with the end.
	if n, err := io.ReadFull(r, make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, fmt.Errorf("more than %d bytes, or %w", size, err)
	}
	return out, r.Close()
}
