package bookie

import (
	"context"
	"errors"
	"time"

	"github.com/magnetar-io/magnetar/bookie/internal/coldstore"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// compact makes room in the cold segments where it is worth it: segments in which
// nothing lives are dropped at once; those of which less than half lives are copied
// together, unless the disk is too full for the copy.
func (n *Node) compact(ctx context.Context) (again bool, err error) {
	var dead []uint32
	worth := false
	for _, s := range n.cold.Segments() {
		switch {
		case s.LiveExtents == 0:
			dead = append(dead, s.ID)
		case !s.Damaged && s.LiveRatio() < minLive:
			worth = true
		}
	}
	var done coldstore.Compaction
	switch {
	case len(dead) > 0:
		done, err = n.cold.Compact(ctx, dead...)
		again = worth
	case worth && n.disk.state().level != levelMinimum:
		done, err = n.cold.Compact(ctx)
		again = done.More
	default:
		return false, nil
	}
	if errors.Is(err, ledger.ErrCorrupt) || errors.Is(err, ledger.ErrUnknown) {
		n.log.Error("a cold segment is damaged, or the disk does not give it: it cannot be compacted and stays", "error", err)
		err = nil // the store leaves it alone from now on
	}
	if done.Dropped+done.Copied > 0 {
		n.log.Debug("cold segments compacted", "dropped", done.Dropped, "copied", done.Copied)
		n.measure()
	}
	return again && err == nil, err
}

const (
	// minLive is the share of live bytes below which a cold segment is copied.
	minLive = 0.5
	// scrubEvery is how long it takes to read and check all cold segments once.
	scrubEvery = 7 * 24 * time.Hour
)

// scrub remembers how far the background check has come. Owned by the upkeep.
type scrub struct {
	next time.Time // when the next segment is due
	last uint32    // the one checked last
}

// scrubNext checks the next cold segment, if one is due. Damage found is reported;
// the entries are answered unknown whenever they are read.
func (n *Node) scrubNext(ctx context.Context) (again bool, err error) {
	s := &n.upkeep.scrub
	if time.Now().Before(s.next) {
		return false, nil
	}
	segments := n.cold.Segments()
	s.next = time.Now().Add(scrubEvery / time.Duration(max(len(segments), 1)))
	if len(segments) == 0 {
		return false, nil
	}
	segment := segments[0].ID
	for _, i := range segments {
		if i.ID > s.last {
			segment = i.ID
			break
		}
	}
	s.last = segment
	return false, n.cold.Scrub(ctx, segment, func(id ledger.ID, r ledger.EntryRange, err error) {
		n.metrics.damaged.Add(float64(r.Last - r.First + 1))
		n.log.Error("stored entries are damaged", "segment", segment, "ledger", id, "first", r.First, "last", r.Last, "error", err)
	})
}
