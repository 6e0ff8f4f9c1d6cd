package bundlelog

import (
	"encoding/binary"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Record is one change of a topic's small state.
//
// Records given to one Append are one atomic group: after a crash all of them
// are replayed or none.
type Record struct {
	Topic uint64 // id
	Hash  uint32 // of the topic's name: which bundle it falls in after a split
	Kind  uint8  // for State to tell apart; the log does not look at it
	Data  []byte // not altered by anyone once appended
}

// A group is one entry of the log: a run of items that were appended while the
// entry before it was on its way. Integers are little-endian.
//
//	group   | version 1 | flags 1 | zero 2 | items 4 | item … |
//	item    | type 1 | tag 1 | zero 2 | dataBytes 4 | topic 8 | hash 4 | data |
//
//	type      tag              data
//	record    Record.Kind      Record.Data
//	begin     0                none
//	part      1: more follow   a topic's snapshot, or a piece of it
//	end       0                snapshotBytes 8: of all parts of the pass
//
// flags tell from the head alone whether a begin (1) or an end (2) is in the
// group. begin, the parts that follow and end make a snapshot pass; records stand
// between them. A new begin gives up a pass that has no end. A snapshot of several
// parts states its topic as of the place of the first.
//
// A group is atomic because an entry is: its checksum is the envelope's. Broken
// bytes in it are ErrCorrupt, never skipped; dataBytes is checked against what is
// there before it is used.
const (
	formatVersion = 1

	groupHeaderBytes = 8
	itemHeaderBytes  = 20

	flagBegin = 1
	flagEnd   = 2

	tagMore = 1
)

type itemType uint8

const (
	itemRecord itemType = 1
	itemBegin  itemType = 2
	itemPart   itemType = 3
	itemEnd    itemType = 4
)

// item is one item of a group. Topic, hash and data of begin and end are zero,
// save for the end's data.
type item struct {
	kind  itemType
	tag   uint8
	topic uint64
	hash  uint32
	data  []byte
}

func (r Record) item() item {
	return item{kind: itemRecord, tag: r.Kind, topic: r.Topic, hash: r.Hash, data: r.Data}
}

func (it item) record() Record {
	return Record{Topic: it.topic, Hash: it.hash, Kind: it.tag, Data: it.data}
}

func (it item) bytes() int { return itemHeaderBytes + len(it.data) }

func (it item) appendTo(dst []byte) []byte {
	dst = append(dst, byte(it.kind), it.tag, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(it.data)))
	dst = binary.LittleEndian.AppendUint64(dst, it.topic)
	dst = binary.LittleEndian.AppendUint32(dst, it.hash)
	return append(dst, it.data...)
}

// putGroupHeader writes the head of a group to b.
func putGroupHeader(b []byte, flags byte, items int) {
	b[0], b[1], b[2], b[3] = formatVersion, flags, 0, 0
	binary.LittleEndian.PutUint32(b[4:], uint32(items))
}

// parseGroupHeader reads the head of a group, which may be cut off after it.
func parseGroupHeader(b []byte) (flags byte, items uint32, err error) {
	switch {
	case len(b) < groupHeaderBytes:
		return 0, 0, fmt.Errorf("group of %d bytes: %w", len(b), ledger.ErrCorrupt)
	case b[0] != formatVersion:
		return 0, 0, fmt.Errorf("group of version %d, this build reads %d: %w", b[0], formatVersion, ErrVersion)
	case b[1] > flagBegin|flagEnd || b[2]|b[3] != 0:
		return 0, 0, fmt.Errorf("group with flags % x: %w", b[1:4], ledger.ErrCorrupt)
	}
	return b[1], binary.LittleEndian.Uint32(b[4:]), nil
}

// parseGroup reads a group and checks that its head tells the truth. Data of the
// items shares b's memory.
func parseGroup(b []byte) ([]item, error) {
	flags, n, err := parseGroupHeader(b)
	if err != nil {
		return nil, err
	}
	items, err := parseItems(b[groupHeaderBytes:])
	if err != nil {
		return nil, err
	}
	var seen byte
	for _, it := range items {
		switch it.kind {
		case itemBegin:
			seen |= flagBegin
		case itemEnd:
			seen |= flagEnd
		}
	}
	if uint64(len(items)) != uint64(n) || seen != flags {
		return nil, fmt.Errorf("group of %d items with flags %d says %d and %d: %w", len(items), seen, n, flags, ledger.ErrCorrupt)
	}
	return items, nil
}

