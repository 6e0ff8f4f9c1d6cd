package hotlog

import (
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Kind of a record.
type Kind uint8

const (
	KindEntry     Kind = 1 // an entry: Envelope and Body
	KindFence     Kind = 2 // a ledger's fence term; Data is the caller's
	KindTombstone Kind = 3 // ledgers deleted; Data is the caller's
	KindLedger    Kind = 4 // checkpoint of a ledger record; Data is the caller's
	KindEnd       Kind = 5 // nothing follows in this segment; written by the log alone
	kindCommit    Kind = 6 // closes a group; never seen outside
)

func (k Kind) String() string {
	switch k {
	case KindEntry:
		return "entry"
	case KindFence:
		return "fence"
	case KindTombstone:
		return "tombstone"
	case KindLedger:
		return "ledger"
	case KindEnd:
		return "end"
	case kindCommit:
		return "commit"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Record is what the log stores.
//
// For KindEntry, Envelope and Body count when appending (Body must match the
// envelope's BodyBytes and BodyCRC: the caller has checked it); Ledger and Entry
// are filled in when reading. Replay gives entries without Body.
// For the other kinds Ledger (0 if it concerns none) and Data count.
type Record struct {
	Kind     Kind
	Ledger   ledger.ID
	Entry    ledger.EntryID
	Envelope ledger.Envelope
	Body     []byte
	Data     []byte
}

// payloadBytes is the size of what follows the frame header.
func (r *Record) payloadBytes() int {
	if r.Kind == KindEntry {
		return ledger.EnvelopeBytes + len(r.Body)
	}
	return len(r.Data)
}

// check reports a record that cannot be appended.
func (r *Record) check() error {
	switch r.Kind {
	case KindEntry:
		e := &r.Envelope
		if len(r.Body) > ledger.MaxBodyBytes {
			return fmt.Errorf("hotlog: entry %d of ledger %d has %d bytes: %w", e.Entry, e.Ledger, len(r.Body), ledger.ErrTooLarge)
		}
		if int(e.BodyBytes) != len(r.Body) {
			return fmt.Errorf("hotlog: entry %d of ledger %d: body of %d bytes, envelope says %d: %w",
				e.Entry, e.Ledger, len(r.Body), e.BodyBytes, ledger.ErrCorrupt)
		}
		if err := e.Validate(); err != nil {
			return fmt.Errorf("hotlog: append: %w", err)
		}
	case KindFence, KindTombstone, KindLedger:
		if len(r.Data) > ledger.MaxBodyBytes {
			return fmt.Errorf("hotlog: %v record of %d bytes: %w", r.Kind, len(r.Data), ledger.ErrTooLarge)
		}
		if r.Ledger < 0 {
			return fmt.Errorf("hotlog: %v record of ledger %d", r.Kind, r.Ledger)
		}
	default:
		return fmt.Errorf("hotlog: a %v record cannot be appended", r.Kind)
	}
	return nil
}

// Place of a record: a frame of Length bytes at Offset in a segment. It stays
// valid until the segment is recycled; segment numbers are never used twice.
type Place struct {
	Segment uint32
	Offset  uint32
	Length  uint32
}

// Damage is a range of a segment that was written and synced and can no longer
// be read. Ledger is the only one it can concern; 0 when that cannot be told: any
// record of any ledger may have stood there. An entry whose identity is still
// readable is no Damage: it stays in the index and reads as ledger.ErrCorrupt.
type Damage struct {
	Segment uint32
	Offset  uint32
	Length  uint32
	Ledger  ledger.ID
}
