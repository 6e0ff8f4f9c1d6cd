package coldstore

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Entries is a sequence of entries in rising order of (ledger, entry), without
// doubles. An error in it ends it. A body must stay as it is until the next step.
type Entries = iter.Seq2[ledger.Entry, error]

// Written says what came of a Write, also of one that failed part of the way.
type Written struct {
	Segments int
	Entries  int
	Bytes    int64 // of files
}

// Write puts entries into new segments of one lifetime and enters them into the
// index, where they take the place of older copies. When it returns without
// error, all of it is durable, and so is everything else that was applied to the
// index before the call. After an error some segments may have been written and
// entered; that does no harm, and Write may be called again with the same
// entries. A full disk is vfs.ErrNoSpace.
func (s *Store) Write(ctx context.Context, lifetime index.Lifetime, entries Entries) (Written, error) {
	done, err := s.write(ctx, lifetime, entries, func(b *index.Batch, x index.Extent) { b.PutExtent(x) })
	if err != nil {
		return done, err
	}
	return done, s.index.Flush() // durable: the hot log may forget the entries
}

// write makes segments of entries and applies each to the index with enter. It
// does not flush the index.
func (s *Store) write(ctx context.Context, lifetime index.Lifetime, entries Entries,
	enter func(*index.Batch, index.Extent)) (done Written, err error) {
	if err := s.failure(); err != nil {
		return done, err
	}
	var w *writer
	defer func() {
		if w != nil {
			err = errors.Join(err, w.abort())
		}
		if errors.Is(err, errSync) {
			err = s.fatal(err)
		}
	}()
	finish := func() error {
		finished := w
		w = nil
		if err := finished.finish(); err != nil {
			return err
		}
		done.Segments++
		done.Entries += int(finished.table.entries)
		done.Bytes += finished.at
		s.metrics.writtenBytes.Add(float64(finished.at))
		return s.publish(finished, enter)
	}
	for e, err := range entries {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return done, fmt.Errorf("coldstore: write: %w", err)
		}
		if w != nil && (w.size() >= s.opts.SegmentBytes || w.fullOfRuns()) {
			if err := finish(); err != nil {
				return done, err
			}
		}
		if w == nil {
			if w, err = newWriter(s.fs, s.opts.Dir, s.newID(), lifetime, s.opts.BlockBytes); err != nil {
				return done, err
			}
		}
		if err := w.add(&e); err != nil {
			return done, err
		}
	}
	if w == nil {
		return done, nil
	}
	return done, finish()
}

func (s *Store) newID() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.next
	s.next++
	return id
}

// publish makes the entries of a durable segment visible.
func (s *Store) publish(w *writer, enter func(*index.Batch, index.Extent)) error {
	x := index.Segment{ID: w.id, Lifetime: w.lifetime, FileBytes: w.at, DataBytes: int64(w.table.dataBytes())}
	seg := newSegment(x)
	s.enter(seg)
	var b index.Batch
	for _, e := range w.extents() {
		enter(&b, e)
	}
	b.PutSegment(x)
	if err := s.index.Apply(&b); err != nil {
		return errors.Join(err, s.remove(w.id))
	}
	s.setReady(seg)
	return nil
}
