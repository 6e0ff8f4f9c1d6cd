package coldstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// recover brings folder and index together when the store is opened.
//
// A crash leaves at most: temporary files; complete segments that the index does
// not know, because it was not flushed, or because compaction had just taken them
// out of it; and, if the index was lost, all segments like that.
func (s *Store) recover() error {
	if err := vfs.MkdirAllSync(s.fs, s.opts.Dir); err != nil {
		return fmt.Errorf("coldstore: %w", err)
	}
	onDisk, err := s.list()
	if err != nil {
		return err
	}
	s.next = s.index.HighestSegment() + 1
	for _, x := range s.index.Segments() {
		if i, ok := slices.BinarySearch(onDisk, x.ID); ok {
			onDisk = slices.Delete(onDisk, i, i+1)
		} else {
			s.log.Error("cold segment is missing, its entries cannot be read", "segment", x.ID)
		}
		seg := newSegment(x)
		seg.ready = true
		s.enter(seg)
	}
	if len(onDisk) == 0 {
		return s.checkNewest()
	}
	s.next = max(s.next, onDisk[len(onDisk)-1]+1)
	slices.Reverse(onDisk) // a newer copy of an entry comes first, and stays
	adopted := false
	for _, id := range onDisk {
		ok, err := s.adopt(id)
		if err != nil {
			return err
		}
		adopted = adopted || ok
	}
	if !adopted {
		return nil
	}
	return s.index.Flush()
}

// list returns the ids of the segment files in order, and removes temporary ones.
func (s *Store) list() ([]uint32, error) {
	names, err := s.fs.ReadDir(s.opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("coldstore: %w", err)
	}
	var ids []uint32
	for _, name := range names {
		if strings.HasSuffix(name, tempSuffix) {
			if err := s.fs.Remove(filepath.Join(s.opts.Dir, name)); err != nil {
				return nil, fmt.Errorf("coldstore: %w", err)
			}
			continue
		}
		number, ok := strings.CutSuffix(name, fileSuffix)
		id, err := strconv.ParseUint(number, 10, 32)
		if !ok || err != nil || id == 0 {
			s.log.Warn("unknown file among cold segments", "file", name)
			continue
		}
		ids = append(ids, uint32(id))
	}
	slices.Sort(ids)
	return ids, nil
}

// checkNewest refuses to open what a newer build has written.
func (s *Store) checkNewest() error {
	var newest *segment
	for _, seg := range s.set {
		if newest == nil || seg.id > newest.id {
			newest = seg
		}
	}
	if newest == nil {
		return nil
	}
	seg, err := s.acquire(newest.id)
	if err == nil {
		s.release(seg)
		return nil
	}
	if errors.Is(err, ledger.ErrCorrupt) {
		s.log.Error("newest cold segment cannot be read", "segment", newest.id, "error", err)
		return nil // reads of it will say so
	}
	return err
}

// adopt enters a segment that the index does not know, or removes it when there
// is nothing in it that no other segment has. It reports whether it was entered.
func (s *Store) adopt(id uint32) (bool, error) {
	name := fileName(s.opts.Dir, id)
	f, err := OpenFile(s.fs, name)
	if err == nil && f.id != id {
		err = errors.Join(corrupt("file of segment %d holds segment %d", id, f.id), f.Close())
	}
	if errors.Is(err, ledger.ErrCorrupt) {
		s.log.Error("cold segment unknown to the index cannot be read", "segment", id, "error", err)
		s.unreadable = append(s.unreadable, name)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	x, extents := f.Segment(), f.Extents()
	if err := f.Close(); err != nil {
		return false, fmt.Errorf("coldstore: %w", err)
	}
	var b index.Batch
	b.PutSegment(x)
	for _, e := range extents {
		b.AddExtent(e)
	}
	b.DropSegment(id) // only if nothing was added
	if err := s.index.Apply(&b); err != nil {
		return false, err
	}
	if !s.index.Registered(id) {
		s.log.Info("cold segment holds nothing that counts, removing it", "segment", id)
		return false, s.remove(id)
	}
	s.log.Info("cold segment entered into the index", "segment", id, "extents", s.index.Live(id).Extents)
	seg := newSegment(x)
	seg.ready = true
	s.enter(seg)
	return true, nil
}
