package ensemble

import (
	"slices"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// shortRun is a run of acknowledged entries that one bookie of their fragment
// is not known to have.
type shortRun struct {
	member ledger.Member
	// create: the bookie answered no add of the ledger with OK while it was sent
	// these entries, so it may not know the ledger.
	create bool
	first  ledger.EntryID
	last   ledger.EntryID
}

// shortList is the below-write-quorum list (A9, M15): what was acknowledged with
// fewer than write quorum copies and is no longer held by the window. Nothing
// leaves it but by a confirmed copy; a ledger closed while it is not empty is
// marked to be verified.
type shortList struct {
	runs []shortRun
}

// maxShortRuns bounds the list. Beyond it neighbouring runs of one bookie are
// joined over their gap: copying an entry twice does no harm, forgetting it does.
const maxShortRuns = 1024

// add notes that member lacks entry e.
func (l *shortList) add(member ledger.Member, create bool, e ledger.EntryID) {
	for i := len(l.runs) - 1; i >= 0; i-- {
		r := &l.runs[i]
		if r.member != member {
			continue
		}
		if e >= r.first && e <= r.last {
			return
		}
		if e == r.last+1 {
			r.last = e
			return
		}
	}
	l.runs = append(l.runs, shortRun{member: member, create: create, first: e, last: e})
	if len(l.runs) > maxShortRuns {
		l.join()
	}
}

// confirm notes that member has the entries from first to last after all.
func (l *shortList) confirm(member ledger.Member, first, last ledger.EntryID) {
	kept := l.runs[:0:0]
	for _, r := range l.runs {
		if r.member != member || r.last < first || last < r.first {
			kept = append(kept, r)
			continue
		}
		if r.first < first {
			kept = append(kept, shortRun{member: member, create: false, first: r.first, last: first - 1})
		}
		if last < r.last {
			kept = append(kept, shortRun{member: member, create: false, first: last + 1, last: r.last})
		}
	}
	l.runs = kept
}

// join makes one run of all runs of each bookie.
func (l *shortList) join() {
	var joined []shortRun
	for _, r := range l.runs {
		i := slices.IndexFunc(joined, func(j shortRun) bool { return j.member == r.member })
		if i < 0 {
			joined = append(joined, r)
			continue
		}
		j := &joined[i]
		j.first, j.last, j.create = min(j.first, r.first), max(j.last, r.last), j.create && r.create
	}
	l.runs = joined
}

func (l *shortList) empty() bool { return len(l.runs) == 0 }
