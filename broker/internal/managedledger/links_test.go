package managedledger

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

func at(l ledger.ID, e ledger.EntryID) position.Position {
	return position.Position{Ledger: l, Entry: e}
}

// three is a chain of two closed ledgers and one being written, its head trimmed
// away (ledgers 1 to 9 are gone).
func three() links {
	return links{
		{sequence: 4, ledger: 10, firstIndex: 100, firstTime: 1000, lastTime: 1900, closed: true, entries: 10, bytes: 1000, messages: 100},
		{sequence: 5, ledger: 20, firstIndex: 200, firstTime: 1900, lastTime: 2900, closed: true, entries: 5, bytes: 500, messages: 50},
		{sequence: 6, ledger: 30, firstIndex: 250, firstTime: 2900, lastTime: 3000, entries: 2, bytes: 20, messages: 2},
	}
}

// Shows where read positions go: out of a trimmed gap up to the next ledger, from
// the end of a ledger on to the next, and never back. A position beyond the end is
// an error and is not clamped.
func TestRuleM18_PositionsMoveUpNeverDownNeverClamped(t *testing.T) {
	trimmed := links{{sequence: 9, ledger: 40, firstIndex: 7, closed: true, trimmed: true, entries: 3, messages: 3}}
	for _, c := range []struct {
		name     string
		chain    links
		in, want position.Position
		err      error
	}{
		{"start", three(), position.Start, at(10, 0), nil},
		{"in a trimmed ledger", three(), at(5, 7), at(10, 0), nil},
		{"between two ledgers", three(), at(15, 3), at(20, 0), nil},
		{"before a ledger", three(), position.BeforeLedger(20), at(20, 0), nil},
		{"inside", three(), at(20, 3), at(20, 3), nil},
		{"end of a closed ledger", three(), at(20, 5), at(30, 0), nil},
		{"end of the chain", three(), at(30, 2), at(30, 2), nil},
		{"beyond the end of a closed ledger", three(), at(20, 6), position.Position{}, ErrBeyondEnd},
		{"beyond the end of the chain", three(), at(30, 3), position.Position{}, ErrBeyondEnd},
		{"in a ledger that never was", three(), at(31, 0), position.Position{}, ErrBeyondEnd},
		{"start of an empty chain", nil, position.Start, position.Start, nil},
		{"anything in an empty chain", nil, at(1, 0), position.Position{}, ErrBeyondEnd},
		{"start when all is trimmed", trimmed, position.Start, at(40, 3), nil},
		{"inside what is trimmed", trimmed, at(40, 1), at(40, 3), nil},
		{"beyond what was trimmed", trimmed, at(40, 4), position.Position{}, ErrBeyondEnd},
	} {
		got, err := c.chain.normalize(c.in)
		if !errors.Is(err, c.err) || err == nil && got != c.want {
			t.Errorf("%s: normalize(%v) = %v, %v; want %v, %v", c.name, c.in, got, err, c.want, c.err)
		}
	}
}

// Shows that stepping with after from the first position visits every entry
// once, in order, whatever the chain looks like, and that between counts exactly
// the steps.
func TestStepsAndCountsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ls links
		id, index := ledger.ID(0), uint64(0)
		n := rapid.IntRange(1, 5).Draw(t, "ledgers")
		for i := range n {
			id += ledger.ID(rapid.IntRange(1, 3).Draw(t, "gap"))
			l := link{sequence: uint64(i), ledger: id, firstIndex: index, closed: i < n-1}
			if l.entries = int64(rapid.IntRange(0, 4).Draw(t, "entries")); l.entries == 0 && l.closed {
				l.entries = 1
			}
			l.bytes, l.messages = 10*l.entries, uint64(2*l.entries)
			index = l.nextIndex()
			ls = append(ls, l)
		}
		all := ls.between(position.Start, ls.next())
		var steps int64
		p := ls.first()
		for ; p != ls.next(); steps++ {
			if got := ls.between(p, ls.next()).Entries; got != all.Entries-steps {
				t.Fatalf("at %v: %d entries to the end, want %d", p, got, all.Entries-steps)
			}
			q, err := ls.after(p)
			if err != nil || !p.Before(q) {
				t.Fatalf("after %v comes %v, %v", p, q, err)
			}
			p = q
		}
		if want := int64(ls[len(ls)-1].nextIndex()) / 2; steps != want || all.Bytes != 10*want || all.Messages != 2*want {
			t.Fatalf("%d steps, %+v; want %d", steps, all, want)
		}
	})
}

// Shows which ledgers go: the head of closed ones with every entry before the
// position to keep, as far as retention lets them, and never one that is written.
func TestRuleM4_TrimTakesOnlyWhatNobodyNeeds(t *testing.T) {
	const now = 10_000
	for _, c := range []struct {
		name string
		keep position.Position
		r    Retention
		want int
	}{
		{"nothing acknowledged", at(10, 0), Retention{}, 0},
		{"all but the last of the first", at(10, 9), Retention{}, 0},
		{"the first", at(10, 10), Retention{}, 1},
		{"the first, seen from the second", at(20, 0), Retention{}, 1},
		{"all", at(30, 2), Retention{}, 2},
		{"kept for ever", at(30, 2), Retention{Bytes: -1, Age: -1}, 0},
		{"age lets the first go", at(30, 2), Retention{Bytes: -1, Age: 8 * time.Second}, 1},
		{"one byte limit that the rest keeps", at(30, 2), Retention{Bytes: 520, Age: -1}, 1},
		{"one byte limit that the rest misses", at(30, 2), Retention{Bytes: 521, Age: -1}, 0},
		{"either limit", at(30, 2), Retention{Bytes: 1 << 30, Age: time.Second}, 2},
	} {
		if got := three().trimmable(c.keep, c.r, now); got != c.want {
			t.Errorf("%s: %d ledgers go, want %d", c.name, got, c.want)
		}
	}
}

// Shows that a ledger is closed for its age only when something in it is no
// longer needed.
func TestAgeRollsOnlyWhereItFreesData(t *testing.T) {
	ls := three()
	for _, c := range []struct {
		keep position.Position
		r    Retention
		age  time.Duration
		want bool
	}{
		{at(30, 1), Retention{}, time.Second, true},
		{at(30, 0), Retention{}, time.Second, false},
		{at(30, 1), Retention{}, time.Minute, false},
		{at(30, 2), Retention{Bytes: -1, Age: -1}, time.Second, false},
	} {
		if got := ls.worthRetiring(c.keep, c.r, c.age, 10_000); got != c.want {
			t.Errorf("keep %v, retention %+v, age %v: %v", c.keep, c.r, c.age, got)
		}
	}
}

// Shows that a link's value reads back as what it was, and that an open ledger's
// counts are not in it.
func TestLinkReadsBack(t *testing.T) {
	for _, l := range three() {
		got, err := decodeLink(l.sequence, l.encode())
		if err != nil {
			t.Fatal(err)
		}
		if !l.closed {
			l.entries, l.bytes, l.messages, l.lastTime = 0, 0, 0, l.firstTime
		}
		if got != l {
			t.Errorf("wrote %+v, read %+v", l, got)
		}
	}
}

// FuzzLink shows that hostile values are refused or make a link that keeps its
// invariants.
func FuzzLink(f *testing.F) {
	for _, l := range three() {
		f.Add(l.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLink(1, b)
		if err == nil && (l.ledger < 1 || l.entries < 0 || l.bytes < 0 || l.lastTime < l.firstTime || l.trimmed && !l.closed) {
			t.Errorf("accepted %+v", l)
		}
	})
}
