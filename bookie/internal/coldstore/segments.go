package coldstore

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// segment is a segment of the set. Fields above opening never change; those
// below it are guarded by Store.mu.
type segment struct {
	id        uint32
	lifetime  index.Lifetime
	fileBytes int64
	dataBytes int64

	opening sync.Mutex // one goroutine opens the file; taken before Store.mu

	ready   bool          // its extents are in the index; before that it looks dead and is not
	damaged bool          // a block could not be read
	dead    bool          // out of the set; the last user closes the file
	file    *File         // nil: not open
	element *list.Element // in Store.open; nil: not open
	users   int
}

func newSegment(x index.Segment) *segment {
	return &segment{id: x.ID, lifetime: x.Lifetime, fileBytes: x.FileBytes, dataBytes: x.DataBytes}
}

// errGone reports a segment that is not in the set.
var errGone = errors.New("coldstore: segment is gone")

// acquire returns a segment, open, until release. errGone if it is not in the set.
func (s *Store) acquire(id uint32) (*segment, error) {
	s.mu.Lock()
	seg := s.set[id]
	if seg == nil {
		s.mu.Unlock()
		return nil, errGone
	}
	seg.users++
	open := seg.file != nil
	if open {
		s.open.MoveToFront(seg.element)
	}
	s.mu.Unlock()
	if open {
		return seg, nil
	}
	if err := s.openFile(seg); err != nil {
		if errors.Is(err, ledger.ErrCorrupt) || errors.Is(err, ledger.ErrUnknown) {
			s.setDamaged(seg, err)
		}
		s.release(seg)
		return nil, err
	}
	return seg, nil
}

// openFile opens the file of a segment that the caller has acquired.
func (s *Store) openFile(seg *segment) error {
	seg.opening.Lock()
	defer seg.opening.Unlock()
	s.mu.Lock()
	open := seg.file != nil
	s.mu.Unlock()
	if open { // by another one meanwhile
		return nil
	}
	f, err := OpenFile(s.fs, fileName(s.opts.Dir, seg.id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.mu.Lock()
		dead := seg.dead
		s.mu.Unlock()
		if dead { // removed between the look into the set and here
			return errGone
		}
		return corrupt("segment %d is missing on disk", seg.id)
	case err != nil:
		return err
	case f.id != seg.id:
		return errors.Join(corrupt("file of segment %d holds segment %d", seg.id, f.id), f.Close())
	}
	s.mu.Lock()
	seg.file = f
	seg.element = s.open.PushFront(seg)
	idle := s.idleLocked()
	s.mu.Unlock()
	s.closeAll(idle)
	return nil
}

// idleLocked takes files out of the open ones that are too many and not used.
func (s *Store) idleLocked() []*File {
	var idle []*File
	for e := s.open.Back(); e != nil && s.open.Len() > s.opts.MaxOpen; {
		seg, before := e.Value.(*segment), e.Prev()
		if seg.users == 0 {
			idle = append(idle, s.detachLocked(seg))
		}
		e = before
	}
	return idle
}

func (s *Store) detachLocked(seg *segment) *File {
	f := seg.file
	s.open.Remove(seg.element)
	seg.file, seg.element = nil, nil
	return f
}

func (s *Store) closeAll(files []*File) {
	for _, f := range files {
		if err := f.Close(); err != nil {
			s.log.Warn("cold segment did not close", "segment", f.id, "error", err)
		}
	}
}

// release ends the use that acquire began.
func (s *Store) release(seg *segment) {
	s.mu.Lock()
	seg.users--
	var idle []*File
	if seg.dead && seg.users == 0 && seg.file != nil {
		idle = append(idle, s.detachLocked(seg))
	}
	s.mu.Unlock()
	s.closeAll(idle)
}

// enter puts a complete segment into the set. Its extents go into the index
// only afterwards, so that whoever finds them finds the segment.
func (s *Store) enter(seg *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set[seg.id] = seg
}

func (s *Store) setReady(seg *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg.ready = true
}

// setDamaged keeps Compact away from a segment.
func (s *Store) setDamaged(seg *segment, err error) {
	s.mu.Lock()
	first := !seg.damaged
	seg.damaged = true
	s.mu.Unlock()
	if first {
		s.log.Error("cold segment is damaged or cannot be read", "segment", seg.id, "error", err)
	}
}

// remove takes segments out of the set and deletes their files. What lived in
// them is durable elsewhere, or dead. A reader that has one open finishes with it.
// The removal need not be durable: a segment that comes back after a crash is not
// known to the index, nothing in it is missing elsewhere, and Open removes it.
func (s *Store) remove(ids ...uint32) error {
	var errs []error
	for _, id := range ids {
		s.mu.Lock()
		seg := s.set[id]
		delete(s.set, id)
		var idle []*File
		if seg != nil {
			seg.dead = true
			if seg.users == 0 && seg.file != nil {
				idle = append(idle, s.detachLocked(seg))
			}
		}
		s.mu.Unlock()
		s.closeAll(idle)
		if err := s.fs.Remove(fileName(s.opts.Dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("coldstore: remove segment %d: %w", id, err))
		}
	}
	return errors.Join(errs...)
}
