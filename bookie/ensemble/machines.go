package ensemble

import (
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// WriterMachine is the state machine behind a Writer, for those who drive it
// through every order of events instead of over real bookies. Writer itself does
// not use it. Not safe for concurrent use.
//
// Whoever drives it owes it what Writer's loop does: Take after every event, at
// most one write of the record at a time, and the outcome of each.
type WriterMachine struct {
	core *writerCore
	rev  meta.Revision // of the record as the writer knows it
}

// MachineTiming holds the durations a WriterMachine decides by; see Options.
type MachineTiming struct{ AddTimeout, RefillAfter time.Duration }

// MachineSend asks for an entry to be sent to the bookie in a slot. Its answer
// goes to Answered, with the same slot and generation.
type MachineSend struct {
	Slot   int
	Gen    uint32
	Member ledger.Member
	Add    ledger.Add
}

// MachineAck is the outcome of an entry.
type MachineAck struct {
	Entry ledger.EntryID
	Err   error
}

// NewWriterMachine begins a writer at time 0, of a ledger just created with md at
// revision rev.
func NewWriterMachine(md ledger.Metadata, rev meta.Revision, t MachineTiming) *WriterMachine {
	return &WriterMachine{rev: rev, core: newWriterCore(0, md,
		timing{addTimeout: t.AddTimeout, refillAfter: t.RefillAfter}, func(int) bool { return false })}
}

// Refusal is why an append is refused now; nil: it is not.
func (m *WriterMachine) Refusal() error { return m.core.refusal() }

// Append takes one entry; Refusal must be nil.
func (m *WriterMachine) Append(now time.Duration, body []byte, crc uint32) ledger.EntryID {
	return m.core.append(now, body, crc, nil)
}

// Answered takes a bookie's answer to a send.
func (m *WriterMachine) Answered(now time.Duration, slot int, gen uint32, e ledger.EntryID, err error) {
	m.core.answered(now, slot, gen, e, err)
}

// Tick lets time pass.
func (m *WriterMachine) Tick(now time.Duration) { m.core.tick(now) }

// Take returns what is to be sent and told, and forgets it.
func (m *WriterMachine) Take() (sends []MachineSend, acks []MachineAck) {
	for _, s := range m.core.sends {
		sends = append(sends, MachineSend{Slot: s.slot, Gen: s.gen, Member: m.core.slots[s.slot].member, Add: s.add})
	}
	for _, a := range m.core.acks {
		acks = append(acks, MachineAck{Entry: a.entry, Err: a.err})
	}
	m.core.sends, m.core.acks = nil, nil
	return sends, acks
}

// LAC is the last add confirmed.
func (m *WriterMachine) LAC() ledger.EntryID { return m.core.lac }

// Err is why the writer is over; nil: it is not.
func (m *WriterMachine) Err() error { return m.core.failed }

// Revision is that of the record as the writer knows it.
func (m *WriterMachine) Revision() meta.Revision { return m.rev }

// AsksForChange reports whether the ensemble should change now.
func (m *WriterMachine) AsksForChange(now time.Duration) bool {
	return m.core.needsChange(now) || m.core.wantsChange(now)
}

// BeginChange freezes acknowledgements and returns the record to write over
// Revision; ok is false when nobody can help. ChangeDecided follows.
func (m *WriterMachine) BeginChange(now time.Duration, live []Candidate) (next ledger.Metadata, ok bool) {
	old := m.core.md
	next, ok = m.core.beginChange(now, firstOf(live))
	if !ok {
		return next, false
	}
	if err := ledger.CheckTransition(&old, &next); err != nil {
		m.ChangeDecided(now, next, 0, &illegalError{err})
		return next, false
	}
	return next, true
}

// ChangeDecided takes the outcome of writing next: its revision, or an error.
func (m *WriterMachine) ChangeDecided(now time.Duration, next ledger.Metadata, rev meta.Revision, err error) {
	m.rev = m.core.changeDecided(now, next, m.rev, rev, err)
}

// Seal stops acknowledging for good.
func (m *WriterMachine) Seal() { m.core.seal() }

// StopAppends begins a close that waits for what is in flight.
func (m *WriterMachine) StopAppends() { m.core.closing = true }

// Closing reports whether appends have stopped, and whether the closing record
// may be written, if no other write is under way.
func (m *WriterMachine) Closing() (stopped, ready bool) {
	c := m.core
	return c.closing, c.failed == nil && c.closing && (c.sealed || c.drained())
}

// Closed returns the closing record.
func (m *WriterMachine) Closed() ledger.Metadata { return m.core.closed() }

// CloseDecided takes the outcome of writing next over Revision. again: it is to
// be written once more, as it stands now.
func (m *WriterMachine) CloseDecided(next ledger.Metadata, err error) (now ledger.Metadata, again bool) {
	switch moved, ok := err.(*movedError); {
	case err == nil:
		m.core.tail(ledger.ErrClosed)
	case ok:
		md, rev, err := closeMoved(moved, &m.core.md, &next)
		switch {
		case err != nil:
			m.core.die(err)
		case md.State == ledger.Closed:
			m.core.tail(ledger.ErrClosed)
		default:
			m.core.md, m.rev = md, rev
			return next, true
		}
	default:
		return next, true
	}
	return next, false
}

// RecordMoved is the error of a write that found the record at another revision.
func RecordMoved(id ledger.ID, now meta.KV) error { return &movedError{id: id, now: now} }

// firstOf chooses bookies without chance: always the first of equals.
func firstOf(live []Candidate) *placer {
	return &placer{candidates: live, rand: func() uint64 { return 1 }}
}

// RecoveryMachine is the state machine of one attempt to recover a ledger, as
// WriterMachine is of a writer.
type RecoveryMachine struct {
	core *recoveryCore
	base ledger.Metadata // record over which the closing one is written
	rev  meta.Revision
}

// RecoveryAsk is what a recovery asks of the bookie in a slot: a fence, a read, or
// an add. Its answer goes to the method of that name.
type RecoveryAsk struct {
	Slot   int
	Gen    uint32
	Member ledger.Member
	Fence  bool
	Read   ledger.ReadRequest // Last >= First when set
	Add    *ledger.Add
}

// RecoveryStart returns the record with which a recovery of md begins; md itself
// if it is closed; an error if there is nothing to recover.
func RecoveryStart(md *ledger.Metadata) (ledger.Metadata, error) { return recovering(md) }

// NewRecoveryMachine begins an attempt on the record it has written, at rev.
func NewRecoveryMachine(md ledger.Metadata, rev meta.Revision, readBytes int) *RecoveryMachine {
	return &RecoveryMachine{core: newRecoveryCore(md, readBytes), base: md, rev: rev}
}

// Take returns what is to be asked, and forgets it. Slots that fail are given to
// others of live first.
func (m *RecoveryMachine) Take(live []Candidate) []RecoveryAsk {
	for m.core.needsBookies() {
		m.core.replace(firstOf(live))
	}
	var asks []RecoveryAsk
	for _, a := range m.core.asks {
		asks = append(asks, RecoveryAsk{Slot: a.slot, Gen: a.gen, Member: a.member, Fence: a.fence, Read: a.read, Add: a.add})
	}
	m.core.asks = nil
	return asks
}

// Fenced takes the answer to a fence.
func (m *RecoveryMachine) Fenced(slot int, r ledger.FenceReply, err error) {
	m.core.fenceAnswered(slot, r, err)
}

// Read takes the answer to a read that began at first.
func (m *RecoveryMachine) Read(slot int, first ledger.EntryID, r ledger.ReadReply, err error) {
	m.core.readAnswered(slot, first, r, err)
}

// Added takes the answer to an add.
func (m *RecoveryMachine) Added(slot int, gen uint32, e ledger.EntryID, err error) {
	m.core.addAnswered(slot, gen, e, err)
}

// Stalled gives up on every bookie that owes an answer.
func (m *RecoveryMachine) Stalled() { m.core.stalled() }

// Err is why the attempt failed; nil: it has not.
func (m *RecoveryMachine) Err() error { return m.core.failed }

// Done reports that the closing record may be written.
func (m *RecoveryMachine) Done() bool { return m.core.done() }

// Revision is that over which the closing record is written.
func (m *RecoveryMachine) Revision() meta.Revision { return m.rev }

// Closed returns the closing record. length is that of the ledger up to its end;
// it counts when no entry was added again.
func (m *RecoveryMachine) Closed(length int64) ledger.Metadata { return m.core.closed(length) }

// CloseDecided takes the outcome of writing next over Revision. again: it is to be
// written once more, as it stands now. After an error the attempt is over.
func (m *RecoveryMachine) CloseDecided(next ledger.Metadata, err error) (now ledger.Metadata, again bool) {
	if moved, ok := err.(*movedError); ok {
		md, rev, err := recoveredMoved(moved, &m.base, &next)
		if err == nil && md.State != ledger.Closed {
			m.base, m.rev = md, rev
			return next, true
		}
		m.core.fail(err)
	} else if err != nil {
		m.core.fail(err)
	}
	return next, false
}

// Term is that of the attempt.
func (m *RecoveryMachine) Term() int64 { return m.core.md.Term }

// End is the last entry that was added again, or known to be acknowledged.
func (m *RecoveryMachine) End() ledger.EntryID { return m.core.added }
