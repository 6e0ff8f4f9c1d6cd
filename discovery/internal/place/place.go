// Package place says which broker should own a bundle. It is pure, and every
// process that knows the same brokers comes to the same answer.
//
// Each broker has a rank for each bundle, drawn by a hash of both names; the
// live broker with the highest rank owns the bundle. So a broker that leaves
// moves only its own bundles, to brokers spread by chance, and one that comes
// takes bundles from all others and moves none between them.
package place

import (
	"cmp"
	"slices"

	"github.com/twmb/murmur3"
)

// Owner returns the broker that should own a bundle; "" when there is none.
func Owner(bundle string, brokers []string) string {
	var owner string
	var highest uint64
	for _, b := range brokers {
		if s := score(bundle, b); owner == "" || s > highest || s == highest && b < owner {
			owner, highest = b, s
		}
	}
	return owner
}

// Rank returns the brokers in the order in which they should own a bundle: when
// those before it are gone, it is the next one's.
func Rank(bundle string, brokers []string) []string {
	ranked := slices.Clone(brokers)
	slices.SortFunc(ranked, func(a, b string) int {
		return cmp.Or(cmp.Compare(score(bundle, b), score(bundle, a)), cmp.Compare(a, b))
	})
	return ranked
}

func score(bundle, broker string) uint64 {
	return murmur3.StringSum64(bundle + "\x00" + broker)
}
