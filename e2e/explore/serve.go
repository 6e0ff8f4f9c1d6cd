package explore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// serve is the arrival of a request at its bookie, which answers at once.
func (w *world) serve(s *state, m *message, cannotSay bool) {
	i := s.at(m.member)
	b := *s.bookies[i]
	a := *m
	a.answered, a.key = true, key{}
	switch {
	case b.member != m.member && w.Flaw != AnyIncarnation:
		a.err = ledger.ErrIncarnation
	case m.kind == addKind:
		b.held, a.err = b.held.Add(m.add)
		w.checkAdded(s, s.bookies[i], m, a.err)
	case m.kind == fenceKind:
		b.held, a.fence, a.err = b.held.Fence(m.term)
		if a.err == nil {
			b.fenced = max(b.fenced, m.term)
		}
	case m.kind == readKind:
		read := m.read
		if w.Flaw == ReadsDoNotFence {
			read.FenceTerm = 0
		}
		b.held, a.reply, a.err = b.held.Read(&read)
		if a.err == nil {
			b.fenced = max(b.fenced, read.FenceTerm)
		}
		if a.err == nil && cannotSay {
			a.reply.Entries = []ledger.ReadEntry{{Status: ledger.Unknown}}
		}
	}
	s.bookies[i] = b.sealed()
	if m.from == nobody {
		return
	}
	w.note("answers: %s", a.answer())
	s.put(&a)
}

// write is the arrival of a write at the metadata store.
func (w *world) write(s *state, m *message) {
	a := *m
	a.answered, a.key = true, key{}
	if s.record.rev == m.rev {
		w.store(s, m.next)
		a.rev = s.record.rev
		w.note("record is now %s", recordString(&s.record.md))
	} else {
		a.moved = s.recordKV()
	}
	if m.from != nobody {
		s.put(&a)
	}
}

// store makes next the record.
func (w *world) store(s *state, next ledger.Metadata) {
	old := s.record
	s.record = (&record{md: next.Clone(), rev: old.rev + 1}).sealed()
	w.checkWritten(s, &old.md)
}

func (s *state) recordKV() meta.KV {
	value, err := s.record.md.Encode()
	if err != nil {
		panic(fmt.Sprintf("explore: a record that cannot be encoded: %v", err))
	}
	return meta.KV{Value: value, Revision: s.record.rev, Created: 1}
}

// receiveLost tells a sender that its request, or the answer, was lost. A writer of
// the record whose answer was lost looks at what stands instead, and knows its own
// write by its value.
func (w *world) receiveLost(s *state, m *message, answered bool) {
	if m.kind == writeKind {
		m.err = meta.ErrUnavailable
		if answered {
			kv := s.recordKV()
			if own, err := m.next.Encode(); err == nil && bytes.Equal(own, kv.Value) {
				m.err, m.rev, m.moved = nil, kv.Revision, meta.KV{}
			} else {
				m.err, m.moved = nil, kv
			}
		}
	}
	w.receive(s, m)
}

// receive gives an answer to whoever waits for it.
func (w *world) receive(s *state, m *message) {
	if m.from == theWriter {
		w.writerReceives(s, m)
		return
	}
	w.recovererReceives(s, int(m.from-1), m)
}

// deleteLedger makes the record a tombstone, as DeleteOps does.
func (w *world) deleteLedger(s *state) {
	old := &s.record.md
	t := old.Clone()
	t.State, t.Owed, t.DeletedAt = ledger.Deleted, old.Members(), old.Created
	t.Fragments, t.LastEntry, t.Length, t.Verify = nil, ledger.NoEntry, 0, false
	s.ghost.deleted = true
	w.store(s, t)
}

// confirmDeletion is a bookie that has remembered, on disk, that the ledger is
// deleted.
func (w *world) confirmDeletion(s *state, i int) {
	s.editBookie(i, func(b *bookie) { b.held = b.held.Delete() })
	all := true
	for _, o := range s.record.md.Owed {
		b := s.bookies[s.at(o)]
		all = all && (b.held.Deleted || b.member != o)
	}
	if all && s.ghost.gone == never {
		s.ghost.gone = ledger.EntryID(s.writer.appended)
	}
}

// holds reports whether the bookie a record names has entry e.
func (s *state) holds(m ledger.Member, e ledger.EntryID) bool {
	i := s.at(m)
	return s.bookies[i].member == m && s.bookies[i].held.Has(e)
}

// isGone reports that the storage a record names does not exist any more.
func (s *state) isGone(m ledger.Member) bool {
	return !slices.ContainsFunc(s.bookies, func(b *bookie) bool { return b.member == m })
}

// isMoved returns the error that a write of the record found another revision.
func isMoved(m *message, moved func(ledger.ID, meta.KV) error) error {
	if m.err == nil && m.moved.Exists() {
		return moved(1, m.moved)
	}
	if errors.Is(m.err, errLost) {
		return meta.ErrUnavailable
	}
	return m.err
}
