package coldstore

import (
	"container/list"
	"sync"
)

// blockCache keeps checked blocks, without their headers, up to a number of
// bytes; the one not used for longest goes first. The bytes are never altered, so
// entries may point into a block that has left the cache. Blocks of removed
// segments age out: segment ids are not used again.
type blockCache struct {
	budget int64

	mu    sync.Mutex
	bytes int64
	byKey map[blockKey]*list.Element
	order *list.List // of cached, the last used in front
}

type blockKey struct{ segment, offset uint32 }

type cached struct {
	key blockKey
	b   []byte
}

func newBlockCache(budget int64) *blockCache {
	return &blockCache{budget: budget, byKey: make(map[blockKey]*list.Element), order: list.New()}
}

func (c *blockCache) get(key blockKey) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(cached).b, true
}

// has tells whether get would find it, without counting as a use.
func (c *blockCache) has(key blockKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.byKey[key]
	return ok
}

// fits tells whether a block of so many bytes would be kept: one that takes more
// than an eighth of the budget would drive out too much.
func (c *blockCache) fits(bytes int) bool { return int64(bytes) <= c.budget/8 }

// put keeps b, which must not share memory with a larger buffer.
func (c *blockCache) put(key blockKey, b []byte) {
	if !c.fits(len(b)) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byKey[key]; ok {
		return
	}
	c.byKey[key] = c.order.PushFront(cached{key, b})
	c.bytes += int64(len(b))
	for c.bytes > c.budget {
		e := c.order.Back()
		old := c.order.Remove(e).(cached)
		delete(c.byKey, old.key)
		c.bytes -= int64(len(old.b))
	}
}
