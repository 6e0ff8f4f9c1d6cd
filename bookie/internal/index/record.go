package index

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Record is what a bookie knows of a ledger beside its entries. The index keeps
// it and does not look into it, save that deleting the ledger removes it.
type Record struct {
	Ledger    ledger.ID
	Term      int64          // highest fence term; 0: never fenced
	LastEntry ledger.EntryID // highest entry ever stored here; NoEntry: none
	LAC       ledger.EntryID // highest in any envelope
	Class     ledger.Class
	Lifetime  Lifetime
	Limbo     bool  // absences are answered unknown
	Created   int64 // when the ledger was first seen here, in ms since 1970
}

// Record as stored, little-endian:
//
//	| flags 1 (1: limbo) | class 1 | lifetime 1 | zero 1 | term 8 | last 8 | lac 8 | created 8 |
//
// Later versions append; what is beyond recordBytes is not an error.
const recordBytes = 36

const flagLimbo = 1

// AppendTo appends the stored form of r, without its ledger id. The hot log's
// checkpoint frames use the same bytes.
func (r *Record) AppendTo(dst []byte) []byte {
	var flags byte
	if r.Limbo {
		flags |= flagLimbo
	}
	dst = append(dst, flags, byte(r.Class), byte(r.Lifetime), 0)
	for _, n := range []int64{r.Term, int64(r.LastEntry), int64(r.LAC), r.Created} {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(n))
	}
	return dst
}

// DecodeRecord reads what AppendTo wrote.
func DecodeRecord(id ledger.ID, b []byte) (Record, error) {
	if len(b) < recordBytes {
		return Record{}, fmt.Errorf("record of ledger %d has %d bytes, want %d: %w", id, len(b), recordBytes, ledger.ErrCorrupt)
	}
	n := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[4+8*i:])) }
	r := Record{
		Ledger: id, Limbo: b[0]&flagLimbo != 0, Class: ledger.Class(b[1]), Lifetime: Lifetime(b[2]),
		Term: n(0), LastEntry: ledger.EntryID(n(1)), LAC: ledger.EntryID(n(2)), Created: n(3),
	}
	if id < 1 || r.Term < 0 || r.LastEntry < ledger.NoEntry || r.LAC < ledger.NoEntry || r.Class > ledger.Control {
		return Record{}, fmt.Errorf("record of ledger %d out of range: %w", id, ledger.ErrCorrupt)
	}
	return r, nil
}

// Record returns the record of a ledger; false if there is none.
func (x *Index) Record(id ledger.ID) (Record, bool, error) {
	value, ok, err := x.get(idKey(prefixRecord, int64(id)))
	if err != nil || !ok {
		return Record{}, false, err
	}
	r, err := DecodeRecord(id, value)
	return r, err == nil, x.wrap("record", err)
}

// Records calls fn for every record, by rising ledger id, until it fails.
func (x *Index) Records(fn func(Record) error) error {
	return x.scan(prefixRecord, func(key, value []byte) error {
		if len(key) != 9 {
			return corrupt("record", key, value)
		}
		r, err := DecodeRecord(ledger.ID(binary.BigEndian.Uint64(key[1:])), value)
		if err != nil {
			return err
		}
		return fn(r)
	})
}

// Note returns a small named value that the bookie put here; nil if there is none.
func (x *Index) Note(name string) ([]byte, error) {
	value, _, err := x.get(append([]byte{prefixNote}, name...))
	return value, err
}

// Damaged lists the entries of a ledger known to be damaged: asked for one that
// is nowhere else, the bookie cannot say that it is absent.
func (x *Index) Damaged(id ledger.ID) []ledger.EntryRange {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return append([]ledger.EntryRange(nil), x.damaged[id]...)
}

func (x *Index) get(key []byte) ([]byte, bool, error) {
	value, closer, err := x.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, x.wrap("get", err)
	}
	value = append(make([]byte, 0, len(value)), value...)
	return value, true, x.wrap("get", closer.Close())
}
