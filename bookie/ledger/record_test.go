package ledger

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func member(name string) Member { return Member{Bookie: name, Incarnation: "i-" + name} }

func sample() Metadata {
	return Metadata{
		ID: 7, Quorum: Quorum{Write: 3, Ack: 2}, State: Open, Term: 1, LastEntry: NoEntry,
		Fragments: []Fragment{
			{First: 0, Ensemble: []Member{member("a"), member("b"), member("c")}},
			{First: 12, Ensemble: []Member{member("a"), {}, member("c")}},
		},
		Class: Control, Parent: Parent{Bundle: "t/n/0-1", Role: "log"}, Session: "s", Nonce: 99,
		Verify: true, Created: time.UnixMilli(1_700_000_000_123).UTC(),
	}
}

// Records of every state come back from their encoding as they were.
func TestRecordRoundTrip(t *testing.T) {
	open := sample()
	recovering := sample()
	recovering.State, recovering.Term = InRecovery, 4
	closed := sample()
	closed.State, closed.LastEntry, closed.Length = Closed, 40, 4000
	empty := sample()
	empty.State = Closed
	deleted := sample()
	deleted.State, deleted.Fragments = Deleted, nil
	deleted.Owed, deleted.DeletedAt = []Member{member("a")}, time.UnixMilli(1_700_000_001_000).UTC()
	for _, m := range []Metadata{open, recovering, closed, empty, deleted} {
		b, err := m.Encode()
		if err != nil {
			t.Fatalf("%v: %v", m.State, err)
		}
		got, err := Decode(m.ID, b)
		if err != nil {
			t.Fatalf("%v: %v", m.State, err)
		}
		if d := cmp.Diff(m, got); d != "" {
			t.Errorf("%v: %s", m.State, d)
		}
	}
}

// Each fault of a record is named, and neither written nor read.
func TestRecordFaults(t *testing.T) {
	for want, spoil := range map[string]func(*Metadata){
		"not above 0":              func(m *Metadata) { m.Term = 0 },
		"unknown state":            func(m *Metadata) { m.State = 9 },
		"unknown class":            func(m *Metadata) { m.Class = 7 },
		"quorum 3/4":               func(m *Metadata) { m.Quorum.Ack = 4 },
		"0 fragments":              func(m *Metadata) { m.Fragments = nil },
		"starts at entry 3":        func(m *Metadata) { m.Fragments[0].First = 3 },
		"not above the one before": func(m *Metadata) { m.Fragments[1].First = 0 },
		"has 2 slots":              func(m *Metadata) { m.Fragments[0].Ensemble = m.Fragments[0].Ensemble[:2] },
		"fewer than the ack":       func(m *Metadata) { m.Fragments[1].Ensemble[0] = Member{} },
		"twice":                    func(m *Metadata) { m.Fragments[0].Ensemble[1] = Member{Bookie: "a", Incarnation: "other"} },
		"with incarnation \"\"":    func(m *Metadata) { m.Fragments[0].Ensemble[1].Incarnation = "" },
		"vacant with":              func(m *Metadata) { m.Fragments[0].Ensemble[1].Bookie = "" },
		"yet it has a last entry":  func(m *Metadata) { m.LastEntry = 3 },
		"closed at entry":          func(m *Metadata) { m.State, m.LastEntry = Closed, -2 },
		"tombstone with fragments": func(m *Metadata) { m.State = Deleted },
		"marked as deleted":        func(m *Metadata) { m.Owed = []Member{member("a")} },
	} {
		m := sample()
		spoil(&m)
		if _, err := m.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want a fault with %q, got %v", want, err)
		}
	}
}

// FuzzDecode shows that no bytes make Decode panic, that it accepts nothing
// Validate refuses, and that what it accepts encodes and decodes to itself.
func FuzzDecode(f *testing.F) {
	for _, spoil := range []func(*Metadata){
		func(*Metadata) {},
		func(m *Metadata) { m.State, m.LastEntry, m.Length = Closed, 40, 4000 },
		func(m *Metadata) { m.State, m.Fragments, m.Owed = Deleted, nil, []Member{member("z")} },
	} {
		m := sample()
		spoil(&m)
		b, err := m.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(7, b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatalf("accepted, yet not encodable: %v", err)
		}
		m2, err := Decode(7, again)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, m2); d != "" {
			t.Fatal(d)
		}
	})
}

