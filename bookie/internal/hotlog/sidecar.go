package hotlog

import (
	"encoding/binary"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Index file of a segment, little-endian:
//
//	| magic 8 | version 4 | segment 4 | seed 4 | end 4 | records 4 | damages 4 |
//	| stream | (offset 4, length 4, ledger 8) per damage | crc 4 |
//
// crc is CRC-32C of all before it; magic, version and crc keep their form in
// every version. end is where the segment's groups end. The
// stream has the segment's records in the order of the log, without bodies but
// with the data of the other kinds, in varints:
//
//	kind | class<<4, gap/8 since the frame before, ledger (zigzag difference)
//	entry:  entry, entry−lac, totalBytes−bodyBytes, bodyBytes, bodyCRC 4
//	others: dataBytes, data
//
// It lets Open skip reading the segment. It is written under another name, synced
// and renamed: it is whole or absent. Absent or corrupt, the segment is scanned
// and the file made again.
const (
	sidecarVersion     = 1
	sidecarHeaderBytes = 32
	damageBytes        = 16
	maxSidecarBytes    = 1 << 30
)

var sidecarMagic = [8]byte{'M', 'G', 'N', 'H', 'I', 'D', 'X', '\n'}

// summary is what is known of the content of a segment without reading it
// again. A segment being written grows its own by add.
type summary struct {
	end     int64 // offset after the last group
	records int
	stream  []byte
	damages []Damage

	// where the next record's differences count from
	lastEnd    uint32
	lastLedger ledger.ID
}

func newSummary() summary { return summary{end: blockBytes, lastEnd: blockBytes} }

// add notes a record at p; records come in order of offset.
func (s *summary) add(r *Record, p Place) {
	id, class := r.Ledger, ledger.Class(0)
	if r.Kind == KindEntry {
		id, class = r.Envelope.Ledger, r.Envelope.Class
	}
	b := append(s.stream, byte(r.Kind)|byte(class)<<4)
	b = binary.AppendUvarint(b, uint64(p.Offset-s.lastEnd)/8)
	b = binary.AppendVarint(b, int64(id-s.lastLedger))
	if r.Kind == KindEntry {
		e := &r.Envelope
		b = binary.AppendUvarint(b, uint64(e.Entry))
		b = binary.AppendUvarint(b, uint64(e.Entry-e.LAC))
		b = binary.AppendUvarint(b, uint64(e.TotalBytes)-uint64(e.BodyBytes))
		b = binary.AppendUvarint(b, uint64(e.BodyBytes))
		b = binary.LittleEndian.AppendUint32(b, e.BodyCRC)
	} else {
		b = binary.AppendUvarint(b, uint64(len(r.Data)))
		b = append(b, r.Data...)
	}
	s.stream = b
	s.records++
	s.lastEnd, s.lastLedger = p.Offset+uint32(align8(int(p.Length))), id
}

// each calls yield for every record in order; Data is the caller's to keep.
func (s *summary) each(segment uint32, yield func(Record, Place) error) error {
	d := streamDecoder{b: s.stream, segment: segment, end: s.end, lastEnd: blockBytes}
	for range s.records {
		r, p, ok := d.next()
		if !ok {
			return fmt.Errorf("hotlog: index of segment %d: %w", segment, ledger.ErrCorrupt)
		}
		if err := yield(r, p); err != nil {
			return err
		}
	}
	if len(d.b) != 0 {
		return fmt.Errorf("hotlog: index of segment %d: %d bytes too many: %w", segment, len(d.b), ledger.ErrCorrupt)
	}
	return nil
}

// streamDecoder undoes summary.add.
type streamDecoder struct {
	b          []byte
	segment    uint32
	end        int64
	lastEnd    uint32
	lastLedger ledger.ID
	bad        bool
}

func (d *streamDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *streamDecoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *streamDecoder) next() (r Record, p Place, ok bool) {
	head := d.bytes(1)
	if d.bad {
		return r, p, false
	}
	r.Kind = Kind(head[0] & 15)
	gap := d.uvarint()
	diff, n := binary.Varint(d.b)
	if n <= 0 || gap > maxSegmentBytes/8 {
		return r, p, false
	}
	d.b = d.b[n:]
	r.Ledger = d.lastLedger + ledger.ID(diff)
	length := frameHeaderBytes
	switch r.Kind {
	case KindEntry:
		r.Entry = ledger.EntryID(d.uvarint())
		back, before, body := d.uvarint(), d.uvarint(), d.uvarint()
		crc := d.bytes(4)
		if d.bad || body > ledger.MaxBodyBytes {
			return r, p, false
		}
		r.Envelope = ledger.Envelope{
			Class: ledger.Class(head[0] >> 4), Ledger: r.Ledger, Entry: r.Entry, LAC: r.Entry - ledger.EntryID(back),
			TotalBytes: int64(before + body), BodyBytes: uint32(body), BodyCRC: binary.LittleEndian.Uint32(crc),
		}
		if r.Envelope.Validate() != nil {
			return r, p, false
		}
		length = entryHeadBytes + int(body)
	case KindFence, KindTombstone, KindLedger:
		data := d.bytes(d.uvarint())
		if d.bad || head[0]>>4 != 0 || r.Ledger < 0 || len(data) > ledger.MaxBodyBytes {
			return r, p, false
		}
		r.Data = append([]byte(nil), data...)
		length += len(data)
	default:
		return r, p, false
	}
	offset := int64(d.lastEnd) + int64(gap)*8
	if offset+int64(align8(length)) > d.end {
		return r, p, false
	}
	p = Place{Segment: d.segment, Offset: uint32(offset), Length: uint32(length)}
	d.lastEnd, d.lastLedger = uint32(offset)+uint32(align8(length)), r.Ledger
	return r, p, !d.bad
}

// encodeSidecar makes the content of the index file.
func encodeSidecar(segment, seed uint32, s *summary) []byte {
	b := make([]byte, 0, sidecarHeaderBytes+len(s.stream)+damageBytes*len(s.damages)+4)
	b = append(b, sidecarMagic[:]...)
	for _, v := range []uint32{sidecarVersion, segment, seed, uint32(s.end), uint32(s.records), uint32(len(s.damages))} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	b = append(b, s.stream...)
	for _, d := range s.damages {
		b = binary.LittleEndian.AppendUint32(b, d.Offset)
		b = binary.LittleEndian.AppendUint32(b, d.Length)
		b = binary.LittleEndian.AppendUint64(b, uint64(d.Ledger))
	}
	return binary.LittleEndian.AppendUint32(b, checksum(0, b))
}

// decodeSidecar reads an index file of segment. ErrVersion or ErrCorrupt.
func decodeSidecar(b []byte, segment uint32) (seed uint32, s summary, err error) {
	corrupt := fmt.Errorf("hotlog: index of segment %d: %w", segment, ledger.ErrCorrupt)
	if len(b) < sidecarHeaderBytes+4 || [8]byte(b[:8]) != sidecarMagic {
		return 0, s, corrupt
	}
	body := b[:len(b)-4]
	if checksum(0, body) != binary.LittleEndian.Uint32(b[len(body):]) {
		return 0, s, corrupt
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != sidecarVersion {
		return 0, s, versionError("index of segment", segment, v, sidecarVersion)
	}
	seed = binary.LittleEndian.Uint32(b[16:])
	end, records, damages := binary.LittleEndian.Uint32(b[20:]), binary.LittleEndian.Uint32(b[24:]), binary.LittleEndian.Uint32(b[28:])
	rest := body[sidecarHeaderBytes:]
	if binary.LittleEndian.Uint32(b[12:]) != segment || end < blockBytes || end > maxSegmentBytes ||
		uint64(damages)*damageBytes > uint64(len(rest)) || uint64(records) > uint64(len(rest)) {
		return 0, s, corrupt
	}
	split := len(rest) - int(damages)*damageBytes
	s = summary{end: int64(end), records: int(records), stream: rest[:split:split]}
	for d := rest[split:]; len(d) > 0; d = d[damageBytes:] {
		dmg := Damage{Segment: segment, Offset: binary.LittleEndian.Uint32(d), Length: binary.LittleEndian.Uint32(d[4:]),
			Ledger: ledger.ID(binary.LittleEndian.Uint64(d[8:]))}
		if dmg.Ledger < 0 {
			return 0, summary{}, corrupt
		}
		s.damages = append(s.damages, dmg)
	}
	if err := s.each(segment, func(Record, Place) error { return nil }); err != nil {
		return 0, summary{}, err
	}
	return seed, s, nil
}
