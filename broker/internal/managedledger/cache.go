package managedledger

import (
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Cache holds recent entries of all topics of a broker, newest use last, within
// one budget of bytes. An entry enters when it is acknowledged or when it was
// read from a bookie; the one not used for longest leaves first. It starts no
// goroutine: entries past MaxAge leave when the cache is next used.
//
// Bodies are shared with everyone who got them and never altered, so dropping
// one only drops a reference.
//
// Safe for concurrent use.
type Cache struct {
	opts    CacheOptions
	metrics *Metrics

	mu    sync.Mutex
	byPos map[position.Position]*cached
	bytes int64
	// newest.next is the entry used last, newest.prev the one unused for longest.
	newest cached
}

// CacheOptions bound a Cache.
type CacheOptions struct {
	Bytes   int64            // budget, bookkeeping included; 0: 64 MiB
	MaxAge  time.Duration    // an entry not used for so long goes; 0: only the budget counts
	Now     func() time.Time // nil: time.Now
	Metrics *Metrics         // nil: not counted
}

// cached is an entry in the ring of use.
type cached struct {
	pos        position.Position
	body       []byte
	used       time.Time
	prev, next *cached
}

// cachedOverhead is what an entry costs besides its body: node and map slot.
const cachedOverhead = 160

const defaultCacheBytes = 64 << 20

// NewCache returns an empty cache.
func NewCache(opts CacheOptions) *Cache {
	if opts.Bytes == 0 {
		opts.Bytes = defaultCacheBytes
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Metrics == nil {
		opts.Metrics = unshown()
	}
	c := &Cache{opts: opts, metrics: opts.Metrics, byPos: map[position.Position]*cached{}}
	c.newest.prev, c.newest.next = &c.newest, &c.newest
	return c
}

// Put adds the entry at pos, or marks it as used when it is there. An entry
// larger than an eighth of the budget is not kept: it would push out too much.
func (c *Cache) Put(pos position.Position, body []byte) {
	cost := int64(len(body)) + cachedOverhead
	if cost > c.opts.Bytes/8 {
		return
	}
	now := c.opts.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byPos[pos]; ok {
		c.useLocked(e, now)
		return
	}
	e := &cached{pos: pos, body: body, used: now}
	c.byPos[pos] = e
	c.bytes += cost
	c.pushLocked(e)
	c.evictLocked(now)
	c.metrics.cacheBytes.Set(float64(c.bytes))
}

// Run appends to dst the bodies of the entries from pos on, up to last in the
// same ledger, that are here without a gap, and returns it. It stops before
// maxBytes is passed, though never before the first entry, and after maxEntries.
func (c *Cache) Run(dst []Entry, pos position.Position, last position.Position, maxEntries int, maxBytes int64) []Entry {
	now := c.opts.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	start, bytes := len(dst), int64(0)
	for ; pos.Entry <= last.Entry && len(dst)-start < maxEntries; pos.Entry++ {
		e, ok := c.byPos[pos]
		if !ok {
			break
		}
		bytes += int64(len(e.body))
		if bytes > maxBytes && len(dst) > start {
			break
		}
		c.useLocked(e, now)
		dst = append(dst, Entry{Position: pos, Body: e.body})
	}
	c.evictLocked(now)
	return dst
}

// Bytes is what the cache holds now, bookkeeping included.
func (c *Cache) Bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

func (c *Cache) useLocked(e *cached, now time.Time) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.used = now
	c.pushLocked(e)
}

func (c *Cache) pushLocked(e *cached) {
	e.prev, e.next = &c.newest, c.newest.next
	e.prev.next, e.next.prev = e, e
}

func (c *Cache) evictLocked(now time.Time) {
	for e := c.newest.prev; e != &c.newest; e = c.newest.prev {
		old := c.opts.MaxAge > 0 && now.Sub(e.used) > c.opts.MaxAge
		if c.bytes <= c.opts.Bytes && !old {
			return
		}
		e.prev.next, e.next.prev = e.next, e.prev
		delete(c.byPos, e.pos)
		c.bytes -= int64(len(e.body)) + cachedOverhead
		c.metrics.cacheEvicted.Inc()
	}
}
