package bookie

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/admission"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// TestAdmissionAnswersAsTheNodeDoes gives the same adds, fences, recovery reads and
// deletions, drawn at random, to nodes and to admission.Held, and compares every
// answer.
func TestAdmissionAnswersAsTheNodeDoes(t *testing.T) {
	n := openNode(t, testOptions(vfs.NewMem()))
	ctx := testContext(t)
	random := rand.New(rand.NewPCG(5, 0))
	same := func(what string, got, want error) {
		t.Helper()
		for _, e := range []error{ledger.ErrFenced, ledger.ErrDeleted, ledger.ErrNoLedger, ledger.ErrUnknown} {
			if errors.Is(got, e) != errors.Is(want, e) {
				t.Fatalf("%s: admission says %v, the node %v", what, got, want)
			}
		}
		if (got == nil) != (want == nil) {
			t.Fatalf("%s: admission says %v, the node %v", what, got, want)
		}
	}
	for id := ledger.ID(1); id <= 60; id++ {
		var held admission.Held
		for range 40 {
			switch random.IntN(20) {
			default:
				a := entryOf(id, ledger.EntryID(random.IntN(4)), 10)
				a.Create, a.RecoveryTerm = random.IntN(2) == 0, max(0, random.Int64N(6)-2)
				var err error
				held, err = held.Add(&a)
				same("add", err, add(t, n, a))
			case 0, 1:
				term := 1 + random.Int64N(3)
				next, reply, err := held.Fence(term)
				held = next
				want, wantErr := n.Fence(ctx, id, term)
				if same("fence", err, wantErr); reply != want {
					t.Fatalf("fence: admission says %+v, the node %+v", reply, want)
				}
			case 2, 3, 4:
				r := ledger.ReadRequest{Ledger: id, First: ledger.EntryID(random.IntN(5)), FenceTerm: 1 + random.Int64N(3)}
				r.Last = r.First + 9
				next, reply, err := held.Read(&r)
				held = next
				want, wantErr := n.Read(ctx, r)
				same("read", err, wantErr)
				for i := range reply.Entries {
					if i >= len(want.Entries) || reply.Entries[i].Status != want.Entries[i].Status {
						t.Fatalf("read from %d: admission says %v, the node %v", r.First, reply.Entries, want.Entries)
					}
				}
			case 5:
				if random.IntN(4) == 0 {
					held = held.Delete()
					same("delete", nil, n.Delete(ctx, id))
				}
			}
		}
	}
}
