package cursor

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// fakeChain is a chain written down: how many entries each ledger has.
type fakeChain []struct {
	id      ledger.ID
	entries ledger.EntryID
}

func (c fakeChain) After(p position.Position) position.Position {
	p = p.Next()
	for i, l := range c {
		last := i == len(c)-1
		if l.id < p.Ledger || l.id == p.Ledger && p.Entry >= l.entries && !last {
			continue
		}
		if l.entries == 0 && !last {
			continue
		}
		if l.id == p.Ledger {
			return p
		}
		return position.Position{Ledger: l.id}
	}
	return p
}

func (c fakeChain) Entries(from, to position.Position) (n int64) {
	for _, l := range c {
		for e := ledger.EntryID(0); e < l.entries; e++ {
			p := position.Position{Ledger: l.id, Entry: e}
			if from.Compare(p) <= 0 && p.Before(to) {
				n++
			}
		}
	}
	return n
}

func (c fakeChain) all() []position.Position {
	var out []position.Position
	for _, l := range c {
		for e := ledger.EntryID(0); e < l.entries; e++ {
			out = append(out, position.Position{Ledger: l.id, Entry: e})
		}
	}
	return out
}

func (c fakeChain) last() position.Position {
	if all := c.all(); len(all) > 0 {
		return all[len(all)-1]
	}
	return position.Start
}

// batchSize is how many messages each entry has in these tests: 1 to 130.
func batchSize(p position.Position) int { return 1 + int(p.Ledger*31+ledger.ID(p.Entry)*43)%130 }

// model remembers for each message whether it is acknowledged.
type model map[position.Position][]bool

func (m model) messages(p position.Position) []bool {
	if m[p] == nil {
		m[p] = make([]bool, batchSize(p))
	}
	return m[p]
}

func (m model) ack(p position.Position, remaining Bits) {
	for i := range m.messages(p) {
		if i/64 >= len(remaining) || remaining[i/64]>>(i%64)&1 == 0 {
			m[p][i] = true
		}
	}
}

func (m model) acked(p position.Position) bool {
	for _, a := range m.messages(p) {
		if !a {
			return false
		}
	}
	return true
}

// Shows that a cursor acknowledges exactly what a list of every message would,
// whatever order acknowledgements of entries, parts and prefixes come in, while
// ledgers are added, filled and trimmed; and that one rebuilt from its deltas is
// the same.
func TestCursorAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chain := fakeChain{{id: 2, entries: 3}}
		m, c, replica := model{}, New(position.Start), New(position.Start)
		var log [][]byte
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			all := chain.all()
			somewhere := rapid.Custom(func(t *rapid.T) position.Position {
				return all[rapid.IntRange(0, len(all)-1).Draw(t, "at")]
			})
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			case 0:
				chain[len(chain)-1].entries += ledger.EntryID(rapid.IntRange(1, 4).Draw(t, "more"))
			case 1:
				id := chain[len(chain)-1].id + ledger.ID(rapid.IntRange(1, 3).Draw(t, "gap"))
				chain = append(chain, struct {
					id      ledger.ID
					entries ledger.EntryID
				}{id, ledger.EntryID(rapid.IntRange(0, 3).Draw(t, "entries"))})
			case 2, 3, 4:
				p := somewhere.Draw(t, "ack")
				if got := c.Ack(chain, p); got == m.acked(p) {
					t.Fatalf("Ack(%v) = %v", p, got)
				}
				m.ack(p, nil)
			case 5, 6:
				p := somewhere.Draw(t, "part")
				bits := drawBits(t, batchSize(p))
				m.ack(p, bits)
				if _, whole := c.AckPart(chain, p, bits); whole != m.acked(p) {
					t.Fatalf("AckPart(%v, %b) says whole %v", p, bits, whole)
				}
			case 7:
				p := somewhere.Draw(t, "through")
				bits := drawBits(t, batchSize(p))
				for _, q := range all {
					if q.Before(p) {
						m.ack(q, nil)
					}
				}
				if m.ack(p, bits); len(bits) == 0 {
					c.AckCumulative(chain, p)
				} else {
					c.AckCumulativePart(chain, p, bits)
				}
			case 8:
				log = append(log, c.TakeDelta(nil))
			case 9:
				if rapid.IntRange(0, 3).Draw(t, "rare") > 0 {
					break
				}
				p := somewhere.Draw(t, "seek")
				skip := rapid.IntRange(0, batchSize(p)-1).Draw(t, "skip")
				clear(m)
				for _, q := range all {
					if q.Before(p) {
						m.ack(q, nil)
					}
				}
				if m.ack(p, From(skip, batchSize(p))); skip == 0 {
					c.Seek(p.Prev(), p, nil)
				} else {
					c.Seek(p.Prev(), p, From(skip, batchSize(p)))
				}
				log = append(log, c.AppendWhole(nil))
			}
			check(t, c, chain, m)
		}
		log = append(log, c.TakeDelta(nil))
		for i, b := range log {
			apply(t, replica, b)
			if i%2 == 1 {
				apply(t, replica, b) // a delta seen twice changes nothing
			}
		}
		replica.Settle(chain)
		check(t, replica, chain, m)
		whole := New(position.Position{Ledger: 1})
		apply(t, whole, replica.AppendWhole(nil))
		whole.Settle(chain)
		check(t, whole, chain, m)
	})
}

