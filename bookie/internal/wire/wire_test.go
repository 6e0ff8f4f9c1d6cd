package wire

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

// TestEveryStatusTravels shows that each error of the table comes back as itself
// with the words of the bookie, and that no status of the protocol is forgotten.
func TestEveryStatusTravels(t *testing.T) {
	seen := map[bookiev1.Status]bool{bookiev1.Status_STATUS_OK: true}
	for _, row := range statuses {
		sent := fmt.Errorf("entry 3 of ledger 4: %w", row.err)
		status, ok := StatusOf(sent)
		if !ok || status != row.status {
			t.Errorf("%v: status %v, want %v", row.err, status, row.status)
		}
		got := ErrorOf(status, sent.Error())
		if !errors.Is(got, row.err) {
			t.Errorf("%v came back as %v", row.err, got)
		}
		if got.Error() != sent.Error() {
			t.Errorf("words %q came back as %q", sent, got)
		}
		seen[status] = true
	}
	for n, name := range bookiev1.Status_name {
		if !seen[bookiev1.Status(n)] {
			t.Errorf("%s has no error", name)
		}
	}
	if _, ok := StatusOf(errors.New("disk on fire")); ok {
		t.Error("an unknown error has a status")
	}
	if err := ErrorOf(99, "from the future"); err == nil || errors.Is(err, ledger.ErrUnknown) {
		t.Errorf("status of a newer bookie: %v", err)
	}
}

func sample(ledgerID ledger.ID, entry ledger.EntryID, body string) ledger.Envelope {
	return ledger.Envelope{Ledger: ledgerID, Entry: entry, LAC: entry - 1, TotalBytes: 1000,
		BodyBytes: uint32(len(body)), BodyCRC: crc32.Checksum([]byte(body), ledger.Castagnoli)}
}

// TestEntriesTravelBackToBack shows that entries of all sizes are cut off a
// payload as they were appended, whole and with cut bodies.
func TestEntriesTravelBackToBack(t *testing.T) {
	bodies := []string{"one", "", "a longer third"}
	for _, headBytes := range []int{0, 2} {
		var pieces [][]byte
		for i, body := range bodies {
			e := sample(7, ledger.EntryID(i), body)
			if headBytes > 0 {
				body = body[:min(headBytes, len(body))]
			}
			pieces = Append(pieces, &e, []byte(body))
		}
		rest := bytes.Join(pieces, nil)
		for i, body := range bodies {
			var e ledger.Entry
			var err error
			if e, rest, err = Cut(rest, headBytes); err != nil {
				t.Fatal(err)
			}
			if e.Envelope != sample(7, ledger.EntryID(i), body) {
				t.Errorf("entry %d: envelope %+v", i, e.Envelope)
			}
			if headBytes == 0 && string(e.Body) != body || headBytes > 0 && string(e.Body) != body[:min(headBytes, len(body))] {
				t.Errorf("entry %d: body %q", i, e.Body)
			}
		}
		if len(rest) != 0 {
			t.Errorf("%d bytes left", len(rest))
		}
	}
}

// FuzzCut shows that no payload makes Cut panic, and that what it gives is part
// of the payload.
func FuzzCut(f *testing.F) {
	e := sample(7, 3, "body")
	f.Add(bytes.Join(Append(nil, &e, []byte("body")), nil), 0)
	f.Add(bytes.Join(Append(nil, &e, []byte("bo")), nil), 2)
	f.Add(bytes.Join(Append(nil, &e, []byte("bo")), nil), 0)
	f.Add([]byte("short"), 0)
	f.Fuzz(func(t *testing.T, payload []byte, headBytes int) {
		e, rest, err := Cut(payload, headBytes)
		if err != nil {
			if !errors.Is(err, ledger.ErrCorrupt) {
				t.Fatalf("error %v is not ErrCorrupt", err)
			}
			return
		}
		if ledger.EnvelopeBytes+len(e.Body)+len(rest) != len(payload) {
			t.Fatalf("cut %d and left %d of %d bytes", len(e.Body), len(rest), len(payload))
		}
	})
}