// Legal and illegal changes of a record, each with its reason.
func TestTransitions(t *testing.T) {
	step := func(from State, change func(*Metadata)) error {
		old := sample()
		old.State = from
		switch from {
		case InRecovery:
			old.Term = 2
		case Closed:
			old.LastEntry, old.Length = 20, 200
		case Deleted:
			old.Fragments, old.Owed = nil, []Member{member("a")}
		}
		next := old.Clone()
		change(&next)
		return CheckTransition(&old, &next)
	}
	third := Fragment{First: 15, Ensemble: []Member{member("a"), member("b"), {}}}
	for _, c := range []struct {
		name   string
		from   State
		change func(*Metadata)
		legal  bool
	}{
		{"append a fragment", Open, func(m *Metadata) { m.Fragments = append(m.Fragments, third) }, true},
		{"replace the last fragment", Open, func(m *Metadata) { m.Last().Ensemble[1] = member("d") }, true},
		{"two fragments at once", Open, func(m *Metadata) {
			m.Fragments = append(m.Fragments, third, Fragment{First: 16, Ensemble: third.Ensemble})
		}, false},
		{"move a key", Open, func(m *Metadata) { m.Last().First = 13 }, false},
		{"drop a fragment", Open, func(m *Metadata) { m.Fragments = m.Fragments[:1] }, false},
		{"change the quorum", Open, func(m *Metadata) { m.Quorum.Ack = 1 }, false},
		{"change the nonce", Open, func(m *Metadata) { m.Nonce++ }, false},
		{"writer raises the term", Open, func(m *Metadata) { m.Term++ }, false},
		{"start recovery", Open, func(m *Metadata) { m.State, m.Term = InRecovery, 2 }, true},
		{"start recovery at the writer's term", Open, func(m *Metadata) { m.State = InRecovery }, false},
		{"close", Open, func(m *Metadata) { m.State, m.LastEntry, m.Length = Closed, 20, 1 }, true},
		{"close and add a fragment", Open, func(m *Metadata) {
			m.State, m.LastEntry, m.Length = Closed, 20, 1
			m.Fragments = append(m.Fragments, third)
		}, false},
		{"next recoverer", InRecovery, func(m *Metadata) { m.Term = 3 }, true},
		{"skip a term", InRecovery, func(m *Metadata) { m.Term = 4 }, false},
		{"lower a term", InRecovery, func(m *Metadata) { m.Term = 1 }, false},
		{"back to open", InRecovery, func(m *Metadata) { m.State = Open }, false},
		{"recovery adds a fragment before it closes", InRecovery, func(m *Metadata) { m.Fragments = append(m.Fragments, third) }, false},
		{"close recovery with a new fragment", InRecovery, func(m *Metadata) {
			m.State, m.LastEntry, m.Length = Closed, 20, 1
			m.Fragments = append(m.Fragments, third)
		}, true},
		{"clear verify", Closed, func(m *Metadata) { m.Verify = false }, true},
		{"swap a member", Closed, func(m *Metadata) { m.Fragments[0].Ensemble[0] = member("z") }, true},
		{"change the last entry", Closed, func(m *Metadata) { m.LastEntry++ }, false},
		{"change the length", Closed, func(m *Metadata) { m.Length++ }, false},
		{"reopen", Closed, func(m *Metadata) { m.State, m.LastEntry, m.Length = Open, NoEntry, 0 }, false},
		{"delete", Closed, func(m *Metadata) {
			m.Owed, m.State, m.Fragments, m.LastEntry, m.Length = m.Members(), Deleted, nil, NoEntry, 0
		}, true},
		{"confirm a deletion", Deleted, func(m *Metadata) { m.Owed = nil }, true},
		{"owe more", Deleted, func(m *Metadata) { m.Owed = append(m.Owed, member("b")) }, false},
	} {
		if err := step(c.from, c.change); (err == nil) != c.legal {
			t.Errorf("%s: legal %v, got %v", c.name, c.legal, err)
		}
	}
}

