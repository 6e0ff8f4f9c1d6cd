package bundle

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// However a namespace is cut, split and merged, its bundles partition the hash
// space: every hash lies in exactly one bundle, which Find finds.
func TestRuleM24_RangesAlwaysPartitionTheHashSpace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bundles := Cut("t/n", rapid.IntRange(1, MaxBundles).Draw(t, "bundles"))
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, len(bundles)-1).Draw(t, "at")
			if rapid.Bool().Draw(t, "split") {
				if low, high, ok := bundles[i].Split(); ok {
					bundles = slices.Replace(bundles, i, i+1, low, high)
				}
			} else if i > 0 {
				b, ok := Merge(bundles[i-1], bundles[i])
				if !ok {
					t.Fatalf("neighbours %v and %v do not merge", bundles[i-1], bundles[i])
				}
				bundles = slices.Replace(bundles, i-1, i+1, b)
			}
		}
		if err := CheckPartition(bundles); err != nil {
			t.Fatal(err)
		}
		hash := rapid.Uint32().Draw(t, "hash")
		found, ok := Find(bundles, hash)
		if !ok {
			t.Fatalf("hash %08x in no bundle", hash)
		}
		n := 0
		for _, b := range bundles {
			if b.Range.Contains(hash) {
				n++
				if b != found {
					t.Fatalf("hash %08x lies in %v, found %v", hash, b, found)
				}
			}
		}
		if n != 1 {
			t.Fatalf("hash %08x lies in %d bundles", hash, n)
		}
	})
}

// A gap, an overlap, a missing end or a stranger is noticed.
func TestCheckPartitionRefuses(t *testing.T) {
	whole := Cut("t/n", 4)
	for name, bundles := range map[string][]Bundle{
		"nothing":      nil,
		"gap":          slices.Delete(slices.Clone(whole), 1, 2),
		"end":          whole[:3],
		"start":        whole[1:],
		"overlap":      slices.Insert(slices.Clone(whole), 1, whole[0]),
		"wrong order":  {whole[1], whole[0], whole[2], whole[3]},
		"other's":      {whole[0], {"t/m", whole[1].Range}, whole[2], whole[3]},
		"inside out":   {{"t/n", Range{0, 5}}, {"t/n", Range{6, 3}}, {"t/n", Range{4, All.Last}}},
		"parent stays": {{"t/n", All}, whole[1]},
	} {
		if CheckPartition(bundles) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Ranges are equal but for one hash.
func TestRangesAreEven(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 32, 120, 1 << 16} {
		ranges := Ranges(n)
		for _, r := range ranges {
			size, even := uint64(r.Last)-uint64(r.First)+1, uint64(1<<32)/uint64(n)
			if size < even || size > even+1 {
				t.Fatalf("%d ranges: %v has %d hashes, even would be %d", n, r, size, even)
			}
		}
	}
}

// A bundle's name says what it is, and nothing else is a name.
func TestNames(t *testing.T) {
	for _, b := range Cut("tenant/name-space", 32) {
		got, err := Parse(b.String())
		if err != nil || got != b {
			t.Fatalf("%v parsed as %v, %v", b, got, err)
		}
	}
	if got := Cut("public/default", 32)[0].String(); got != "public/default/00000000-07ffffff" {
		t.Errorf("first of 32 bundles is %s", got)
	}
	for _, name := range []string{
		"", "/", "t/n", "t/n/", "t/n/0-1", "t/n/00000000-0000000g", "t/n/00000001-00000000", "t/n/00000000", "t/00000000-00000001",
		"a/t/n/00000000-00000001", "/n/00000000-00000001", "t//00000000-00000001", "t/n/0000000A-0000000B", "t/n/000000000-00000001", "t/n/+0000000-00000001",
	} {
		if b, err := Parse(name); err == nil {
			t.Errorf("%q parsed as %v", name, b)
		}
	}
}

// FuzzParse shows that what Parse accepts prints as it was written.
func FuzzParse(f *testing.F) {
	f.Add("public/default/00000000-07ffffff")
	f.Add("t/n/-")
	f.Fuzz(func(t *testing.T, name string) {
		if b, err := Parse(name); err == nil && b.String() != name {
			t.Fatalf("%q printed as %q", name, b)
		}
	})
}
