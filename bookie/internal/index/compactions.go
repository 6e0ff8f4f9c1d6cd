package index

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// compactions lets the engine compact one thing at a time, the next when that is
// done. The engine's own choice does the same and wakes up ten times a second
// besides, to see whether more may run at once.
//
// It lets nothing run before the engine is open: one that fails to open frees its
// caches under the compactions it has begun, which then bring the process down.
type compactions struct {
	*pebble.ConcurrencyLimitScheduler
	db   pebble.DBForCompaction // set while the engine opens
	open atomic.Bool
}

func newCompactions() *compactions {
	return &compactions{ConcurrencyLimitScheduler: pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()}
}

// Register is called once by the engine.
func (c *compactions) Register(goroutines int, db pebble.DBForCompaction) {
	c.db = db
	c.ConcurrencyLimitScheduler.Register(goroutines, db)
}

// TrySchedule is called by the engine when it has something to compact. One that
// is refused is kept there until it is asked for.
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !c.open.Load() {
		return false, nil
	}
	return c.ConcurrencyLimitScheduler.TrySchedule()
}

// begin lets compactions run, and starts the one that was refused meanwhile.
func (c *compactions) begin() {
	c.open.Store(true)
	if waiting, _ := c.db.GetWaitingCompaction(); !waiting {
		return
	}
	if granted, handle := c.TrySchedule(); granted && !c.db.Schedule(handle) {
		handle.Done()
	}
}
