package hotlog

import (
	"math/bits"
	"sync"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// group is what one sync covers, being filled or written.
//
// Guarded by Log.mu while it is open or queued; from take on it belongs to
// Log.loop alone.
type group struct {
	segment  uint32
	seed     uint32
	sequence uint32
	offset   int64 // in the segment
	limit    int   // bytes it may grow to, commit frame and padding included

	mem   []byte // from pool; len is its capacity
	used  int    // bytes of frames
	crc   uint32 // of the frames' heads, for the commit frame
	items []item
	bytes int64 // of payloads, as QueueBytes counts them
}

// item is one record of a group, with whom to tell.
type item struct {
	record Record // without Body
	place  Place
	done   func(Place, error)
}

// fits reports whether a frame of size bytes, padding included, has room.
func (g *group) fits(size int) bool { return alignBlock(g.used+size+commitBytes) <= g.limit }

// fileBytes is what the group takes in the segment once finished.
func (g *group) fileBytes() int { return alignBlock(g.used + commitBytes) }

// add copies r in; fits must have said so.
func (g *group) add(r *Record, done func(Place, error), pool *pool) {
	n := r.payloadBytes()
	size := align8(frameHeaderBytes + n)
	if need := alignBlock(g.used + size + commitBytes); need > len(g.mem) {
		bigger := pool.get(need)
		copy(bigger, g.mem[:g.used])
		pool.put(g.mem)
		g.mem = bigger
	}
	h := frameHeader{kind: r.Kind, payloadBytes: n, sequence: g.sequence, ledger: r.Ledger}
	b := g.mem[g.used : g.used+size]
	if r.Kind == KindEntry {
		h.ledger, h.payloadCRC = r.Envelope.Ledger, r.Envelope.BodyCRC
		r.Envelope.Encode(b[frameHeaderBytes:])
		copy(b[entryHeadBytes:], r.Body)
	} else {
		h.payloadCRC = checksum(0, r.Data)
		copy(b[frameHeaderBytes:], r.Data)
	}
	h.put(b, g.segment, g.seed)
	clear(b[frameHeaderBytes+n:])
	g.crc = checksum(g.crc, b[:h.headBytes()])

	kept := *r
	kept.Body = nil // the copy in mem is what counts now
	if r.Kind == KindEntry {
		kept.Ledger, kept.Entry, kept.Data = r.Envelope.Ledger, r.Envelope.Entry, nil
	}
	p := Place{Segment: g.segment, Offset: uint32(g.offset) + uint32(g.used), Length: uint32(frameHeaderBytes + n)}
	g.items = append(g.items, item{record: kept, place: p, done: done})
	g.used += size
	g.bytes += int64(n)
}

// finish writes the commit frame and the padding, and returns what to write.
func (g *group) finish() []byte {
	end := g.fileBytes()
	putCommit(g.mem[g.used:], g.segment, g.seed, g.sequence, uint32(g.offset), len(g.items), g.crc)
	clear(g.mem[g.used+commitBytes : end])
	return g.mem[:end]
}

// endGroup makes the group that says that nothing follows.
func endGroup(mem []byte, segment, seed, sequence uint32, offset int64) []byte {
	h := frameHeader{kind: KindEnd, payloadCRC: checksum(0, nil), sequence: sequence}
	h.put(mem, segment, seed)
	crc := checksum(seed, mem[:frameHeaderBytes])
	putCommit(mem[frameHeaderBytes:], segment, seed, sequence, uint32(offset), 1, crc)
	clear(mem[frameHeaderBytes+commitBytes : blockBytes])
	return mem[:blockBytes]
}

const (
	minBufferBytes = 8 << 10
	maxPooledBytes = 2 << 20 // room for a message of 1 MiB with its headers
	bufferSizes    = 9       // 8 KiB, 16 KiB … 2 MiB
	maxFreePerSize = 4       // so a pool holds at most 16 MiB idle
)

// pool keeps aligned buffers for reuse, in sizes of powers of two; larger ones are left
// to the garbage collector. Safe for concurrent use.
type pool struct {
	mu   sync.Mutex
	free [bufferSizes][][]byte
}

func bufferClass(n int) int {
	return bits.Len(uint(max(n, minBufferBytes)-1)) - bits.Len(minBufferBytes-1)
}

// get returns a buffer of at least n bytes, with any content.
func (p *pool) get(n int) []byte {
	if n > maxPooledBytes {
		return vfs.AlignedBuffer(n)
	}
	class := bufferClass(n)
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.free[class]; len(l) > 0 {
		b := l[len(l)-1]
		l[len(l)-1] = nil
		p.free[class] = l[:len(l)-1]
		return b
	}
	return vfs.AlignedBuffer(minBufferBytes << class)
}

// put takes a buffer of get back; the caller no longer uses it.
func (p *pool) put(b []byte) {
	if len(b) < minBufferBytes || len(b) > maxPooledBytes {
		return
	}
	class := bufferClass(len(b))
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free[class]) < maxFreePerSize {
		p.free[class] = append(p.free[class], b)
	}
}

// plan says where the next group goes. Guarded by Log.mu.
//
// Places are given when a record is appended, long before they are written; this
// works because a failed write ends the log and so no plan is ever revised.
type plan struct {
	segment  uint32
	sequence uint32
	offset   int64
	secret   uint64 // of this run
}

// seed of a segment of this run. It is a function of the secret, so that a group can
// be made for a segment whose file is not there yet.
func (p *plan) seed(segment uint32) uint32 {
	x := p.secret ^ uint64(segment)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return uint32(x ^ x>>31)
}

// place sets g to the next place that has room for a first frame of size bytes. A
// segment always keeps one block for its end group.
func (p *plan) place(g *group, size int, o *Options) {
	need := alignBlock(size + commitBytes)
	if p.offset+int64(need)+blockBytes > o.SegmentBytes {
		p.roll()
	}
	p.sequence++
	g.segment, g.sequence, g.offset, g.seed = p.segment, p.sequence, p.offset, p.seed(p.segment)
	g.limit = max(need, int(min(int64(o.GroupBytes), o.SegmentBytes-blockBytes-p.offset)))
	g.crc = g.seed
}

// roll goes on with the next segment.
func (p *plan) roll() { p.segment, p.sequence, p.offset = p.segment+1, 0, blockBytes }

// close fixes the size of g; nothing may be added to it afterwards.
func (p *plan) close(g *group) { p.offset = g.offset + int64(g.fileBytes()) }

// LargestBody is the largest body of an entry that a log with segments of that size
// takes.
func LargestBody(segmentBytes int64) int64 {
	return largestPayload(segmentBytes) - ledger.EnvelopeBytes
}

// largestPayload is the most one record may carry in segments of that size.
func largestPayload(segmentBytes int64) int64 {
	return min(segmentBytes-2*blockBytes-commitBytes-frameHeaderBytes-8, maxPayloadBytes)
}