func apply(t *rapid.T, c *Cursor, b []byte) {
	if err := c.Apply(b); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func drawBits(t *rapid.T, n int) Bits {
	switch rapid.IntRange(0, 3).Draw(t, "bits") {
	case 0:
		return nil
	case 1:
		return From(rapid.IntRange(0, n).Draw(t, "from"), n)
	}
	b := From(0, n)
	for range 4 {
		i := rapid.IntRange(0, n-1).Draw(t, "bit")
		b[i/64] &^= 1 << (i % 64)
	}
	return b
}

func check(t *rapid.T, c *Cursor, chain fakeChain, m model) {
	backlog, prefix := int64(0), true
	for _, p := range chain.all() {
		acked := m.acked(p)
		if c.Acked(p) != acked {
			t.Fatalf("Acked(%v) = %v (mark %v)", p, c.Acked(p), c.mark)
		}
		if !acked {
			backlog++
		}
		if prefix = prefix && acked; prefix != (p.Compare(c.MarkDelete()) <= 0) {
			t.Fatalf("mark-delete %v, though Acked(%v) = %v and so for all before: %v", c.MarkDelete(), p, acked, prefix)
		}
		if acked {
			if c.Remaining(p) != nil {
				t.Fatalf("Remaining(%v) of an acknowledged entry", p)
			}
			continue
		}
		for i, a := range m.messages(p) {
			left := c.Remaining(p)
			if got := left == nil || i/64 < len(left) && left[i/64]>>(i%64)&1 == 1; got == a {
				t.Fatalf("message %d of %v: unacknowledged %v", i, p, got)
			}
		}
	}
	if got := c.Backlog(chain, chain.last()); got != backlog {
		t.Fatalf("Backlog = %d, want %d", got, backlog)
	}
	all := chain.all()
	from := all[rapid.IntRange(0, len(all)-1).Draw(t, "from")]
	before := c.UnackedBefore(chain, from)
	next := chain.After(chain.last())
	for i := len(all) - 1; i >= 0; i-- {
		if want := all[i].Before(from) && !m.acked(all[i]); before.Contains(all[i]) != want {
			t.Fatalf("UnackedBefore(%v) holds %v: %v", from, all[i], !want)
		}
		if from.Compare(all[i]) <= 0 && !m.acked(all[i]) {
			next = all[i]
		}
	}
	if got := c.NextUnacked(chain, from); got != next {
		t.Fatalf("NextUnacked(%v) = %v, want %v", from, got, next)
	}
}

// Shows that trimming ledgers under a cursor that holds nothing back leaves no
// trace of them in its accounting.
func TestTrimmedUnderACursor(t *testing.T) {
	chain := fakeChain{{1, 4}, {2, 4}, {3, 4}}
	c := New(position.Start)
	c.Ack(chain, position.Position{Ledger: 1, Entry: 2})
	c.AckPart(chain, position.Position{Ledger: 1, Entry: 3}, From(1, 4))
	c.Ack(chain, position.Position{Ledger: 3, Entry: 1})
	chain = chain[1:]
	if got := c.Backlog(chain, chain.last()); got != 7 {
		t.Errorf("backlog %d after the first ledger was trimmed, want 7", got)
	}
	if c.Holes() != 1 || len(c.partial) != 0 {
		t.Errorf("%d holes, %d parts left", c.Holes(), len(c.partial))
	}
}

// Shows that a million holes stay within a bit each, in memory and encoded, and
// that none of them is forgotten.
func TestMillionHoles(t *testing.T) {
	const n = 2_000_000
	chain := bigLedger(n)
	c := New(position.Start)
	for e := ledger.EntryID(1); e < n; e += 2 {
		c.Ack(chain, position.Position{Ledger: 1, Entry: e})
	}
	if got := c.Backlog(chain, position.Position{Ledger: 1, Entry: n - 1}); got != n/2 {
		t.Fatalf("backlog %d, want %d", got, n/2)
	}
	c.TakeDelta(nil)
	b := c.AppendWhole(nil)
	if c.Bytes() > 400_000 || len(b) > 400_000 {
		t.Errorf("%d bytes in memory, %d encoded", c.Bytes(), len(b))
	}
	back := New(position.Start)
	if err := back.Apply(b); err != nil || back.Holes() != n/2 {
		t.Fatalf("%d holes came back: %v", back.Holes(), err)
	}
}

// Shows that the cheap bound on a cursor's memory agrees with the exact one,
// however its acknowledgements are spread.
func TestExceedsAgreesWithBytes(t *testing.T) {
	spread := map[string]func(c *Cursor, i int){
		"dense": func(c *Cursor, i int) {
			c.Ack(bigLedger(0), position.Position{Ledger: 1, Entry: ledger.EntryID(2*i + 1)})
		},
		"a ledger each": func(c *Cursor, i int) { c.Ack(bigLedger(0), position.Position{Ledger: ledger.ID(i + 2), Entry: 7}) },
		"a container each": func(c *Cursor, i int) {
			c.Ack(bigLedger(0), position.Position{Ledger: 1, Entry: ledger.EntryID(i+1) << 16})
		},
		"parts of batches": func(c *Cursor, i int) {
			c.AckPart(bigLedger(0), position.Position{Ledger: 1, Entry: ledger.EntryID(i)}, From(1, 70))
		},
		"parts, large batches": func(c *Cursor, i int) {
			c.AckPart(bigLedger(0), position.Position{Ledger: 1, Entry: ledger.EntryID(i)}, From(1, MaxBits))
		},
	}
	for name, step := range spread {
		c := New(position.Start)
		for i := range 300 {
			step(c, i)
			for limit := int64(1); limit < 1<<24; limit *= 3 {
				if got, want := c.Exceeds(limit), c.Bytes() > limit; got != want {
					t.Fatalf("%s: after %d steps Exceeds(%d) = %v, Bytes = %d", name, i+1, limit, got, c.Bytes())
				}
			}
		}
	}
}

// bigLedger is a chain of one ledger with so many entries.
type bigLedger ledger.EntryID

func (b bigLedger) After(p position.Position) position.Position {
	if p.Ledger < 1 {
		return position.Position{Ledger: 1}
	}
	return p.Next()
}

func (b bigLedger) Entries(from, to position.Position) int64 { return int64(to.Entry - from.Entry) }

// Shows that parts of many large batches are taken in deltas of bounded size, and
// that all of them arrive.
func TestDeltasAreBounded(t *testing.T) {
	c, replica := New(position.Start), New(position.Start)
	for e := range ledger.EntryID(300) {
		c.AckPart(bigLedger(300), position.Position{Ledger: 1, Entry: e}, From(int(e)+1, MaxBits))
	}
	deltas := 0
	for ; c.Dirty(); deltas++ {
		b := c.TakeDelta(nil)
		if len(b) > deltaPartBytes+MaxBits/8 {
			t.Fatalf("a delta of %d bytes", len(b))
		}
		if err := replica.Apply(b); err != nil {
			t.Fatal(err)
		}
	}
	for e := range ledger.EntryID(300) {
		p := position.Position{Ledger: 1, Entry: e}
		if got, want := replica.Remaining(p).Count(MaxBits), MaxBits-int(e)-1; got != want {
			t.Fatalf("%v: %d messages left, want %d", p, got, want)
		}
	}
	if deltas < 3 {
		t.Errorf("%d deltas", deltas)
	}
}

// Shows that a cursor of a newer build is named as such, not as damage.
func TestNewerVersion(t *testing.T) {
	b := New(position.Start).AppendWhole(nil)
	b[0]++
	if err := New(position.Start).Apply(b); !errors.Is(err, ErrVersion) || errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

// Shows that a delta of before a seek, replayed after it, is ignored, and one of
// an epoch nobody began is damage.
func TestDeltaOfAnotherEpoch(t *testing.T) {
	chain := fakeChain{{1, 9}}
	c := New(position.Start)
	c.AckCumulative(chain, position.Position{Ledger: 1, Entry: 5})
	stale := c.TakeDelta(nil)
	c.Seek(position.Start, position.Start, nil)
	if err := c.Apply(stale); err != nil || c.MarkDelete() != position.Start {
		t.Fatalf("stale delta moved the cursor to %v: %v", c.MarkDelete(), err)
	}
	c.AckCumulative(chain, position.Position{Ledger: 1, Entry: 1})
	if err := New(position.Start).Apply(c.TakeDelta(nil)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

// Shows that no bytes make the decoder panic, and that what it accepts survives
// a second round.
func FuzzApply(f *testing.F) {
	chain := fakeChain{{1, 9}, {4, 9}}
	c := New(position.Start)
	f.Add(c.AppendWhole(nil))
	c.Ack(chain, position.Position{Ledger: 4, Entry: 3})
	c.AckPart(chain, position.Position{Ledger: 1, Entry: 3}, From(3, 70))
	f.Add(c.AppendWhole(nil))
	f.Add(c.TakeDelta(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := New(position.Start)
		if err := c.Apply(b); err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("error %v is neither ErrCorrupt nor ErrVersion", err)
			}
			return
		}
		back := New(position.Start)
		if err := back.Apply(c.AppendWhole(nil)); err != nil {
			t.Fatal(err)
		}
		if back.mark != c.mark || back.Holes() != c.Holes() || len(back.partial) != len(c.partial) || back.epoch != c.epoch {
			t.Fatalf("%+v came back as %+v", c, back)
		}
	})
}

// Shows that a clone stands where its cursor stood, whatever becomes of that, and
// costs the same.
func TestClone(t *testing.T) {
	chain := fakeChain{{id: 1, entries: 200}}
	at := func(e int) position.Position { return position.Position{Ledger: 1, Entry: ledger.EntryID(e)} }
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 0))
		c := New(at(9))
		c.Seek(at(9), at(10), From(1, 4))
		step := func() {
			p := at(10 + rng.IntN(190))
			if rng.IntN(2) == 0 {
				c.Ack(chain, p)
			} else {
				c.AckPart(chain, p, From(1+rng.IntN(3), 4))
			}
		}
		for range 50 {
			step()
		}
		c.TakeDelta(nil)
		clone := c.Clone()
		stood, bytes := c.AppendWhole(nil), c.Bytes()
		for range 50 {
			step()
		}
		c.AckCumulative(chain, at(150))
		if !slices.Equal(clone.AppendWhole(nil), stood) || clone.Dirty() || clone.Bytes() != bytes {
			t.Fatalf("seed %d: the clone moved, or has changes (%v), or costs %d bytes, not %d", seed, clone.Dirty(), clone.Bytes(), bytes)
		}
	}
}
