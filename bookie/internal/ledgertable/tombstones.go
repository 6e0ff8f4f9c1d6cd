package ledgertable

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/RoaringBitmap/roaring/v2"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// chunkBits is how many low bits of an id count inside one tombstone chunk: an
// encoded chunk of 2^20 ids is at most about 128 KiB.
const chunkBits = 20

// tombstones is the set of deleted ledgers, kept for ever. Its chunks are saved
// whole and one by one. Safe for concurrent use.
type tombstones struct {
	mu     sync.RWMutex
	chunks map[int64]*chunk // by id >> chunkBits
	count  uint64
}

type chunk struct {
	ids   *roaring.Bitmap
	saved uint32 // hot segment that holds the newest whole copy; 0: none does
}

func (t *tombstones) has(id ledger.ID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	c := t.chunks[int64(id)>>chunkBits]
	return c != nil && c.ids.Contains(uint32(id)&(1<<chunkBits-1))
}

func (t *tombstones) add(id ledger.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.chunkLocked(int64(id) >> chunkBits).ids.CheckedAdd(uint32(id) & (1<<chunkBits - 1)) {
		t.count++
	}
}

func (t *tombstones) chunkLocked(key int64) *chunk {
	c := t.chunks[key]
	if c == nil {
		if t.chunks == nil {
			t.chunks = make(map[int64]*chunk)
		}
		c = &chunk{ids: roaring.New()}
		t.chunks[key] = c
	}
	return c
}

func (t *tombstones) each(fn func(ledger.ID)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for key, c := range t.chunks {
		for it := c.ids.Iterator(); it.HasNext(); {
			fn(ledger.ID(key<<chunkBits | int64(it.Next())))
		}
	}
}

// merge adds an encoded chunk.
func (t *tombstones) merge(data []byte, segment uint32) error {
	key, ids, err := decodeChunk(data)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.chunkLocked(key)
	before := c.ids.GetCardinality()
	c.ids.Or(ids)
	t.count += c.ids.GetCardinality() - before
	c.saved = max(c.saved, segment)
	return nil
}

// unsaved returns the keys of the chunks whose newest whole copy is not in a
// segment above segment.
func (t *tombstones) unsaved(segment uint32) (keys []int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for key, c := range t.chunks {
		if c.saved <= segment {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (t *tombstones) encode(key int64) []byte {
	t.mu.Lock() // encoding compacts the set
	defer t.mu.Unlock()
	return encodeChunk(key, t.chunks[key].ids)
}

func (t *tombstones) setSaved(key int64, segment uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.chunks[key]
	c.saved = max(c.saved, segment)
}

// An encoded chunk, little-endian, then the set in roaring's portable format:
//
//	| version 1 | zero 7 | key 8 | roaring … |
const (
	chunkVersion   = 1
	chunkHeadBytes = 16
	maxChunkBytes  = 1 << 18
)

func encodeChunk(key int64, ids *roaring.Bitmap) []byte {
	ids.RunOptimize()
	b := bytes.NewBuffer(make([]byte, 0, chunkHeadBytes+ids.GetSerializedSizeInBytes()))
	var head [chunkHeadBytes]byte
	head[0] = chunkVersion
	binary.LittleEndian.PutUint64(head[8:], uint64(key))
	b.Write(head[:])
	if _, err := ids.WriteTo(b); err != nil {
		panic("ledgertable: bytes.Buffer refused a write: " + err.Error())
	}
	return b.Bytes()
}

func decodeChunk(data []byte) (int64, *roaring.Bitmap, error) {
	if len(data) < chunkHeadBytes || data[0] != chunkVersion {
		return 0, nil, fmt.Errorf("tombstone chunk of %d bytes, want version %d: %w", len(data), chunkVersion, ledger.ErrCorrupt)
	}
	key := int64(binary.LittleEndian.Uint64(data[8:]))
	if key < 0 || key >= 1<<(63-chunkBits) || len(data) > maxChunkBytes {
		return 0, nil, fmt.Errorf("tombstone chunk %d of %d bytes out of range: %w", key, len(data), ledger.ErrCorrupt)
	}
	ids := roaring.New()
	if err := ids.UnmarshalBinary(data[chunkHeadBytes:]); err != nil {
		return 0, nil, fmt.Errorf("tombstone chunk %d: %w: %w", key, err, ledger.ErrCorrupt)
	}
	if err := ids.Validate(); err != nil {
		return 0, nil, fmt.Errorf("tombstone chunk %d: %w: %w", key, err, ledger.ErrCorrupt)
	}
	if !ids.IsEmpty() && ids.Maximum() >= 1<<chunkBits {
		return 0, nil, fmt.Errorf("tombstone chunk %d names id %d: %w", key, ids.Maximum(), ledger.ErrCorrupt)
	}
	return key, ids, nil
}
