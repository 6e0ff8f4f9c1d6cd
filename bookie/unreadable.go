package bookie

import (
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// unreadable keeps track of entries that are to be moved and that the disk does not
// give, although it stored them. Owned by the upkeep.
//
// A read that fails may work a second later, so such entries are read again with each
// round of the upkeep, readTries times in all, before they are written off: their
// ledgers are in limbo from then on, as with damage that a checksum tells, and their
// segments go. Without that, one bad sector would keep the log from ever being
// emptied.
//
// No more than maxBadBlocks of the disk are written off as long as the node runs. A
// disk or cable that fails as a whole is no heap of bad sectors: what it holds may be
// read again tomorrow, and giving it away would be a loss made by the bookie. Then
// each round fails and says so, the log fills, and data is refused (M30). The node
// goes on, unlike after a failed sync: a failed read leaves what is stored as it was,
// nothing was promised on its account, and what can still be read here is what repair
// makes lost copies from. If writes fail too, the log ends the node.
type unreadable struct {
	noted   map[entryName]hotlog.Place // not read at the last try
	tries   int                        // of those noted
	after   time.Time                  // the next try is not before
	lost    map[entryName]hotlog.Place // written off, in segments not yet given back
	blocks  map[badBlock]bool          // of those written off, since the node runs
	failure error                      // of the entry noted last
}

// entryName names an entry.
type entryName struct {
	ledger ledger.ID
	entry  ledger.EntryID
}

// badBlock is a block of a segment that the disk does not give.
type badBlock struct {
	segment uint32
	offset  int64
}

const (
	// readTries is how often an entry is read before it is written off.
	readTries = 5
	// maxBadBlocks is how much of the disk may be written off, in blocks of the log
	// (4 KiB): a few bad spots, and far from a segment.
	maxBadBlocks = 64
	// maxNoted bounds the entries noted at a time. What is more is met again once
	// these are written off.
	maxNoted = 256
)

func newUnreadable() unreadable {
	return unreadable{noted: make(map[entryName]hotlog.Place), lost: make(map[entryName]hotlog.Place), blocks: make(map[badBlock]bool)}
}

// waits reports that entries were tried a moment ago: the upkeep was woken before its
// time, and the disk shall have that time.
func (u *unreadable) waits() bool { return time.Now().Before(u.after) }

// note takes an entry that could not be read; false when that is enough for now.
func (u *unreadable) note(name entryName, at hotlog.Place, err error) bool {
	u.noted[name] = at
	u.failure = err
	return len(u.noted) < maxNoted
}

// tried ends a try and says how it went.
func (u *unreadable) tried() error {
	if len(u.noted) == 0 {
		u.tries = 0
		return nil
	}
	u.tries++
	u.after = time.Now().Add(upkeepEvery / 2)
	return fmt.Errorf("%d entries of the log cannot be read, try %d of %d before they are written off: %w", len(u.noted), u.tries, readTries, u.failure)
}

// settled forgets what was written off, once the segments it was in are given back.
func (u *unreadable) settled() { clear(u.lost) }

// retryUnread reads again what could not be read before and is in segments from. An
// error says that some of it still cannot, or that it is too much to be written off.
func (n *Node) retryUnread(from map[uint32]bool) error {
	u := &n.upkeep.unreadable
	for name, at := range u.noted {
		if now, ok := n.hot.Lookup(name.ledger, name.entry); !ok || now != at || !from[at.Segment] {
			delete(u.noted, name) // deleted or written anew; if it is elsewhere, its time has not come
			continue
		}
		switch _, err := n.hot.ReadEntry(name.ledger, name.entry); {
		case errors.Is(err, ledger.ErrUnknown):
			u.failure = err
		default: // read, or found damaged when it is moved
			delete(u.noted, name)
		}
	}
	if err := u.tried(); err == nil || u.tries < readTries {
		return err
	}
	return n.writeOff()
}

// writeOff gives up the entries noted, if the disk lost no more than a few blocks.
func (n *Node) writeOff() error {
	u := &n.upkeep.unreadable
	bad := make(map[badBlock]bool)
	for b := range u.blocks {
		bad[b] = true
	}
	for name, at := range u.noted {
		offsets, err := n.hot.UnreadableBlocks(at, maxBadBlocks+1)
		if err != nil {
			return fmt.Errorf("find what cannot be read of entry %d of ledger %d: %w", name.entry, name.ledger, err)
		}
		if len(offsets) == 0 {
			return fmt.Errorf("entry %d of ledger %d can be read block by block, but not whole: %w", name.entry, name.ledger, u.failure)
		}
		for _, o := range offsets {
			bad[badBlock{at.Segment, o}] = true
		}
		if len(bad) > maxBadBlocks {
			return fmt.Errorf("more than %d blocks of the log cannot be read, nothing more is written off and the log cannot be emptied: replace this bookie's disk: %w", maxBadBlocks, u.failure)
		}
	}
	for name, at := range u.noted {
		n.log.Error("entry cannot be read and is written off: its ledger is in limbo here; check it with 'magnetar ledger verify', and replace this bookie's disk if more follow",
			"ledger", name.ledger, "entry", name.entry, "segment", at.Segment, "offset", at.Offset, "error", u.failure)
		g := n.table.Lock(name.ledger)
		g.SetLimbo()
		g.Unlock()
		u.lost[name] = at
		n.metrics.writtenOff.Inc()
	}
	clear(u.noted)
	u.blocks, u.tries = bad, 0
	return nil
}
