package ledger

import "slices"

// The write set of an entry is every slot of its fragment: ensemble size and
// write quorum are the same, so there is no striping, no modulo of entry ids,
// and one coverage for entries and ensembles.

// Covered reports whether any ack quorum of an ensemble must contain one of
// heard bookies, given that so many slots are vacant. A vacant slot confirms
// nothing, so it counts as heard: with v vacant slots an acknowledged entry has
// Ack copies among Write−v bookies, and Write−v−Ack+1 of those meet every such
// set.
func (q Quorum) Covered(heard, vacant int) bool { return heard+vacant >= q.Coverage() }

// Live counts the slots with a bookie.
func (f *Fragment) Live() int {
	n := 0
	for _, m := range f.Ensemble {
		if !m.Vacant() {
			n++
		}
	}
	return n
}

// Vacant counts the slots without a bookie.
func (f *Fragment) Vacant() int { return len(f.Ensemble) - f.Live() }

// Slot returns the slot of a bookie, whatever its incarnation; -1: none.
func (f *Fragment) Slot(bookie string) int {
	for i, m := range f.Ensemble {
		if !m.Vacant() && m.Bookie == bookie {
			return i
		}
	}
	return -1
}

// End returns the entry after the last of fragment i: the next fragment's
// first, or end for the last fragment.
func (m *Metadata) End(i int, end EntryID) EntryID {
	if i+1 < len(m.Fragments) {
		return min(m.Fragments[i+1].First, end)
	}
	return end
}

// Members lists every bookie named by the fragments, each incarnation once, in
// order of appearance.
func (m *Metadata) Members() []Member {
	var all []Member
	seen := make(map[Member]bool)
	for _, f := range m.Fragments {
		for _, b := range f.Ensemble {
			if !b.Vacant() && !seen[b] {
				seen[b] = true
				all = append(all, b)
			}
		}
	}
	return all
}

// SameFragment reports whether two fragments start at the same entry and name
// the same bookies.
func SameFragment(a, b *Fragment) bool {
	return a.First == b.First && slices.Equal(a.Ensemble, b.Ensemble)
}
