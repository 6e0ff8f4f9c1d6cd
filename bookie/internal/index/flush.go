package index

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/magnetar-io/magnetar/internal/vfs"
)

// flushState follows the engine's flushes, which it does in the background.
// Lock order: Index.apply, flushState.calls, the engine's own, flushState.mu.
type flushState struct {
	calls sync.Mutex // one Flush at a time

	mu      sync.Mutex
	dirty   bool            // something was applied since the last flush was asked for
	pending <-chan struct{} // the flush asked for last; closed when done
	full    chan struct{}   // closed when a flush fails for want of space
	failed  chan struct{}   // closed when a flush fails for good
	err     error           // why, sticky
}

func (s *flushState) init() { s.full, s.failed = make(chan struct{}), make(chan struct{}) }

func (s *flushState) touch() {
	s.mu.Lock()
	s.dirty = true
	s.mu.Unlock()
}

func (s *flushState) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail notes that durability is lost; the first reason stays. It reports
// whether this was the first.
func (s *flushState) fail(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false
	}
	s.err = fmt.Errorf("index: not durable: %w", err)
	close(s.failed)
	return true
}

// noSpace wakes a waiting Flush.
func (s *flushState) noSpace() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.full:
	default:
		close(s.full)
	}
}

// Flush returns once everything applied before the call is durable. With
// vfs.ErrNoSpace the disk is full: nothing is lost, the engine keeps trying, and
// Flush may be called again. Any other error is final.
func (x *Index) Flush() error {
	s := &x.flush
	s.calls.Lock()
	defer s.calls.Unlock()

	s.mu.Lock()
	err, dirty, pending := s.err, s.dirty, s.pending
	s.dirty = false
	full := make(chan struct{})
	s.full = full
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if dirty { // else what was asked for before, if it is not done, covers it
		if pending, err = x.db.AsyncFlush(); err != nil {
			return x.wrap("flush", err)
		}
		s.mu.Lock()
		s.pending = pending
		s.mu.Unlock()
	}
	if pending == nil {
		return s.failure()
	}
	select {
	case <-pending:
		return s.failure()
	case <-s.failed:
		return s.failure()
	case <-full:
		return fmt.Errorf("index: flush: %w", vfs.ErrNoSpace)
	}
}

// fatal stops the process, once.
func (x *Index) fatal(err error) {
	if x.flush.fail(err) {
		x.opts.Fatal(x.flush.failure())
	}
}

// events listens to the engine. Most of its calls come with the engine's lock held.
//
// A flush that failed shows in two calls, FlushEnd and then BackgroundError with
// the same error. FlushEnd alone has an error for an empty flush too, BackgroundError
// alone one for a compaction, which costs nothing but space.
func (x *Index) events() *pebble.EventListener {
	log := x.opts.Log
	var last atomic.Pointer[error] // of the last flush
	return &pebble.EventListener{
		FlushEnd: func(info pebble.FlushInfo) { last.Store(&info.Err) },
		BackgroundError: func(err error) {
			log.Error("index background work failed", "error", err)
			if flushErr := last.Load(); flushErr == nil || *flushErr == nil || !errors.Is(err, *flushErr) {
				return
			}
			if errors.Is(err, vfs.ErrNoSpace) {
				x.flush.noSpace()
				return
			}
			x.fatal(err)
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			log.Error("index is damaged", "path", info.Path, "error", info.Details)
		},
	}
}
