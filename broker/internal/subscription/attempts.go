package subscription

import "github.com/magnetar-io/magnetar/broker/internal/position"

// attempts counts for each entry how often it went out and came back, in about
// a bit for each entry and digit: slice i holds the entries whose count has the
// bit 1<<i. A consumer that leaves with a million entries costs one addition
// over sets, not a million.
type attempts struct {
	slices []position.Set
}

// of returns the count of the entry at p.
func (a *attempts) of(p position.Position) uint32 {
	n := uint32(0)
	for i := range a.slices {
		if a.slices[i].Contains(p) {
			n |= 1 << i
		}
	}
	return n
}

// raise adds one to the count of every entry in which. A count of 2^31 begins
// again at 0.
func (a *attempts) raise(which *position.Set) {
	carry := which.Clone()
	for i := 0; carry.Len() > 0 && i < 31; i++ {
		if i == len(a.slices) {
			a.slices = append(a.slices, position.Set{})
		}
		both := a.slices[i].Common(&carry)
		a.slices[i].Union(&carry)
		a.slices[i].Subtract(&both)
		carry = both
	}
}

// raiseOne adds one to the count of the entry at p.
func (a *attempts) raiseOne(p position.Position) {
	for i := 0; i < 31; i++ {
		if i == len(a.slices) {
			a.slices = append(a.slices, position.Set{})
		}
		if a.slices[i].Add(p) {
			return
		}
		a.slices[i].Remove(p)
	}
}

// forget drops the count of the entry at p.
func (a *attempts) forget(p position.Position) {
	for i := range a.slices {
		a.slices[i].Remove(p)
	}
}

// forgetThrough drops the counts of all entries up to and including p.
func (a *attempts) forgetThrough(p position.Position) {
	empty := true
	for i := range a.slices {
		if first, ok := a.slices[i].Min(); ok && first.Compare(p) <= 0 {
			a.slices[i].RemoveThrough(p)
		}
		empty = empty && a.slices[i].Len() == 0
	}
	if empty {
		a.slices = nil
	}
}

func (a *attempts) clear() { a.slices = nil }

func (a *attempts) bytes() int64 {
	sum := int64(0)
	for i := range a.slices {
		sum += a.slices[i].Bytes()
	}
	return sum
}
