package bookie

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/magnetar-io/magnetar/bookie/internal/coldstore"
	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// moveBytes is how much of the log is given back at a time, so that what survives
// of it makes long extents (M30).
const moveBytes = 1 << 30

// disposable chooses the segments of the log to give back now.
func (n *Node) disposable() []hotlog.SegmentInfo {
	sealed := slices.DeleteFunc(n.hot.Segments(), func(s hotlog.SegmentInfo) bool { return !s.Sealed })
	return dispensable(sealed, n.hot.Usage(), n.disk.state(), n.identity.ReserveBytes)
}

// dispensable chooses among sealed segments, given oldest first.
//
// With the log over its budget these are the oldest, enough to come a good step
// below it, as far as the copy of what lives in them leaves control half of the
// reserve: whoever took that could not give anything back any more. With the disk
// filling up, or no room for that copy, those in which nothing lives, for they cost
// no copy; if there are none, those of which a small part lives, as many as there is
// room for (M28).
func dispensable(sealed []hotlog.SegmentInfo, hot hotlog.Usage, disk diskState, reserve int64) []hotlog.SegmentInfo {
	free := int64(min(disk.freeBytes, 1<<62))
	over := overBudget(hot) > 1
	if over && disk.level == levelOpen {
		excess := hot.DiskBytes - hot.SpareBytes - hot.MaxDiskBytes
		first := copied(oldest(sealed, max(excess, 0)+min(moveBytes, hot.MaxDiskBytes/4)), free-reserve/2)
		if len(first) > 0 {
			return first
		}
	}
	if !over && disk.level == levelOpen && free >= 2*reserve {
		return nil
	}
	var dead, nearly []hotlog.SegmentInfo
	room := min(free, reserve) / 2
	for _, s := range sealed {
		switch {
		case s.LiveEntries == 0:
			dead = append(dead, s)
		case s.LiveBytes < s.Bytes/2 && s.LiveBytes <= room:
			nearly = append(nearly, s)
			room -= s.LiveBytes
		}
	}
	if len(dead) > 0 {
		return dead
	}
	return nearly
}

// rollForIndex ends the segment that is written to when the index of what is in it is
// over its budget by itself. Data is refused then (M30), so that segment might never be
// full, and only one that has ended can be given back.
func (n *Node) rollForIndex() {
	u := n.hot.Usage()
	if u.IndexBytes <= u.MaxIndexBytes {
		return
	}
	used := 0
	for _, s := range n.hot.Segments() {
		if s.Sealed || s.Records > 0 {
			used++
		}
	}
	if used == 1 { // else one is sealed, or is about to be
		n.hot.Roll()
	}
}

// copied returns the first segments of which no more than room bytes live
// together.
func copied(segments []hotlog.SegmentInfo, room int64) []hotlog.SegmentInfo {
	for i := range segments {
		if room -= segments[i].LiveBytes; room < 0 {
			return segments[:i]
		}
	}
	return segments
}

// oldest returns the first segments that take so many bytes together.
func oldest(segments []hotlog.SegmentInfo, bytes int64) []hotlog.SegmentInfo {
	for i := range segments {
		if bytes -= segments[i].Bytes; bytes <= 0 {
			return segments[:i+1]
		}
	}
	return segments
}

// dispose gives segments of the log back, in the order that loses nothing (M27):
// what survives in them is in synced cold segments, extents and records of ledgers
// are in the index and synced, and only then the segments go.
func (n *Node) dispose(ctx context.Context, segments []hotlog.SegmentInfo) error {
	began := time.Now()
	moved, err := n.moveSurvivors(ctx, segments)
	if err != nil {
		return fmt.Errorf("move survivors: %w", err)
	}
	if err := n.checkpoint(segments[len(segments)-1].ID); err != nil {
		return err
	}
	if err := n.index.Flush(); err != nil {
		return err
	}
	// The commit point: nothing in the segments is needed any more.
	for _, s := range segments {
		if err := n.hot.Recycle(s.ID); err != nil {
			return err
		}
		n.metrics.recycled.Inc()
	}
	n.upkeep.unreadable.settled()
	n.measure()
	n.log.Debug("segments of the log given back", "segments", len(segments), "moved", moved, "took", time.Since(began))
	return nil
}

// Lifetimes group ledgers that will probably die together: what rests in one cold
// segment should go at one time. A ledger that has lived long will live long.
const (
	lifetimeControl index.Lifetime = iota + 1
	lifetimeYoung
	lifetimeOld

	oldAge = time.Hour
)

