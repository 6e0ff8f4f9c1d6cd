package ledger

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Envelope heads every stored entry. Little-endian:
//
//	| version 1 | class 1 | zero 2 | bodyBytes 4 | ledger 8 | entry 8 |
//	| lac 8 | totalBytes 8 | bodyCRC 4 | envelopeCRC 4 |
//
// bodyCRC is CRC-32C of the body, envelopeCRC of the 44 bytes before it. The
// body never changes once the entry has its id; recovery and repair may write
// another envelope around the same body (a later LAC).
type Envelope struct {
	Class      Class
	Ledger     ID
	Entry      EntryID
	LAC        EntryID // the writer's, when it sent this copy
	TotalBytes int64   // bodies of this and all entries before it
	BodyBytes  uint32
	BodyCRC    uint32
}

const (
	// EnvelopeBytes is the size of an encoded Envelope.
	EnvelopeBytes = 48
	// MaxBodyBytes bounds a body: the largest message (5 MiB by default, up to 64)
	// with its headers.
	MaxBodyBytes = 64<<20 + 128<<10
	// LeastBodyBytes is what every bookie takes that was left its default segments:
	// what bounds itself by this needs to ask nobody.
	LeastBodyBytes = 8<<20 - 64<<10

	envelopeVersion = 1
)

// Castagnoli is the CRC-32C table, the only checksum used.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode writes e to the first EnvelopeBytes of dst.
func (e *Envelope) Encode(dst []byte) {
	_ = dst[EnvelopeBytes-1]
	dst[0], dst[1], dst[2], dst[3] = envelopeVersion, byte(e.Class), 0, 0
	binary.LittleEndian.PutUint32(dst[4:], e.BodyBytes)
	binary.LittleEndian.PutUint64(dst[8:], uint64(e.Ledger))
	binary.LittleEndian.PutUint64(dst[16:], uint64(e.Entry))
	binary.LittleEndian.PutUint64(dst[24:], uint64(e.LAC))
	binary.LittleEndian.PutUint64(dst[32:], uint64(e.TotalBytes))
	binary.LittleEndian.PutUint32(dst[40:], e.BodyCRC)
	binary.LittleEndian.PutUint32(dst[44:], crc32.Checksum(dst[:44], Castagnoli))
}

// DecodeEnvelope reads the envelope at the start of b and checks its checksum
// and that every field is in range. The body is not looked at.
func DecodeEnvelope(b []byte) (Envelope, error) {
	if len(b) < EnvelopeBytes {
		return Envelope{}, fmt.Errorf("envelope of %d bytes, want %d: %w", len(b), EnvelopeBytes, ErrCorrupt)
	}
	if got, want := crc32.Checksum(b[:44], Castagnoli), binary.LittleEndian.Uint32(b[44:]); got != want {
		return Envelope{}, fmt.Errorf("envelope checksum %08x, want %08x: %w", got, want, ErrCorrupt)
	}
	if b[0] != envelopeVersion {
		return Envelope{}, fmt.Errorf("envelope version %d, this build reads %d: %w", b[0], envelopeVersion, ErrCorrupt)
	}
	e := Envelope{
		Class:      Class(b[1]),
		BodyBytes:  binary.LittleEndian.Uint32(b[4:]),
		Ledger:     ID(binary.LittleEndian.Uint64(b[8:])),
		Entry:      EntryID(binary.LittleEndian.Uint64(b[16:])),
		LAC:        EntryID(binary.LittleEndian.Uint64(b[24:])),
		TotalBytes: int64(binary.LittleEndian.Uint64(b[32:])),
		BodyCRC:    binary.LittleEndian.Uint32(b[40:]),
	}
	if err := e.Validate(); err != nil {
		return Envelope{}, err
	}
	return e, nil
}

// Validate reports fields that no stored entry can have (ErrCorrupt). Its
// checksums are not looked at.
func (e *Envelope) Validate() error {
	if e.Ledger < 1 || e.Entry < 0 || e.Entry > MaxEntry || e.LAC < NoEntry || e.LAC >= e.Entry || e.BodyBytes > MaxBodyBytes ||
		e.TotalBytes < int64(e.BodyBytes) || e.Class > Control {
		return fmt.Errorf("envelope of entry %d of ledger %d out of range: %w", e.Entry, e.Ledger, ErrCorrupt)
	}
	return nil
}

// Entry is an entry as stored: its envelope and its body. Body is never
// altered by anyone who holds it.
type Entry struct {
	Envelope Envelope
	Body     []byte
}

// Check verifies the body against the envelope, and that it is entry id of
// ledger l.
func (e *Entry) Check(l ID, id EntryID) error {
	switch {
	case e.Envelope.Ledger != l || e.Envelope.Entry != id:
		return fmt.Errorf("asked for entry %d of ledger %d, got entry %d of ledger %d: %w",
			id, l, e.Envelope.Entry, e.Envelope.Ledger, ErrCorrupt)
	case int(e.Envelope.BodyBytes) != len(e.Body):
		return fmt.Errorf("entry %d of ledger %d: body of %d bytes, want %d: %w",
			id, l, len(e.Body), e.Envelope.BodyBytes, ErrCorrupt)
	case crc32.Checksum(e.Body, Castagnoli) != e.Envelope.BodyCRC:
		return fmt.Errorf("entry %d of ledger %d: body checksum does not match: %w", id, l, ErrCorrupt)
	}
	return nil
}
