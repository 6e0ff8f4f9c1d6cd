package managedledger

import (
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Shows that a run comes back without its gaps, within the limits asked for, and
// never empty when the first entry is there.
func TestCacheGivesRuns(t *testing.T) {
	c := NewCache(CacheOptions{Bytes: 1 << 20})
	for e := range ledger.EntryID(10) {
		if e != 7 {
			c.Put(at(1, e), make([]byte, 100))
		}
	}
	for _, in := range []struct {
		from, last ledger.EntryID
		entries    int
		bytes      int64
		want       int
	}{
		{0, 9, 100, 1 << 20, 7},
		{0, 3, 100, 1 << 20, 4},
		{0, 9, 2, 1 << 20, 2},
		{1, 9, 100, 250, 2},
		{1, 9, 100, 1, 1},
		{7, 9, 100, 1 << 20, 0},
	} {
		if got := len(c.Run(nil, at(1, in.from), at(1, in.last), in.entries, in.bytes)); got != in.want {
			t.Errorf("run %+v: %d entries", in, got)
		}
	}
}

// Shows that the budget holds, that what was used last stays longest, and that
// age lets entries go without anybody putting more in.
func TestCacheKeepsItsBudget(t *testing.T) {
	now := time.Unix(0, 0)
	const body = 1000
	c := NewCache(CacheOptions{Bytes: 10 * (body + cachedOverhead), MaxAge: time.Minute, Now: func() time.Time { return now }})
	first, p := at(1, 0), at(1, 0)
	for range 100 {
		c.Put(p, make([]byte, body))
		if got := c.Run(nil, first, first, 1, body); len(got) != 1 {
			t.Fatalf("the entry used all the time is gone after %v", p)
		}
		if c.Bytes() > 10*(body+cachedOverhead) {
			t.Fatalf("%d bytes held", c.Bytes())
		}
		p = p.Next()
	}
	if len(c.Run(nil, p.Prev(), p.Prev(), 1, body)) != 1 || len(c.Run(nil, at(1, 50), at(1, 50), 1, body)) != 0 {
		t.Error("it is not the oldest that left")
	}
	c.Put(at(2, 0), make([]byte, 5*body)) // more than an eighth
	if len(c.Run(nil, at(2, 0), at(2, 0), 1, body)) != 0 {
		t.Error("an entry too large for the cache was kept")
	}
	now = now.Add(2 * time.Minute)
	c.Run(nil, at(3, 0), at(3, 0), 1, body)
	if c.Bytes() != 0 {
		t.Errorf("%d bytes held of entries past their age", c.Bytes())
	}
}
