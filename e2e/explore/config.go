package explore

import (
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Config is a small world: who takes part, and how often each kind of misfortune
// may happen. Within that, everything may happen in any order.
type Config struct {
	Name    string
	Quorum  ledger.Quorum
	Spare   int // bookies beyond the write quorum
	Vacant  int // slots the ledger is born without
	Entries int // the writer appends up to so many
	Stored  int // bookies that have stored and answered entry 0 when the search begins

	Recoverers int // processes that may recover the ledger
	Attempts   int // recoveries begun in all; 0: one for each recoverer
	Seals      bool
	Closes     bool
	Deletes    bool // the ledger may be deleted at any time

	Losses   int // requests or answers lost, late requests, lost answers of the store
	Ticks    int // times that every timeout of the writer passes
	Downs    int // bookies that go away, for good or for a while
	Wipes    int // bookies that come back with a new incarnation, holding nothing
	Crashes  int // bookies that start again with what they had on disk
	Deaths   int // recoverers that die
	Unknowns int // recovery reads answered "cannot say"
	Stalls   int // recoverers that wait no longer

	Flaw  Flaw // a rule that is broken on purpose
	Limit int  // distinct states after which the search stops; 0: none
}

// A Flaw is a rule switched off, in the world around the machines: they themselves
// are never changed.
type Flaw string

const (
	ForgetsFence      Flaw = "R4: a bookie that starts again has forgotten its fence"
	ReadsDoNotFence   Flaw = "R6: recovery reads reach the bookies without their fence"
	FailureIsAbsence  Flaw = "R7: a failed read is given to the recovery as a surely absent entry"
	AcksWhileChanging Flaw = "E1: the writer is not told that its change is being written"
	AnyGeneration     Flaw = "A3: answers of a replaced bookie are given to the writer as its successor's"
	VacantTwice       Flaw = "M12: a recovery is told that a vacant slot is fenced and empty, which it counts already"
	AnyIncarnation    Flaw = "B5: a bookie answers requests for another incarnation"
	ForgetsDeletion   Flaw = "M14: a bookie that starts again has forgotten its tombstone"
)
