package ledger

import (
	"errors"
	"fmt"
)

// CheckTransition reports why a record must not change from old to next: what
// was fixed at creation stays, states move forward, terms rise as they must, and
// the keys of fragments that hold entries are never touched. Every writer of
// records checks its proposal here before it sends it.
func CheckTransition(old, next *Metadata) error {
	if err := next.Validate(); err != nil {
		return err
	}
	fault := func(format string, args ...any) error {
		return fmt.Errorf("ledger %d, %v to %v: %s", old.ID, old.State, next.State, fmt.Sprintf(format, args...))
	}
	if old.ID != next.ID || old.Quorum != next.Quorum || old.Class != next.Class || old.Parent != next.Parent ||
		old.Session != next.Session || old.Nonce != next.Nonce || !old.Created.Equal(next.Created) {
		return fault("what was fixed at creation differs")
	}
	if next.State < old.State {
		return fault("states only move forward")
	}
	if next.State == Deleted {
		if old.State == Deleted && len(next.Owed) > len(old.Owed) {
			return fault("a tombstone is owed by more bookies than before")
		}
		return nil
	}
	if err := checkTerm(old, next); err != nil {
		return fault("%v", err)
	}
	if err := checkFragments(old, next); err != nil {
		return fault("%v", err)
	}
	if old.State == Closed && (old.LastEntry != next.LastEntry || old.Length != next.Length) {
		return fault("last entry and length of a closed ledger are final")
	}
	return nil
}

func checkTerm(old, next *Metadata) error {
	switch {
	case next.State == InRecovery && old.State == Open && next.Term != old.Term+1:
		return fmt.Errorf("a recovery raises term %d by one, not to %d", old.Term, next.Term)
	case next.State == InRecovery && (next.Term < old.Term || next.Term > old.Term+1):
		return fmt.Errorf("a recovery raises term %d by at most one, not to %d", old.Term, next.Term)
	case next.State != InRecovery && next.Term != old.Term:
		return fmt.Errorf("term %d may not become %d", old.Term, next.Term)
	}
	return nil
}

// checkFragments allows: a writer to replace the last fragment or to append one;
// a recovery to do so any number of times in its closing write; anyone to swap
// members in place, never to move or remove a key.
func checkFragments(old, next *Metadata) error {
	grown := len(next.Fragments) - len(old.Fragments)
	if grown < 0 {
		return errors.New("fragments do not go away")
	}
	for i := range old.Fragments {
		if old.Fragments[i].First != next.Fragments[i].First {
			return fmt.Errorf("the key of fragment %d moved from %d to %d", i, old.Fragments[i].First, next.Fragments[i].First)
		}
	}
	switch {
	case grown == 0:
	case old.State == Open && next.State == Open:
		if grown > 1 {
			return fmt.Errorf("%d new fragments in one change", grown)
		}
	case old.State == InRecovery && next.State == Closed:
	default:
		return errors.New("this change may not add fragments")
	}
	return nil
}
