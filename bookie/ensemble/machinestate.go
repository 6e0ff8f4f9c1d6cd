package ensemble

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// A machine's state as a value: a copy, and bytes that are equal for two machines
// exactly when they will behave the same from now on. Bodies of entries are told
// by their ids, times by how they stand to now. A test counts the fields of every
// type here, so that one that is new is not forgotten.

// Clone copies the machine; nothing is waiting in Take.
func (m *WriterMachine) Clone() *WriterMachine {
	c := *m.core
	c.window.ring = slices.Clone(c.window.ring)
	c.slots = slices.Clone(c.slots)
	c.short.runs = slices.Clone(c.short.runs)
	c.sends, c.acks = nil, nil
	return &WriterMachine{core: &c, rev: m.rev}
}

// Clone copies the machine; nothing is waiting in Take.
func (m *RecoveryMachine) Clone() *RecoveryMachine {
	c := *m.core
	c.cursor = slices.Clone(c.cursor)
	c.opinions = maps.Clone(c.opinions)
	c.fragments = slices.Clone(c.fragments)
	c.members = slices.Clone(c.members)
	c.gen = slices.Clone(c.gen)
	c.created = slices.Clone(c.created)
	c.adding = slices.Clone(c.adding)
	c.failedOut = slices.Clone(c.failedOut)
	c.window = slices.Clone(c.window)
	c.crcs = maps.Clone(c.crcs)
	c.asks = nil
	return &RecoveryMachine{core: &c, base: m.base, rev: m.rev}
}

// AppendState appends the machine's state at time now to dst.
func (m *WriterMachine) AppendState(dst []byte, now time.Duration) []byte {
	c, e := m.core, encoder{dst}
	e.bools(c.failed != nil, c.stuck != nil, c.changing, c.closing, c.sealed)
	if c.failed != nil {
		return append(e.dst, byte(c.lac+1)) // over: it only has a LAC
	}
	e.ints(int64(m.rev), int64(c.lac), int64(c.window.first), int64(c.window.next), c.lacTotal, c.total)
	e.record(&c.md)
	e.ints(left(now, c.neededAt), left(now, c.wantedAt), age(now, c.headAt, c.timing.addTimeout))
	for i := c.window.first; i < c.window.next; i++ {
		p := c.window.at(i)
		e.ints(int64(p.ok), int64(p.sent), int64(p.left))
	}
	for i := range c.slots {
		s := &c.slots[i]
		e.member(s.member)
		e.ints(int64(s.gen), int64(s.next), int64(s.waiting), int64(s.health), age(now, s.placed, c.timing.addTimeout))
		e.bools(s.created, s.definite, s.tooLarge != nil)
		if c.unwell(i) { // set anew when a healthy slot falls ill
			e.ints(age(now, s.since, max(c.timing.refillAfter, roomPatience)), left(now, s.retryAt), int64(s.backoff))
		}
		if s.waiting > 0 { // set anew by the next add
			e.ints(age(now, s.moved, c.timing.addTimeout))
		}
	}
	for _, r := range c.short.runs {
		e.member(r.member)
		e.bools(r.create)
		e.ints(int64(r.first), int64(r.last))
	}
	return e.dst
}

// AppendState appends the machine's state to dst.
func (m *RecoveryMachine) AppendState(dst []byte) []byte {
	c, e := m.core, encoder{dst}
	e.bools(c.failed != nil, c.covered, c.ended)
	if c.failed != nil {
		return e.dst // over
	}
	e.ints(int64(m.rev), int64(c.lac), int64(c.start), int64(c.decided), int64(c.added), c.total)
	e.record(&m.base)
	e.record(&c.md)
	e.ints(int64(c.fenced), int64(c.unfenced), int64(c.dead), int64(c.reading), int64(c.failing))
	for s := range c.members {
		e.member(c.members[s])
		e.bools(c.created[s])
		e.ints(int64(c.cursor[s]), int64(c.gen[s]), int64(c.adding[s]))
	}
	e.fragments(c.fragments)
	e.ints(int64(len(c.failedOut)))
	for _, m := range c.failedOut {
		e.member(m)
	}
	for _, id := range slices.Sorted(maps.Keys(c.opinions)) {
		o := c.opinions[id]
		e.ints(int64(id), int64(o.absent), int64(o.mute))
	}
	e.ints(int64(len(c.window)))
	for i := range c.window {
		w := &c.window[i]
		e.ints(int64(w.ok), int64(w.entry.Envelope.Ledger), int64(w.entry.Envelope.LAC))
	}
	for _, id := range slices.Sorted(maps.Keys(c.crcs)) {
		e.ints(int64(id))
	}
	return e.dst
}

// AppendRecord appends what may change in a ledger's record to dst.
func AppendRecord(dst []byte, md *ledger.Metadata) []byte {
	e := encoder{dst}
	e.record(md)
	return e.dst
}

// left is how long until at; 0: it is over.
func left(now, at time.Duration) int64 { return int64(max(at-now, 0)) }

// age is how long ago at was; beyond limit nobody can tell the difference.
func age(now, at, limit time.Duration) int64 { return int64(min(now-at, limit)) }

type encoder struct{ dst []byte }

func (e *encoder) ints(vs ...int64) {
	for _, v := range vs {
		e.dst = binary.AppendVarint(e.dst, v)
	}
}

func (e *encoder) bools(vs ...bool) {
	b := byte(0)
	for i, v := range vs {
		if v {
			b |= 1 << i
		}
	}
	e.dst = append(e.dst, b)
}

func (e *encoder) member(m ledger.Member) {
	e.dst = append(append(append(append(e.dst, m.Bookie...), '/'), m.Incarnation...), ';')
}

func (e *encoder) fragments(fs []ledger.Fragment) {
	e.ints(int64(len(fs)))
	for _, f := range fs {
		e.ints(int64(f.First))
		for _, m := range f.Ensemble {
			e.member(m)
		}
	}
}

func (e *encoder) record(md *ledger.Metadata) {
	e.ints(int64(md.State), md.Term, int64(md.LastEntry), md.Length)
	e.bools(md.Verify)
	e.fragments(md.Fragments)
	for _, m := range md.Owed {
		e.member(m)
	}
}
