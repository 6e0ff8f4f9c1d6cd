package ledger

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

const (
	// MaxFragments bounds the fragments of a ledger, so that its record stays small.
	// A writer that needs more has to roll.
	MaxFragments = 1000
	// MaxRecordBytes bounds an encoded record, below what the store takes in one
	// transaction. MaxFragments of the widest quorum fit with short names only.
	MaxRecordBytes = 1 << 20
	// maxNameBytes bounds a bookie's id and incarnation.
	maxNameBytes = 256
)

// Encode returns the record of m as it stands in the metadata store. It refuses
// metadata that Validate refuses.
func (m *Metadata) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	r := metav1.Ledger_builder{
		WriteQuorum: proto.Uint32(uint32(m.Quorum.Write)),
		AckQuorum:   proto.Uint32(uint32(m.Quorum.Ack)),
		State:       metav1.LedgerState(m.State).Enum(),
		Term:        proto.Int64(m.Term),
		CreatedAtMs: proto.Int64(millis(m.Created)),
		Nonce:       proto.Uint64(m.Nonce),
	}.Build()
	if m.Session != "" {
		r.SetCreatorSession(m.Session)
	}
	if m.Class != Data {
		r.SetClass(uint32(m.Class))
	}
	if m.Verify {
		r.SetVerify(true)
	}
	if m.Parent != (Parent{}) {
		r.SetParent(metav1.LedgerParent_builder{
			Topic: proto.Uint64(m.Parent.Topic), Bundle: proto.String(m.Parent.Bundle), Role: proto.String(m.Parent.Role),
		}.Build())
	}
	if m.State == Closed {
		r.SetLastEntry(int64(m.LastEntry))
		r.SetLength(m.Length)
	}
	if m.State == Deleted {
		r.SetDeletedAtMs(millis(m.DeletedAt))
		r.SetOwed(encodeMembers(m.Owed))
	}
	fragments := make([]*metav1.Fragment, len(m.Fragments))
	for i, f := range m.Fragments {
		fragments[i] = metav1.Fragment_builder{
			FirstEntry: proto.Int64(int64(f.First)), Ensemble: encodeMembers(f.Ensemble),
		}.Build()
	}
	r.SetFragments(fragments)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err == nil && len(b) > MaxRecordBytes {
		err = fmt.Errorf("record of ledger %d takes %d bytes, at most %d are allowed", m.ID, len(b), MaxRecordBytes)
	}
	return b, err
}

// Decode reads the record of ledger id. What it returns passes Validate; bytes
// that do not are ErrCorrupt.
func Decode(id ID, b []byte) (Metadata, error) {
	if len(b) > MaxRecordBytes {
		return Metadata{}, fmt.Errorf("record of ledger %d takes %d bytes: %w", id, len(b), ErrCorrupt)
	}
	var r metav1.Ledger
	if err := proto.Unmarshal(b, &r); err != nil {
		return Metadata{}, fmt.Errorf("record of ledger %d: %v: %w", id, err, ErrCorrupt)
	}
	if r.GetClass() > uint32(Control) || r.GetState() < 0 || r.GetState() > metav1.LedgerState(Deleted) ||
		r.GetWriteQuorum() > 255 || r.GetAckQuorum() > 255 {
		return Metadata{}, fmt.Errorf("record of ledger %d: class, state or quorum out of range: %w", id, ErrCorrupt)
	}
	m := Metadata{
		ID:        id,
		Quorum:    Quorum{Write: int(r.GetWriteQuorum()), Ack: int(r.GetAckQuorum())},
		State:     State(r.GetState()),
		Term:      r.GetTerm(),
		LastEntry: NoEntry,
		Class:     Class(r.GetClass()),
		Session:   r.GetCreatorSession(),
		Nonce:     r.GetNonce(),
		Verify:    r.GetVerify(),
		Created:   fromMillis(r.GetCreatedAtMs()),
		Owed:      decodeMembers(r.GetOwed()),
		DeletedAt: fromMillis(r.GetDeletedAtMs()),
	}
	if p := r.GetParent(); p != nil {
		m.Parent = Parent{Topic: p.GetTopic(), Bundle: p.GetBundle(), Role: p.GetRole()}
	}
	if r.HasLastEntry() {
		m.LastEntry, m.Length = EntryID(r.GetLastEntry()), r.GetLength()
	}
	for _, f := range r.GetFragments() {
		m.Fragments = append(m.Fragments, Fragment{First: EntryID(f.GetFirstEntry()), Ensemble: decodeMembers(f.GetEnsemble())})
	}
	if err := m.Validate(); err != nil {
		return Metadata{}, fmt.Errorf("%w: %w", err, ErrCorrupt)
	}
	return m, nil
}

