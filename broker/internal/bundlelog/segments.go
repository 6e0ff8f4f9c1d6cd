package bundlelog

import (
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// Segment is a ledger of a log, and the range of topic hashes, both ends
// included, of which it is replayed.
type Segment struct {
	Ledger ledger.ID
	First  uint32
	Last   uint32
}

// Encode gives the value of a bundle's log key. The segments are in order of
// ledger ids, which is the order of the log for each hash.
func Encode(segments []Segment) []byte {
	b := metav1.BundleLog_builder{}
	for _, s := range segments {
		b.Segments = append(b.Segments, metav1.LogSegment_builder{
			Ledger: proto.Int64(int64(s.Ledger)), HashFirst: proto.Uint32(s.First), HashLast: proto.Uint32(s.Last),
		}.Build())
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(b.Build())
	if err != nil {
		panic(fmt.Sprintf("bundlelog: segments of numbers do not encode: %v", err))
	}
	return value
}

// Decode reads the value of a bundle's log key.
func Decode(value []byte) ([]Segment, error) {
	var m metav1.BundleLog
	if err := proto.Unmarshal(value, &m); err != nil {
		return nil, fmt.Errorf("bundle log record: %v: %w", err, ledger.ErrCorrupt)
	}
	var out []Segment
	for _, s := range m.GetSegments() {
		seg := Segment{Ledger: ledger.ID(s.GetLedger()), First: s.GetHashFirst(), Last: s.GetHashLast()}
		if seg.Ledger < 1 || seg.First > seg.Last || len(out) > 0 && out[len(out)-1].Ledger > seg.Ledger {
			return nil, fmt.Errorf("bundle log record with ledger %d for hashes %08x to %08x: %w",
				seg.Ledger, seg.First, seg.Last, ledger.ErrCorrupt)
		}
		out = append(out, seg)
	}
	return out, nil
}

// Inherit is the log that a child takes over when a bundle is split: the same
// ledgers, each replayed only for the hashes from first to last.
func Inherit(segments []Segment, first, last uint32) []Segment {
	var out []Segment
	for _, s := range segments {
		s.First, s.Last = max(s.First, first), min(s.Last, last)
		if s.First <= s.Last {
			out = append(out, s)
		}
	}
	return out
}

// Union is the log of two bundles that are merged. Their hashes are disjoint, so
// only the order within each counts, and ledger ids keep that.
func Union(a, b []Segment) []Segment {
	out := slices.Concat(a, b)
	slices.SortFunc(out, func(x, y Segment) int {
		return cmp.Or(cmp.Compare(x.Ledger, y.Ledger), cmp.Compare(x.First, y.First))
	})
	return out
}

// lineage is a range of hashes that all segments treat alike, and the ledgers to
// replay for it, oldest first.
type lineage struct {
	first, last uint32
	ledgers     []ledger.ID
}

// lineages cuts the range from first to last where any segment begins or ends.
// A bundle that was never merged has one; each is replayed by itself, from its
// own last whole snapshot pass.
func lineages(segments []Segment, first, last uint32) []lineage {
	starts := []uint32{first}
	for _, s := range segments {
		if s.First > first && s.First <= last {
			starts = append(starts, s.First)
		}
		if s.Last >= first && s.Last < last {
			starts = append(starts, s.Last+1)
		}
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	out := make([]lineage, len(starts))
	for i, start := range starts {
		end := last
		if i+1 < len(starts) {
			end = starts[i+1] - 1
		}
		out[i] = lineage{first: start, last: end}
		for _, s := range segments {
			if s.First <= start && end <= s.Last {
				out[i].ledgers = append(out[i].ledgers, s.Ledger)
			}
		}
	}
	return out
}

// ledgersOf returns the ledgers of segments, each once, in order.
func ledgersOf(segments []Segment) []ledger.ID {
	var out []ledger.ID
	for _, s := range segments {
		if len(out) == 0 || out[len(out)-1] != s.Ledger {
			out = append(out, s.Ledger)
		}
	}
	return out
}
