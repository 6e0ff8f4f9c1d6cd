package producer

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

func at(n uint64) position.Position {
	return position.Position{Ledger: 1, Entry: ledger.EntryID(n)}
}

func chained(n uint64) Batch {
	return Batch{First: n, Last: n, HasPrevious: n > 0, Previous: n - 1}
}

// store takes and stores a batch.
func store(t *testing.T, r *Registry, b Batch, p position.Position) {
	t.Helper()
	if a := r.Admit("p", b); a.Verdict != Accept {
		t.Fatalf("batch %d-%d: verdict %d, want Accept", b.First, b.Last, a.Verdict)
	}
	r.Taken("p", b, nil)
	r.Stored("p", p)
}

// TestRuleM11_RefusedBatchIsNotSkipped tells the story behind the rule: batch 5
// is refused, 6 must not be taken, and the retry of 5 is not a duplicate.
func TestRuleM11_RefusedBatchIsNotSkipped(t *testing.T) {
	r := New(10)
	for n := range uint64(5) {
		store(t, r, chained(n), at(n))
	}
	// 5 is refused elsewhere (a full queue): Taken is not called.
	a := r.Admit("p", chained(6))
	if a.Verdict != OutOfOrder || !a.HasExpected || a.Expected != 4 {
		t.Fatalf("batch 6 without 5: %+v, want OutOfOrder after 4", a)
	}
	store(t, r, chained(5), at(5))
	store(t, r, chained(6), at(6))
}

// TestRuleM11_RetryInFlightWaits shows that a retry of a batch whose outcome is
// open gets the tag of the one taken, and nothing is taken twice.
func TestRuleM11_RetryInFlightWaits(t *testing.T) {
	r := New(10)
	r.Taken("p", chained(0), "zero")
	r.Taken("p", chained(1), "one")
	if a := r.Admit("p", chained(1)); a.Verdict != InFlight || a.Tag != "one" {
		t.Fatalf("got %+v", a)
	}
	r.Stored("p", at(0))
	if a := r.Admit("p", chained(0)); a.Verdict != Duplicate || a.Position != at(0) {
		t.Fatalf("got %+v", a)
	}
}

// TestRuleM11_DuplicatesByAge shows the three answers to old batches: with its
// position, with the position forgotten, and refused where it overlaps in part.
func TestRuleM11_DuplicatesByAge(t *testing.T) {
	r := New(10)
	previous := uint64(0)
	for n := uint64(1); n <= Window+10; n++ {
		b := Batch{First: n * 10, Last: n*10 + 9, HasPrevious: n > 1, Previous: previous}
		store(t, r, b, at(n))
		previous = b.Last
	}
	last := uint64(Window + 10)
	if a := r.Admit("p", Batch{First: last * 10, Last: last*10 + 9}); a.Verdict != Duplicate || !a.Known || a.Position != at(last) {
		t.Errorf("newest again: %+v", a)
	}
	if a := r.Admit("p", Batch{First: 10, Last: 19}); a.Verdict != Duplicate || a.Known {
		t.Errorf("oldest again: %+v, want a duplicate whose position is forgotten", a)
	}
	for _, b := range []Batch{{First: last*10 + 5, Last: last*10 + 14}, {First: last * 10, Last: last*10 + 3}, {First: 15, Last: last*10 + 20}} {
		if a := r.Admit("p", b); a.Verdict != OutOfOrder || a.Expected != last*10+9 {
			t.Errorf("%d-%d, which overlaps in part: %+v", b.First, b.Last, a)
		}
	}
}

// TestNameIsTaken shows that a name has one producer at a time, that a higher
// epoch takes it over, and that it is free again after Close.
func TestNameIsTaken(t *testing.T) {
	r := New(10)
	if _, _, replaced, err := r.Open("p", 3); err != nil || replaced {
		t.Fatal(err, replaced)
	}
	if _, _, _, err := r.Open("p", 3); err != ErrBusy {
		t.Fatalf("same epoch: %v", err)
	}
	if _, _, replaced, err := r.Open("p", 4); err != nil || !replaced {
		t.Fatalf("higher epoch: %v, replaced %v", err, replaced)
	}
	store(t, r, chained(0), at(0))
	r.Close("p", false)
	if last, stored, _, err := r.Open("p", 0); err != nil || !stored || last != 0 {
		t.Fatalf("a new process: %d %v %v", last, stored, err)
	}
	r.Close("p", true)
	if r.Len() != 0 {
		t.Error("a forgotten name is remembered")
	}
}

