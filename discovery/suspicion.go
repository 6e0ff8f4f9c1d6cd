package discovery

import (
	"slices"
	"time"
)

// Observation is what one attempt to reach a broker showed.
type Observation struct {
	// Refused: its address refused the connection. Not: nobody answered in time,
	// which a cut network does as well.
	Refused bool
	// Session is the session that answered there; "" when none did, or it has none.
	Session string
}

// Proof of death takes so many refusals in a row, over so long.
const (
	proofRefusals = 3
	proofSpan     = 300 * time.Millisecond
)

// suspicion gathers proof that a session is over (M6). Pure; for one session.
type suspicion struct {
	session string
	refused int // in a row
	since   time.Time
}

// observe takes one observation in and reports whether the session is proven
// over: its address was refused often enough, or answers as another session.
// Anything else, an unclear answer too, clears it.
func (p *suspicion) observe(o Observation, now time.Time) bool {
	if !o.Refused {
		p.refused = 0
		return o.Session != "" && o.Session != p.session
	}
	if p.refused == 0 {
		p.since = now
	}
	p.refused++
	return p.refused >= proofRefusals && now.Sub(p.since) >= proofSpan
}

// endings bounds how many sessions are ended early. When many brokers seem gone
// at once it is more likely that something else is wrong, and their leases say.
type endings struct {
	left map[string]time.Time // brokers that left, or were ended by us, and when last
}

// endingWindow is the time over which endings are counted.
const endingWindow = 10 * time.Second

// note remembers that a broker left.
func (e *endings) note(broker string, now time.Time) {
	if e.left == nil {
		e.left = make(map[string]time.Time)
	}
	e.left[broker] = now
}

// allow reports whether a broker's session may be ended early now: it did not
// leave within the window, and of the brokers that were there no more than a
// third, but always one, left within it.
func (e *endings) allow(broker string, live int, now time.Time) bool {
	for b, at := range e.left {
		if now.Sub(at) >= endingWindow {
			delete(e.left, b)
		}
	}
	if _, recently := e.left[broker]; recently {
		return false
	}
	return len(e.left) < max(1, (live+len(e.left))/3)
}

// neighbours are the brokers that self looks after: the next ones in the ring of
// sorted ids, so that each broker has as many looking after it.
func neighbours(ids []string, self string, n int) []string {
	at, _ := slices.BinarySearch(ids, self)
	var next []string
	for i := 1; i < len(ids) && len(next) < n; i++ {
		if id := ids[(at+i)%len(ids)]; id != self {
			next = append(next, id)
		}
	}
	return next
}
