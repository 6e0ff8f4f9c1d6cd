package place

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/discovery/bundle"
)

func names(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return out
}

// The order in which brokers are listed does not matter, and the owner is the
// first of the rank.
func TestOwnerIsTheFirstInRank(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		brokers := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9.-]{1,12}`), 1, 12, rapid.ID[string]).Draw(t, "brokers")
		b := rapid.String().Draw(t, "bundle")
		rank := Rank(b, brokers)
		if got := Owner(b, rapid.Permutation(brokers).Draw(t, "order")); got != rank[0] {
			t.Fatalf("owner %s, rank %v", got, rank)
		}
		for len(rank) > 0 { // the next in rank succeeds
			if got := Owner(b, rank); got != rank[0] {
				t.Fatalf("owner %s of %v", got, rank)
			}
			rank = rank[1:]
		}
	})
	if got := Owner("b", nil); got != "" {
		t.Errorf("owner %q of no brokers", got)
	}
}

// A broker that leaves moves only what was its own; one that comes takes and
// moves nothing between the others.
func TestChangesMoveLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		brokers := names("broker", rapid.IntRange(2, 12).Draw(t, "brokers"))
		changed := rapid.SampledFrom(brokers).Draw(t, "changed")
		without := slices.DeleteFunc(slices.Clone(brokers), func(b string) bool { return b == changed })
		for _, b := range bundle.Cut("t/n", 64) {
			with, less := Owner(b.String(), brokers), Owner(b.String(), without)
			if with != less && with != changed {
				t.Fatalf("bundle %v moves from %s to %s when %s comes or leaves", b, less, with, changed)
			}
		}
	})
}

// Bundles spread evenly over brokers, and those of a broker that leaves over the
// rest.
func TestSpreadIsEven(t *testing.T) {
	for _, n := range []int{2, 3, 5, 10} {
		brokers := names("broker", n)
		count, heirs := make(map[string]int), make(map[string]int)
		total := 0
		for ns := range 100 {
			for _, b := range bundle.Cut(fmt.Sprintf("tenant/ns-%d", ns), 32) {
				total++
				owner := Owner(b.String(), brokers)
				count[owner]++
				if owner == brokers[0] {
					heirs[Owner(b.String(), brokers[1:])]++
				}
			}
		}
		check := func(what string, got map[string]int, total, among int) {
			even := float64(total) / float64(among)
			for b, c := range got {
				if float64(c) < 0.75*even || float64(c) > 1.25*even {
					t.Errorf("%d brokers: %s has %d %s, even would be %.0f", n, b, c, what, even)
				}
			}
			if len(got) != among {
				t.Errorf("%d brokers: only %d have %s", n, len(got), what)
			}
		}
		check("bundles", count, total, n)
		if n <= 5 { // beyond, a broker has too few for chance to even out
			check("inherited bundles", heirs, count[brokers[0]], n-1)
		}
	}
}