// TestRuleE8_OldFragmentsKeepTheirBounds shows that, whoever writes a record and in
// whatever state it is, where its fragments start neither moves nor goes away, and that
// only the writer adds one, and recovery as it closes.
func TestRuleE8_OldFragmentsKeepTheirBounds(t *testing.T) {
	for _, from := range []Metadata{
		{State: Open, Term: 1, LastEntry: NoEntry}, {State: InRecovery, Term: 2, LastEntry: NoEntry},
		{State: Closed, Term: 2, LastEntry: 20, Length: 200},
	} {
		for _, to := range []State{Open, InRecovery, Closed} {
			for _, added := range []int{-1, 0, 1, 2} {
				for _, moved := range []int{-1, 0, 1} { // the fragment whose start moves; -1: none
					old := sample()
					old.State, old.Term, old.LastEntry, old.Length = from.State, from.Term, from.LastEntry, from.Length
					next := old.Clone()
					if next.State = to; to == InRecovery && from.State == Open {
						next.Term++
					}
					if to == Closed && from.State != Closed {
						next.LastEntry, next.Length = 20, 200
					}
					if moved >= 0 {
						next.Fragments[moved].First++
					}
					for n := range added {
						next.Fragments = append(next.Fragments, Fragment{First: EntryID(15 + n), Ensemble: next.Last().Ensemble})
					}
					if added < 0 {
						next.Fragments = next.Fragments[:len(next.Fragments)-1]
					}
					legal := to >= from.State && added >= 0 && moved < 0
					switch {
					case from.State == Open && to == Open:
						legal = legal && added <= 1
					case from.State == InRecovery && to == Closed:
					default:
						legal = legal && added == 0
					}
					if err := CheckTransition(&old, &next); (err == nil) != legal {
						t.Errorf("%v to %v, %d fragments added, start of %d moved: legal %v, got %v", from.State, to, added, moved, legal, err)
					}
				}
			}
		}
	}
}

// TestRuleM12_VacantSlotsCover shows by enumeration that whoever satisfies
// Covered has heard one bookie of every possible ack quorum, vacant slots or
// not, and that with one bookie fewer some ack quorum escapes.
func TestRuleM12_VacantSlotsCover(t *testing.T) {
	for write := 1; write <= 5; write++ {
		for ack := 1; ack <= write; ack++ {
			q := Quorum{Write: write, Ack: ack}
			for vacant := 0; write-vacant >= ack; vacant++ {
				live := write - vacant
				for heard := range 1 << live {
					meetsAll := true
					for quorum := range 1 << live {
						if popcount(quorum) == ack && quorum&heard == 0 {
							meetsAll = false
						}
					}
					if got := q.Covered(popcount(heard), vacant); got != meetsAll {
						t.Fatalf("%d/%d with %d vacant, heard %b: Covered %v, meets every ack quorum %v", write, ack, vacant, heard, got, meetsAll)
					}
				}
			}
		}
	}
}

func popcount(n int) int {
	c := 0
	for ; n != 0; n &= n - 1 {
		c++
	}
	return c
}

// FragmentOf and End agree: each entry lies in exactly the fragment found.
func TestFragmentOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m Metadata
		first := EntryID(0)
		for range rapid.IntRange(1, 6).Draw(t, "fragments") {
			m.Fragments = append(m.Fragments, Fragment{First: first})
			first += EntryID(rapid.IntRange(1, 5).Draw(t, "entries"))
		}
		e := EntryID(rapid.IntRange(0, int(first)+3).Draw(t, "entry"))
		i := m.FragmentOf(e)
		if m.Fragments[i].First > e || e >= m.End(i, first+10) {
			t.Fatalf("entry %d is not in fragment %d of %v", e, i, m.Fragments)
		}
	})
}
