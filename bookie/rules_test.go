package bookie

import (
	"errors"
	"slices"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// TestRuleC3_LedgerIsLearntFromItsFirstAdds shows that nobody has to announce a ledger:
// the first add that says CREATE does, and one that does not is refused and leaves
// nothing behind.
func TestRuleC3_LedgerIsLearntFromItsFirstAdds(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	late := entryOf(7, 3, 10)
	for range 2 {
		if err := add(t, n, late); !errors.Is(err, ledger.ErrNoLedger) {
			t.Errorf("add without CREATE to a ledger never seen: %v, want ErrNoLedger", err)
		}
		if _, err := n.Info(testContext(t), 7); !errors.Is(err, ledger.ErrNoLedger) {
			t.Errorf("info of a ledger never seen: %v, want ErrNoLedger", err)
		}
	}
	if got := statuses(t, n, ledger.ReadRequest{Ledger: 7, First: 3, Last: 3}); got != "A" {
		t.Errorf("an entry that was refused reads %s, want A", got)
	}
	first := late
	first.Create = true
	if err := add(t, n, first); err != nil {
		t.Fatal(err)
	}
	if err := add(t, n, entryOf(7, 4, 10)); err != nil {
		t.Errorf("add without CREATE once the ledger is known: %v", err)
	}
	ids, _, err := n.List(testContext(t), 0, 0)
	if err != nil || !slices.Equal(ids, []ledger.ID{7}) {
		t.Errorf("ledgers %v, %v; want 7 alone", ids, err)
	}
}

// TestRuleB3_FenceOutlivesTheProcess shows that a fence is known after clean stops and
// power cuts, also that of a ledger without entries: its writer may be paused for
// longer than any of it takes.
func TestRuleB3_FenceOutlivesTheProcess(t *testing.T) {
	disk := vfs.NewMem()
	n := openNode(t, testOptions(disk))
	fill(t, n, 5, 0, 1, 10)
	terms := map[ledger.ID]int64{5: 2, 900: 4} // written, and never seen
	for id, term := range terms {
		if _, err := n.Fence(testContext(t), id, term); err != nil {
			t.Fatal(err)
		}
	}
	for life := range 4 {
		if life%2 == 0 {
			disk = crash(t, n, disk, vfs.ImageOptions{})
		} else if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		n = openNode(t, testOptions(disk))
		for id, term := range terms {
			a := entryOf(id, 2, 10)
			a.Create = true
			if err := add(t, n, a); !errors.Is(err, ledger.ErrFenced) {
				t.Errorf("life %d: add to ledger %d: %v, want ErrFenced", life, id, err)
			}
			if _, err := n.Fence(testContext(t), id, term-1); !errors.Is(err, ledger.ErrFenced) {
				t.Errorf("life %d: lower fence of ledger %d: %v, want ErrFenced", life, id, err)
			}
		}
	}
}

// TestRuleB6_DoubtfulLedgersAreInLimbo shows what a bookie says of a ledger of which it
// may have lost something: what is there is served, absences are unknown, the writer is
// refused without being told that it is fenced, and only recovery may add.
func TestRuleB6_DoubtfulLedgersAreInLimbo(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	fill(t, n, 5, 0, 1, 10)
	fill(t, n, 6, 0, 1, 10)
	g := n.table.Lock(5)
	g.SetLimbo()
	g.Unlock()
	if got := statuses(t, n, ledger.ReadRequest{Ledger: 5, First: 0, Last: 3}); got != "FFU" {
		t.Errorf("the doubtful ledger reads %s, want FFU", got)
	}
	next := entryOf(5, 2, 10)
	next.Create = true
	if err := add(t, n, next); !errors.Is(err, ledger.ErrUnknown) || errors.Is(err, ledger.ErrFenced) {
		t.Errorf("add to the doubtful ledger: %v, want ErrUnknown", err)
	}
	reply, err := n.Fence(testContext(t), 5, 2)
	if !errors.Is(err, ledger.ErrUnknown) || reply.LastEntry != 1 {
		t.Errorf("fence of the doubtful ledger: %+v, %v; want entry 1 and ErrUnknown", reply, err)
	}
	next.RecoveryTerm = 2
	if err := add(t, n, next); err != nil {
		t.Errorf("recovery add to the doubtful ledger: %v", err)
	}
	if info, err := n.Info(testContext(t), 5); err != nil || !info.Limbo {
		t.Errorf("info of the doubtful ledger: %+v, %v", info, err)
	}
	if got := statuses(t, n, ledger.ReadRequest{Ledger: 6, First: 1, Last: 2}); got != "FA" {
		t.Errorf("the other ledger reads %s, want FA", got)
	}
}

// TestRuleB8_DeletedLedgerIsNotMadeAgain shows that an add of a zombie that arrives
// after its ledger was deleted is refused, CREATE or recovery, in the same life and in
// later ones, and also where the deletion came before anything of the ledger.
func TestRuleB8_DeletedLedgerIsNotMadeAgain(t *testing.T) {
	disk := vfs.NewMem()
	n := openNode(t, testOptions(disk))
	fill(t, n, 5, 0, 1, 10)
	gone := []ledger.ID{5, 1 << 40} // written, and never seen
	for _, id := range gone {
		if err := n.Delete(testContext(t), id); err != nil {
			t.Fatal(err)
		}
	}
	for life := range 3 {
		for _, id := range gone {
			a := entryOf(id, 2, 10)
			a.Create = true
			for _, term := range []int64{0, 9} {
				a.RecoveryTerm = term
				if err := add(t, n, a); !errors.Is(err, ledger.ErrDeleted) {
					t.Errorf("life %d: add to ledger %d at term %d: %v, want ErrDeleted", life, id, term, err)
				}
			}
			if _, err := n.Fence(testContext(t), id, 9); !errors.Is(err, ledger.ErrDeleted) {
				t.Errorf("life %d: fence of ledger %d: %v, want ErrDeleted", life, id, err)
			}
		}
		if ids, _, err := n.List(testContext(t), 0, 0); err != nil || len(ids) > 0 {
			t.Errorf("life %d: ledgers %v, %v; want none", life, ids, err)
		}
		disk = crash(t, n, disk, vfs.ImageOptions{})
		n = openNode(t, testOptions(disk))
	}
}
