package coldstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"sort"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// A segment file, little-endian, crc always CRC-32C:
//
//	| header 32 | block | block | … | footer | trailer 32 |
//
//	header:  | magic 8 | version 4 | segment 4 | lifetime 1 | zero 11 | crc 4 |
//	block:   | crc 4 | bytes 4 | segment 4 | count 4 | ledger 8 | first 8 | entries … |
//	entry:   | envelope 48 | body |
//	footer:  | runs 4 | blocks 4 | entries 8 | dataBytes 8 | run … | block … |
//	  run:   | ledger 8 | first 8 | count 4 | blocks 4 |
//	  block: | bytes 4 | count 4 | crc 4 |
//	trailer: | version 4 | segment 4 | footerBytes 4 | lifetime 1 | zero 3 | footerCRC 4 | crc 4 | magic 8 |
//
// The crc of header and trailer covers what stands before it in them, that of a
// block all that follows it. A block holds count consecutive entries of one
// ledger, from first on; bytes counts its 32 too. Blocks follow each other
// without gaps. A run is a sequence of blocks with consecutive entries of one
// ledger; runs are sorted and share no entry. The footer lists the runs, and the
// blocks of all of them in file order.
//
// The file is written under a temporary name, synced, and then renamed, so a
// file with its proper name is whole: what cannot be read in it is damage.
const (
	magic         = "MGTRCOLD"
	formatVersion = 1

	headerBytes      = 32
	trailerBytes     = 32
	blockHeaderBytes = 32
	footerHeadBytes  = 24
	footerRunBytes   = 24
	footerBlockBytes = 12

	// maxRuns ends a segment of very many tiny ledgers, to bound its footer (≈ 2 MiB
	// in memory).
	maxRuns = 1 << 16
	// maxBlocks follows from offsets of 32 bits and blocks of at least one entry.
	maxBlocks = (maxSegmentBytes + ledger.MaxBodyBytes) / (blockHeaderBytes + ledger.EnvelopeBytes)
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("coldstore: "+format+": %w", append(args, ledger.ErrCorrupt)...)
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, ledger.Castagnoli) }

func encodeHeader(segment uint32, lifetime index.Lifetime) []byte {
	b := make([]byte, headerBytes)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], segment)
	b[16] = byte(lifetime)
	binary.LittleEndian.PutUint32(b[28:], checksum(b[:28]))
	return b
}

// checkVersion tells a newer file from a damaged one.
func checkVersion(version uint32) error {
	if version > formatVersion {
		return fmt.Errorf("coldstore: segment version %d, this build reads up to %d", version, formatVersion)
	}
	if version == 0 {
		return corrupt("segment version 0")
	}
	return nil
}

func decodeHeader(b []byte) (segment uint32, lifetime index.Lifetime, err error) {
	if len(b) < headerBytes || string(b[:8]) != magic {
		return 0, 0, corrupt("segment without its magic")
	}
	if err := checkVersion(binary.LittleEndian.Uint32(b[8:])); err != nil {
		return 0, 0, err
	}
	if checksum(b[:28]) != binary.LittleEndian.Uint32(b[28:]) {
		return 0, 0, corrupt("segment header checksum")
	}
	return binary.LittleEndian.Uint32(b[12:]), index.Lifetime(b[16]), nil
}

// trailer ends a segment file.
type trailer struct {
	segment     uint32
	lifetime    index.Lifetime
	footerBytes uint32
	footerCRC   uint32
}

func (t trailer) appendTo(b []byte) []byte {
	start := len(b)
	for _, n := range []uint32{formatVersion, t.segment, t.footerBytes} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	b = append(b, byte(t.lifetime), 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, t.footerCRC)
	b = binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
	return append(b, magic...)
}

func decodeTrailer(b []byte) (trailer, error) {
	if len(b) != trailerBytes || string(b[24:]) != magic {
		return trailer{}, corrupt("segment without its trailer")
	}
	if err := checkVersion(binary.LittleEndian.Uint32(b)); err != nil {
		return trailer{}, err
	}
	if checksum(b[:20]) != binary.LittleEndian.Uint32(b[20:]) {
		return trailer{}, corrupt("segment trailer checksum")
	}
	return trailer{segment: binary.LittleEndian.Uint32(b[4:]), footerBytes: binary.LittleEndian.Uint32(b[8:]),
		lifetime: index.Lifetime(b[12]), footerCRC: binary.LittleEndian.Uint32(b[16:])}, nil
}

