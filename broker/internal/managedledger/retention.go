package managedledger

import (
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Retention keeps entries that every subscription is done with: while they are
// younger than Age and while the chain, without the ledger in question, is
// smaller than Bytes. Below 0 means without limit. Zero in either keeps nothing.
type Retention struct {
	Bytes int64
	Age   time.Duration
}

// KeepsForever reports whether nothing is ever let go.
func (r Retention) KeepsForever() bool { return r.Bytes < 0 && r.Age < 0 }

// lets reports whether retention lets go of l, given the bytes that would stay.
func (r Retention) lets(l *link, rest int64, nowMs int64) bool {
	switch {
	case r.Bytes == 0 || r.Age == 0:
		return true
	case r.Age > 0 && nowMs-l.lastTime >= r.Age.Milliseconds():
		return true
	}
	return r.Bytes > 0 && rest >= r.Bytes
}

// trimmable counts the links at the head of the chain whose ledgers can go:
// closed, every entry before keepFrom, and let go by retention. It stops at the
// first that must stay, so that no gap opens in the middle.
func (ls links) trimmable(keepFrom position.Position, r Retention, nowMs int64) int {
	rest := int64(0)
	for i := range ls {
		rest += ls[i].bytes
	}
	n := 0
	for ; n < len(ls); n++ {
		l := &ls[n]
		rest -= l.bytes
		done := keepFrom.Ledger > l.ledger || keepFrom.Ledger == l.ledger && keepFrom.Entry >= l.end()
		if !l.closed || l.trimmed || !done || !r.lets(l, rest, nowMs) {
			break
		}
	}
	return n
}

// worthRetiring reports whether the newest ledger, being written, should be
// closed for its age: only if something in it is no longer needed, so that
// closing it can free data.
func (ls links) worthRetiring(keepFrom position.Position, r Retention, maxAge time.Duration, nowMs int64) bool {
	if len(ls) == 0 || r.KeepsForever() || maxAge <= 0 {
		return false
	}
	l := &ls[len(ls)-1]
	return !l.closed && l.entries > 0 && nowMs-l.firstTime >= maxAge.Milliseconds() &&
		(position.Position{Ledger: l.ledger}).Before(keepFrom)
}
