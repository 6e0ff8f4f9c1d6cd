package position

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// naive is the model of a Set.
type naive map[Position]bool

func (m naive) sorted() []Position {
	var out []Position
	for p := range m {
		out = append(out, p)
	}
	slices.SortFunc(out, Position.Compare)
	return out
}

func (s *Set) all() []Position {
	var out []Position
	at := Start
	for {
		first, last, ok := s.RunFrom(at)
		if !ok {
			return out
		}
		for p := first; p.Entry <= last; p.Entry++ {
			if len(out) > 1<<20 {
				panic("more entries than any test puts in")
			}
			out = append(out, p)
		}
		at = Position{first.Ledger, last + 1}
	}
}

// Positions that meet the seams: neighbouring ledgers, both sides of a roaring
// container, both sides of 2^32.
func somewhere(t *rapid.T, label string) Position {
	base := rapid.SampledFrom([]ledger.EntryID{0, 65530, 1<<32 - 5}).Draw(t, label+"Base")
	return Position{
		Ledger: rapid.SampledFrom([]ledger.ID{1, 2, 9}).Draw(t, label+"Ledger"),
		Entry:  base + ledger.EntryID(rapid.IntRange(0, 12).Draw(t, label+"Offset")),
	}
}

// Shows that a Set does what a plain set of positions does, whatever is done to
// it, and that it survives being encoded.
func TestSetAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s, o Set
		model, other := naive{}, naive{}
		steps := rapid.IntRange(1, 60).Draw(t, "steps")
		for range steps {
			p := somewhere(t, "p")
			switch rapid.IntRange(0, 8).Draw(t, "op") {
			case 0, 1:
				if got := s.Add(p); got == model[p] {
					t.Fatalf("Add(%v) = %v", p, got)
				}
				model[p] = true
			case 2:
				if got := s.Remove(p); got != model[p] {
					t.Fatalf("Remove(%v) = %v", p, got)
				}
				delete(model, p)
			case 3:
				n := ledger.EntryID(rapid.IntRange(0, 10).Draw(t, "n"))
				s.AddRange(p.Ledger, p.Entry, p.Entry+n)
				for i := ledger.EntryID(0); i <= n; i++ {
					model[Position{p.Ledger, p.Entry + i}] = true
				}
			case 4:
				s.RemoveThrough(p)
				for q := range model {
					if q.Compare(p) <= 0 {
						delete(model, q)
					}
				}
			case 5:
				o.Add(p)
				other[p] = true
			case 6:
				s.Union(&o)
				for q := range other {
					model[q] = true
				}
			case 7:
				s.Subtract(&o)
				for q := range other {
					delete(model, q)
				}
			case 8:
				both := s.Common(&o)
				want := naive{}
				for q := range other {
					if model[q] {
						want[q] = true
					}
				}
				if !slices.Equal(both.all(), want.sorted()) || both.Len() != int64(len(want)) {
					t.Fatalf("Common = %v, want %v", both.all(), want.sorted())
				}
			}
			checkSet(t, &s, model)
		}
		back, rest, err := CutSet(append(s.Append(nil), 7))
		if err != nil || len(rest) != 1 {
			t.Fatalf("decode: %v, %d bytes left", err, len(rest))
		}
		checkSet(t, &back, model)
		c := back.Clone()
		back.Clear()
		checkSet(t, &c, model)
	})
}

func checkSet(t *rapid.T, s *Set, model naive) {
	want := model.sorted()
	if got := s.all(); !slices.Equal(got, want) {
		t.Fatalf("holds %v, want %v", got, want)
	}
	if got := slices.Collect(s.All()); !slices.Equal(got, want) {
		t.Fatalf("All yields %v, want %v", got, want)
	}
	if s.Len() != int64(len(want)) {
		t.Fatalf("Len = %d, want %d", s.Len(), len(want))
	}
	first, ok := s.Min()
	last, _ := s.Max()
	if ok != (len(want) > 0) || ok && (first != want[0] || last != want[len(want)-1]) {
		t.Fatalf("Min, Max = %v, %v of %v", first, last, want)
	}
	p := somewhere(t, "probe")
	if s.Contains(p) != model[p] {
		t.Fatalf("Contains(%v) = %v", p, s.Contains(p))
	}
}

// Shows that a million holes cost a bit each and no more.
func TestSetIsCompact(t *testing.T) {
	var s Set
	for e := ledger.EntryID(0); e < 2_000_000; e += 2 {
		s.Add(Position{1, e})
	}
	if got := s.Bytes(); got > 300_000 {
		t.Errorf("a million holes take %d bytes", got)
	}
	if got := len(s.Append(nil)); got > 300_000 {
		t.Errorf("a million holes are encoded in %d bytes", got)
	}
}

// Shows that no bytes make the decoder panic, allocate without bound or return a
// set that does not encode to what it was read from.
func FuzzCutSet(f *testing.F) {
	var s Set
	f.Add(s.Append(nil))
	s.AddRange(3, 10, 4000)
	s.Add(Position{3, 1 << 33})
	s.Add(Position{8, 0})
	f.Add(s.Append(nil))
	f.Add([]byte{1, 1, 0, 200, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, rest, err := CutSet(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error %v is not ErrCorrupt", err)
			}
			return
		}
		counted := int64(0)
		first, last, ok := s.RunFrom(Start)
		for ; ok; first, last, ok = s.RunFrom(Position{first.Ledger, last + 1}) {
			counted += int64(last-first.Entry) + 1
		}
		if counted != s.Len() || len(rest) > len(b) {
			t.Fatalf("Len %d, %d entries", s.Len(), counted)
		}
		again, _, err := CutSet(s.Append(nil))
		if err != nil || again.Len() != s.Len() {
			t.Fatalf("does not survive a second round: %v", err)
		}
		if again.Subtract(&s); again.Len() != 0 {
			t.Fatalf("%d entries changed in a second round", again.Len())
		}
	})
}

// Shows that positions survive being encoded and that broken ones are refused.
func TestPositionCodec(t *testing.T) {
	for _, p := range []Position{Start, BeforeLedger(1), {1, 0}, {1 << 62, 1 << 61}} {
		got, rest, err := Cut(append(Append(nil, p), 1))
		if err != nil || got != p || len(rest) != 1 {
			t.Errorf("%v came back as %v, %v", p, got, err)
		}
	}
	for _, b := range [][]byte{nil, {1}, {0, 1}, {0x80}, {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}} {
		if p, _, err := Cut(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Cut(%x) = %v, %v", b, p, err)
		}
	}
}

// FuzzCut shows that a position that is read is one, and is written as it was.
func FuzzCut(f *testing.F) {
	f.Add(Append(nil, Start))
	f.Add(Append(nil, Position{3, ledger.NoEntry}))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, rest, err := Cut(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error %v is not ErrCorrupt", err)
			}
			return
		}
		if !p.IsStart() && (p.Ledger < 1 || p.Entry < ledger.NoEntry) {
			t.Fatalf("accepted %v", p)
		}
		if again, left, err := Cut(Append(nil, p)); err != nil || again != p || len(left) != 0 || len(rest) >= len(b) {
			t.Fatalf("%v came back as %v, %v", p, again, err)
		}
	})
}