// table is a footer in memory.
type table struct {
	runs    []run
	blocks  []block
	entries uint64
}

// run is a sequence of blocks with consecutive entries of one ledger.
type run struct {
	ledger     ledger.ID
	first      ledger.EntryID
	count      uint32 // entries
	offset     uint32 // of its first block in the file
	length     uint32 // of its blocks
	firstBlock uint32 // index in table.blocks
	blocks     uint32
}

func (r *run) last() ledger.EntryID { return r.first + ledger.EntryID(r.count) - 1 }

// block is one block of a run.
type block struct {
	offset uint32 // in the file
	bytes  uint32
	skip   uint32 // entries of the run before it
	count  uint32
	crc    uint32
}

// dataBytes is the length of all blocks.
func (t *table) dataBytes() uint32 {
	if len(t.blocks) == 0 {
		return 0
	}
	last := t.blocks[len(t.blocks)-1]
	return last.offset + last.bytes - headerBytes
}

func (t *table) encode() []byte {
	b := make([]byte, 0, footerHeadBytes+footerRunBytes*len(t.runs)+footerBlockBytes*len(t.blocks))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.runs)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.blocks)))
	b = binary.LittleEndian.AppendUint64(b, t.entries)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.dataBytes()))
	for _, r := range t.runs {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.ledger))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.first))
		b = binary.LittleEndian.AppendUint32(b, r.count)
		b = binary.LittleEndian.AppendUint32(b, r.blocks)
	}
	for _, k := range t.blocks {
		for _, n := range []uint32{k.bytes, k.count, k.crc} {
			b = binary.LittleEndian.AppendUint32(b, n)
		}
	}
	return b
}

// decodeTable reads a footer whose checksum was found right, and checks that
// runs and blocks fit together and fill dataBytes.
func decodeTable(b []byte, dataBytes int64) (*table, error) {
	if len(b) < footerHeadBytes {
		return nil, corrupt("footer of %d bytes", len(b))
	}
	runs, blocks := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	if runs == 0 || runs > maxRuns || blocks > maxBlocks ||
		int64(len(b)) != footerHeadBytes+footerRunBytes*int64(runs)+footerBlockBytes*int64(blocks) {
		return nil, corrupt("footer of %d bytes with %d runs and %d blocks", len(b), runs, blocks)
	}
	t := &table{runs: make([]run, runs), blocks: make([]block, blocks), entries: binary.LittleEndian.Uint64(b[8:])}
	if got := binary.LittleEndian.Uint64(b[16:]); got != uint64(dataBytes) || got > math.MaxUint32-headerBytes {
		return nil, corrupt("footer for %d bytes of data, the file has %d", got, dataBytes)
	}
	runPart, blockPart := b[footerHeadBytes:], b[footerHeadBytes+footerRunBytes*int(runs):]
	at, used, entries := uint64(headerBytes), 0, uint64(0)
	for i := range t.runs {
		p := runPart[footerRunBytes*i:]
		r := run{
			ledger: ledger.ID(binary.LittleEndian.Uint64(p)), first: ledger.EntryID(binary.LittleEndian.Uint64(p[8:])),
			count: binary.LittleEndian.Uint32(p[16:]), blocks: binary.LittleEndian.Uint32(p[20:]),
			offset: uint32(at), firstBlock: uint32(used),
		}
		if r.ledger < 1 || r.first < 0 || r.count == 0 || r.first > math.MaxInt64-ledger.EntryID(r.count) ||
			r.blocks == 0 || uint64(used)+uint64(r.blocks) > uint64(blocks) {
			return nil, corrupt("run %d of the footer out of range", i)
		}
		if i > 0 {
			if prev := &t.runs[i-1]; r.ledger < prev.ledger || r.ledger == prev.ledger && r.first <= prev.last() {
				return nil, corrupt("run %d of the footer out of order", i)
			}
		}
		skip := uint64(0)
		for range r.blocks {
			p := blockPart[footerBlockBytes*used:]
			k := block{offset: uint32(at), bytes: binary.LittleEndian.Uint32(p), skip: uint32(skip),
				count: binary.LittleEndian.Uint32(p[4:]), crc: binary.LittleEndian.Uint32(p[8:])}
			if k.count == 0 || uint64(k.bytes) < blockHeaderBytes+ledger.EnvelopeBytes*uint64(k.count) {
				return nil, corrupt("block %d of the footer out of range", used)
			}
			t.blocks[used] = k
			used++
			at, skip = at+uint64(k.bytes), skip+uint64(k.count)
			if at > headerBytes+uint64(dataBytes) || skip > uint64(r.count) {
				return nil, corrupt("run %d of the footer and its blocks disagree", i)
			}
		}
		if skip != uint64(r.count) {
			return nil, corrupt("run %d of the footer and its blocks disagree", i)
		}
		r.length = uint32(at) - r.offset
		t.runs[i] = r
		entries += skip
	}
	if used != int(blocks) || at != headerBytes+uint64(dataBytes) || entries != t.entries {
		return nil, corrupt("footer does not add up")
	}
	return t, nil
}

