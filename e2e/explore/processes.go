package explore

import (
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// What the loops around the machines do: they take what a machine asks for after
// every event, and write the record, one write at a time.

// writerSteps are what the writer's process may do by itself.
func (w *world) writerSteps(s *state, do func(func() string, func(*state))) {
	m, now := s.writer.machine, s.now()
	if s.writer.appended < w.Entries && m.Refusal() == nil {
		do(func() string { return fmt.Sprintf("writer: append %d", s.writer.appended) }, func(n *state) {
			w.withWriter(n, func(wr *writer) { wr.append(now) })
		})
	}
	if !s.writer.writing && m.AsksForChange(now) {
		do(func() string { return "writer: begin to change the ensemble" }, func(n *state) { w.beginChange(n) })
	}
	if m.Err() == nil && !s.writer.asked {
		if w.Closes {
			do(func() string { return "writer: close" }, func(n *state) {
				w.withWriter(n, func(wr *writer) { wr.asked = true; wr.machine.StopAppends() })
			})
		}
		if w.Seals {
			do(func() string { return "writer: seal" }, func(n *state) {
				w.withWriter(n, func(wr *writer) { wr.asked = true; wr.machine.Seal() })
			})
		}
	}
	if s.used.ticks < int8(w.Ticks) && m.Err() == nil {
		do(func() string { return "time passes, more than every timeout" }, func(n *state) {
			n.used.ticks++
			w.withWriter(n, func(wr *writer) { wr.machine.Tick(n.now()) })
		})
	}
}

func (w *writer) append(now time.Duration) {
	w.machine.Append(now, bodies[w.appended], crcs[w.appended])
	w.appended++
}

// withWriter changes the writer and then does what its machine asks for.
func (w *world) withWriter(s *state, f func(*writer)) {
	old := s.writer
	wr := &writer{machine: old.machine.Clone(), appended: old.appended, writing: old.writing, asked: old.asked,
		gens: append([]uint32(nil), old.gens...)}
	f(wr)
	sends, acks := wr.machine.Take()
	for _, a := range acks {
		w.acknowledged(s, a)
	}
	for _, m := range sends {
		wr.gens[m.Slot] = m.Gen
		add := m.Add
		w.checkSent(s, &add)
		s.put(&message{kind: addKind, from: theWriter, slot: m.Slot, gen: m.Gen, member: m.Member, add: &add})
	}
	if err := wr.machine.Err(); err != nil && old.machine.Err() == nil {
		w.note("the writer is over: %v", err)
		s.abandon(theWriter)
	}
	if stopped, ready := wr.machine.Closing(); stopped && ready && !wr.writing {
		wr.writing = true
		s.put(&message{kind: writeKind, from: theWriter, next: wr.machine.Closed(), rev: wr.machine.Revision()})
	}
	s.writer = wr.sealed(s.now())
}

func (w *world) beginChange(s *state) {
	w.withWriter(s, func(wr *writer) {
		m := wr.machine
		if w.Flaw == AcksWhileChanging {
			m = m.Clone() // the writer itself hears of the change when it is stored
		}
		if next, ok := m.BeginChange(s.now(), s.live()); ok {
			wr.writing = true
			s.put(&message{kind: writeKind, from: theWriter, next: next, rev: m.Revision()})
		}
	})
}

func (w *world) writerReceives(s *state, m *message) {
	w.withWriter(s, func(wr *writer) {
		switch {
		case m.kind == addKind:
			gen := m.gen
			if w.Flaw == AnyGeneration {
				gen = wr.gens[m.slot]
			}
			wr.machine.Answered(s.now(), m.slot, gen, m.add.Envelope.Entry, m.err)
		case m.next.State == ledger.Closed:
			wr.writing = false
			next, again := wr.machine.CloseDecided(m.next, isMoved(m, ensemble.RecordMoved))
			if again {
				wr.writing = true
				s.put(&message{kind: writeKind, from: theWriter, next: next, rev: wr.machine.Revision()})
			}
		default:
			wr.writing = false
			wr.machine.ChangeDecided(s.now(), m.next, m.rev, isMoved(m, ensemble.RecordMoved))
		}
	})
}

// abandon makes late requests of what a sender has under way, and forgets the
// answers to it.
func (s *state) abandon(from int8) {
	s.keepNet(func(m *message) *message {
		switch {
		case m.from != from:
			return m
		case m.answered:
			return nil
		}
		return m.orphan()
	})
}

// beginRecovery reads the record and goes to write that it is being recovered.
func (w *world) beginRecovery(s *state, i int) {
	next, err := ensemble.RecoveryStart(&s.record.md)
	switch {
	case err != nil:
		w.note("nothing to recover: %v", err)
		w.leave(s, i, over)
	case next.State == ledger.Closed:
		w.note("it is closed already")
		w.leave(s, i, over)
	default:
		s.recoverers[i] = (&recoverer{phase: starting}).sealed()
		s.put(&message{kind: writeKind, from: int8(i + 1), next: next, rev: s.record.rev})
	}
}

// leave ends what recoverer i has under way.
func (w *world) leave(s *state, i int, p phase) {
	s.abandon(int8(i + 1))
	s.recoverers[i] = (&recoverer{phase: p}).sealed()
}

// withRecoverer changes a recoverer and then does what its machine asks for.
func (w *world) withRecoverer(s *state, i int, f func(*recoverer)) {
	old := s.recoverers[i]
	r := &recoverer{phase: old.phase}
	if old.machine != nil {
		r.machine = old.machine.Clone()
	}
	f(r)
	w.settle(s, i, r)
}

func (w *world) settle(s *state, i int, r *recoverer) {
	if r.machine != nil {
		for _, a := range r.machine.Take(s.live()) {
			m := &message{from: int8(i + 1), slot: a.Slot, gen: a.Gen, member: a.Member}
			switch {
			case a.Fence:
				m.kind, m.term = fenceKind, r.machine.Term()
			case a.Add != nil:
				m.kind, m.add = addKind, a.Add
			default:
				m.kind, m.read = readKind, a.Read
			}
			s.put(m)
		}
		if err := r.machine.Err(); err != nil {
			w.note("the recovery failed: %v", err)
			w.leave(s, i, idle)
			return
		}
		if r.phase == working && r.machine.Done() {
			r.phase = closing
			s.abandon(int8(i + 1)) // its caller waits for none of them
			next := r.machine.Closed(lengthTo(r.machine.End()))
			s.put(&message{kind: writeKind, from: int8(i + 1), next: next, rev: r.machine.Revision()})
		}
	}
	s.recoverers[i] = r.sealed()
}

func (w *world) recovererReceives(s *state, i int, m *message) {
	r := s.recoverers[i]
	if m.kind == writeKind {
		w.recordAnswered(s, i, m)
		return
	}
	if r.phase != working {
		return
	}
	w.withRecoverer(s, i, func(r *recoverer) {
		switch m.kind {
		case fenceKind:
			r.machine.Fenced(m.slot, m.fence, m.err)
		case addKind:
			r.machine.Added(m.slot, m.gen, m.add.Envelope.Entry, m.err)
		default:
			err := m.err
			if w.Flaw == FailureIsAbsence && err != nil {
				err = ledger.ErrNoEntry
			}
			r.machine.Read(m.slot, m.read.First, m.reply, err)
		}
	})
}

// recordAnswered tells recoverer i what became of its write of the record.
func (w *world) recordAnswered(s *state, i int, m *message) {
	err := isMoved(m, ensemble.RecordMoved)
	if m.next.State == ledger.InRecovery {
		if err != nil {
			w.leave(s, i, idle)
			return
		}
		machine := ensemble.NewRecoveryMachine(m.next, m.rev, 1<<20)
		if w.Flaw == VacantTwice {
			countVacantAgain(machine, m.next.Last())
		}
		w.settle(s, i, &recoverer{phase: working, machine: machine})
		return
	}
	w.withRecoverer(s, i, func(r *recoverer) {
		next, again := r.machine.CloseDecided(m.next, err)
		switch {
		case again:
			s.put(&message{kind: writeKind, from: int8(i + 1), next: next, rev: r.machine.Revision()})
		case r.machine.Err() == nil:
			w.note("recoverer %d is done", i+1)
			*r = recoverer{phase: over}
		}
	})
}

func countVacantAgain(m *ensemble.RecoveryMachine, f *ledger.Fragment) {
	for slot, member := range f.Ensemble {
		if member.Vacant() {
			m.Fenced(slot, ledger.FenceReply{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}, nil)
			m.Read(slot, f.First, ledger.ReadReply{Entries: []ledger.ReadEntry{{Status: ledger.Absent}}}, nil)
		}
	}
}
