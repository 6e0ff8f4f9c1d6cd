package bookie

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/ledgertable"
	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

const (
	// maxReadBytes bounds one read, unless one entry alone is larger.
	maxReadBytes = 4 << 20
	// maxReadEntries bounds the answers in one reply.
	maxReadEntries = 4096
	// maxLookups is how often an entry is looked up again because it was moved while
	// it was about to be read.
	maxLookups = 10
)

// Read returns a run of entries. An ordinary read ends with the first that is not
// found; a recovery read fences first, durably, and goes on past absences. Every
// entry was checked, save for bodies that were asked for in part.
//
// It waits, until ctx ends, while too many bytes are being read. ErrDeleted,
// ErrFenced (a higher term exists).
func (n *Node) Read(ctx context.Context, r ledger.ReadRequest) (ledger.ReadReply, error) {
	if r.Ledger < 1 || r.First < 0 || r.First > ledger.MaxEntry || r.Last < r.First || r.FenceTerm < 0 || r.MaxBytes < 0 || r.HeadBytes < 0 {
		return ledger.ReadReply{}, fmt.Errorf("read entries %d to %d of ledger %d: %w", r.First, r.Last, r.Ledger, wire.ErrInvalid)
	}
	if limit := int(n.maxRead()); r.MaxBytes == 0 || r.MaxBytes > limit {
		r.MaxBytes = limit
	}
	if r.FenceTerm > 0 {
		if err := n.fence(ctx, r.Ledger, r.FenceTerm); err != nil {
			return ledger.ReadReply{}, err
		}
	}
	takes := int64(r.MaxBytes)
	if r.HeadBytes > 0 {
		takes = n.maxRead() // in the cold store entries are read whole for their heads
	}
	release, err := n.reading.acquire(ctx, takes, r.FenceTerm > 0)
	if err != nil {
		return ledger.ReadReply{}, fmt.Errorf("read ledger %d: wait for other reads: %w", r.Ledger, err)
	}
	defer release()
	if err := n.readGate.enter(); err != nil {
		return ledger.ReadReply{}, err
	}
	defer n.readGate.leave()

	g := n.table.Lock(r.Ledger)
	err = g.CheckRead()
	record, _ := g.Record()
	run := readRun{node: n, request: r, record: record, absence: g.Absence()}
	g.Unlock()
	if err != nil {
		return ledger.ReadReply{}, err
	}
	run.collect(ctx)
	n.metrics.count(run.entries)
	return ledger.ReadReply{Entries: run.entries, LAC: record.LAC}, nil
}

// maxRead bounds what one read takes of the budget, in bytes.
func (n *Node) maxRead() int64 { return min(maxReadBytes, n.reading.limit/2) }

// readRun gathers the answers of one read.
type readRun struct {
	node    *Node
	request ledger.ReadRequest
	record  ledgertable.Record
	absence ledger.ReadStatus // for what was nowhere when the read began
	entries []ledger.ReadEntry
	bytes   int
	found   []ledger.Entry // of one step, reused
}

// collect fills entries: at least one.
func (r *readRun) collect(ctx context.Context) {
	for len(r.entries) < maxReadEntries {
		next := r.request.First + ledger.EntryID(len(r.entries))
		if next > r.request.Last || len(r.entries) > 0 && (r.bytes >= r.request.MaxBytes || ctx.Err() != nil) {
			return
		}
		status := r.step(next)
		if status == ledger.Found {
			continue
		}
		r.entries = append(r.entries, ledger.ReadEntry{Status: status})
		if status == ledger.Unknown || r.request.FenceTerm == 0 {
			return
		}
	}
}

// step appends what is found from entry next on, at least that one, or says why
// not.
func (r *readRun) step(next ledger.EntryID) ledger.ReadStatus {
	if next > r.record.LastEntry {
		return r.absence // nothing above was ever here
	}
	last := min(r.request.Last, r.record.LastEntry, r.request.First+maxReadEntries-1)
	for range maxLookups {
		found, err := r.node.stored(r.request.Ledger, next, last, r.request.MaxBytes-r.bytes, r.request.HeadBytes, r.found[:0])
		switch {
		case err == nil:
			r.found = found
			for i := range found {
				r.entries = append(r.entries, ledger.ReadEntry{Status: ledger.Found, Entry: found[i]})
				r.bytes += ledger.EnvelopeBytes + len(found[i].Body)
			}
			return ledger.Found
		case errors.Is(err, hotlog.ErrRecycled):
			continue // moved meanwhile: it is found again elsewhere
		case errors.Is(err, ledger.ErrNoEntry):
			return r.nowhere()
		default:
			r.node.log.Error("entry cannot be read", "ledger", r.request.Ledger, "entry", next, "error", err)
			return ledger.Unknown
		}
	}
	return ledger.Unknown
}

