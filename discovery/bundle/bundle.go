// Package bundle cuts the hash space of a namespace's topics into bundles, the
// units of ownership. It is pure.
//
// Law: at any time the ranges of a namespace's bundles partition the hash space:
// each hash lies in exactly one. Cut makes such a partition; Split and Merge keep
// it.
package bundle

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// MaxBundles bounds the bundles of a namespace, so that all of them can be made
// in one transaction.
const MaxBundles = 120

// Range is a run of topic hashes, both ends included.
type Range struct{ First, Last uint32 }

// All is the whole hash space.
var All = Range{0, math.MaxUint32}

// Contains reports whether the hash lies in r.
func (r Range) Contains(hash uint32) bool { return r.First <= hash && hash <= r.Last }

func (r Range) String() string { return fmt.Sprintf("%08x-%08x", r.First, r.Last) }

// Split cuts r in two halves. ok is false when it holds one hash only.
func (r Range) Split() (low, high Range, ok bool) {
	if r.First >= r.Last {
		return Range{}, Range{}, false
	}
	middle := r.First + (r.Last-r.First)/2
	return Range{r.First, middle}, Range{middle + 1, r.Last}, true
}

// Ranges cuts the hash space into n runs, equal but for one hash, in order. It
// panics unless 1 <= n <= 2^16.
func Ranges(n int) []Range {
	if n < 1 || n > 1<<16 {
		panic(fmt.Sprintf("bundle: hash space cut into %d", n))
	}
	ranges := make([]Range, n)
	for i := range ranges {
		ranges[i] = Range{uint32(uint64(i) << 32 / uint64(n)), uint32(uint64(i+1)<<32/uint64(n) - 1)}
	}
	return ranges
}

// Bundle is a range of the topic hashes of a namespace, TENANT/NAMESPACE. It is
// comparable.
type Bundle struct {
	Namespace string
	Range     Range
}

// String is the bundle's name: tenant/namespace/00000000-07ffffff.
func (b Bundle) String() string { return b.Namespace + "/" + b.Range.String() }

// Parse reads a bundle's name.
func Parse(name string) (Bundle, error) {
	i := strings.LastIndexByte(name, '/')
	if i <= 0 || strings.Count(name[:i], "/") != 1 || name[0] == '/' || name[i-1] == '/' {
		return Bundle{}, fmt.Errorf("bundle %q: want TENANT/NAMESPACE/FIRST-LAST", name)
	}
	first, last, ok := strings.Cut(name[i+1:], "-")
	f, errFirst := parseHash(first)
	l, errLast := parseHash(last)
	if !ok || errFirst != nil || errLast != nil || f > l {
		return Bundle{}, fmt.Errorf("bundle %q: want a range of hashes of 8 hex digits, not %q", name, name[i+1:])
	}
	return Bundle{name[:i], Range{f, l}}, nil
}

func parseHash(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 16, 32)
	if err == nil && s != fmt.Sprintf("%08x", n) {
		err = strconv.ErrSyntax
	}
	return uint32(n), err
}

// Cut returns the n bundles of a new namespace, in order.
func Cut(namespace string, n int) []Bundle {
	bundles := make([]Bundle, n)
	for i, r := range Ranges(n) {
		bundles[i] = Bundle{namespace, r}
	}
	return bundles
}

// Split cuts b in two. ok is false when it holds one hash only.
func (b Bundle) Split() (low, high Bundle, ok bool) {
	l, h, ok := b.Range.Split()
	if !ok {
		return Bundle{}, Bundle{}, false
	}
	return Bundle{b.Namespace, l}, Bundle{b.Namespace, h}, true
}

// Merge joins two neighbours, the lower first. ok is false when they are none.
func Merge(low, high Bundle) (b Bundle, ok bool) {
	if low.Namespace != high.Namespace || uint64(low.Range.Last)+1 != uint64(high.Range.First) {
		return Bundle{}, false
	}
	return Bundle{low.Namespace, Range{low.Range.First, high.Range.Last}}, true
}

// Compare orders bundles by namespace and range.
func Compare(a, b Bundle) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Range.First, b.Range.First), cmp.Compare(a.Range.Last, b.Range.Last))
}

// Find returns the bundle that holds a hash, of the sorted bundles of one
// namespace.
func Find(bundles []Bundle, hash uint32) (Bundle, bool) {
	i, exact := slices.BinarySearchFunc(bundles, hash, func(b Bundle, h uint32) int { return cmp.Compare(b.Range.First, h) })
	if !exact {
		i--
	}
	if i < 0 || !bundles[i].Range.Contains(hash) {
		return Bundle{}, false
	}
	return bundles[i], true
}

// CheckPartition reports where the sorted bundles of one namespace leave a gap
// in the hash space or overlap.
func CheckPartition(bundles []Bundle) error {
	next := uint64(0)
	for _, b := range bundles {
		if b.Namespace != bundles[0].Namespace {
			return fmt.Errorf("bundle %s among those of %s", b, bundles[0].Namespace)
		}
		if uint64(b.Range.First) != next || b.Range.Last < b.Range.First {
			return fmt.Errorf("bundle %s: the hash space is covered up to %08x before it", b, next)
		}
		next = uint64(b.Range.Last) + 1
	}
	if next != 1<<32 {
		return fmt.Errorf("the hash space is covered up to %08x only", next)
	}
	return nil
}
