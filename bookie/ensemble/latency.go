package ensemble

import (
	"math/bits"
	"sync"
	"time"
)

// latency keeps a histogram of how long reads took, in powers of two of a
// microsecond. Old samples fade: all counts are halved whenever they sum to
// latencyWindow. Safe for concurrent use.
type latency struct {
	mu     sync.Mutex
	counts [32]uint32
	total  uint32
}

const latencyWindow = 1024

func (l *latency) add(d time.Duration) {
	i := min(bits.Len64(uint64(max(d, 0)/time.Microsecond)), len(l.counts)-1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[i]++
	if l.total++; l.total < latencyWindow {
		return
	}
	l.total = 0
	for i := range l.counts {
		l.counts[i] /= 2
		l.total += l.counts[i]
	}
}

// p99 returns an upper bound of the 99th percentile, within a factor of two; 0
// when there are too few samples to say.
func (l *latency) p99() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total < 100 {
		return 0
	}
	above := l.total / 100
	for i := len(l.counts) - 1; i >= 0; i-- {
		if l.counts[i] > above {
			return time.Microsecond << i
		}
		above -= l.counts[i]
	}
	return time.Microsecond
}
