package bookie

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// diskLevel is how much a bookie takes, by how full its disk is.
type diskLevel int

const (
	levelOpen    diskLevel = iota
	levelNoData            // data is refused; control goes on into the reserve (M28)
	levelMinimum           // all adds are refused; fences and deletions go on
)

// diskState is what is known of the disk.
type diskState struct {
	level      diskLevel
	freeBytes  uint64
	totalBytes uint64
}

// disk decides by the free bytes what is taken. Safe for concurrent use.
type disk struct {
	reserve uint64

	now atomic.Pointer[diskState] // read on every add

	mu      sync.Mutex    // of update
	changed chan struct{} // closed when level changes
}

func newDisk(reserve int64) *disk {
	d := &disk{reserve: uint64(reserve), changed: make(chan struct{})}
	d.now.Store(&diskState{})
	return d
}

// nextLevel is the level for so many free bytes: data is refused below the
// reserve, all adds below a quarter of it. A level is left upwards only once an
// eighth of the reserve more than its threshold is free, so that it does not
// flutter.
func nextLevel(now diskLevel, free, reserve uint64) diskLevel {
	level := levelOpen
	switch {
	case free < reserve/4:
		level = levelMinimum
	case free < reserve:
		level = levelNoData
	}
	if level < now {
		return min(now, nextLevelUp(free, reserve))
	}
	return level
}

func nextLevelUp(free, reserve uint64) diskLevel {
	return nextLevel(levelOpen, free-min(free, reserve/8), reserve)
}

// update takes note of the disk and reports whether the level changed.
func (d *disk) update(free, total uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.state().level
	level := nextLevel(before, free, d.reserve)
	changed := level != before
	d.now.Store(&diskState{level: level, freeBytes: free, totalBytes: total})
	if changed {
		close(d.changed)
		d.changed = make(chan struct{})
	}
	return changed
}

func (d *disk) state() diskState { return *d.now.Load() }

// next returns a channel that is closed when the level changes next.
func (d *disk) next() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// admit says whether an add is taken.
func (d *disk) admit(control bool) error {
	s := d.state()
	switch {
	case s.level == levelOpen, s.level == levelNoData && control:
		return nil
	}
	return fmt.Errorf("bookie: %s: %w", d.reason(s), ledger.ErrReadOnly)
}

// reason says in words why a level other than open is what it is.
func (d *disk) reason(s diskState) string {
	if s.level == levelOpen {
		return ""
	}
	what := "data"
	if s.level == levelMinimum {
		what = "all entries"
	}
	return fmt.Sprintf("%d of %d bytes of disk are free, below the reserve of %d: %s refused", s.freeBytes, s.totalBytes, d.reserve, what)
}
