package explore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// errLost is what a sender is told of a request that got no answer.
var errLost = errors.New("connection lost")

type kind uint8

const (
	addKind kind = iota
	fenceKind
	readKind
	writeKind // of the ledger's record
)

// Senders: 0 is the writer, i the i-th recoverer.
const (
	theWriter = 0
	nobody    = -1 // who sent it has given it up, but it may still arrive
	manager   = -2 // whoever deletes the ledger
)

// message is a request on its way, or its answer on the way back. It never changes
// once it is in the net.
type message struct {
	kind     kind
	from     int8
	answered bool
	slot     int
	gen      uint32
	member   ledger.Member

	add  *ledger.Add
	read ledger.ReadRequest // of a read
	term int64              // of a fence

	err   error
	fence ledger.FenceReply
	reply ledger.ReadReply

	next  ledger.Metadata // of a write
	rev   meta.Revision   // of a write: expected; of its answer: what it became
	moved meta.KV         // of an answer: what stands instead

	key key
}

// codes are the errors that a receiver tells apart.
var codes = []error{nil, errLost, ledger.ErrFenced, ledger.ErrClosed, ledger.ErrDeleted, ledger.ErrNoLedger, ledger.ErrNoEntry,
	ledger.ErrUnknown, ledger.ErrIncarnation, ledger.ErrCorrupt, meta.ErrUnavailable}

func codeOf(err error) byte {
	if err == nil {
		return 0
	}
	for i, e := range codes[1:] {
		if errors.Is(err, e) {
			return byte(i + 1)
		}
	}
	panic(fmt.Sprintf("explore: an error without a code: %v", err))
}

func (m *message) seal() {
	b := []byte{byte(m.kind), byte(m.from), bit(m.answered), byte(m.slot), byte(m.gen)}
	b = append(append(b, m.member.Bookie...), m.member.Incarnation...)
	switch m.kind {
	case addKind:
		e := &m.add.Envelope
		b = append(b, byte(e.Entry), byte(e.LAC), bit(m.add.Create), byte(m.add.RecoveryTerm))
	case fenceKind:
		b = append(b, byte(m.term), byte(m.fence.LastEntry), byte(m.fence.LAC))
	case readKind:
		b = append(b, byte(m.read.First), byte(m.read.FenceTerm))
		for i := range m.reply.Entries {
			r := &m.reply.Entries[i]
			b = append(b, byte(r.Status), byte(r.Entry.Envelope.LAC))
		}
	case writeKind:
		b = ensemble.AppendRecord(b, &m.next)
		b = binary.AppendVarint(b, int64(m.rev))
		b = binary.AppendVarint(b, int64(m.moved.Revision)) // a revision has one value
	}
	m.key = keyOf(append(b, codeOf(m.err)))
}

// orphan is the request once its sender waits for no answer.
func (m *message) orphan() *message {
	o := &message{kind: m.kind, from: nobody, member: m.member, add: m.add, term: m.term, next: m.next, rev: m.rev}
	if m.kind == readKind { // all that is left of it is its fence
		o.kind, o.term = fenceKind, m.read.FenceTerm
	}
	return o
}

func who(from int8) string {
	switch from {
	case theWriter:
		return "writer"
	case nobody:
		return "late"
	case manager:
		return "manager"
	}
	return fmt.Sprintf("recoverer %d", from)
}

func (m *message) String() string {
	var what string
	switch m.kind {
	case addKind:
		what = fmt.Sprintf("add %d (LAC %d, term %d)", m.add.Envelope.Entry, m.add.Envelope.LAC, max(m.add.RecoveryTerm, 1))
	case fenceKind:
		what = fmt.Sprintf("fence at term %d", m.term)
	case readKind:
		what = fmt.Sprintf("read from %d (fence at term %d)", m.read.First, m.read.FenceTerm)
	case writeKind:
		return fmt.Sprintf("%s: write record %v", who(m.from), recordString(&m.next))
	}
	return fmt.Sprintf("%s: %s -> %s/%s", who(m.from), what, m.member.Bookie, m.member.Incarnation)
}

// answer says what an answered message brings back.
func (m *message) answer() string {
	if m.err != nil {
		return m.err.Error()
	}
	switch m.kind {
	case fenceKind:
		return fmt.Sprintf("fenced, last %d, LAC %d", m.fence.LastEntry, m.fence.LAC)
	case readKind:
		s := ""
		for i, r := range m.reply.Entries {
			s += fmt.Sprintf(" %d %s", m.read.First+ledger.EntryID(i), [...]string{"found", "absent", "unknown"}[r.Status])
		}
		return s[1:]
	case writeKind:
		if m.moved.Exists() {
			return "the record has moved on"
		}
	}
	return "ok"
}

func recordString(md *ledger.Metadata) string {
	s := fmt.Sprintf("%v term %d", md.State, md.Term)
	if md.State == ledger.Closed {
		s += fmt.Sprintf(" end %d", md.LastEntry)
	}
	for _, f := range md.Fragments {
		s += fmt.Sprintf(" %d:%v", f.First, f.Ensemble)
	}
	return s
}
