package ensemble

import (
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// pending is an entry whose body the writer still holds. A slot's bit is in at
// most one of ok, left and (its answer being out) sent.
type pending struct {
	body  []byte
	done  func(ledger.EntryID, error) // nil once handed out
	total int64                       // bodies of this and all entries before it
	at    time.Duration               // when it was appended
	crc   uint32
	ok    uint16 // slots whose present bookie has it on disk
	sent  uint16 // slots it was sent to
	left  uint16 // slots that will not get it from the window: noted as short, or vacant when it was acknowledged
}

// entryOverhead is counted for an entry beside its body, so that empty ones are
// bounded too.
const entryOverhead = 128

// cost is what the entry counts in the budget.
func (p *pending) cost() int64 { return int64(len(p.body)) + entryOverhead }

// window holds the entries [first, next) in a ring that grows by doubling. An
// entry is held until it is acknowledged and every bookie of its ensemble has
// it, or is noted as lacking it.
type window struct {
	ring  []pending // a power of two long, or nil
	first ledger.EntryID
	next  ledger.EntryID
}

func (w *window) len() int { return int(w.next - w.first) }

// at returns entry e, which must be held.
func (w *window) at(e ledger.EntryID) *pending { return &w.ring[int(e)&(len(w.ring)-1)] }

// push adds the next entry.
func (w *window) push(p pending) {
	if w.len() == len(w.ring) {
		w.grow()
	}
	*w.at(w.next) = p
	w.next++
}

// pop lets go of the first entry.
func (w *window) pop() {
	*w.at(w.first) = pending{}
	w.first++
	if w.len() == 0 && len(w.ring) > idleRing {
		w.ring = nil // an idle writer keeps no large ring
	}
}

// idleRing is how many places an empty window keeps.
const idleRing = 64

func (w *window) grow() {
	old := *w
	w.ring = make([]pending, max(8, 2*len(old.ring)))
	for e := old.first; e < old.next; e++ {
		*w.at(e) = *old.at(e)
	}
}
