package ensemble

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// health is what a writer thinks of the bookie in a slot.
type health uint8

const (
	healthy health = iota
	// suspect: it has not answered for the add timeout. Slow is not dead: what was
	// sent stays sent, and any answer makes it healthy again.
	suspect
	// failing: an add failed or was refused. One add at a time is tried again.
	failing
)

// slot is one place of the writer's present ensemble.
type slot struct {
	member  ledger.Member // zero: vacant
	gen     uint32        // raised with each new member; answers to an older one are dropped (A3, E11)
	next    ledger.EntryID
	created bool // the bookie has answered an add with OK, so it knows the ledger (M14)
	waiting int  // adds sent and not answered

	health   health
	definite bool          // failing in a way that trying again will not mend soon
	tooLarge error         // why it refused an entry for its size, for people; nil: it did not
	since    time.Duration // when it stopped being healthy
	moved    time.Duration // when it last answered, or got its first add after having none
	placed   time.Duration // when its member was put there
	retryAt  time.Duration // failing: not before
	backoff  time.Duration
}

const (
	firstBackoff = 20 * time.Millisecond
	maxBackoff   = time.Second
)

// put makes m the slot's bookie, which is to get the entries from first on.
func (s *slot) put(now time.Duration, m ledger.Member, first ledger.EntryID) {
	*s = slot{member: m, gen: s.gen + 1, next: first, placed: now, since: now, moved: now}
}

// failed notes a failed add.
func (s *slot) failed(now time.Duration, definite bool) {
	switch {
	case s.health != failing:
		if s.health == healthy {
			s.since = now
		}
		s.health, s.backoff = failing, firstBackoff
	case now >= s.retryAt:
		s.backoff = min(2*s.backoff, maxBackoff)
	default: // one of many that failed together
		s.definite = s.definite || definite
		return
	}
	s.definite = definite
	s.retryAt = now + s.backoff
}

// worked notes an answer that says the bookie stores.
func (s *slot) worked() {
	s.created = true
	s.health, s.definite, s.backoff = healthy, false, 0
	s.tooLarge = nil
}

// refusals names the bookies that refused an entry for its size, with their words:
// the directory may list them as writable. Empty: none did.
func refusals(slots []slot) string {
	var text strings.Builder
	for s := range slots {
		if sl := &slots[s]; sl.tooLarge != nil {
			fmt.Fprintf(&text, "; %s refuses: %v", sl.member.Bookie, sl.tooLarge)
		}
	}
	return text.String()
}

// A verdict is what the error of one add means to the ledger.
type verdict uint8

const (
	stored    verdict = iota
	shutOut           // the ledger is no longer this writer's (A7)
	refused           // this bookie will not take it soon
	uncertain         // no answer, or a passing fault: send again or replace
)

func judge(err error) verdict {
	switch {
	case err == nil:
		return stored
	case errors.Is(err, ledger.ErrFenced), errors.Is(err, ledger.ErrClosed), errors.Is(err, ledger.ErrDeleted):
		return shutOut
	case errors.Is(err, ledger.ErrReadOnly), errors.Is(err, ledger.ErrIncarnation), errors.Is(err, ledger.ErrNoLedger),
		errors.Is(err, ledger.ErrUnknown), errors.Is(err, ledger.ErrTooLarge):
		return refused
	}
	return uncertain
}
