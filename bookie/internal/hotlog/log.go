package hotlog

import (
	"fmt"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Log is the log of one bookie. All methods are safe for concurrent use; none may
// begin after Close did, save Close.
type Log struct {
	opts     Options
	folder   folder
	metrics  *metrics
	segments *segments
	tail     tail
	pool     pool
	keeper   *keeper

	mu      sync.Mutex
	wake    *sync.Cond // for loop: queue, closing or err changed
	queue   []*group   // to be written, in order; the last may be open
	open    *group     // takes more records; nil or the last of queue
	idle    []*group   // for reuse
	plan    plan
	rollTo  uint32 // loop goes on to this segment also when nothing is to be written to it
	queued  int64  // payload bytes appended and not answered
	closing bool
	err     error // sticky: nothing more succeeds

	active  *segmentFile // of loop; after stopped, of Close
	end     []byte       // of loop: a block for end groups
	stopped chan struct{}

	recycling sync.Mutex // held by Recycle and, once, by Close
	closeOnce sync.Once
	closeErr  error
}

const maxIdleGroups = 4

// Append adds r to the log and returns at once. done is called exactly once:
//   - from the log's goroutine, in the order of the calls of Append, once r is on disk
//     (place, nil) or the log failed (an error wrapping ledger.ErrUnknown: r may be
//     stored or not). It must not block: all other appends wait for it.
//   - by Append itself when r is refused, then r is surely not stored: ledger.ErrTooBusy
//     (more than Options.QueueBytes wait), ErrTooLarge, ErrReadOnly (the disk is full),
//     ErrStopping (closed, or failed before), or r is malformed.
//
// r.Body is copied; r.Data must not change until done.
func (l *Log) Append(r Record, done func(Place, error)) {
	if err := l.enqueue(&r, done); err != nil {
		done(Place{}, err)
	}
}

func (l *Log) enqueue(r *Record, done func(Place, error)) error {
	if err := r.check(); err != nil {
		return err
	}
	n := r.payloadBytes()
	if int64(n) > largestPayload(l.opts.SegmentBytes) {
		return fmt.Errorf("hotlog: record of %d bytes in segments of %d: %w", n, l.opts.SegmentBytes, ledger.ErrTooLarge)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return fmt.Errorf("hotlog: %w: the log failed: %w", ledger.ErrStopping, l.err)
	case l.closing:
		return fmt.Errorf("hotlog: %w", ledger.ErrStopping)
	case l.queued > 0 && l.queued+int64(n) > l.opts.QueueBytes:
		l.metrics.tooBusy.Inc()
		return fmt.Errorf("hotlog: %d bytes wait: %w", l.queued, ledger.ErrTooBusy)
	}
	size := align8(frameHeaderBytes + n)
	g := l.open
	if g == nil || !g.fits(size) {
		var err error
		if g, err = l.openGroupLocked(size); err != nil {
			return err
		}
	} else if !l.roomLocked(g, g.used+size) {
		return errFull
	}
	g.add(r, done, &l.pool)
	l.queued += int64(n)
	l.metrics.queueBytes.Set(float64(l.queued))
	return nil
}

var errFull = fmt.Errorf("hotlog: %w: %w", ledger.ErrReadOnly, vfs.ErrNoSpace)

// openGroupLocked ends the open group and begins another, for a first frame of size bytes.
func (l *Log) openGroupLocked(size int) (*group, error) {
	if l.open != nil {
		l.plan.close(l.open)
		l.open = nil
	}
	var g *group
	if n := len(l.idle); n > 0 {
		g, l.idle = l.idle[n-1], l.idle[:n-1]
	} else {
		g = &group{}
	}
	before := l.plan
	l.plan.place(g, size, &l.opts)
	if !l.roomLocked(g, size) {
		// This file cannot grow. The next one may be a recycled one, which need not.
		l.plan = before
		l.plan.roll()
		l.plan.place(g, size, &l.opts)
		if !l.roomLocked(g, size) {
			l.plan = before
			l.idle = append(l.idle, g)
			return nil, errFull
		}
	}
	g.mem = l.pool.get(min(alignBlock(max(size+commitBytes, l.hintLocked())), max(g.limit, minBufferBytes)))
	l.open = g
	l.queue = append(l.queue, g)
	if len(l.queue) == 1 {
		l.wake.Signal()
	}
	return g, nil
}

// roomLocked reports whether g may grow to used bytes of frames: always, unless the
// disk is full and its file not long enough.
func (l *Log) roomLocked(g *group, used int) bool {
	return !l.keeper.noSpace.Load() || l.keeper.room(g.segment, g.offset+int64(alignBlock(used+commitBytes))+blockBytes)
}

// hintLocked is how large the next group will probably grow: while groups wait, as
// large as it may; else small, so that the tail keeps no half-empty buffers.
func (l *Log) hintLocked() int {
	if len(l.queue) > 0 {
		return min(l.opts.GroupBytes, maxPooledBytes)
	}
	return 0
}

// loop is the only goroutine that writes groups. It answers every record it was
// given, also while closing and after a failure.
func (l *Log) loop() {
	defer close(l.stopped)
	for {
		g, roll, err := l.take()
		switch {
		case err != nil:
		case g != nil:
			err = l.write(g)
		case roll:
			err = l.rotate()
		default:
			if err = l.writeEnd(); err == nil {
				return
			}
		}
		if err == nil {
			err = l.failure() // a failed sync elsewhere counts as well
		}
		if err != nil {
			l.fail(err)
			l.abandon(g)
			return
		}
		if g != nil {
			l.publish(g)
		}
	}
}

// take waits for a group and closes it to further records; nil when there is none but
// the next segment is due, or the log is closing and none is left.
func (l *Log) take() (g *group, roll bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && l.rollTo <= l.active.id && !l.closing && l.err == nil {
		l.wake.Wait()
	}
	if l.err != nil || len(l.queue) == 0 {
		return nil, l.rollTo > l.active.id, l.err
	}
	g = l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	if g == l.open {
		l.plan.close(g)
		l.open = nil
	}
	return g, false, nil
}

// write puts g on disk. When it returns nil, g is there for good.
func (l *Log) write(g *group) error {
	if g.segment != l.active.id {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	return l.writeGroup(g.offset, g.sequence, g.finish())
}

// rotate ends the active segment and goes on with the next.
func (l *Log) rotate() error {
	if err := l.writeEnd(); err != nil {
		return err
	}
	next, err := l.keeper.rotate()
	if err != nil {
		return err
	}
	l.active = next
	return nil
}

// writeEnd ends the active segment, unless it is empty.
func (l *Log) writeEnd() error {
	s := l.active
	if s.content.records == 0 {
		return nil
	}
	return l.writeGroup(s.end, s.sequence+1, endGroup(l.end, s.id, s.seed, s.sequence+1, s.end))
}

// writeGroup writes and syncs the bytes of a finished group. The commit point of
// all records in it is the return of WriteAt.
func (l *Log) writeGroup(offset int64, sequence uint32, b []byte) error {
	s, end := l.active, offset+int64(len(b))
	if offset != s.end || sequence != s.sequence+1 {
		return fmt.Errorf("hotlog: segment %d: group %d planned at %d, but the log stands after group %d at %d",
			s.id, sequence, offset, s.sequence, s.end)
	}
	l.keeper.reserve(s, end)
	began := time.Now()
	if _, err := s.file.WriteAt(b, offset); err != nil {
		return fmt.Errorf("hotlog: write segment %d at %d: %w", s.id, offset, err)
	}
	l.metrics.syncSeconds.Observe(time.Since(began).Seconds())
	l.metrics.groupBytes.Observe(float64(len(b)))
	l.metrics.writtenBytes.Add(float64(len(b)))
	s.end, s.sequence, s.content.end = end, sequence, end
	return nil
}

// publish makes a written group findable and answers it.
func (l *Log) publish(g *group) {
	l.segments.enter(g.items)
	for i := range g.items {
		l.active.content.add(&g.items[i].record, g.items[i].place)
	}
	l.tail.add(g.segment, g.offset, g.used, g.mem)
	g.mem = nil
	l.metrics.appendBytes.Add(float64(g.bytes))
	l.mu.Lock()
	l.queued -= g.bytes
	l.metrics.queueBytes.Set(float64(l.queued))
	l.mu.Unlock()
	for i := range g.items {
		g.items[i].done(g.items[i].place, nil)
	}
	clear(g.items)
	*g = group{items: g.items[:0]}
	l.mu.Lock()
	if len(l.idle) < maxIdleGroups {
		l.idle = append(l.idle, g)
	}
	l.mu.Unlock()
}

// fail makes err the last word of the log. Anyone may call it.
func (l *Log) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.wake.Broadcast()
	l.mu.Unlock()
	l.keeper.abort(err)
}

func (l *Log) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// abandon answers g, if not nil, and all that waits, and tells that the process must end.
func (l *Log) abandon(g *group) {
	l.mu.Lock()
	left, err := l.queue, l.err
	l.queue, l.open, l.queued = nil, nil, 0
	l.mu.Unlock()
	if g != nil {
		left = append([]*group{g}, left...)
	}
	unknown := fmt.Errorf("%w: %w", ledger.ErrUnknown, err)
	for _, g := range left {
		for i := range g.items {
			g.items[i].done(Place{}, unknown)
		}
	}
	l.opts.Fatal(err)
}

// Close refuses new appends, writes and answers the waiting ones, ends the segment
// so that the next Open knows that nothing is missing, and closes the files once
// their readers are gone. It returns the error the log failed with, if it did.
func (l *Log) Close() error {
	l.closeOnce.Do(func() {
		l.mu.Lock()
		l.closing = true
		l.wake.Broadcast()
		l.mu.Unlock()
		l.keeper.beginClose()
		<-l.stopped
		l.recycling.Lock()
		defer l.recycling.Unlock()
		last := l.active
		if last.content.records == 0 {
			last = nil
		}
		l.keeper.finish(last)
		closeErr := l.segments.close()
		if l.closeErr = l.failure(); l.closeErr == nil {
			l.closeErr = closeErr
		}
	})
	return l.closeErr
}
