package explore

import (
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/admission"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// world makes the steps of one Config.
type world struct {
	Config
	notes *[]string // of the step being made; nil: nobody reads them
}

// note says what a step led to.
func (w *world) note(format string, args ...any) {
	if w.notes != nil {
		*w.notes = append(*w.notes, fmt.Sprintf(format, args...))
	}
}

// fault notes the first invariant that s breaks.
func (w *world) fault(s *state, format string, args ...any) {
	if s.ghost.fault == "" {
		s.ghost.fault = fmt.Sprintf(format, args...)
	}
}

// steps calls yield with every state that may follow s, always in the same order.
// label says what was done.
func (w *world) steps(s *state, yield func(label func() string, next *state)) {
	do := func(label func() string, act func(n *state)) {
		n := s.clone()
		act(n)
		w.prune(n)
		w.check(n)
		yield(label, n)
	}
	words := func(format string, args ...any) func() string {
		return func() string { return fmt.Sprintf(format, args...) }
	}
	for i, m := range s.net {
		if i == 0 || m.key != s.net[i-1].key {
			w.messageSteps(s, i, m, do)
		}
	}
	w.writerSteps(s, do)
	for i, r := range s.recoverers {
		if r.phase == idle && s.used.attempts < w.attempts() {
			do(words("recoverer %d reads the record", i+1), func(n *state) {
				n.used.attempts++
				w.beginRecovery(n, i)
			})
		}
		if r.phase != idle && r.phase != over && s.used.deaths < int8(w.Deaths) {
			do(words("recoverer %d dies while %v", i+1, r.phase), func(n *state) {
				n.used.deaths++
				w.leave(n, i, over)
			})
		}
		if r.phase == working && s.used.stalls < int8(w.Stalls) && s.expects(int8(i+1)) {
			do(words("recoverer %d waits no longer", i+1), func(n *state) {
				n.used.stalls++
				w.withRecoverer(n, i, func(r *recoverer) { r.machine.Stalled() })
			})
		}
	}
	for i, b := range s.bookies {
		if s.used.downs < int8(w.Downs) && !b.down {
			do(words("bookie %s goes away", b.member.Bookie), func(n *state) {
				n.used.downs++
				n.editBookie(i, func(b *bookie) { b.down = true })
			})
		}
		if b.down {
			do(words("bookie %s comes (back)", b.member.Bookie), func(n *state) {
				n.editBookie(i, func(b *bookie) { b.down = false })
			})
		}
		if s.used.wipes < int8(w.Wipes) && !b.down && b.held.Known {
			do(words("bookie %s is replaced by an empty one of the same name", b.member.Bookie), func(n *state) {
				n.used.wipes++
				n.editBookie(i, func(b *bookie) {
					*b = bookie{member: ledger.Member{Bookie: b.member.Bookie, Incarnation: b.member.Incarnation + "1"}}
				})
			})
		}
		if s.used.crashes < int8(w.Crashes) && !b.down && (b.held.Known || b.held.Deleted) {
			do(words("bookie %s crashes and starts again", b.member.Bookie), func(n *state) {
				n.used.crashes++
				n.editBookie(i, func(b *bookie) { w.restart(b) })
			})
		}
		if owed := owedBy(&s.record.md, b.member); owed && !b.down && !b.held.Deleted {
			do(words("bookie %s confirms the deletion", b.member.Bookie), func(n *state) { w.confirmDeletion(n, i) })
		}
	}
	if w.Deletes && s.record.md.State != ledger.Deleted && !s.ghost.deleted {
		do(words("the ledger is deleted"), func(n *state) { w.deleteLedger(n) })
	}
}

func (w *world) attempts() int8 {
	if w.Attempts == 0 {
		return int8(w.Recoverers)
	}
	return int8(w.Attempts)
}

// expects reports whether somebody waits for an answer of a bookie.
func (s *state) expects(from int8) bool {
	for _, m := range s.net {
		if m.from == from && m.kind != writeKind {
			return true
		}
	}
	return false
}

// restart is a crash: what was on disk stays, and everything was.
func (w *world) restart(b *bookie) {
	switch w.Flaw {
	case ForgetsFence:
		b.held.Term = 0
		b.held.Known = len(b.held.Entries) > 0
	case ForgetsDeletion:
		if b.held.Deleted {
			b.held = admission.Held{}
		}
	}
}

// messageSteps are what may happen to message i of the net.
func (w *world) messageSteps(s *state, i int, m *message, do func(func() string, func(*state))) {
	without := func(n *state) { n.net = append(n.net[:i:i], n.net[i+1:]...) }
	free := false // losing it costs nothing
	if m.kind != writeKind && !m.answered {
		free = s.bookies[s.at(m.member)].down
	}
	if !free {
		label := func() string {
			if m.answered {
				return "answer to " + m.String() + ": " + m.answer()
			}
			return m.String()
		}
		do(label, func(n *state) {
			without(n)
			switch {
			case m.answered:
				w.receive(n, m)
			case m.kind == writeKind:
				w.write(n, m)
			default:
				w.serve(n, m, false)
			}
		})
		if m.kind == readKind && !m.answered && s.used.unknowns < int8(w.Unknowns) {
			do(func() string { return m.String() + ", which cannot say" }, func(n *state) {
				without(n)
				n.used.unknowns++
				w.serve(n, m, true)
			})
		}
	}
	if m.from < 0 || !free && s.used.losses >= int8(w.Losses) {
		return // a late request that does not arrive changes nothing
	}
	lose := func(what string, keep *message) {
		do(func() string { return m.String() + ": " + what }, func(n *state) {
			without(n)
			if !free {
				n.used.losses++
			}
			if keep != nil {
				n.put(keep)
			}
			lost := *m
			lost.answered, lost.err = true, errLost
			w.receiveLost(n, &lost, m.answered)
		})
	}
	switch {
	case m.answered:
		lose("its answer is lost", nil)
	case free:
		lose("nobody answers", nil)
	default:
		lose("lost", nil)
		if m.kind != writeKind { // the same write is tried again until it is decided
			lose("given up, still on its way", m.orphan())
		}
	}
}

// prune takes out of the net what can have no effect any more, so that states that
// differ in nothing else are one.
func (w *world) prune(s *state) {
	switch w.Flaw {
	case ForgetsFence, ForgetsDeletion, AnyIncarnation:
		return // what is refused now may be taken later
	}
	kept := s.net[:0]
	for _, m := range s.net {
		if m.from != nobody || !s.idleOrphan(m) {
			kept = append(kept, m)
		}
	}
	s.net = kept
}

// idleOrphan reports whether a late request will change nothing whenever it arrives:
// the incarnation it is for is gone, or its term is refused or known already, which
// stays so.
func (s *state) idleOrphan(m *message) bool {
	if m.kind == writeKind {
		return m.rev < s.record.rev
	}
	b := s.bookies[s.at(m.member)]
	switch {
	case b.member != m.member, b.held.Deleted:
		return true
	case m.kind == fenceKind:
		return m.term <= b.held.Term
	}
	return b.held.Term > m.add.RecoveryTerm
}

func owedBy(md *ledger.Metadata, m ledger.Member) bool {
	if md.State != ledger.Deleted {
		return false
	}
	for _, o := range md.Owed {
		if o == m {
			return true
		}
	}
	return false
}