func parseItems(b []byte) ([]item, error) {
	var out []item
	for len(b) > 0 {
		it, rest, err := cutItem(b)
		if err != nil {
			return nil, err
		}
		out, b = append(out, it), rest
	}
	return out, nil
}

// cutItem takes an item off the front of b.
func cutItem(b []byte) (it item, rest []byte, err error) {
	if len(b) < itemHeaderBytes {
		return item{}, nil, fmt.Errorf("item cut off after %d bytes: %w", len(b), ledger.ErrCorrupt)
	}
	n := uint64(binary.LittleEndian.Uint32(b[4:]))
	if n > uint64(len(b)-itemHeaderBytes) || b[2]|b[3] != 0 {
		return item{}, nil, fmt.Errorf("item of %d bytes in %d: %w", n, len(b)-itemHeaderBytes, ledger.ErrCorrupt)
	}
	end := itemHeaderBytes + int(n)
	it = item{
		kind:  itemType(b[0]),
		tag:   b[1],
		topic: binary.LittleEndian.Uint64(b[8:]),
		hash:  binary.LittleEndian.Uint32(b[16:]),
		data:  b[itemHeaderBytes:end:end],
	}
	ok := false
	switch it.kind {
	case itemRecord:
		ok = true
	case itemPart:
		ok = it.tag <= tagMore
	case itemBegin:
		ok = it.tag == 0 && it.topic == 0 && it.hash == 0 && n == 0
	case itemEnd:
		ok = it.tag == 0 && it.topic == 0 && it.hash == 0 && n == 8
	}
	if !ok {
		return item{}, nil, fmt.Errorf("item of type %d, tag %d, %d bytes: %w", it.kind, it.tag, n, ledger.ErrCorrupt)
	}
	return it, b[end:], nil
}

// Parked is a topic's state as encoded bytes: a snapshot made by the topic
// itself, and the records appended after it, oldest first. So the state of a
// topic that nobody opened goes from one pass to the next without being
// understood.
//
//	| version 1 | zero 3 | baseBytes 4 | base | item … |
//
// The items are records.
type Parked struct {
	Base    []byte // nil: the topic has made none yet
	Records []Record
}

const parkedHeaderBytes = 8

// Bytes is how much Encode would give.
func (p *Parked) Bytes() int {
	n := parkedHeaderBytes + len(p.Base)
	for _, r := range p.Records {
		n += r.item().bytes()
	}
	return n
}

// Encode gives the bytes that DecodeParked reads.
func (p *Parked) Encode() []byte {
	b := append(make([]byte, 0, p.Bytes()), formatVersion, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Base)))
	b = append(b, p.Base...)
	for _, r := range p.Records {
		b = r.item().appendTo(b)
	}
	return b
}

// DecodeParked reads what Encode gave; the result shares its memory.
func DecodeParked(b []byte) (Parked, error) {
	if len(b) < parkedHeaderBytes {
		return Parked{}, fmt.Errorf("snapshot of %d bytes: %w", len(b), ledger.ErrCorrupt)
	}
	if b[0] != formatVersion {
		return Parked{}, fmt.Errorf("snapshot of version %d, this build reads %d: %w", b[0], formatVersion, ErrVersion)
	}
	n := uint64(binary.LittleEndian.Uint32(b[4:]))
	if n > uint64(len(b)-parkedHeaderBytes) || b[1]|b[2]|b[3] != 0 {
		return Parked{}, fmt.Errorf("snapshot with a base of %d bytes in %d: %w", n, len(b), ledger.ErrCorrupt)
	}
	end := parkedHeaderBytes + int(n)
	items, err := parseItems(b[end:])
	if err != nil {
		return Parked{}, err
	}
	var p Parked
	if n > 0 {
		p.Base = b[parkedHeaderBytes:end:end]
	}
	for _, it := range items {
		if it.kind != itemRecord {
			return Parked{}, fmt.Errorf("snapshot with an item of type %d: %w", it.kind, ledger.ErrCorrupt)
		}
		p.Records = append(p.Records, it.record())
	}
	return p, nil
}
