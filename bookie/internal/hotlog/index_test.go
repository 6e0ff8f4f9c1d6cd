package hotlog

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// The index agrees with a map, whatever the order of adds, repeats and drops, and counts its
// memory right.
func TestIndexAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newIndex()
		model := map[key]Place{}
		segment, offset := uint32(1), uint32(blockBytes)
		steps := rapid.IntRange(1, 120).Draw(t, "steps")
		for range steps {
			switch op := rapid.IntRange(0, 9).Draw(t, "op"); op {
			case 0:
				segment, offset = segment+1, blockBytes
			case 1:
				gone := uint32(rapid.IntRange(1, int(segment)).Draw(t, "segment"))
				for id := range ledger.ID(3) {
					x.drop(id, func(r *run) bool { return r.segment == gone })
				}
				for k, p := range model {
					if p.Segment == gone {
						delete(model, k)
					}
				}
			default:
				k := key{ledger.ID(rapid.IntRange(0, 2).Draw(t, "ledger")), ledger.EntryID(rapid.IntRange(0, 12).Draw(t, "entry"))}
				n := rapid.IntRange(1, 20).Draw(t, "run")
				if op > 6 {
					n = 1
				}
				for range n {
					p := Place{segment, offset, 100}
					offset += 104
					old, replaced, _ := x.put(k.id, k.e, p)
					if was, ok := model[k]; ok != replaced || ok && was != old {
						t.Fatalf("put %v: replaced %v %v, want %v %v", k, old, replaced, was, ok)
					}
					model[k] = p
					if op == 6 {
						k.e--
						if k.e < 0 {
							break
						}
					} else {
						k.e++
					}
				}
			}
		}
		var bytes int64
		for id := range ledger.ID(3) {
			var want []ledger.EntryRange
			last := ledger.NoEntry
			for e := range ledger.EntryID(64) {
				p, ok := x.find(id, e)
				if was, known := model[key{id, e}]; known != ok || was != p {
					t.Fatalf("entry %d of ledger %d at %v, %v; want %v, %v", e, id, p, ok, was, known)
				}
				if !ok {
					continue
				}
				last = e
				if n := len(want); n > 0 && want[n-1].Last == e-1 {
					want[n-1].Last = e
				} else {
					want = append(want, ledger.EntryRange{First: e, Last: e})
				}
			}
			if got := x.ranges(id); !slices.Equal(got, want) {
				t.Fatalf("ranges of ledger %d: %v, want %v", id, got, want)
			}
			if got, ok := x.last(id); got != last || ok != (last >= 0) {
				t.Fatalf("last entry of ledger %d: %d, %v, want %d", id, got, ok, last)
			}
			if b := x.ledgers[id]; b != nil {
				bytes += bookBytes
				for i, r := range b.runs {
					bytes += runBytes + int64(cap(r.slots))*slotBytes
					if len(r.slots) == 0 || i > 0 && b.runs[i-1].end() > r.first {
						t.Fatalf("runs of ledger %d: %v", id, b.runs)
					}
				}
			}
		}
		if x.bytes != bytes {
			t.Fatalf("index counts %d bytes, has %d", x.bytes, bytes)
		}
	})
}

// An entry costs about ten bytes when a writer appends in order, also when it
// comes back to front.
func TestIndexMemory(t *testing.T) {
	const entries = 10_000
	for name, at := range map[string]func(int) int{
		"in order": func(i int) int { return i },
		"backward": func(i int) int { return entries - 1 - i },
	} {
		x := newIndex()
		for i := range entries {
			x.put(1, ledger.EntryID(at(i)), Place{uint32(1 + i/2500), uint32(i), 50})
		}
		if per := float64(x.bytes) / entries; per > 12 {
			t.Errorf("%s: %.1f bytes an entry", name, per)
		}
		if got := x.ranges(1); len(got) != 1 || got[0].Last != entries-1 {
			t.Errorf("%s: ranges %v", name, got)
		}
	}
}