// nowhere is the answer for an entry that was looked for and not found. Its ledger
// may be in limbo only since the read began: the upkeep found the entry damaged, put
// the ledger in limbo and gave back the segment, and then the read missed it.
func (r *readRun) nowhere() ledger.ReadStatus {
	if r.absence == ledger.Unknown {
		return r.absence // stays so if the ledger is deleted meanwhile
	}
	g := r.node.table.Lock(r.request.Ledger)
	defer g.Unlock()
	return g.Absence()
}

// stored reads a run from where it is, at least entry first. ErrNoEntry: nowhere,
// surely. An entry is in the cold store before it leaves the log, so whoever asks
// the log first misses none.
func (n *Node) stored(id ledger.ID, first, last ledger.EntryID, maxBytes, headBytes int, dst []ledger.Entry) ([]ledger.Entry, error) {
	found, err := n.hot.ReadRun(id, first, last, maxBytes, headBytes, dst)
	if !errors.Is(err, ledger.ErrNoEntry) {
		return found, err
	}
	if headBytes > 0 {
		maxBytes = int(n.maxRead()) // of what is read; what is given is less
	}
	cold, err := n.cold.ReadRun(id, first, last, maxBytes)
	for _, e := range cold {
		if headBytes > 0 {
			e.Body = bytes.Clone(e.Body[:min(headBytes, len(e.Body))]) // keeps no block for it
		}
		dst = append(dst, e)
	}
	return dst, err
}

// Info tells what is known of a ledger. ErrNoLedger: nothing, surely. ErrUnknown:
// nothing, but it may have been lost. ErrDeleted.
func (n *Node) Info(_ context.Context, id ledger.ID) (ledger.Info, error) {
	if err := n.readGate.enter(); err != nil {
		return ledger.Info{}, err
	}
	defer n.readGate.leave()
	g := n.table.Lock(id)
	err := g.CheckRead()
	record, known := g.Record()
	limbo := g.Absence() == ledger.Unknown
	g.Unlock()
	switch {
	case err != nil:
		return ledger.Info{}, err
	case !known && limbo:
		return ledger.Info{}, fmt.Errorf("ledger %d: %w", id, ledger.ErrUnknown)
	case !known:
		return ledger.Info{}, fmt.Errorf("ledger %d: %w", id, ledger.ErrNoLedger)
	}
	ranges, err := n.ranges(id)
	if err != nil {
		return ledger.Info{}, err
	}
	return ledger.Info{Ranges: ranges, LAC: record.LAC, Term: record.Term, Limbo: limbo}, nil
}

// ranges lists which entries of a ledger are here; the log first, as in stored.
func (n *Node) ranges(id ledger.ID) ([]ledger.EntryRange, error) {
	hot := n.hot.Ranges(id)
	cold, err := n.index.Ranges(id)
	if err != nil {
		return nil, fmt.Errorf("ranges of ledger %d: %w", id, err)
	}
	return mergeRanges(append(hot, cold...)), nil
}

// mergeRanges sorts ranges and joins those that touch or overlap.
func mergeRanges(ranges []ledger.EntryRange) []ledger.EntryRange {
	slices.SortFunc(ranges, func(a, b ledger.EntryRange) int { return int(min(max(a.First-b.First, -1), 1)) })
	merged := ranges[:0]
	for _, r := range ranges {
		if k := len(merged); k > 0 && r.First <= merged[k-1].Last+1 {
			merged[k-1].Last = max(merged[k-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// maxListed bounds one page of List.
const maxListed = 10_000

// List returns up to limit ids above after, in order; limit 0 or too large: a
// page.
func (n *Node) List(_ context.Context, after ledger.ID, limit int) (ids []ledger.ID, more bool, err error) {
	if limit <= 0 || limit > maxListed {
		limit = maxListed
	}
	ids, more = n.table.List(after, limit)
	return ids, more, nil
}
