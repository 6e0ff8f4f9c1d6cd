package coldstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// crashTest runs story on a disk whose power is cut at change k, for every k,
// and check on what the disk may then hold. setup runs before, without crashes.
// Both get how far the story came: the steps it reported done.
func crashTest(t *testing.T, setup func(*node), story func(n *node, done func()) error, check func(t *testing.T, n *node, done int)) {
	t.Helper()
	for k := int64(0); ; k++ {
		mem := vfs.NewMem()
		must(t, vfs.MkdirAllSync(mem, "/data"))
		n := open(t, mem, small)
		setup(n)
		must(t, n.close())
		steps := 0
		n, err := openNode(vfs.NewFaults(mem, vfs.CrashAt(mem, k)), Options{SegmentBytes: small.SegmentBytes, BlockBytes: small.BlockBytes, Fatal: func(error) {}})
		if err == nil {
			err = errors.Join(story(n, func() { steps++ }), n.close())
		}
		if err != nil && !mem.Crashed() {
			t.Fatalf("crash at %d: %v", k, err)
		}
		for seed := range uint64(3) {
			disk := mem.Image(vfs.ImageOptions{Rand: rand.New(rand.NewPCG(seed, uint64(k))).Uint64,
				KeepUnsynced: float64(seed) * 0.45, TornSectors: true, OrderedNames: true})
			n, err := openNode(disk, small)
			if err != nil {
				t.Fatalf("crash at %d, seed %d: %v", k, seed, err)
			}
			check(t, n, steps)
			if u := n.Unreadable(); len(u) > 0 {
				t.Fatalf("crash at %d, seed %d: unreadable %v", k, seed, u)
			}
			names, err := disk.ReadDir("/data/cold")
			must(t, err)
			for _, name := range names {
				if strings.HasSuffix(name, tempSuffix) {
					t.Fatalf("crash at %d, seed %d: %s left behind", k, seed, name)
				}
			}
			n.write(t, entries(99, 0, 3, 100)) // it goes on from here
			n.wantEntries(t, entries(99, 0, 3, 100))
			must(t, n.close())
			if t.Failed() {
				t.Fatalf("crash at %d, seed %d", k, seed)
			}
		}
		if !mem.Crashed() {
			if k < 20 {
				t.Fatalf("only %d crash points", k)
			}
			return
		}
	}
}

// TestRuleM27_WrittenSurvivesACrash cuts the power at every change that writes of
// several segments make, and shows that what a Write that returned had is all
// there, and that of one that did not return an entry is there, right, or absent.
func TestRuleM27_WrittenSurvivesACrash(t *testing.T) {
	list := func(step int) []ledger.Entry { return entries(ledger.ID(step+1), 0, 29, 200) }
	crashTest(t, func(*node) {},
		func(n *node, done func()) error {
			for step := range 3 {
				if _, err := n.Write(context.Background(), 0, sequence(list(step))); err != nil {
					return err
				}
				done()
			}
			return nil
		},
		func(t *testing.T, n *node, done int) {
			for step := range 3 {
				if step < done {
					n.wantEntries(t, list(step))
					continue
				}
				for _, want := range list(step) {
					got, err := n.Read(want.Envelope.Ledger, want.Envelope.Entry)
					if errors.Is(err, ledger.ErrNoEntry) {
						continue
					}
					must(t, err)
					wantSame(t, got, want)
				}
			}
		})
}

// TestCompactionSurvivesACrash cuts the power at every change that deletion and
// compaction make, and shows that what lives is always there, and that what was
// deleted does not come back once the deletion was durable.
func TestCompactionSurvivesACrash(t *testing.T) {
	crashTest(t,
		func(n *node) {
			n.write(t, entries(1, 0, 4, 200), entries(2, 0, 9, 200))
			n.write(t, entries(3, 0, 4, 200), entries(4, 0, 9, 200))
			n.write(t, entries(5, 0, 14, 200))
		},
		func(n *node, done func()) error {
			n.delete(t, 2, 4, 5)
			if err := n.index.Flush(); err != nil {
				return err
			}
			done()
			var ids []uint32
			for _, i := range n.Segments() {
				ids = append(ids, i.ID)
			}
			_, err := n.Compact(context.Background(), ids...)
			return err
		},
		func(t *testing.T, n *node, done int) {
			n.wantEntries(t, entries(1, 0, 4, 200))
			n.wantEntries(t, entries(3, 0, 4, 200))
			if done > 0 {
				for _, id := range []ledger.ID{2, 4, 5} {
					n.wantAbsent(t, id, 0)
				}
			}
		})
}
