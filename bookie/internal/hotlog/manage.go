package hotlog

import (
	"fmt"
	"iter"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Ranges lists which entries of a ledger are in the log.
func (l *Log) Ranges(id ledger.ID) []ledger.EntryRange {
	l.segments.mu.RLock()
	defer l.segments.mu.RUnlock()
	return l.segments.index.ranges(id)
}

// LastEntry is the highest entry of a ledger in the log, at the cost of one map access.
func (l *Log) LastEntry(id ledger.ID) (ledger.EntryID, bool) {
	l.segments.mu.RLock()
	defer l.segments.mu.RUnlock()
	return l.segments.index.last(id)
}

// Ledgers lists the ledgers that have an entry in the log, in order.
func (l *Log) Ledgers() []ledger.ID {
	l.segments.mu.RLock()
	ids := make([]ledger.ID, 0, len(l.segments.index.ledgers))
	for id := range l.segments.index.ledgers {
		ids = append(ids, id)
	}
	l.segments.mu.RUnlock()
	slices.Sort(ids)
	return ids
}

// Forget drops a deleted ledger from the index; its bytes count as dead from now on.
// It is not recorded: the caller's tombstone is what lasts.
func (l *Log) Forget(id ledger.ID) { l.segments.forget(id) }

// SegmentInfo describes a segment.
type SegmentInfo struct {
	ID          uint32
	Sealed      bool  // full, and its index file written; only then it can be recycled
	Bytes       int64 // on disk, index file included
	UsedBytes   int64 // up to the end of its last record
	LiveBytes   int64 // frames of entries that Lookup finds here
	LiveEntries int64
	Records     int // of all kinds, dead ones included
}

// Segments lists the segments, oldest first; the last ones are the active one and, once
// it is ready, the empty one after it.
func (l *Log) Segments() []SegmentInfo {
	l.segments.mu.RLock()
	defer l.segments.mu.RUnlock()
	list := make([]SegmentInfo, 0, len(l.segments.byID))
	for _, s := range l.segments.orderedLocked() {
		list = append(list, SegmentInfo{
			ID: s.id, Sealed: s.sealed, Bytes: s.fileBytes.Load() + s.sidecarBytes.Load(), UsedBytes: s.usedBytes,
			LiveBytes: s.liveBytes, LiveEntries: s.liveEntries, Records: s.records,
		})
	}
	return list
}

// Usage is what the log takes, in bytes, beside what Options allow.
type Usage struct {
	DiskBytes     int64 // all files, spares included
	SpareBytes    int64 // of these, free for what is appended next
	IndexBytes    int64 // memory of the index
	QueueBytes    int64 // appended and not answered
	CacheBytes    int64 // memory of the tail cache
	MaxDiskBytes  int64
	MaxIndexBytes int64
}

// Usage tells what the log takes now.
func (l *Log) Usage() Usage {
	spares, unwritten := l.keeper.free()
	u := Usage{DiskBytes: spares, SpareBytes: spares + unwritten, CacheBytes: l.tail.held(),
		MaxDiskBytes: l.opts.MaxDiskBytes, MaxIndexBytes: l.opts.MaxIndexBytes}
	for _, s := range l.Segments() {
		u.DiskBytes += s.Bytes
	}
	l.segments.mu.RLock()
	u.IndexBytes = l.segments.index.bytes
	l.segments.mu.RUnlock()
	l.mu.Lock()
	u.QueueBytes = l.queued
	l.mu.Unlock()
	return u
}

// Damages lists what is lost of the segments in the log, in order of place. While there is
// a Damage without a ledger, the absence of an entry in the log is unknown, for any
// ledger that may have been written when that segment was.
func (l *Log) Damages() []Damage {
	l.segments.mu.RLock()
	defer l.segments.mu.RUnlock()
	var list []Damage
	for _, s := range l.segments.orderedLocked() {
		list = append(list, s.damages...)
	}
	return list
}

// SegmentLedgers lists the ledgers that have live entries in a sealed segment, in order.
func (l *Log) SegmentLedgers(segment uint32) ([]ledger.ID, error) {
	t := l.segments
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := t.byID[segment]
	if s == nil {
		return nil, fmt.Errorf("segment %d: %w", segment, ErrRecycled)
	}
	if !s.sealed {
		return nil, fmt.Errorf("segment %d: %w", segment, ErrNotSealed)
	}
	ids := uniqueIDs(s.ledgers)
	return slices.DeleteFunc(ids, func(id ledger.ID) bool {
		for range t.index.in(segment, id) {
			return false
		}
		return true
	}), nil
}

// in gives the runs of a ledger in a segment.
func (x *index) in(segment uint32, id ledger.ID) iter.Seq[*run] {
	return func(yield func(*run) bool) {
		b := x.ledgers[id]
		if b == nil {
			return
		}
		for i := range b.runs {
			if b.runs[i].segment == segment && !yield(&b.runs[i]) {
				return
			}
		}
	}
}

// Roll ends the segment that is written to before it is full, so that it is sealed and
// can be recycled. It reports false, and does nothing, while that one has no record or
// the one after it is not ready: then another time will do.
func (l *Log) Roll() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || l.closing || l.plan.sequence == 0 || !l.keeper.ready(l.plan.segment+1) {
		return false
	}
	if l.open != nil {
		l.plan.close(l.open)
		l.open = nil
	}
	l.plan.roll()
	l.rollTo = l.plan.segment
	l.wake.Signal()
	return true
}

// Recycle gives a sealed segment's file back for new segments. The caller has made
// everything in it durable elsewhere that still counts, entries and ledger records
// (M27), and finds it there: Lookup loses the segment's entries before this
// returns. Oldest first: an older copy in an older segment comes back with a restart.
// It waits for readers of the segment. After an error other than
// ErrNotSealed, ErrRecycled and ErrStopping the log has failed.
func (l *Log) Recycle(segment uint32) error {
	l.recycling.Lock()
	defer l.recycling.Unlock()
	l.mu.Lock()
	err := l.err
	if err == nil && l.closing {
		err = ledger.ErrStopping
	}
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("hotlog: recycle segment %d: %w", segment, err)
	}
	s, err := l.segments.remove(segment)
	if err != nil {
		return err
	}
	l.tail.forget(segment)
	err = s.file.Close()
	if err == nil {
		err = l.folder.retire(segment, true)
	}
	if err != nil {
		err = fmt.Errorf("hotlog: recycle segment %d: %w", segment, err)
		l.fail(err)
		return err
	}
	l.keeper.addSpare(spare{number: segment, bytes: s.fileBytes.Load()})
	return nil
}
