package ledgertable

import (
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// CheckAdd says whether an add may be handed to the log now; Added follows if it
// was. create and recoveryTerm are those of ledger.Add.
//
// An ordinary add is refused once any fence term exists, a recovery add below the
// highest (M13); any add to a deleted ledger, and one without create to a ledger
// of which nothing is known (M14).
func (g *Guard) CheckAdd(create bool, recoveryTerm int64) error {
	switch {
	case g.table.deleted.has(g.id):
		return fmt.Errorf("add to ledger %d: %w", g.id, ledger.ErrDeleted)
	case recoveryTerm > 0 && g.state != nil && recoveryTerm < g.state.Term:
		return fmt.Errorf("recovery add to ledger %d at term %d, fenced at %d: %w", g.id, recoveryTerm, g.state.Term, ledger.ErrFenced)
	case recoveryTerm > 0 && (g.state != nil || create):
		return nil // a recovery add passes limbo: it brings back what is missing
	case g.state != nil && g.state.Term > 0:
		return fmt.Errorf("add to ledger %d, fenced at term %d: %w", g.id, g.state.Term, ledger.ErrFenced)
	case g.limbo():
		return fmt.Errorf("add to ledger %d, whose fence may be lost here: %w", g.id, ledger.ErrUnknown)
	case g.state == nil && !create:
		return fmt.Errorf("add to ledger %d without create: %w", g.id, ledger.ErrNoLedger)
	}
	return nil
}

func (g *Guard) limbo() bool {
	return g.table.limbo.Load() || g.state != nil && g.state.Limbo
}

// Added notes an entry that the log has taken, or that replay found in it. An
// entry of a deleted ledger is passed over.
func (g *Guard) Added(e *ledger.Envelope) {
	if g.table.deleted.has(g.id) {
		return
	}
	s := g.makeKnown()
	s.LastEntry = max(s.LastEntry, e.Entry)
	s.LAC = max(s.LAC, e.LAC)
	s.Class = max(s.Class, e.Class)
}

// Found notes that entry e is here, of which nothing else is known.
func (g *Guard) Found(e ledger.EntryID) {
	if !g.table.deleted.has(g.id) {
		s := g.makeKnown()
		s.LastEntry = max(s.LastEntry, e)
	}
}

// CheckFence says whether a fence at term may be set, and whether it is on disk
// already. If it is not, it is handed to the log under this same Guard, Fenced
// follows at once, and FenceDurable once it is on disk.
func (g *Guard) CheckFence(term int64) (durable bool, err error) {
	switch {
	case g.table.deleted.has(g.id):
		return false, fmt.Errorf("fence ledger %d: %w", g.id, ledger.ErrDeleted)
	case g.state == nil:
		return false, nil
	case term < g.state.Term:
		return false, fmt.Errorf("fence ledger %d at term %d, fenced at %d: %w", g.id, term, g.state.Term, ledger.ErrFenced)
	}
	return g.state.durableTerm >= term, nil
}

// Fenced raises the term: from now on lower writers are refused. Nobody may be
// told so before FenceDurable (R4).
func (g *Guard) Fenced(term int64) {
	if g.table.deleted.has(g.id) {
		return
	}
	s := g.makeKnown()
	s.Term = max(s.Term, term)
}

// FenceDurable notes that the fence at term is on disk.
func (g *Guard) FenceDurable(term int64) {
	if g.table.deleted.has(g.id) {
		return
	}
	s := g.makeKnown()
	s.Term = max(s.Term, term)
	s.durableTerm = max(s.durableTerm, term)
}

// Delete drops the ledger's record and remembers for ever that it was deleted.
func (g *Guard) Delete() {
	g.table.deleted.add(g.id)
	delete(g.shard.ledgers, g.id)
	g.state = nil
}

// SetCreated notes when the ledger was first seen, unless that is noted already.
func (g *Guard) SetCreated(ms int64) {
	if g.state != nil && g.state.Created == 0 {
		g.state.Created = ms
	}
}

// SetLimbo puts the ledger in limbo. No record in the log says so, as one does of
// every other change: its copies so far count for nothing, and it is Unsaved until
// the next one. Not called while a copy is on its way to Saved.
func (g *Guard) SetLimbo() {
	if !g.table.deleted.has(g.id) {
		s := g.makeKnown()
		s.Limbo, s.saved = true, 0
	}
}

// Record returns what is known of the ledger, and whether anything is.
func (g *Guard) Record() (Record, bool) {
	if g.state == nil {
		return NewRecord(), false
	}
	return g.state.Record, true
}

// Absence is the answer for an entry that is not found (B2).
func (g *Guard) Absence() ledger.ReadStatus {
	if g.limbo() {
		return ledger.Unknown
	}
	return ledger.Absent
}

// CheckRead says whether entries of the ledger may be read.
func (g *Guard) CheckRead() error {
	if g.table.deleted.has(g.id) {
		return fmt.Errorf("read ledger %d: %w", g.id, ledger.ErrDeleted)
	}
	return nil
}
