package sim

import (
	"math/rand/v2"
	"sync"
	"time"
)

// chance is a source of random numbers made from the seed. Safe for concurrent
// use; each party has one of its own, so that one asking more often does not
// change what the others get.
type chance struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newChance(seed, stream uint64) *chance {
	return &chance{r: rand.New(rand.NewPCG(seed, stream))}
}

// Uint64 is the form in which nodes take their chance.
func (c *chance) Uint64() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.Uint64()
}

// n is at least 0 and below n.
func (c *chance) n(n int) int { return int(c.Uint64() % uint64(n)) }

// from is at least low and at most high.
func (c *chance) from(low, high int) int { return low + c.n(high-low+1) }

// span is at least low and below high, small ones as likely as large ones on a
// logarithmic scale: faults of a millisecond and of a minute find different bugs.
func (c *chance) span(low, high time.Duration) time.Duration {
	d := low
	for d < high/2 && c.n(3) > 0 {
		d *= 2
	}
	return min(high, d+time.Duration(c.Uint64()%uint64(d)))
}

// once in n is true.
func (c *chance) once(n int) bool { return c.n(n) == 0 }

func pick[T any](c *chance, from []T) T { return from[c.n(len(from))] }
