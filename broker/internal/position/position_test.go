package position

import (
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Shows that the order of positions is that of the topic, Start first, and that
// Next and Prev stay inside a ledger.
func TestOrder(t *testing.T) {
	line := []Position{Start, BeforeLedger(1), {1, 0}, {1, 1}, BeforeLedger(2), {2, 0}, {7, 3}}
	for i, p := range line {
		for j, q := range line {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := p.Compare(q); got != want {
				t.Errorf("Compare(%v, %v) = %d, want %d", p, q, got, want)
			}
			if got := p.Before(q); got != (i < j) {
				t.Errorf("%v.Before(%v) = %v", p, q, got)
			}
			if Max(p, q) != line[max(i, j)] || Min(p, q) != line[min(i, j)] {
				t.Errorf("Max or Min of %v, %v", p, q)
			}
		}
	}
}

// Shows the neighbours of a position, and what a person reads.
func TestNeighbours(t *testing.T) {
	for _, c := range []struct {
		p, next, prev Position
		text          string
	}{
		{Start, Start, Start, "start"},
		{BeforeLedger(3), Position{3, 0}, BeforeLedger(3), "3:-1"},
		{Position{3, 0}, Position{3, 1}, Position{3, ledger.NoEntry}, "3:0"},
		{Position{3, 9}, Position{3, 10}, Position{3, 8}, "3:9"},
	} {
		if got := c.p.Next(); got != c.next {
			t.Errorf("%v.Next() = %v, want %v", c.p, got, c.next)
		}
		if got := c.p.Prev(); got != c.prev {
			t.Errorf("%v.Prev() = %v, want %v", c.p, got, c.prev)
		}
		if got := c.p.String(); got != c.text {
			t.Errorf("String() = %q, want %q", got, c.text)
		}
	}
}
