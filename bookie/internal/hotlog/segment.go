package hotlog

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

var (
	// ErrRecycled reports a place whose segment was recycled: what was there is now
	// elsewhere, or its ledger is deleted. Look it up again.
	ErrRecycled = errors.New("hotlog: segment was recycled")
	// ErrNotSealed reports a segment that is still written to, or whose index file is
	// not written yet. Try a later one.
	ErrNotSealed = errors.New("hotlog: segment is not sealed")
)

// segmentFile is one segment with what is known of it.
type segmentFile struct {
	id   uint32
	seed uint32
	file vfs.File

	fileBytes    atomic.Int64 // size of the file
	sidecarBytes atomic.Int64

	// Of Log.loop while the segment is active, of the keeper once it is handed over
	// to be sealed; gone once it is sealed.
	end      int64 // where the next group goes
	sequence uint32
	content  summary

	// Guarded by keeper.mu.
	frontier  int64 // up to here the file was written once; Log.loop writes only below
	extending bool  // the keeper is writing zeros from frontier on
	cutAtSeal bool  // the log is closing: give the rest of the file back

	// Guarded by segments.mu.
	sealed      bool
	liveBytes   int64
	liveEntries int64
	usedBytes   int64
	records     int
	damages     []Damage
	ledgers     []ledger.ID // that have, or had, runs here; with repetitions

	// Add under segments.mu while the segment is in the table; Wait once it is out.
	readers sync.WaitGroup
}

func newSegment(id, seed uint32, f vfs.File, fileBytes int64) *segmentFile {
	s := &segmentFile{id: id, seed: seed, file: f, end: blockBytes, usedBytes: blockBytes, content: newSummary(),
		frontier: fileBytes &^ (blockBytes - 1)}
	s.fileBytes.Store(fileBytes)
	return s
}

// segments is the table of segments and the index of what is live in them.
// Safe for concurrent use. No disk is touched under its lock.
type segments struct {
	mu     sync.RWMutex
	byID   map[uint32]*segmentFile
	index  index
	closed bool
}

func newSegments() *segments {
	return &segments{byID: make(map[uint32]*segmentFile), index: newIndex()}
}

func (t *segments) add(s *segmentFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[s.id] = s
}

// enter makes the records of a group findable.
func (t *segments) enter(items []item) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range items {
		t.enterLocked(&items[i].record, items[i].place)
	}
}

// sealed notes that s has its index file; its content is no longer needed in memory.
func (t *segments) sealed(s *segmentFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.sealed = true
	s.content = summary{}
}

// enterLocked puts one record that is now on disk into the index.
func (t *segments) enterLocked(r *Record, p Place) {
	s := t.byID[p.Segment]
	s.records++
	s.usedBytes = max(s.usedBytes, int64(p.Offset)+int64(align8(int(p.Length))))
	if r.Kind != KindEntry {
		return
	}
	old, replaced, opened := t.index.put(r.Ledger, r.Entry, p)
	if replaced {
		t.deadLocked(old.Segment, 1, int64(old.Length))
	}
	if opened {
		s.ledgers = append(s.ledgers, r.Ledger)
	}
	s.liveBytes += int64(p.Length)
	s.liveEntries++
}

func (t *segments) deadLocked(segment uint32, entries, bytes int64) {
	if s := t.byID[segment]; s != nil {
		s.liveEntries -= entries
		s.liveBytes -= bytes
	}
}

// acquire keeps the file of a segment open and untouched until readers.Done.
func (t *segments) acquire(id uint32) (*segmentFile, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return nil, fmt.Errorf("hotlog: %w", ledger.ErrStopping)
	}
	s := t.byID[id]
	if s == nil {
		return nil, fmt.Errorf("segment %d: %w", id, ErrRecycled)
	}
	s.readers.Add(1)
	return s, nil
}

// forget drops a ledger from the index.
func (t *segments) forget(id ledger.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.index.drop(id, func(r *run) bool {
		var bytes int64
		for _, s := range r.slots {
			bytes += int64(s.length)
		}
		t.deadLocked(r.segment, int64(len(r.slots)), bytes)
		return true
	})
}

// remove takes a sealed segment with all its entries out of the table and waits for
// its readers. Afterwards its file belongs to the caller.
func (t *segments) remove(id uint32) (*segmentFile, error) {
	t.mu.Lock()
	s := t.byID[id]
	if s == nil {
		t.mu.Unlock()
		return nil, fmt.Errorf("segment %d: %w", id, ErrRecycled)
	}
	if !s.sealed {
		t.mu.Unlock()
		return nil, fmt.Errorf("segment %d: %w", id, ErrNotSealed)
	}
	for _, id := range uniqueIDs(s.ledgers) {
		t.index.drop(id, func(r *run) bool { return r.segment == s.id })
	}
	delete(t.byID, id)
	t.mu.Unlock()
	s.readers.Wait()
	return s, nil
}

// close closes all files once their readers are gone.
func (t *segments) close() error {
	t.mu.Lock()
	t.closed = true
	list := t.orderedLocked()
	t.mu.Unlock()
	var errs []error
	for _, s := range list {
		s.readers.Wait()
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

// orderedLocked lists the segments, oldest first.
func (t *segments) orderedLocked() []*segmentFile {
	list := make([]*segmentFile, 0, len(t.byID))
	for _, s := range t.byID {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *segmentFile) int { return cmp.Compare(a.id, b.id) })
	return list
}

// uniqueIDs returns ids sorted and without repetitions; ids is not altered.
func uniqueIDs(ids []ledger.ID) []ledger.ID {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return slices.Compact(ids)
}
