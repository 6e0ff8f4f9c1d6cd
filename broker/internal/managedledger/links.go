package managedledger

import (
	"errors"
	"fmt"
	"sort"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// ErrBeyondEnd reports a position after the end of what the topic holds. From a
// durable cursor it is damage: the topic is refused, the cursor never clamped.
var ErrBeyondEnd = errors.New("managedledger: position beyond the end of the topic")

// links is a chain, oldest first: pure arithmetic over positions.
//
// Invariant: sequences and ledger ids rise; only the last may be trimmed; only
// the last two may be open.
type links []link

// check reports a chain that no owner could have written.
func (ls links) check() error {
	for i := 1; i < len(ls); i++ {
		a, b := &ls[i-1], &ls[i]
		if a.sequence >= b.sequence || a.ledger >= b.ledger {
			return fmt.Errorf("chain link %d (ledger %d) follows link %d (ledger %d): %w",
				b.sequence, b.ledger, a.sequence, a.ledger, ledger.ErrCorrupt)
		}
	}
	return nil
}

// find returns the index of the first link whose ledger is id or later.
func (ls links) find(id ledger.ID) int {
	return sort.Search(len(ls), func(i int) bool { return ls[i].ledger >= id })
}

// first is the first position that can be read, or the place of the next entry
// when there is none.
func (ls links) first() position.Position {
	for i := range ls {
		if ls[i].readable() > 0 {
			return position.Position{Ledger: ls[i].ledger}
		}
	}
	return ls.next()
}

// next is the place after the last entry: where a reader that has read all
// stands. Start when the chain has never had a ledger.
func (ls links) next() position.Position { return ls.last().Next() }

// last is the position of the last entry of the chain, trimmed or not. When the
// chain holds none it is the place before its first ledger, or Start.
func (ls links) last() position.Position {
	for i := len(ls) - 1; i >= 0; i-- {
		if ls[i].entries > 0 || i == 0 {
			return position.Position{Ledger: ls[i].ledger, Entry: ls[i].end() - 1}
		}
	}
	return position.Start
}

// normalize moves a read position to where the entry at it, or else the next
// one, stands: out of a trimmed gap up to the next ledger, from behind the end of
// a ledger to the start of the one that follows. What lies after the place of the
// next entry is ErrBeyondEnd.
func (ls links) normalize(p position.Position) (position.Position, error) {
	if p.IsStart() {
		return ls.first(), nil
	}
	i := ls.find(p.Ledger)
	if i == len(ls) {
		return p, fmt.Errorf("%v, the last is %v: %w", p, ls.last(), ErrBeyondEnd)
	}
	if l := &ls[i]; l.ledger == p.Ledger {
		if p.Entry > l.end() {
			return p, fmt.Errorf("%v, ledger %d ends before entry %d: %w", p, l.ledger, l.end(), ErrBeyondEnd)
		}
		if p.Entry < l.end() && !l.trimmed {
			p.Entry = max(p.Entry, 0)
			return p, nil
		}
		i++
	}
	for ; i < len(ls); i++ {
		if ls[i].readable() > 0 {
			return position.Position{Ledger: ls[i].ledger}, nil
		}
	}
	return ls.next(), nil
}

// after is the read position that follows p.
func (ls links) after(p position.Position) (position.Position, error) {
	return ls.normalize(p.Next())
}

// Extent is how much lies between two positions.
type Extent struct {
	Entries  int64
	Bytes    int64 // of bodies
	Messages int64
}

func (e *Extent) add(o Extent) {
	e.Entries += o.Entries
	e.Bytes += o.Bytes
	e.Messages += o.Messages
}

// between is what lies in from <= position < to. Entries are exact; bytes and
// messages are exact for whole ledgers and in proportion to entries for a part of
// one.
func (ls links) between(from, to position.Position) Extent {
	var sum Extent
	for i := ls.find(from.Ledger); i < len(ls) && ls[i].ledger <= to.Ledger; i++ {
		l := &ls[i]
		start, end := int64(0), l.readable()
		if l.ledger == from.Ledger {
			start = max(0, int64(from.Entry))
		}
		if l.ledger == to.Ledger {
			end = min(end, max(0, int64(to.Entry)))
		}
		if start < end {
			sum.add(l.part(end - start))
		}
	}
	return sum
}

// part is what n entries of l are, as far as the link can tell.
func (l *link) part(n int64) Extent {
	if n == l.entries {
		return Extent{Entries: n, Bytes: l.bytes, Messages: int64(l.messages)}
	}
	share := float64(n) / float64(l.entries)
	return Extent{Entries: n, Bytes: int64(share * float64(l.bytes)), Messages: int64(share * float64(l.messages))}
}

// atTime returns the index of the first link that can hold an entry with a broker
// time of at least ms; all entries before that link are earlier. Times never fall
// along a chain, and an empty ledger stands at the time of the one before it.
func (ls links) atTime(ms int64) int {
	return sort.Search(len(ls), func(i int) bool { return ls[i].lastTime >= ms })
}