// Validate reports every way in which m is no legal ledger.
func (m *Metadata) Validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("ledger %d: "+format, append([]any{m.ID}, args...)...))
	}
	if m.ID < 1 {
		fault("the id is not above 0")
	}
	if err := m.Quorum.Validate(); err != nil {
		faults = append(faults, err)
	}
	if m.State < Open || m.State > Deleted {
		fault("unknown state %d", m.State)
	}
	if m.Term < 1 {
		fault("term %d is not above 0", m.Term)
	}
	if m.Class > Control {
		fault("unknown class %d", m.Class)
	}
	switch {
	case m.State == Closed && (m.LastEntry < NoEntry || m.LastEntry > MaxEntry || m.Length < 0 || m.LastEntry == NoEntry && m.Length != 0):
		fault("closed at entry %d with %d bytes", m.LastEntry, m.Length)
	case m.State != Closed && (m.LastEntry != NoEntry || m.Length != 0):
		fault("%v, yet it has a last entry %d and %d bytes", m.State, m.LastEntry, m.Length)
	}
	if m.State == Deleted {
		if len(m.Fragments) != 0 {
			fault("a tombstone with fragments")
		}
	} else {
		if len(m.Owed) != 0 || !m.DeletedAt.IsZero() {
			fault("%v, yet marked as deleted", m.State)
		}
		m.validateFragments(fault)
	}
	for _, b := range m.Owed {
		if b.Vacant() || b.Incarnation == "" || len(b.Bookie) > maxNameBytes || len(b.Incarnation) > maxNameBytes {
			fault("a tombstone owed by %q incarnation %q", b.Bookie, b.Incarnation)
		}
	}
	return errors.Join(faults...)
}

func (m *Metadata) validateFragments(fault func(string, ...any)) {
	if n := len(m.Fragments); n < 1 || n > MaxFragments {
		fault("%d fragments, want 1 to %d", n, MaxFragments)
		return
	}
	for i, f := range m.Fragments {
		switch {
		case i == 0 && f.First != 0:
			fault("the first fragment starts at entry %d", f.First)
		case i > 0 && f.First <= m.Fragments[i-1].First:
			fault("fragment %d starts at entry %d, not above the one before", i, f.First)
		case f.First > MaxEntry:
			fault("fragment %d starts at entry %d, at most %d", i, f.First, MaxEntry)
		}
		if len(f.Ensemble) != m.Quorum.Write {
			fault("fragment %d has %d slots, want %d", i, len(f.Ensemble), m.Quorum.Write)
			continue
		}
		if f.Live() < m.Quorum.Ack {
			fault("fragment %d has %d bookies, fewer than the ack quorum %d", i, f.Live(), m.Quorum.Ack)
		}
		for s, b := range f.Ensemble {
			switch {
			case b.Vacant() && b.Incarnation != "":
				fault("fragment %d: slot %d is vacant with an incarnation", i, s)
			case b.Vacant():
			case b.Incarnation == "" || len(b.Bookie) > maxNameBytes || len(b.Incarnation) > maxNameBytes:
				fault("fragment %d: bookie %q with incarnation %q", i, b.Bookie, b.Incarnation)
			case f.Slot(b.Bookie) != s:
				fault("fragment %d names bookie %q twice", i, b.Bookie)
			}
		}
	}
}

func encodeMembers(ms []Member) []*metav1.Member {
	out := make([]*metav1.Member, len(ms))
	for i, m := range ms {
		out[i] = &metav1.Member{}
		if !m.Vacant() {
			out[i].SetBookie(m.Bookie)
			out[i].SetIncarnation(m.Incarnation)
		}
	}
	return out
}

func decodeMembers(ms []*metav1.Member) []Member {
	if len(ms) == 0 {
		return nil
	}
	out := make([]Member, len(ms))
	for i, m := range ms {
		out[i] = Member{Bookie: m.GetBookie(), Incarnation: m.GetIncarnation()}
	}
	return out
}

// millis and fromMillis keep the zero time zero.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
