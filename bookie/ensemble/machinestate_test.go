package ensemble

import (
	"bytes"
	"hash/crc32"
	"reflect"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// TestMachineStateNamesEveryField counts the fields of what Clone and AppendState
// copy and encode. A field that is added must be looked at there, then here: one
// that is forgotten makes two different states look like one.
func TestMachineStateNamesEveryField(t *testing.T) {
	for _, c := range []struct {
		of     any
		fields int
	}{
		{writerCore{}, 22}, {pending{}, 8}, {window{}, 3}, {slot{}, 13}, {shortRun{}, 4}, {shortList{}, 1},
		{recoveryCore{}, 28}, {found{}, 2}, {heard{}, 2}, {ledger.Metadata{}, 15}, {ledger.Envelope{}, 7},
	} {
		if typ := reflect.TypeOf(c.of); typ.NumField() != c.fields {
			t.Errorf("%v has %d fields, machinestate.go was written for %d", typ, typ.NumField(), c.fields)
		}
	}
}

// TestMachineClonesAreApart shows that events given to a clone leave the original as
// it was, for a writer and for a recovery in the middle of their work.
func TestMachineClonesAreApart(t *testing.T) {
	a, b, c := ledger.Member{Bookie: "a", Incarnation: "1"}, ledger.Member{Bookie: "b", Incarnation: "1"}, ledger.Member{Bookie: "c", Incarnation: "1"}
	live := []Candidate{{Member: a}, {Member: b}, {Member: c}}
	md := ledger.Metadata{
		ID: 1, Quorum: ledger.Quorum{Write: 2, Ack: 2}, State: ledger.Open, Term: 1, LastEntry: ledger.NoEntry,
		Fragments: []ledger.Fragment{{Ensemble: []ledger.Member{a, b}}}, Created: time.UnixMilli(1).UTC(),
	}
	body := []byte("body")
	crc := crc32.Checksum(body, ledger.Castagnoli)

	w := NewWriterMachine(md, 1, MachineTiming{AddTimeout: time.Second, RefillAfter: time.Second})
	w.Append(0, body, crc)
	w.Append(0, body, crc)
	sends, _ := w.Take()
	before := w.AppendState(nil, 0)
	x := w.Clone()
	for _, s := range sends[:2] {
		x.Answered(0, s.Slot, s.Gen, s.Add.Envelope.Entry, nil)
	}
	x.Answered(0, 1, sends[1].Gen, 1, ledger.ErrReadOnly)
	if next, ok := x.BeginChange(0, live); ok {
		x.ChangeDecided(0, next, 2, nil)
	}
	x.Append(0, body, crc)
	x.Seal()
	if !bytes.Equal(before, w.AppendState(nil, 0)) {
		t.Error("what a clone of the writer was told changed the writer")
	}
	if bytes.Equal(before, x.AppendState(nil, 0)) {
		t.Error("the clone of the writer encodes as if nothing had happened to it")
	}

	started, err := RecoveryStart(&md)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRecoveryMachine(started, 2, 1<<20)
	r.Take(live)
	r.Fenced(0, ledger.FenceReply{LastEntry: 0, LAC: ledger.NoEntry}, nil)
	r.Take(live)
	before = r.AppendState(nil)
	y := r.Clone()
	y.Read(0, 0, ledger.ReadReply{Entries: []ledger.ReadEntry{{Entry: ledger.Entry{Envelope: sends[0].Add.Envelope, Body: body}}, {Status: ledger.Absent}}}, nil)
	for _, ask := range y.Take(live) {
		y.Added(ask.Slot, ask.Gen, 0, ledger.ErrReadOnly)
	}
	y.Take(live)
	if !bytes.Equal(before, r.AppendState(nil)) {
		t.Error("what a clone of the recovery was told changed the recovery")
	}
	if bytes.Equal(before, y.AppendState(nil)) {
		t.Error("the clone of the recovery encodes as if nothing had happened to it")
	}
}