// TestForgettingIsBoundedAndVisible shows that the limit holds, that it counts
// who was forgotten, and that those may go on where they were.
func TestForgettingIsBoundedAndVisible(t *testing.T) {
	r := New(32)
	for i := range 100 {
		name := fmt.Sprint("p", i)
		if _, _, _, err := r.Open(name, 0); err != nil {
			t.Fatal(err)
		}
		r.Taken(name, chained(0), nil)
		r.Stored(name, at(uint64(i)))
		r.Close(name, false)
	}
	if r.Len() > 32 || r.Dropped() < 68 {
		t.Errorf("%d remembered, %d dropped", r.Len(), r.Dropped())
	}
	if a := r.Admit("p0", chained(1)); a.Verdict != Accept {
		t.Errorf("a forgotten producer goes on: %+v", a)
	}
	if a := New(32).Admit("p0", chained(1)); a.Verdict != OutOfOrder || a.HasExpected {
		t.Errorf("where nobody was forgotten: %+v, want OutOfOrder from the start", a)
	}
}

// TestRuleM22_CheckpointAndReplay shows, for random histories, that a registry
// restored from a checkpoint anywhere and brought up to date by replay answers
// like the one that lived through it.
func TestRuleM22_CheckpointAndReplay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type stored struct {
			name string
			b    Batch
		}
		var topic []stored
		live := New(100)
		next := map[string]uint64{}
		checkpoint, upTo := live.AppendCheckpoint(nil, at(0)), -1
		for range rapid.IntRange(0, 400).Draw(t, "entries") {
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
			first := next[name]
			b := Batch{First: first, Last: first + rapid.Uint64Range(0, 5).Draw(t, "more"), HasPrevious: first > 0, Previous: first - 1}
			if a := live.Admit(name, b); a.Verdict != Accept {
				t.Fatalf("%+v", a)
			}
			live.Taken(name, b, nil)
			live.Stored(name, at(uint64(len(topic))))
			topic = append(topic, stored{name, b})
			next[name] = b.Last + 1
			if rapid.IntRange(0, 50).Draw(t, "checkpoint") == 0 {
				upTo = len(topic) - 1
				checkpoint = live.AppendCheckpoint(nil, at(uint64(upTo)))
			}
		}
		again := New(100)
		if _, err := again.Restore(checkpoint); err != nil {
			t.Fatal(err)
		}
		from := rapid.IntRange(0, upTo+1).Draw(t, "replay from") // replaying too much is harmless
		for i := from; i < len(topic); i++ {
			again.Replay(topic[i].name, 0, topic[i].b, at(uint64(i)))
		}
		for i, s := range topic {
			if w, g := live.Admit(s.name, s.b), again.Admit(s.name, s.b); w != g {
				t.Fatalf("entry %d again: %+v, want %+v", i, g, w)
			}
		}
		for name, n := range next {
			for _, b := range []Batch{{First: n, Last: n, HasPrevious: true, Previous: n - 1}, {First: n + 1, Last: n + 1, HasPrevious: true, Previous: n}} {
				if w, g := live.Admit(name, b), again.Admit(name, b); w != g {
					t.Fatalf("%s after %d: %+v, want %+v", name, n, g, w)
				}
			}
		}
	})
}

// TestForgettingGoesOnInOrder shows that a registry restored from a checkpoint forgets
// the producer that was silent longest, as the one before would have, whatever their
// names are.
func TestForgettingGoesOnInOrder(t *testing.T) {
	r := New(4)
	for i, name := range []string{"y", "z", "a", "x", "y"} {
		b := Batch{First: uint64(i), Last: uint64(i)}
		r.Taken(name, b, nil)
		r.Stored(name, at(uint64(i)))
	}
	again := New(4)
	if _, err := again.Restore(r.AppendCheckpoint(nil, at(4))); err != nil {
		t.Fatal(err)
	}
	for newcomer, forgotten := range []string{"z", "a", "x", "y"} {
		if _, stored := again.Last(forgotten); !stored {
			t.Fatalf("%q is forgotten before its turn", forgotten)
		}
		if _, _, _, err := again.Open(fmt.Sprint(newcomer), 0); err != nil {
			t.Fatal(err)
		}
		if _, stored := again.Last(forgotten); stored {
			t.Errorf("%q was silent longest and is not forgotten", forgotten)
		}
	}
}

