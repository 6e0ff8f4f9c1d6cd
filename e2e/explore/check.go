package explore

import (
	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// acknowledged is an entry's outcome reaching the writer's caller.
func (w *world) acknowledged(s *state, a ensemble.MachineAck) {
	if a.Err != nil {
		return
	}
	w.note("entry %d is acknowledged", a.Entry)
	g := &s.ghost
	switch {
	case a.Entry != g.acked+1:
		w.fault(s, "entry %d was acknowledged after entry %d", a.Entry, g.acked)
	case g.closed != notClosed && a.Entry > g.closed:
		w.fault(s, "entry %d was acknowledged, and the ledger is closed at %d", a.Entry, g.closed)
	case a.Entry >= g.gone:
		w.fault(s, "entry %d was appended after all bookies confirmed the deletion, and acknowledged", a.Entry)
	}
	g.acked = max(g.acked, a.Entry)
}

// checkSent checks an add that the writer sends.
func (w *world) checkSent(s *state, a *ledger.Add) {
	if a.Envelope.LAC > s.ghost.acked {
		w.fault(s, "entry %d is sent with LAC %d, acknowledged is %d", a.Envelope.Entry, a.Envelope.LAC, s.ghost.acked)
	}
}

// checkAdded checks a bookie's answer to an add. What a bookie does against a rule
// that is switched off on purpose is not counted: what comes of it is.
func (w *world) checkAdded(s *state, b *bookie, m *message, err error) {
	if err != nil || w.Flaw != "" {
		return
	}
	term := max(m.add.RecoveryTerm, 1)
	switch {
	case term < b.fenced || m.add.RecoveryTerm == 0 && b.fenced > 0:
		w.fault(s, "bookie %s, fenced at term %d, took an add of term %d", b.member, b.fenced, term)
	case b.held.Deleted:
		w.fault(s, "bookie %s took an add to a ledger whose deletion it had confirmed", b.member)
	}
}

// checkWritten checks the record that has just replaced old.
func (w *world) checkWritten(s *state, old *ledger.Metadata) {
	md, g := &s.record.md, &s.ghost
	if err := ledger.CheckTransition(old, md); err != nil {
		w.fault(s, "the record changed as it must not: %v", err)
	}
	if md.State == ledger.Deleted {
		return
	}
	for i, f := range md.Fragments {
		if i > 0 && f.First <= md.Fragments[i-1].First || i == 0 && f.First != 0 {
			w.fault(s, "fragments do not rise: %s", recordString(md))
		}
		if f.Live() < md.Quorum.Ack {
			w.fault(s, "a fragment names fewer bookies than the ack quorum: %s", recordString(md))
		}
	}
	if md.State != ledger.Closed {
		return
	}
	if g.closed != notClosed && g.closed != md.LastEntry {
		w.fault(s, "the ledger was closed at %d and then at %d", g.closed, md.LastEntry)
	}
	g.closed = md.LastEntry
	if md.Length != lengthTo(md.LastEntry) {
		w.fault(s, "closed at %d with length %d, want %d", md.LastEntry, md.Length, lengthTo(md.LastEntry))
	}
}

// check checks what must hold in every state.
func (w *world) check(s *state) {
	md, g := &s.record.md, &s.ghost
	committed := g.acked
	switch md.State {
	case ledger.Deleted:
		return
	case ledger.Closed:
		committed = md.LastEntry
		if g.acked > md.LastEntry {
			w.fault(s, "entry %d was acknowledged, and the ledger is closed at %d", g.acked, md.LastEntry)
		}
		if lac := s.writer.machine.LAC(); lac > md.LastEntry {
			w.fault(s, "the writer's LAC is %d, and the ledger is closed at %d", lac, md.LastEntry)
		}
	}
	for e := ledger.EntryID(0); e <= committed; e++ {
		f := &md.Fragments[md.FragmentOf(e)]
		copies, gone := 0, 0
		for _, m := range f.Ensemble {
			switch {
			case m.Vacant():
			case s.isGone(m):
				gone++
			case s.holds(m, e):
				copies++
			}
		}
		if copies < w.Quorum.Ack-gone {
			w.fault(s, "entry %d is committed, and %d of the bookies that the record names for it have it (%d are gone): %s",
				e, copies, gone, recordString(md))
		}
	}
}
