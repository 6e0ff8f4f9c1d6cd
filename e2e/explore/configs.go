package explore

import "github.com/magnetar-io/magnetar/bookie/ledger"

var (
	q22 = ledger.Quorum{Write: 2, Ack: 2}
	q32 = ledger.Quorum{Write: 3, Ack: 2}
	q33 = ledger.Quorum{Write: 3, Ack: 3}
)

// Small are worlds that are seen whole in seconds.
func Small() []Config {
	return []Config{
		{Name: "2/2: writer and recoverer", Quorum: q22, Entries: 1, Recoverers: 1},
		{Name: "2/2: the writer alone changes bookies", Quorum: q22, Spare: 1, Entries: 1, Losses: 1, Ticks: 1},
		{Name: "3/2: born with a vacant slot", Quorum: q32, Vacant: 1, Entries: 1, Losses: 1},
	}
}

// limit is how many states of a large world are seen.
const limit = 120_000

// Large are worlds of which some are too large to be seen whole.
func Large() []Config {
	all := []Config{
		{Name: "3/2: writer and recoverer", Quorum: q32, Entries: 1, Recoverers: 1, Limit: 800_000},
		{Name: "2/2: a request or an answer is lost", Quorum: q22, Entries: 1, Recoverers: 1, Losses: 1},
		{Name: "3/3: writer and recoverer", Quorum: q33, Entries: 1, Recoverers: 1, Limit: 1_600_000},
		{Name: "2/2: one of the bookies replaced by an empty one", Quorum: q22, Spare: 1, Entries: 1, Recoverers: 1, Wipes: 1},
		{Name: "2/2: the ledger is deleted meanwhile", Quorum: q22, Entries: 1, Recoverers: 1, Deletes: true},
		{Name: "2/2: two entries, the writer seals", Quorum: q22, Entries: 2, Recoverers: 1, Seals: true},
		{Name: "2/2: two entries, the writer closes, answers lost", Quorum: q22, Entries: 2, Recoverers: 1, Closes: true, Losses: 1},
		{Name: "2/2: bookies change under three entries in flight", Quorum: q22, Spare: 1, Entries: 3, Losses: 1, Ticks: 1},
		{Name: "2/2: recovery while bookies change", Quorum: q22, Spare: 1, Entries: 2, Recoverers: 1, Losses: 1, Ticks: 1},
		{Name: "3/2: recovery while bookies change, one lost", Quorum: q32, Spare: 1, Entries: 2, Recoverers: 1, Losses: 1, Ticks: 1},
		{Name: "3/3: a bookie goes away and another comes in", Quorum: q33, Spare: 1, Entries: 1, Recoverers: 1, Downs: 1, Ticks: 1},
		{Name: "3/2: a bookie goes away, its slot stays vacant", Quorum: q32, Entries: 2, Recoverers: 1, Downs: 1, Ticks: 2},
		{Name: "3/2: a vacant slot is filled, then recovery", Quorum: q32, Vacant: 1, Entries: 2, Recoverers: 1, Ticks: 1},
		{Name: "2/2: two recoverers", Quorum: q22, Entries: 1, Recoverers: 2, Limit: 2 * limit},
		{Name: "2/2: a recoverer dies, another goes on", Quorum: q22, Spare: 1, Entries: 2, Recoverers: 2, Deaths: 1},
		{Name: "3/2: a recoverer dies, another goes on", Quorum: q32, Entries: 2, Recoverers: 2, Deaths: 1},
		{Name: "2/2: recoverers change bookies, one dies", Quorum: q22, Spare: 1, Entries: 1, Recoverers: 2, Deaths: 1, Downs: 1},
		{Name: "3/2: a bookie cannot say, recovery tries again", Quorum: q32, Entries: 1, Recoverers: 1, Attempts: 2, Unknowns: 1, Limit: 2_000_000},
		{Name: "3/2: a recovery waits no longer, and tries again", Quorum: q32, Entries: 1, Recoverers: 1, Attempts: 2, Stalls: 1},
		{Name: "3/2: one replaced by an empty one, two recoverers", Quorum: q32, Entries: 1, Recoverers: 2, Wipes: 1},
		{Name: "2/2: deleted while two recover and one dies", Quorum: q22, Entries: 1, Recoverers: 2, Deletes: true, Deaths: 1},
	}
	for i := range all {
		if all[i].Limit == 0 {
			all[i].Limit = limit
		}
	}
	return all
}

// Flawed are worlds in which one rule is broken, each small and still large
// enough that something is lost.
func Flawed() []Config {
	return []Config{
		{Name: "R4 broken", Flaw: ForgetsFence, Quorum: q22, Entries: 1, Recoverers: 1, Crashes: 1},
		{Name: "R6 broken", Flaw: ReadsDoNotFence, Quorum: q32, Entries: 1, Stored: 1, Recoverers: 1},
		{Name: "R7 broken", Flaw: FailureIsAbsence, Quorum: q22, Entries: 1, Recoverers: 1, Losses: 1},
		{Name: "E1 broken", Flaw: AcksWhileChanging, Quorum: q22, Spare: 1, Entries: 1, Losses: 1, Ticks: 1},
		{Name: "A3 broken", Flaw: AnyGeneration, Quorum: q22, Spare: 1, Entries: 1, Losses: 1, Ticks: 1},
		{Name: "M12 broken", Flaw: VacantTwice, Quorum: q32, Vacant: 1, Entries: 1, Stored: 2, Recoverers: 1},
		{Name: "B5 broken", Flaw: AnyIncarnation, Quorum: q22, Entries: 1, Stored: 2, Recoverers: 1, Wipes: 1},
		{Name: "M14 broken", Flaw: ForgetsDeletion, Quorum: q22, Entries: 1, Deletes: true, Crashes: 2},
	}
}
