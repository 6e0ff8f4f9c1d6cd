package cursor

import (
	"encoding/hex"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// TestGoldenCursor shows that cursors and their changes are written as version 1 is,
// and that what was written so is read as it was meant.
func TestGoldenCursor(t *testing.T) {
	const wantDelta = "0101000703010700143a3000000100000000000100100000000500060001070a010500000000000000"
	const wantWhole = "0102000703010700143a3000000100000000000100100000000500060001070a010500000000000000"
	chain := fakeChain{{7, 20}}
	at := func(e int64) position.Position { return position.Position{Ledger: 7, Entry: ledger.EntryID(e)} }
	c := New(position.Start)
	c.AckCumulative(chain, at(2))
	c.Ack(chain, at(5))
	c.Ack(chain, at(6))
	c.AckPart(chain, at(9), Bits{0b101})
	if got := hex.EncodeToString(c.TakeDelta(nil)); got != wantDelta {
		t.Errorf("delta %s, want %s", got, wantDelta)
	}
	if got := hex.EncodeToString(c.AppendWhole(nil)); got != wantWhole {
		t.Errorf("whole %s, want %s", got, wantWhole)
	}
	for _, written := range []string{wantDelta, wantWhole} {
		b, err := hex.DecodeString(written)
		if err != nil {
			t.Fatal(err)
		}
		r := New(position.Start)
		if err := r.Apply(b); err != nil {
			t.Fatal(err)
		}
		if r.MarkDelete() != at(2) || !r.Acked(at(5)) || !r.Acked(at(6)) || r.Acked(at(4)) || r.Holes() != 2 || !r.Remaining(at(9)).equal(Bits{0b101}) {
			t.Errorf("%s is read as a cursor at %v with %d holes, %b left of %v", written, r.MarkDelete(), r.Holes(), r.Remaining(at(9)), at(9))
		}
	}
}
