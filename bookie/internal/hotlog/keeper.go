package hotlog

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/magnetar-io/magnetar/internal/vfs"
)

const (
	// maxZeroBytes is written at a time ahead of the log: little, since the log's own sync
	// may have to wait for it on the disk.
	maxZeroBytes = 256 << 10
	// maxAheadBytes is how far the active segment is written ahead of the log.
	maxAheadBytes = 16 << 20
	// noSpaceRetry is how often a full disk is tried again.
	noSpaceRetry = time.Second
)

// keeper does what the log needs done beside the path of an append, in one goroutine:
// it makes the next segment ready, writes zeros ahead of the log, writes index
// files, and removes spares there are too many of.
//
// Writing ahead follows the log and needs no timer. The active segment is kept
// written a little ahead of the point of writing; the next one is written in step
// with the second half of the active one, at twice its rate, so it is ready by
// the time of the switch. An idle log writes nothing, and one that runs on
// recycled files neither. The log never waits for this: what is not written
// ahead in time is a slower append to the file.
//
// Lock order: Log.mu, then keeper.mu.
type keeper struct {
	folder   *folder
	opts     *Options
	metrics  *metrics
	segments *segments
	seed     func(segment uint32) uint32
	fail     func(error) // of the log; the keeper ends

	mu      sync.Mutex
	changed *sync.Cond // anything below
	active  *segmentFile
	point   int64        // where the log has got to in active
	next    *segmentFile // nil until it is ready
	spares  []spare
	toSeal  []*segmentFile
	closing bool // no more appends; queued ones are still written
	stop    bool // the log has ended; seal what is left
	failed  error
	paused  bool // the disk is full; a timer ends the pause

	noSpace atomic.Bool // nothing beyond the frontiers can be promised
	timer   *time.Timer
	zeros   []byte // written at a time
	stopped chan struct{}
}

// task is one step of work, to be done without the lock.
type task func() error

func (k *keeper) run() {
	defer close(k.stopped)
	for {
		k.mu.Lock()
		t := k.pickLocked()
		for t == nil && !k.stop && k.failed == nil {
			k.changed.Wait()
			t = k.pickLocked()
		}
		k.mu.Unlock()
		if t == nil {
			return
		}
		if err := t(); errors.Is(err, vfs.ErrNoSpace) {
			k.pause(err)
		} else if err != nil {
			k.abort(err)
			k.fail(err)
			return
		}
	}
}

// pickLocked returns what is most urgent now, nil if nothing is to be done.
func (k *keeper) pickLocked() task {
	switch {
	case k.failed != nil || k.paused:
		return nil
	case k.stop:
		if len(k.toSeal) > 0 {
			return k.sealFirst
		}
		return nil
	case k.next == nil:
		return k.prepare
	case len(k.toSeal) > 0:
		// Before zeros, for which there is always a reason while the log is busy: only
		// sealed segments can be recycled, and recycled ones need no zeros.
		return k.sealFirst
	case k.active.frontier < k.activeTargetLocked():
		return k.extending(k.active)
	case k.next.frontier < k.nextTargetLocked():
		return k.extending(k.next)
	case len(k.spares) > max(k.opts.SpareSegments, 0):
		return k.removeSpare
	}
	return nil
}

func (k *keeper) activeTargetLocked() int64 {
	if k.opts.NoSync {
		return 0
	}
	ahead := min(maxAheadBytes, k.opts.SegmentBytes/8)
	return min(k.opts.SegmentBytes, k.point+ahead) &^ (blockBytes - 1)
}

func (k *keeper) nextTargetLocked() int64 {
	if k.opts.NoSync {
		return 0
	}
	return max(0, 2*k.point-k.opts.SegmentBytes) &^ (blockBytes - 1)
}

// prepare makes the segment after the active one: in place, durable under its name, empty.
func (k *keeper) prepare() error {
	k.mu.Lock()
	id := k.active.id + 1
	k.mu.Unlock()
	s, err := k.makeSegment(id)
	if err != nil {
		return err
	}
	k.segments.add(s)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next = s
	k.noSpace.Store(false)
	k.changed.Broadcast()
	return nil
}

func (k *keeper) makeSegment(id uint32) (*segmentFile, error) {
	sp, ok := k.takeSpare()
	if !ok {
		var err error
		if sp, err = k.folder.create(id); err != nil {
			return nil, fmt.Errorf("hotlog: create segment %d: %w", id, err)
		}
	}
	s, err := k.folder.adopt(sp, id, k.seed(id))
	if err != nil {
		k.addSpare(sp)
		return nil, fmt.Errorf("hotlog: make segment %d ready: %w", id, err)
	}
	return s, nil
}

// takeSpare takes the largest spare.
func (k *keeper) takeSpare() (spare, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	best := -1
	for i, sp := range k.spares {
		if best < 0 || sp.bytes > k.spares[best].bytes {
			best = i
		}
	}
	if best < 0 {
		return spare{}, false
	}
	sp := k.spares[best]
	k.spares = append(k.spares[:best], k.spares[best+1:]...)
	return sp, true
}

// addSpare takes a file for reuse; its new name must be durable.
func (k *keeper) addSpare(sp spare) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.spares = append(k.spares, sp)
	k.paused = false // it may be the space that was missing
	k.changed.Broadcast()
}

// removeSpare removes the smallest spare.
func (k *keeper) removeSpare() error {
	k.mu.Lock()
	least := 0
	for i, sp := range k.spares {
		if sp.bytes < k.spares[least].bytes {
			least = i
		}
	}
	sp := k.spares[least]
	k.spares = append(k.spares[:least], k.spares[least+1:]...)
	k.mu.Unlock()
	return k.folder.fs.Remove(k.folder.name(sp.number, spareSuffix))
}

