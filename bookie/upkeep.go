package bookie

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// upkeep looks after the disk. One goroutine measures it; the other tells the index
// of deletions, gives segments of the log back once nothing in them counts any
// more, moves away what survives in the oldest when the log is over its budget,
// and compacts and scrubs cold segments. Nothing else writes to the index once the
// node is open.
type upkeep struct {
	cancel  context.CancelFunc
	running sync.WaitGroup

	headroom atomic.Uint64 // math.Float64bits of room
	taken    atomic.Int64  // bytes of adds since the disk was last measured
	look     chan struct{} // asks for a measurement before its time
	work     chan struct{} // asks for a round of work before its time
	scrub    scrub

	unreadable unreadable

	mu      sync.Mutex
	deleted []ledger.ID // of which the index has not been told
}

// upkeepEvery is how often the disk is looked at when nothing happens.
const upkeepEvery = time.Second

func (u *upkeep) init() {
	u.look, u.work = make(chan struct{}, 1), make(chan struct{}, 1)
	u.unreadable = newUnreadable()
}

func (u *upkeep) start(n *Node) {
	ctx, cancel := context.WithCancel(context.Background())
	u.cancel = cancel
	u.scrub.next = time.Now().Add(scrubEvery)
	every := func(asked <-chan struct{}, work func() (again bool)) {
		u.running.Go(func() {
			tick := time.NewTicker(upkeepEvery)
			defer tick.Stop()
			for ctx.Err() == nil {
				if work() {
					continue
				}
				select {
				case <-ctx.Done():
				case <-tick.C:
				case <-asked:
				}
			}
		})
	}
	every(u.look, func() bool { n.measure(); return false })
	every(u.work, func() bool { return n.maintain(ctx) })
}

// stop ends the goroutines and waits for them.
func (u *upkeep) stop() {
	u.cancel()
	u.running.Wait()
}

// took counts bytes of an add, and has the disk measured once they are so many that
// what was last known of it says little.
func (u *upkeep) took(bytes, limit int64) {
	if u.taken.Add(bytes) < limit {
		return
	}
	u.taken.Store(0)
	wake(u.look)
}

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is awake already
	}
}

// room is how much of its full window a stream may have, from 1 while the log is
// within its budget down to 0 at half as much again (M30).
func (u *upkeep) room() float64 { return math.Float64frombits(u.headroom.Load()) }

// noteDeleted remembers ledgers that the index has to be told of.
func (u *upkeep) noteDeleted(ids ...ledger.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.deleted = append(u.deleted, ids...)
}

// takeDeleted takes up to limit of them.
func (u *upkeep) takeDeleted(limit int) []ledger.ID {
	u.mu.Lock()
	defer u.mu.Unlock()
	k := min(limit, len(u.deleted))
	ids := u.deleted[:k:k]
	if u.deleted = u.deleted[k:]; len(u.deleted) == 0 {
		u.deleted = nil
	}
	return ids
}

// maintain does one round and reports whether another is due at once. One kind of
// work that fails holds up none of the others: to compact may be what makes room.
func (n *Node) maintain(ctx context.Context) (again bool) {
	failed := false
	for _, work := range []func(context.Context) (bool, error){n.giveBack, n.compact, n.scrubNext} {
		again, err := work(ctx)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil && again:
			return !failed
		case err == nil:
			continue
		case errors.Is(err, vfs.ErrNoSpace), errors.Is(err, ledger.ErrTooBusy), errors.Is(err, ledger.ErrReadOnly):
			n.log.Warn("upkeep of the disk has to wait", "error", err)
		default:
			n.log.Error("upkeep of the disk failed", "error", err)
		}
		failed = true
	}
	return false
}

// giveBack tells the index of deletions and gives segments of the log back.
func (n *Node) giveBack(ctx context.Context) (again bool, err error) {
	if err := n.applyDeleted(ctx); err != nil {
		return false, err
	}
	segments := n.disposable()
	if len(segments) == 0 {
		n.rollForIndex()
		return false, nil
	}
	if n.upkeep.unreadable.waits() {
		return false, nil
	}
	return true, n.dispose(ctx, segments)
}

// measure looks at the disk and decides what is taken from now on.
func (n *Node) measure() {
	usage, err := n.opts.FS.Usage(n.opts.Dir)
	if err != nil {
		n.log.Error("size of the disk is not known, keeping to what was last known", "error", err)
		return
	}
	hot := n.hot.Usage()
	used := hot.DiskBytes - hot.SpareBytes + n.cold.Usage().FileBytes
	free := usage.FreeBytes + uint64(hot.SpareBytes) // the log takes its spares before new files
	total := usage.TotalBytes
	if limit := n.opts.DiskBytes; limit > 0 {
		total = min(total, uint64(limit))
		free = min(free, uint64(max(limit-used, 0)))
	}
	over := overBudget(hot)
	n.upkeep.headroom.Store(math.Float64bits(min(1, max(0, 3-2*over))))
	changed := n.disk.update(free, total)
	if over > 1 || n.disk.state().level != levelOpen {
		wake(n.upkeep.work) // a second is long enough to use the reserve up
	}
	if changed {
		s := n.disk.state()
		if s.level == levelOpen {
			n.log.Info("disk has room again, taking data", "free", s.freeBytes)
		} else {
			n.log.Warn("disk is filling up", "reason", n.disk.reason(s))
		}
	}
}

// overBudget is how much of its budget the log takes, on disk or in memory: above
// 1 it is time to move survivors away.
func overBudget(hot hotlog.Usage) float64 {
	return max(float64(hot.DiskBytes-hot.SpareBytes)/float64(hot.MaxDiskBytes), float64(hot.IndexBytes)/float64(hot.MaxIndexBytes))
}