// runAt finds the run whose first block is at offset.
func (t *table) runAt(offset uint32) (*run, bool) {
	i := sort.Search(len(t.runs), func(i int) bool { return t.runs[i].offset >= offset })
	if i == len(t.runs) || t.runs[i].offset != offset {
		return nil, false
	}
	return &t.runs[i], true
}

// blockOf returns the index in t.blocks of the block of r that holds e, which r has.
func (t *table) blockOf(r *run, e ledger.EntryID) int {
	n := uint32(e - r.first)
	blocks := t.blocks[r.firstBlock : r.firstBlock+r.blocks]
	return int(r.firstBlock) + sort.Search(len(blocks), func(i int) bool { return blocks[i].skip > n }) - 1
}

// encodeBlockHeader fills the head of b, whose entries are in place, and returns its checksum.
func encodeBlockHeader(b []byte, segment uint32, r *run, k block) uint32 {
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[8:], segment)
	binary.LittleEndian.PutUint32(b[12:], k.count)
	binary.LittleEndian.PutUint64(b[16:], uint64(r.ledger))
	binary.LittleEndian.PutUint64(b[24:], uint64(r.first)+uint64(k.skip))
	crc := checksum(b[4:])
	binary.LittleEndian.PutUint32(b, crc)
	return crc
}

// checkBlock verifies that b is the block the footer means.
func checkBlock(b []byte, segment uint32, r *run, k block) error {
	if len(b) < blockHeaderBytes || len(b) != int(k.bytes) {
		return corrupt("block of %d bytes, want %d", len(b), k.bytes)
	}
	if crc := binary.LittleEndian.Uint32(b); crc != k.crc || checksum(b[4:]) != crc {
		return corrupt("block checksum at %d of segment %d", k.offset, segment)
	}
	if binary.LittleEndian.Uint32(b[4:]) != k.bytes || binary.LittleEndian.Uint32(b[8:]) != segment ||
		binary.LittleEndian.Uint32(b[12:]) != k.count ||
		binary.LittleEndian.Uint64(b[16:]) != uint64(r.ledger) ||
		binary.LittleEndian.Uint64(b[24:]) != uint64(r.first)+uint64(k.skip) {
		return corrupt("block at %d of segment %d is another one", k.offset, segment)
	}
	return nil
}

// splitEntry cuts the first entry, as stored, off b. It looks at the length only.
func splitEntry(b []byte) (stored, rest []byte, err error) {
	if len(b) < ledger.EnvelopeBytes {
		return nil, nil, corrupt("block ends within an envelope")
	}
	n := ledger.EnvelopeBytes + uint64(binary.LittleEndian.Uint32(b[4:]))
	if n > uint64(len(b)) {
		return nil, nil, corrupt("entry of %d bytes in the last %d of a block", n, len(b))
	}
	return b[:n:n], b[n:], nil
}

// decodeEntry checks a stored entry against its checksums and its identity.
func decodeEntry(stored []byte, id ledger.ID, e ledger.EntryID) (ledger.Entry, error) {
	env, err := ledger.DecodeEnvelope(stored)
	if err != nil {
		return ledger.Entry{}, err
	}
	entry := ledger.Entry{Envelope: env, Body: stored[ledger.EnvelopeBytes:]}
	return entry, entry.Check(id, e)
}