func (k *keeper) extending(s *segmentFile) task { return func() error { return k.extend(s) } }

// extend writes the next zeros of s.
func (k *keeper) extend(s *segmentFile) error {
	k.mu.Lock()
	off := s.frontier
	n := min(int64(len(k.zeros)), k.opts.SegmentBytes-off)
	s.extending = true
	k.mu.Unlock()
	_, err := s.file.WriteAt(k.zeros[:n], off)
	k.mu.Lock()
	defer k.mu.Unlock()
	s.extending = false
	if err == nil {
		s.frontier = off + n
		s.fileBytes.Store(max(s.fileBytes.Load(), s.frontier))
		k.metrics.zeroBytes.Add(float64(n))
		k.noSpace.Store(false)
	}
	k.changed.Broadcast()
	if err != nil {
		return fmt.Errorf("hotlog: write segment %d ahead: %w", s.id, err)
	}
	return nil
}

// reserve is called by Log.loop before it writes [.., end) of the active segment: it
// waits for a write of zeros there, and keeps new ones away.
func (k *keeper) reserve(s *segmentFile, end int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.point = end
	for end > s.frontier && s.extending {
		k.changed.Wait()
	}
	if end > s.frontier {
		s.frontier = end
		s.fileBytes.Store(max(s.fileBytes.Load(), end))
	}
	if s.frontier < k.activeTargetLocked() || k.next != nil && k.next.frontier < k.nextTargetLocked() {
		k.changed.Broadcast()
	}
}

// rotate is called by Log.loop when the active segment is full: it hands that one over
// to be sealed and returns the next, waiting for it if need be.
func (k *keeper) rotate() (*segmentFile, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.next == nil && k.failed == nil && !(k.closing && k.paused) {
		k.changed.Wait()
	}
	if k.failed != nil {
		return nil, k.failed
	}
	if k.next == nil {
		return nil, fmt.Errorf("hotlog: no room for the segment after %d: %w", k.active.id, vfs.ErrNoSpace)
	}
	k.toSeal = append(k.toSeal, k.active)
	k.active, k.next, k.point = k.next, nil, blockBytes
	k.changed.Broadcast()
	return k.active, nil
}

// ready reports whether a segment is the one after the active one, and made.
func (k *keeper) ready(segment uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.next != nil && k.next.id == segment
}

// room reports whether a group up to end of segment can be written although the disk is
// full: that part of the file is there already.
func (k *keeper) room(segment uint32, end int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range []*segmentFile{k.active, k.next} {
		if s != nil && s.id == segment {
			return end <= s.frontier
		}
	}
	return false
}

// sealFirst writes the index file of the oldest segment that waits for it.
func (k *keeper) sealFirst() error {
	k.mu.Lock()
	s := k.toSeal[0]
	cut := s.cutAtSeal
	k.mu.Unlock()
	content := encodeSidecar(s.id, s.seed, &s.content)
	if err := k.folder.writeSidecar(s.id, content); err != nil {
		return fmt.Errorf("hotlog: write index of segment %d: %w", s.id, err)
	}
	if cut && s.content.end < s.fileBytes.Load() {
		if err := k.folder.truncate(s.id, s.content.end); err != nil {
			return fmt.Errorf("hotlog: truncate segment %d: %w", s.id, err)
		}
		s.fileBytes.Store(s.content.end)
	}
	s.sidecarBytes.Store(int64(len(content)))
	k.segments.sealed(s)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.toSeal = k.toSeal[1:]
	return nil
}

// pause waits for space on a full disk: until a spare comes or for noSpaceRetry. While
// there are spares that take space, the smallest is removed instead.
func (k *keeper) pause(err error) {
	k.mu.Lock()
	gives := slices.ContainsFunc(k.spares, func(sp spare) bool { return sp.bytes > 0 })
	k.mu.Unlock()
	if gives {
		if err = k.removeSpare(); err == nil {
			return
		}
	}
	k.noSpace.Store(true)
	k.opts.Log.Warn("disk is full, the log cannot extend its files", "error", err)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.paused = true
	k.changed.Broadcast()
	if k.timer == nil {
		k.timer = time.AfterFunc(noSpaceRetry, k.resume)
	} else {
		k.timer.Reset(noSpaceRetry)
	}
}

func (k *keeper) resume() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.paused = false
	k.changed.Broadcast()
}

// abort ends the keeper; whoever waits for it gets err.
func (k *keeper) abort(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed == nil {
		k.failed = err
	}
	k.changed.Broadcast()
}

// beginClose lets Log.loop give up waiting for a disk that is full.
func (k *keeper) beginClose() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closing = true
	k.changed.Broadcast()
}

// finish seals last, if not nil, ends the goroutine and waits for it. Log.loop has ended.
func (k *keeper) finish(last *segmentFile) {
	k.mu.Lock()
	if last != nil {
		last.cutAtSeal = true
		k.toSeal = append(k.toSeal, last)
	}
	k.stop = true
	k.changed.Broadcast()
	if k.timer != nil {
		k.timer.Stop()
	}
	k.mu.Unlock()
	<-k.stopped
}

// free is the size of all spares, and how much of the active segment's file and the
// next one's no group has been written to. A segment made of a spare has its whole
// size from the start.
func (k *keeper) free() (spares, unwritten int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, sp := range k.spares {
		spares += sp.bytes
	}
	unwritten = max(k.active.fileBytes.Load()-k.point, 0)
	if k.next != nil {
		unwritten += k.next.fileBytes.Load()
	}
	return spares, unwritten
}
