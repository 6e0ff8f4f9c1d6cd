package entry

import (
	"bytes"
	"compress/zlib"
	"errors"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestBombsAreRefusedInBoundedMemory shows that payloads which unpack to far more
// than they are, whatever size their header states, are refused, and that what is
// allocated meanwhile follows the reader's limit and not the bomb.
func TestBombsAreRefusedInBoundedMemory(t *testing.T) {
	const bombBytes, limit = 32 << 20, 1 << 20
	// The decoders' own windows and tables come on top of the limit.
	const most = 8 * limit
	zeros := make([]byte, bombBytes)
	var inflated bytes.Buffer
	w := zlib.NewWriter(&inflated)
	if _, err := w.Write(zeros); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, lz4.CompressBlockBound(bombBytes))
	n, err := lz4.CompressBlock(zeros, block, nil)
	if err != nil {
		t.Fatal(err)
	}
	// A frame without its size in front, as a stream writes it.
	var stream bytes.Buffer
	zs, err := zstd.NewWriter(&stream, zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := zs.Write(zeros); err != nil {
		t.Fatal(err)
	}
	if err := zs.Close(); err != nil {
		t.Fatal(err)
	}
	bombs := map[string]struct {
		how     entryv1.CompressionType
		payload []byte
	}{
		"lz4":         {entryv1.CompressionType_COMPRESSION_TYPE_LZ4, block[:n]},
		"zlib":        {entryv1.CompressionType_COMPRESSION_TYPE_ZLIB, inflated.Bytes()},
		"zstd":        {entryv1.CompressionType_COMPRESSION_TYPE_ZSTD, z.EncodeAll(zeros, nil)},
		"zstd stream": {entryv1.CompressionType_COMPRESSION_TYPE_ZSTD, stream.Bytes()},
		"snappy":      {entryv1.CompressionType_COMPRESSION_TYPE_SNAPPY, s2.EncodeSnappy(nil, zeros)},
	}
	for name, b := range bombs {
		for _, stated := range []uint32{0, 1, limit, limit + 1, bombBytes, 1<<32 - 1} {
			part := AppendProducerPart(nil, entryv1.MessageMetadata_builder{
				ProducerName: new("p"), Compression: &b.how, UncompressedSize: &stated, NumMessagesInBatch: new(int32(1)),
			}.Build(), b.payload)
			var err error
			took := allocated(func() { _, err = Open(part, limit) })
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s of %d bytes that states %d: %v", name, len(b.payload), stated, err)
			}
			if took > most {
				t.Errorf("%s of %d bytes that states %d: %d bytes were allocated, limit %d", name, len(b.payload), stated, took, limit)
			}
		}
	}
}
