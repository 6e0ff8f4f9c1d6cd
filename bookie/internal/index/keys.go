package index

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Keys sort by kind, then big-endian by number. Values are little-endian.
//
//	v                       version 1
//	e | ledger 8 | first 8  span 4 | segment 4 | offset 4 | length 4 | count 4
//	r | ledger 8            record, see Record
//	t | chunk 8             deleted ids of [chunk·2^16, (chunk+1)·2^16), a roaring bitmap
//	d | ledger 8 | first 8  last 8: damaged entries
//	s | segment 4           lifetime 1 | zero 3 | fileBytes 8 | dataBytes 8
//	n | name                a note of the bookie
const (
	prefixDamage     = 'd'
	prefixExtent     = 'e'
	prefixNote       = 'n'
	prefixRecord     = 'r'
	prefixSegment    = 's'
	prefixTombstones = 't'

	formatVersion = 1
)

var keyVersion = []byte{'v'}

// entryKey is prefix, ledger, entry. Both numbers are never negative, so that
// they sort as unsigned ones.
func entryKey(prefix byte, id ledger.ID, e ledger.EntryID) []byte {
	k := make([]byte, 17)
	k[0] = prefix
	binary.BigEndian.PutUint64(k[1:], uint64(id))
	binary.BigEndian.PutUint64(k[9:], uint64(e))
	return k
}

func idKey(prefix byte, id int64) []byte {
	k := make([]byte, 9)
	k[0] = prefix
	binary.BigEndian.PutUint64(k[1:], uint64(id))
	return k
}

func segmentKey(segment uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixSegment}, segment)
}

// keysOf are the bounds of all keys of one ledger under prefix.
func keysOf(prefix byte, id ledger.ID) (start, end []byte) {
	end = idKey(prefix, int64(id))
	if id == math.MaxInt64 {
		return end, []byte{prefix + 1}
	}
	return end, idKey(prefix, int64(id)+1)
}

func corrupt(what string, key, value []byte) error {
	return fmt.Errorf("index: %s %x = %x: %w", what, key, value, ledger.ErrCorrupt)
}

func decodeEntryKey(key []byte) (ledger.ID, ledger.EntryID, bool) {
	if len(key) != 17 {
		return 0, 0, false
	}
	id, e := ledger.ID(binary.BigEndian.Uint64(key[1:])), ledger.EntryID(binary.BigEndian.Uint64(key[9:]))
	return id, e, id > 0 && e >= 0
}

func encodeExtent(e Extent) []byte {
	v := make([]byte, 0, 20)
	for _, n := range []uint32{uint32(e.Last - e.First + 1), e.Segment, e.Offset, e.Length, e.Count} {
		v = binary.LittleEndian.AppendUint32(v, n)
	}
	return v
}

func decodeExtent(key, value []byte) (Extent, error) {
	id, first, ok := decodeEntryKey(key)
	if !ok || len(value) != 20 {
		return Extent{}, corrupt("extent", key, value)
	}
	n := func(i int) uint32 { return binary.LittleEndian.Uint32(value[4*i:]) }
	e := Extent{Ledger: id, First: first, Last: first + ledger.EntryID(n(0)) - 1,
		Segment: n(1), Offset: n(2), Length: n(3), Count: n(4)}
	if e.Last < e.First || n(0) > e.Count || e.Offset > math.MaxUint32-e.Length {
		return Extent{}, corrupt("extent", key, value)
	}
	return e, nil
}

func encodeSegment(s Segment) []byte {
	v := []byte{byte(s.Lifetime), 0, 0, 0}
	v = binary.LittleEndian.AppendUint64(v, uint64(s.FileBytes))
	return binary.LittleEndian.AppendUint64(v, uint64(s.DataBytes))
}

func decodeSegment(key, value []byte) (Segment, error) {
	if len(key) != 5 || len(value) != 20 {
		return Segment{}, corrupt("segment", key, value)
	}
	s := Segment{
		ID:        binary.BigEndian.Uint32(key[1:]),
		Lifetime:  Lifetime(value[0]),
		FileBytes: int64(binary.LittleEndian.Uint64(value[4:])),
		DataBytes: int64(binary.LittleEndian.Uint64(value[12:])),
	}
	if s.DataBytes < 0 || s.FileBytes < s.DataBytes {
		return Segment{}, corrupt("segment", key, value)
	}
	return s, nil
}

func encodeDamage(last ledger.EntryID) []byte {
	return binary.LittleEndian.AppendUint64(nil, uint64(last))
}

func decodeDamage(key, value []byte) (ledger.ID, ledger.EntryRange, error) {
	id, first, ok := decodeEntryKey(key)
	if !ok || len(value) != 8 {
		return 0, ledger.EntryRange{}, corrupt("damage", key, value)
	}
	r := ledger.EntryRange{First: first, Last: ledger.EntryID(binary.LittleEndian.Uint64(value))}
	if r.Last < r.First {
		return 0, ledger.EntryRange{}, corrupt("damage", key, value)
	}
	return id, r, nil
}
