package index

import (
	"encoding/hex"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// TestStoredBytes pins the bytes of version 1: an index written by a released
// build is read by later ones.
func TestStoredBytes(t *testing.T) {
	e := Extent{Ledger: 0x0102, First: 5, Last: 7, Segment: 9, Offset: 0x1000, Length: 0x300, Count: 10}
	r := Record{Ledger: 3, Term: 4, LastEntry: 5, LAC: -1, Class: ledger.Control, Lifetime: 2, Limbo: true, Created: 0x1122334455}
	s := Segment{ID: 258, Lifetime: 3, FileBytes: 1000, DataBytes: 900}
	for _, c := range []struct {
		what string
		got  []byte
		want string
	}{
		{"extent key", entryKey(prefixExtent, e.Ledger, e.First), "6500000000000001020000000000000005"},
		{"extent", encodeExtent(e), "0300000009000000001000000003" + "00000a000000"},
		{"record key", idKey(prefixRecord, 3), "720000000000000003"},
		{"record", r.AppendTo(nil), "01010200" + "0400000000000000" + "0500000000000000" + "ffffffffffffffff" + "5544332211000000"},
		{"segment key", segmentKey(s.ID), "7300000102"},
		{"segment", encodeSegment(s), "03000000" + "e803000000000000" + "8403000000000000"},
		{"damage key", entryKey(prefixDamage, 1, 2), "6400000000000000010000000000000002"},
		{"damage", encodeDamage(9), "0900000000000000"},
		{"tombstones key", idKey(prefixTombstones, 7), "740000000000000007"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if got, err := decodeExtent(entryKey(prefixExtent, e.Ledger, e.First), encodeExtent(e)); err != nil || got != e {
		t.Errorf("extent %+v, %v", got, err)
	}
}
