// Package admission answers for one ledger as a bookie does, on plain values: the
// node's own rules (bookie/internal/ledgertable) over entries kept in memory, with
// no disk, clock or goroutine. It is for those who try a bookie's answers in every
// order; what a node serves goes through package bookie.
//
// Each call is one step: what it stores is on disk when it returns. So it shows
// nothing of group commit, of what is written and not yet synced, or of moves.
package admission

import (
	"fmt"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/internal/ledgertable"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Held is what a bookie holds of one ledger. It is a value: methods return the
// bookie's next Held and never change the one they are called on.
type Held struct {
	Known   bool // something of the ledger was seen
	Deleted bool
	Limbo   bool // something of it may be lost: absences are unknown
	Term    int64
	Entries []ledger.Entry // in order of their ids
}

const id ledger.ID = 1 // under which the one ledger stands in the rules

// table returns the rules with what h knows.
func (h *Held) table() *ledgertable.Table {
	t := new(ledgertable.Table)
	switch {
	case h.Deleted:
		t.MergeDeleted(id)
	case h.Known:
		r := ledgertable.NewRecord()
		r.Term, r.Limbo = h.Term, h.Limbo
		for i := range h.Entries {
			r.LastEntry = max(r.LastEntry, h.Entries[i].Envelope.Entry)
			r.LAC = max(r.LAC, h.Entries[i].Envelope.LAC)
		}
		t.MergeRecord(id, r, 1)
	}
	return t
}

func (h Held) find(e ledger.EntryID) (int, bool) {
	return slices.BinarySearchFunc(h.Entries, e, func(have ledger.Entry, e ledger.EntryID) int {
		return int(have.Envelope.Entry - e)
	})
}

// Has reports whether entry e is held.
func (h Held) Has(e ledger.EntryID) bool {
	_, ok := h.find(e)
	return ok
}

// Add is the answer to an add, and what is held after it.
func (h Held) Add(a *ledger.Add) (Held, error) {
	g := h.table().Lock(id)
	defer g.Unlock()
	if err := g.CheckAdd(a.Create, a.RecoveryTerm); err != nil {
		return h, err
	}
	h.Known = true
	entry := ledger.Entry{Envelope: a.Envelope, Body: a.Body}
	i, ok := h.find(a.Envelope.Entry)
	h.Entries = slices.Clone(h.Entries)
	if ok {
		h.Entries[i] = entry
	} else {
		h.Entries = slices.Insert(h.Entries, i, entry)
	}
	return h, nil
}

// Fence is the answer to a fence, and what is held after it.
func (h Held) Fence(term int64) (Held, ledger.FenceReply, error) {
	none := ledger.FenceReply{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}
	g := h.table().Lock(id)
	defer g.Unlock()
	durable, err := g.CheckFence(term)
	if err != nil {
		return h, none, err
	}
	if !durable {
		g.Fenced(term)
		g.FenceDurable(term)
	}
	record, _ := g.Record()
	h.Known, h.Term = true, record.Term
	reply := ledger.FenceReply{LastEntry: record.LastEntry, LAC: record.LAC}
	if g.Absence() == ledger.Unknown {
		return h, reply, fmt.Errorf("ledger %d is fenced, but may have lost entries here: %w", id, ledger.ErrUnknown)
	}
	return h, reply, nil
}

// Read is the answer to a recovery read, which fences first, and what is held
// after it. It answers up to two entries beyond the end of what is held.
func (h Held) Read(r *ledger.ReadRequest) (Held, ledger.ReadReply, error) {
	if r.FenceTerm > 0 {
		var err error
		if h, _, err = h.Fence(r.FenceTerm); err != nil && !h.Limbo {
			return h, ledger.ReadReply{}, err
		}
	}
	g := h.table().Lock(id)
	defer g.Unlock()
	if err := g.CheckRead(); err != nil {
		return h, ledger.ReadReply{}, err
	}
	record, _ := g.Record()
	reply := ledger.ReadReply{LAC: record.LAC}
	for e := r.First; e <= min(r.Last, max(record.LastEntry, r.First-1)+2); e++ {
		status := ledger.ReadEntry{Status: g.Absence()}
		if i, ok := h.find(e); ok {
			status = ledger.ReadEntry{Status: ledger.Found, Entry: h.Entries[i]}
		}
		reply.Entries = append(reply.Entries, status)
		if status.Status == ledger.Unknown {
			break
		}
	}
	return h, reply, nil
}

// Delete is what is held once the ledger's deletion is confirmed.
func (h Held) Delete() Held {
	t := h.table()
	g := t.Lock(id)
	g.Delete()
	g.Unlock()
	return Held{Deleted: t.Deleted(id)}
}
