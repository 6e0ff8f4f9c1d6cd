package coldstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Compaction says what a Compact did.
type Compaction struct {
	Dropped int   // segments removed without a copy
	Copied  int   // segments removed after what lived in them was copied
	Freed   int64 // bytes of the files removed, less those written; below 0 after a failure
	More    bool  // another call would find more to do
}

// Compact makes room. Segments in which nothing lives are dropped; then, of one
// lifetime, those in which less than Options.MaxLive lives are copied together,
// the emptiest first, about one new segment's worth in a call. With ids, these are
// copied instead, however much lives in them, save that one lifetime is not mixed
// with another.
//
// The order is the law: new segment synced → index durable → old segment removed.
// A damaged segment stays as it is until what is damaged was repaired, that is
// written anew, or deleted; ErrCorrupt tells of one that was met. So does one of
// which the disk did not give all, ErrUnknown, until the store is opened again.
func (s *Store) Compact(ctx context.Context, ids ...uint32) (Compaction, error) {
	s.compacting.Lock()
	defer s.compacting.Unlock()
	var done Compaction
	if err := s.failure(); err != nil {
		return done, err
	}
	infos := s.Segments()
	if len(ids) > 0 {
		infos = slices.DeleteFunc(infos, func(i Info) bool { return !slices.Contains(ids, i.ID) })
	}
	var dead []Info
	byLifetime := make(map[index.Lifetime][]Info)
	for _, i := range infos {
		switch {
		case i.LiveExtents == 0:
			dead = append(dead, i)
		case len(ids) > 0, !i.Damaged && i.LiveRatio() < s.opts.MaxLive:
			byLifetime[i.Lifetime] = append(byLifetime[i.Lifetime], i)
		}
	}
	n, freed, err := s.drop(dead)
	done.Dropped, done.Freed = n, freed
	if err != nil {
		return done, err
	}
	groups := make([][]Info, 0, len(byLifetime))
	for _, group := range byLifetime {
		groups = append(groups, group)
	}
	if len(ids) == 0 && len(groups) > 0 {
		slices.SortFunc(groups, func(a, b []Info) int { return cmp.Compare(waste(b), waste(a)) })
		group := s.share(groups[0])
		done.More = len(groups) > 1 || len(group) < len(groups[0])
		groups = [][]Info{group}
	}
	for _, group := range groups {
		n, freed, err := s.copyGroup(ctx, group)
		done.Copied += n
		done.Freed += freed
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func waste(group []Info) (bytes int64) {
	for _, i := range group {
		bytes += i.DataBytes - i.LiveBytes
	}
	return bytes
}

// share picks the emptiest segments of a group, about one new segment's worth.
func (s *Store) share(group []Info) []Info {
	slices.SortFunc(group, func(a, b Info) int { return cmp.Compare(a.LiveRatio(), b.LiveRatio()) })
	live := int64(0)
	for n, i := range group {
		if live += i.LiveBytes; live > s.opts.SegmentBytes {
			return group[:max(n, 1)]
		}
	}
	return group
}

// drop takes segments without an extent out of the index and then removes them.
func (s *Store) drop(list []Info) (n int, freed int64, err error) {
	if len(list) == 0 {
		return 0, 0, nil
	}
	var b index.Batch
	for _, i := range list {
		b.DropSegment(i.ID)
	}
	if err := s.index.Apply(&b); err != nil {
		return 0, 0, err
	}
	if err := s.index.Flush(); err != nil {
		return 0, 0, err
	}
	// The index is durable without them: from here on they may go.
	var errs []error
	for _, i := range list {
		if s.index.Registered(i.ID) {
			continue // something lives in it after all
		}
		errs = append(errs, s.remove(i.ID))
		n++
		freed += i.FileBytes
	}
	s.metrics.removedBytes.Add(float64(freed))
	return n, freed, errors.Join(errs...)
}

// copyGroup copies what lives in some segments of one lifetime to new ones.
func (s *Store) copyGroup(ctx context.Context, group []Info) (n int, freed int64, err error) {
	from := make(map[uint32]bool)
	var pieces []piece
	for _, i := range group {
		seg, err := s.acquire(i.ID)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		defer s.release(seg)
		from[i.ID] = true
		if pieces, err = s.livePieces(seg, pieces); err != nil {
			return 0, 0, err
		}
	}
	slices.SortFunc(pieces, func(a, b piece) int {
		return cmp.Or(cmp.Compare(a.run.ledger, b.run.ledger), cmp.Compare(a.first, b.first))
	})
	done, err := s.write(ctx, group[0].Lifetime, s.entriesOf(ctx, pieces), func(b *index.Batch, x index.Extent) {
		b.MoveExtent(x, from)
	})
	s.metrics.copiedBytes.Add(float64(done.Bytes))
	if err != nil {
		return 0, -done.Bytes, err
	}
	n, freed, err = s.drop(group) // flushes the index first
	return n, freed - done.Bytes, err
}

// piece is a part of a run that lives.
type piece struct {
	seg         *segment
	run         *run
	first, last ledger.EntryID
}

// livePieces appends the parts of a segment that the index says rest there.
func (s *Store) livePieces(seg *segment, pieces []piece) ([]piece, error) {
	for i := range seg.file.table.runs {
		r := &seg.file.table.runs[i]
		extents, err := s.index.Extents(r.ledger, r.first, r.last())
		if err != nil {
			return nil, err
		}
		for _, x := range extents {
			if x.Segment == seg.id && x.Offset == r.offset {
				pieces = append(pieces, piece{seg: seg, run: r, first: x.First, last: x.Last})
			}
		}
	}
	return pieces, nil
}

// entriesOf reads pieces one after the other, past the cache. Damage ends it.
func (s *Store) entriesOf(ctx context.Context, pieces []piece) Entries {
	return func(yield func(ledger.Entry, error) bool) {
		for _, p := range pieces {
			if s.index.Deleted(p.run.ledger) {
				continue
			}
			err := p.seg.file.scan(p.run, p.first, p.last, s.throttle(ctx), func(first, last ledger.EntryID, b []byte, err error) error {
				if err != nil {
					return err
				}
				start := max(first, p.first)
				if b, err = skipTo(b, first, start); err != nil {
					return err
				}
				return eachEntry(b, p.run.ledger, start, min(last, p.last), func(e ledger.Entry, err error) error {
					if err != nil {
						return err
					}
					if !yield(e, nil) {
						return errStop
					}
					return nil
				})
			})
			if errors.Is(err, errStop) {
				return
			}
			if err != nil {
				if errors.Is(err, ledger.ErrCorrupt) || errors.Is(err, ledger.ErrUnknown) {
					s.setDamaged(p.seg, err)
				}
				yield(ledger.Entry{}, fmt.Errorf("compact segment %d: %w", p.seg.id, err))
				return
			}
		}
	}
}

// throttle waits before background reads.
func (s *Store) throttle(ctx context.Context) func(int) error {
	return func(bytes int) error {
		if s.limit == nil {
			return ctx.Err()
		}
		return s.limit.WaitN(ctx, min(bytes, s.limit.Burst()))
	}
}
