package bookie

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// upkeep is the one goroutine that looks after the disk: it measures it, gives
// dead segments of the log back, and moves survivors away when the log is over its
// budget.
type upkeep struct {
	stopping chan struct{}
	wake     chan struct{}
	running  sync.WaitGroup

	headroom atomic.Uint64 // math.Float64bits of room
}

// upkeepEvery is how often the disk is looked at when nobody asks.
const upkeepEvery = time.Second

func (u *upkeep) start(n *Node) {
	u.stopping, u.wake = make(chan struct{}), make(chan struct{}, 1)
	u.running.Go(func() {
		tick := time.NewTicker(upkeepEvery)
		defer tick.Stop()
		for {
			select {
			case <-u.stopping:
				return
			case <-tick.C:
			case <-u.wake:
			}
			n.measure()
		}
	})
}

// stop ends the goroutine and waits for it.
func (u *upkeep) stop() {
	close(u.stopping)
	u.running.Wait()
}

// room is how much of its full window a stream may have, from 1 while the log is
// within its budget down to 0 at half as much again.
func (u *upkeep) room() float64 { return math.Float64frombits(u.headroom.Load()) }

// measure looks at the disk and decides what is taken from now on.
func (n *Node) measure() {
	usage, err := n.opts.FS.Usage(n.opts.Dir)
	if err != nil {
		n.log.Error("size of the disk is not known, keeping to what was last known", "error", err)
		return
	}
	hot := n.hot.Usage()
	used := hot.DiskBytes - hot.SpareBytes
	free := usage.FreeBytes + uint64(hot.SpareBytes) // the log takes its spares before new files
	total := usage.TotalBytes
	if limit := n.opts.DiskBytes; limit > 0 {
		total = min(total, uint64(limit))
		free = min(free, uint64(max(limit-used, 0)))
	}
	over := max(float64(used)/float64(hot.MaxDiskBytes), float64(hot.IndexBytes)/float64(hot.MaxIndexBytes))
	n.upkeep.headroom.Store(math.Float64bits(min(1, max(0, 3-2*over))))
	if n.disk.update(free, total) {
		s := n.disk.state()
		if s.level == levelOpen {
			n.log.Info("disk has room again, taking data", "free", s.freeBytes)
		} else {
			n.log.Warn("disk is filling up", "reason", n.disk.reason(s))
		}
	}
}