// moveSurvivors writes what lives in segments to cold segments, sorted, one group
// of lifetimes after the other.
func (n *Node) moveSurvivors(ctx context.Context, segments []hotlog.SegmentInfo) (movedBytes int64, err error) {
	from := make(map[uint32]bool)
	groups := make(map[index.Lifetime][]ledger.ID)
	for _, s := range segments {
		from[s.ID] = true
		ids, err := n.hot.SegmentLedgers(s.ID)
		if err != nil {
			return 0, err
		}
		for _, id := range ids {
			l := n.lifetime(id)
			groups[l] = append(groups[l], id)
		}
	}
	if err := n.retryUnread(from); err != nil {
		return 0, err
	}
	for _, l := range []index.Lifetime{lifetimeControl, lifetimeYoung, lifetimeOld} {
		ids := groups[l]
		slices.Sort(ids)
		written, err := n.cold.Write(ctx, l, n.survivors(ctx, slices.Compact(ids), from))
		movedBytes += written.Bytes
		n.metrics.movedBytes.Add(float64(written.Bytes))
		if err != nil {
			return movedBytes, err
		}
	}
	return movedBytes, nil
}

func (n *Node) lifetime(id ledger.ID) index.Lifetime {
	g := n.table.Lock(id)
	defer g.Unlock()
	r, _ := g.Record()
	switch {
	case r.Class == ledger.Control:
		return lifetimeControl
	case r.Created != 0 && n.opts.Now().Sub(time.UnixMilli(r.Created)) > oldAge:
		return lifetimeOld
	}
	return lifetimeYoung
}

// survivors gives the entries of ids that live in segments from, in order. From the
// first that the disk does not give on it only looks for others like it, to try them
// all again in the next round, and ends with an error.
func (n *Node) survivors(ctx context.Context, ids []ledger.ID, from map[uint32]bool) coldstore.Entries {
	return func(yield func(ledger.Entry, error) bool) {
		for _, id := range ids {
			if !n.survivorsOf(ctx, id, from, yield) {
				return
			}
		}
		if err := n.upkeep.unreadable.tried(); err != nil {
			yield(ledger.Entry{}, err)
		}
	}
}

// survivorsOf gives the entries of one ledger; false when that is the end.
func (n *Node) survivorsOf(ctx context.Context, id ledger.ID, from map[uint32]bool, yield func(ledger.Entry, error) bool) bool {
	for _, r := range n.hot.Ranges(id) {
		for first := r.First; first <= r.Last; {
			last, ok := n.runIn(id, first, r.Last, from)
			if !ok {
				first = last + 1
				continue
			}
			if !n.readSurvivors(ctx, id, first, last, yield) {
				return false
			}
			first = last + 1
		}
	}
	return true
}

// runIn tells how far entries from first on are alike in whether they live in
// segments from, and whether they do.
func (n *Node) runIn(id ledger.ID, first, last ledger.EntryID, from map[uint32]bool) (end ledger.EntryID, in bool) {
	lives := func(e ledger.EntryID) bool {
		p, ok := n.hot.Lookup(id, e)
		return ok && from[p.Segment]
	}
	in = lives(first)
	for end = first; end < last && lives(end+1) == in; end++ {
	}
	return end, in
}

// readSurvivors gives entries first to last. One that was stored and cannot be read
// any more puts its ledger in limbo, for its absence would be a lie: at once when its
// bytes are wrong, after some tries when there are none.
func (n *Node) readSurvivors(ctx context.Context, id ledger.ID, first, last ledger.EntryID, yield func(ledger.Entry, error) bool) bool {
	const step = 1 << 20
	u := &n.upkeep.unreadable
	var run []ledger.Entry
	for first <= last {
		err := ctx.Err()
		if err == nil {
			run, err = n.hot.ReadRun(id, first, last, step, 0, run[:0])
		}
		switch {
		case errors.Is(err, ledger.ErrNoEntry) && n.table.Deleted(id):
			return true // deleted meanwhile
		case errors.Is(err, ledger.ErrCorrupt):
			n.log.Error("entry is damaged and cannot be moved: its ledger is in limbo here", "ledger", id, "entry", first, "error", err)
			g := n.table.Lock(id)
			g.SetLimbo()
			g.Unlock()
			first++
			continue
		case errors.Is(err, ledger.ErrUnknown):
			name := entryName{id, first}
			at, _ := n.hot.Lookup(id, first)
			if u.lost[name] != at && !u.note(name, at, err) {
				yield(ledger.Entry{}, u.tried())
				return false
			}
			first++
			continue
		case err != nil:
			yield(ledger.Entry{}, err)
			return false
		}
		for _, e := range run {
			if len(u.noted) == 0 && !yield(e, nil) {
				return false
			}
		}
		first += ledger.EntryID(len(run))
	}
	return true
}
