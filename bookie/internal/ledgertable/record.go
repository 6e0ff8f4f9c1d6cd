package ledgertable

import "github.com/magnetar-io/magnetar/bookie/ledger"

// Record is what must survive of a ledger whatever happens to its entries (M27).
//
// Every field only moves one way, so copies may be merged in any order and as often as
// one likes: Merge is commutative, associative and idempotent, and replaying a
// log twice changes nothing.
type Record struct {
	Term      int64          // highest fence term; 0: never fenced
	LastEntry ledger.EntryID // highest entry held; NoEntry: none
	LAC       ledger.EntryID // highest LAC in any envelope held
	Class     ledger.Class
	// Limbo: something of this ledger may be lost here. What is present is served,
	// an absence is answered Unknown, ordinary adds are refused.
	Limbo bool
	// Created is when the ledger was first seen here, in ms since 1970; 0: not known.
	// It only hints at how long the ledger will live.
	Created int64
}

// NewRecord returns the record of a ledger of which nothing is known.
func NewRecord() Record {
	return Record{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}
}

// Merge adds to r what o knows.
func (r *Record) Merge(o Record) {
	r.Term = max(r.Term, o.Term)
	r.LastEntry = max(r.LastEntry, o.LastEntry)
	r.LAC = max(r.LAC, o.LAC)
	r.Class = max(r.Class, o.Class)
	r.Limbo = r.Limbo || o.Limbo
	if r.Created == 0 || o.Created != 0 && o.Created < r.Created {
		r.Created = o.Created
	}
}
