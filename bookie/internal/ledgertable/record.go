package ledgertable

import (
	"encoding/binary"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Record is what must survive of a ledger whatever happens to its entries (M27).
//
// Every field only grows, so copies may be merged in any order and as often as
// one likes: Merge is commutative, associative and idempotent, and replaying a
// log twice changes nothing.
type Record struct {
	Term      int64          // highest fence term; 0: never fenced
	LastEntry ledger.EntryID // highest entry held; NoEntry: none
	LAC       ledger.EntryID // highest LAC in any envelope held
	Class     ledger.Class
	// Limbo: something of this ledger may be lost here. What is present is served,
	// an absence is answered Unknown, ordinary adds are refused.
	Limbo bool
}

// NewRecord returns the record of a ledger of which nothing is known.
func NewRecord() Record {
	return Record{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}
}

// Merge adds to r what o knows.
func (r *Record) Merge(o Record) {
	r.Term = max(r.Term, o.Term)
	r.LastEntry = max(r.LastEntry, o.LastEntry)
	r.LAC = max(r.LAC, o.LAC)
	r.Class = max(r.Class, o.Class)
	r.Limbo = r.Limbo || o.Limbo
}

// recordBytes is the size of an encoded record, little-endian:
//
//	| version 1 | class 1 | limbo 1 | zero 5 | term 8 | lastEntry 8 | lac 8 |
//
// It carries no checksum: the frame or block it lies in has one.
const (
	recordBytes   = 32
	recordVersion = 1
)

// AppendTo appends r, encoded, to dst.
func (r Record) AppendTo(dst []byte) []byte {
	var limbo byte
	if r.Limbo {
		limbo = 1
	}
	dst = append(dst, recordVersion, byte(r.Class), limbo, 0, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Term))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.LastEntry))
	return binary.LittleEndian.AppendUint64(dst, uint64(r.LAC))
}

// DecodeRecord reads an encoded record.
func DecodeRecord(b []byte) (Record, error) {
	if len(b) < 1 || b[0] != recordVersion {
		return Record{}, fmt.Errorf("ledger record of %d bytes, want version %d: %w", len(b), recordVersion, ledger.ErrCorrupt)
	}
	if len(b) != recordBytes {
		return Record{}, fmt.Errorf("ledger record of %d bytes, want %d: %w", len(b), recordBytes, ledger.ErrCorrupt)
	}
	r := Record{
		Class:     ledger.Class(b[1]),
		Limbo:     b[2] != 0,
		Term:      int64(binary.LittleEndian.Uint64(b[8:])),
		LastEntry: ledger.EntryID(binary.LittleEndian.Uint64(b[16:])),
		LAC:       ledger.EntryID(binary.LittleEndian.Uint64(b[24:])),
	}
	if r.Class > ledger.Control || r.Term < 0 || r.LastEntry < ledger.NoEntry || r.LAC < ledger.NoEntry {
		return Record{}, fmt.Errorf("ledger record out of range: %w", ledger.ErrCorrupt)
	}
	return r, nil
}
