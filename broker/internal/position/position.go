// Package position names a place in the chain of ledgers behind a topic. It is
// pure.
package position

import (
	"cmp"
	"strconv"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Position is an entry of a topic, or the place after it. Positions are
// compared with == and with Compare; ledger ids rise along a chain, so their
// order is the order of the topic.
//
// The zero Position is Start, before every entry a chain can hold (ledger ids
// begin at 1). {L, ledger.NoEntry} stands after all ledgers before L and before
// the first entry of L.
type Position struct {
	Ledger ledger.ID
	Entry  ledger.EntryID
}

// Start is before every entry of every chain.
var Start = Position{}

// BeforeLedger is the position in front of the first entry of l.
func BeforeLedger(l ledger.ID) Position { return Position{Ledger: l, Entry: ledger.NoEntry} }

// IsStart reports whether p is Start.
func (p Position) IsStart() bool { return p == Start }

// Compare returns −1, 0 or +1 as p stands before, at or after q.
func (p Position) Compare(q Position) int {
	if c := cmp.Compare(p.Ledger, q.Ledger); c != 0 {
		return c
	}
	return cmp.Compare(p.Entry, q.Entry)
}

// Before reports whether p stands before q.
func (p Position) Before(q Position) bool { return p.Compare(q) < 0 }

// Next is the next place in the same ledger. Whether an entry stands there, or
// the chain goes on in another ledger, only the chain can say. The next place
// after Start is Start.
func (p Position) Next() Position {
	if p.IsStart() {
		return p
	}
	return Position{Ledger: p.Ledger, Entry: p.Entry + 1}
}

// Prev is the place before p in the same ledger: the one after which p is the
// next. The place before {L, NoEntry} and before Start is itself.
func (p Position) Prev() Position {
	if p.IsStart() || p.Entry == ledger.NoEntry {
		return p
	}
	return Position{Ledger: p.Ledger, Entry: p.Entry - 1}
}

// Max returns the later of p and q.
func Max(p, q Position) Position {
	if p.Before(q) {
		return q
	}
	return p
}

// Min returns the earlier of p and q.
func Min(p, q Position) Position {
	if q.Before(p) {
		return q
	}
	return p
}

// String prints p as LEDGER:ENTRY, and Start as "start".
func (p Position) String() string {
	if p.IsStart() {
		return "start"
	}
	return strconv.FormatInt(int64(p.Ledger), 10) + ":" + strconv.FormatInt(int64(p.Entry), 10)
}
