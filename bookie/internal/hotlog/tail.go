package hotlog

import (
	"cmp"
	"slices"
	"sync"
)

// tail keeps the buffers of the groups written last, by a budget in bytes, so
// that what was just written is read from memory. Safe for concurrent use.
//
// A buffer goes back to the pool only when it has left the tail and its last
// reader is gone: readers copy out under a reference, not under the lock.
type tail struct {
	pool   *pool
	budget int64

	mu     sync.Mutex
	groups []*tailGroup // oldest first, hence in order of (segment, offset)
	bytes  int64        // capacity of all buffers held
}

type tailGroup struct {
	segment uint32
	offset  uint32
	used    int // bytes of mem that count
	mem     []byte
	refs    int  // readers copying out
	evicted bool // no longer in groups
}

// add takes over a written buffer.
func (t *tail) add(segment uint32, offset int64, used int, mem []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if int64(len(mem)) > t.budget {
		t.pool.put(mem)
		return
	}
	t.groups = append(t.groups, &tailGroup{segment: segment, offset: uint32(offset), used: used, mem: mem})
	t.bytes += int64(len(mem))
	for t.bytes > t.budget {
		t.dropLocked(0)
	}
}

func (t *tail) dropLocked(i int) {
	g := t.groups[i]
	t.bytes -= int64(len(g.mem))
	g.evicted = true
	if g.refs == 0 {
		t.pool.put(g.mem)
	}
	if i == 0 {
		t.groups[0] = nil
		t.groups = t.groups[1:]
		return
	}
	t.groups = slices.Delete(t.groups, i, i+1)
}

// copyOut copies the first n bytes of the frame at p; false if it is not here.
func (t *tail) copyOut(p Place, n int) ([]byte, bool) {
	t.mu.Lock()
	i, exact := slices.BinarySearchFunc(t.groups, p, func(g *tailGroup, p Place) int {
		if c := cmp.Compare(g.segment, p.Segment); c != 0 {
			return c
		}
		return cmp.Compare(g.offset, p.Offset)
	})
	if !exact {
		i--
	}
	if i < 0 || t.groups[i].segment != p.Segment {
		t.mu.Unlock()
		return nil, false
	}
	g := t.groups[i]
	start := int(p.Offset - g.offset)
	if start+n > g.used {
		t.mu.Unlock()
		return nil, false
	}
	g.refs++
	t.mu.Unlock()

	out := make([]byte, n)
	copy(out, g.mem[start:])

	t.mu.Lock()
	defer t.mu.Unlock()
	if g.refs--; g.refs == 0 && g.evicted {
		t.pool.put(g.mem)
	}
	return out, true
}

// forget drops what is held of a segment.
func (t *tail) forget(segment uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.groups) - 1; i >= 0; i-- {
		if t.groups[i].segment == segment {
			t.dropLocked(i)
		}
	}
}

// held is the bytes of memory in use.
func (t *tail) held() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bytes
}
