package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
)

// FuzzEnvelope shows that whatever stands where an envelope should, with a right
// checksum or a wrong one, is refused as corrupt or written again as it was.
func FuzzEnvelope(f *testing.F) {
	good := make([]byte, EnvelopeBytes)
	(&Envelope{Ledger: 1, Entry: 5, LAC: 4, TotalBytes: 600, BodyBytes: 100, BodyCRC: 7}).Encode(good)
	f.Add(good)
	f.Add(good[:EnvelopeBytes-1])
	f.Add(bytes.Repeat([]byte{0xff}, EnvelopeBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		try := func(b []byte) {
			e, err := DecodeEnvelope(b)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatal(err)
				}
				return
			}
			again := make([]byte, EnvelopeBytes)
			e.Encode(again)
			if got, err := DecodeEnvelope(again); err != nil || got != e {
				t.Fatalf("%+v became %+v, %v", e, got, err)
			}
		}
		try(b)
		if len(b) >= EnvelopeBytes {
			b = bytes.Clone(b)
			b[0] = envelopeVersion
			binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], Castagnoli))
			try(b)
		}
	})
}