// TestCheckpointIsBounded shows that as many producers as a topic remembers, each
// with a full window, positions and sequence ids as large as they get, and names
// as long as there are, fit in what the bundle log takes at once; that none of them
// is forgotten, nor taken for a duplicate what is not; and that a registry restored
// from the checkpoint answers the same.
func TestCheckpointIsBounded(t *testing.T) {
	const producers, largest = 10_000, 8 << 20
	r := New(producers)
	name := func(i int) string { return fmt.Sprintf("%0330d", i) }
	sequence := func(n int) uint64 { return 1<<62 + uint64(n) }
	position := position.Position{Ledger: 1 << 62, Entry: 1 << 62}
	most := 0
	for i := range producers {
		batches := Window
		if i >= 4*maxSpans/Window { // the rest of the windows would go the same way
			batches = 2
		}
		for n := range batches {
			position.Entry++
			r.Replay(name(i), 1<<62, Batch{First: sequence(n), Last: sequence(n)}, position)
		}
		if i%1000 == 999 {
			most = max(most, len(r.AppendCheckpoint(nil, position)))
		}
	}
	checkpoint := r.AppendCheckpoint(nil, position)
	if most = max(most, len(checkpoint)); most > largest {
		t.Errorf("checkpoint of %d bytes, the log takes %d", most, largest)
	}
	if r.Len() != producers || r.Dropped() != 0 {
		t.Errorf("%d remembered, %d dropped", r.Len(), r.Dropped())
	}
	again := New(producers)
	if _, err := again.Restore(checkpoint); err != nil {
		t.Fatal(err)
	}
	for i := range producers {
		last, _ := r.Last(name(i))
		for _, b := range []Batch{
			{First: last, Last: last},
			{First: sequence(0), Last: sequence(0)},
			{First: last, Last: last + 1},
			{First: last + 1, Last: last + 1, HasPrevious: true, Previous: last},
		} {
			if w, g := r.Admit(name(i), b), again.Admit(name(i), b); w != g {
				t.Fatalf("producer %d, batch %d: %+v, restored %+v", i, b.First, w, g)
			}
		}
		if a := r.Admit(name(i), Batch{First: last, Last: last}); a.Verdict != Duplicate || !a.Known {
			t.Fatalf("producer %d, its newest again: %+v", i, a)
		}
		if a := r.Admit(name(i), Batch{First: sequence(0), Last: sequence(0)}); a.Verdict != Duplicate {
			t.Fatalf("producer %d, its oldest again: %+v", i, a)
		}
	}
}

// TestNoRoomForAnotherProducer shows that a registry full of connected producers
// refuses another name, and takes it once one of them is gone.
func TestNoRoomForAnotherProducer(t *testing.T) {
	r := New(32)
	for i := range 32 {
		if _, _, _, err := r.Open(fmt.Sprint("p", i), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, _, err := r.Open("q", 0); !errors.Is(err, ErrFull) || r.Len() != 32 {
		t.Fatalf("got %v, %d remembered", err, r.Len())
	}
	if _, _, replaced, err := r.Open("p0", 1); err != nil || !replaced {
		t.Fatalf("a name that has its room: %v, replaced %v", err, replaced)
	}
	r.Close("p7", false)
	if _, _, _, err := r.Open("q", 0); err != nil {
		t.Fatal(err)
	}
}

// FuzzRestore shows that broken checkpoints are refused and good ones come back
// the same.
func FuzzRestore(f *testing.F) {
	r := New(10)
	r.Replay("p", 3, Batch{First: 5, Last: 9}, at(7))
	f.Add(r.AppendCheckpoint(nil, at(7)))
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := New(10)
		p, err := r.Restore(b)
		if err != nil {
			return
		}
		again := New(10)
		if q, err := again.Restore(r.AppendCheckpoint(nil, p)); err != nil || q != p {
			t.Fatalf("%v at %v, then %v", err, p, q)
		}
	})
}
