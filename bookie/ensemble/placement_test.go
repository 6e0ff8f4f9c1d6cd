package ensemble

import (
	"math/rand/v2"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

func draw(seed uint64) func() uint64 { return rand.New(rand.NewPCG(seed, 1)).Uint64 }

// Racks are spread as far as they reach, failed bookies come last, each bookie is
// taken once, and over many ledgers every bookie has its share.
func TestPlacementSpreads(t *testing.T) {
	candidates := []Candidate{
		{Member: bookieNamed("a1"), Rack: "a"}, {Member: bookieNamed("a2"), Rack: "a"}, {Member: bookieNamed("a3"), Rack: "a"},
		{Member: bookieNamed("b1"), Rack: "b"}, {Member: bookieNamed("c1"), Rack: "c"}, {Member: bookieNamed("c2"), Rack: "c"},
	}
	share := make(map[string]int)
	for seed := range uint64(600) {
		p := &placer{candidates: candidates, rand: draw(seed)}
		ensemble := make([]ledger.Member, 3)
		p.fill(ensemble)
		racks := make(map[byte]bool)
		for _, m := range ensemble {
			racks[m.Bookie[0]] = true
			share[m.Bookie]++
		}
		if len(racks) != 3 {
			t.Fatalf("ensemble %v does not span three racks", ensemble)
		}
	}
	for _, c := range candidates {
		if share[c.Member.Bookie] < 100 {
			t.Fatalf("shares of 600 ledgers: %v", share)
		}
	}
	p := &placer{candidates: candidates, rand: draw(1), avoid: func(m ledger.Member) bool { return m.Bookie == "b1" }}
	ensemble := make([]ledger.Member, 3)
	if p.fill(ensemble); named(ensemble, "b1") {
		t.Fatalf("a bookie that failed lately is taken although others can: %v", ensemble)
	}
	wide := make([]ledger.Member, 8)
	p.fill(wide)
	if f := (ledger.Fragment{Ensemble: wide}); f.Live() != 6 {
		t.Fatalf("%d of six bookies in %v", f.Live(), wide)
	}
}

// TestRuleM28_ReadOnlyTakesControlOnly shows that a read-only bookie is never
// given data, and is given control ledgers when no writable one is left.
func TestRuleM28_ReadOnlyTakesControlOnly(t *testing.T) {
	candidates := []Candidate{
		{Member: bookieNamed("full"), ReadOnly: true}, {Member: bookieNamed("a")}, {Member: bookieNamed("b")},
	}
	for seed := range uint64(50) {
		data := &placer{candidates: candidates, class: ledger.Data, rand: draw(seed)}
		ensemble := make([]ledger.Member, 3)
		if data.fill(ensemble); named(ensemble, "full") || data.writable() != 2 {
			t.Fatalf("data on a read-only bookie: %v", ensemble)
		}
		control := &placer{candidates: candidates, class: ledger.Control, rand: draw(seed)}
		two, three := make([]ledger.Member, 2), make([]ledger.Member, 3)
		control.fill(two)
		control.fill(three)
		if named(two, "full") || !named(three, "full") {
			t.Fatalf("control ledgers on %v and %v", two, three)
		}
	}
}

// The order of reading starts at a slot given by the ledger, leaves vacant slots
// out and puts bookies that failed last.
func TestReadOrder(t *testing.T) {
	f := ledger.Fragment{Ensemble: bookies("a", "b", "-", "d")}
	slots := func(id ledger.ID, failed string) []int {
		return readOrder(id, &f, func(m ledger.Member) bool { return m.Bookie == failed })
	}
	for _, c := range []struct {
		id     ledger.ID
		failed string
		want   [3]int
	}{{4, "", [3]int{0, 1, 3}}, {5, "", [3]int{1, 3, 0}}, {6, "", [3]int{3, 0, 1}}, {5, "b", [3]int{3, 0, 1}}} {
		if got := slots(c.id, c.failed); [3]int(got) != c.want {
			t.Errorf("ledger %d, %q failed: %v, want %v", c.id, c.failed, got, c.want)
		}
	}
}
