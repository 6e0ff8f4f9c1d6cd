package subscription

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Shows the life of subscriptions in the journal: made, moved, deleted; an id is
// not used again, and what comes after the end is ignored.
func TestRecords(t *testing.T) {
	l := newFakeLedger()
	ps := fill(l, 5)
	a := Saved{ID: 3, Name: "a", Created: time.UnixMilli(1234), Properties: map[string]string{"k": "v", "": ""}, Cursor: Target{}.Cursor()}
	b := Saved{ID: 9, Name: "b", Cursor: Target{Mark: ps[1]}.Cursor()}
	var r Restored
	apply := func(kind Kind, data []byte) {
		t.Helper()
		if err := r.Apply(Record{Kind: kind, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	apply(KindCreate, a.AppendCreate(nil))
	apply(KindCreate, b.AppendCreate(nil))
	a.Cursor.AckCumulative(chain{l}, ps[0])
	a.Cursor.Ack(chain{l}, ps[3])
	delta := appendCursor(nil, a.ID, a.Cursor.TakeDelta(nil))
	apply(KindCursor, delta)
	got := r.ByID[3]
	if got.Name != "a" || !got.Created.Equal(a.Created) || !maps.Equal(got.Properties, a.Properties) {
		t.Errorf("a came back as %+v", got)
	}
	if got.Cursor.MarkDelete() != ps[0] || !got.Cursor.Acked(ps[3]) || r.ByID[9].Cursor.MarkDelete() != ps[1] {
		t.Errorf("cursors at %v and %v", got.Cursor.MarkDelete(), r.ByID[9].Cursor.MarkDelete())
	}
	apply(KindDelete, AppendDelete(nil, 9))
	apply(KindDelete, AppendDelete(nil, 3))
	apply(KindCursor, delta)
	if len(r.ByID) != 0 || r.NextID != 10 {
		t.Errorf("%d subscriptions left, next id %d", len(r.ByID), r.NextID)
	}
}

// Shows that a record of a newer build is named as such, not as damage.
func TestNewerRecord(t *testing.T) {
	s := Saved{ID: 1, Name: "s", Cursor: Target{}.Cursor()}
	data := s.AppendCreate(nil)
	data[0]++
	for _, rec := range []Record{{Kind: KindCreate, Data: data}, {Kind: 99, Data: AppendDelete(nil, 1)}} {
		var r Restored
		if err := r.Apply(rec); !errors.Is(err, ErrVersion) || errors.Is(err, ErrCorrupt) {
			t.Errorf("kind %d: %v", rec.Kind, err)
		}
	}
}

// Shows that no bytes make the decoder panic, and that what it accepts survives
// a second round.
func FuzzRecord(f *testing.F) {
	s := Saved{ID: 3, Name: "a", Created: time.UnixMilli(7), Properties: map[string]string{"k": "v"}, Cursor: Target{Mark: position.Position{Ledger: 3, Entry: 4}}.Cursor()}
	f.Add(uint8(KindCreate), s.AppendCreate(nil))
	f.Add(uint8(KindCursor), appendCursor(nil, 3, s.Cursor.TakeDelta(nil)))
	f.Add(uint8(KindDelete), AppendDelete(nil, 3))
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		r := Restored{ByID: map[uint64]*Saved{3: {ID: 3, Created: time.UnixMilli(1), Cursor: Target{}.Cursor()}}}
		if err := r.Apply(Record{Kind: Kind(kind), Data: data}); err != nil {
			return
		}
		for id, s := range r.ByID {
			var again Restored
			if err := again.Apply(Record{Kind: KindCreate, Data: s.AppendCreate(nil)}); err != nil {
				t.Fatalf("what was read cannot be read again: %v", err)
			}
			if got := again.ByID[id]; got == nil || got.Name != s.Name || !got.Created.Equal(s.Created) || !maps.Equal(got.Properties, s.Properties) {
				t.Fatalf("%+v came back as %+v", s, got)
			}
		}
	})
}
