package ensemble

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
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

// TestPlacementFits shows that no bookie is chosen whose segments are too small for
// the largest entry there may be, that one which does not say is held to take all,
// and that what is missing then names them, with the figures and the way out.
func TestPlacementFits(t *testing.T) {
	small, large, silent := int64(8388480), int64(64<<20), int64(0)
	for _, c := range []struct {
		name     string
		takes    []int64
		readOnly int // of the first so many
		body     int64
		want     int // bookies in an ensemble of three
		says     string
	}{
		{"no demand", []int64{small, small, small}, 0, 0, 3, "3 of 3 bookies writable, the ack quorum is 2: ledger"},
		{"just fits", []int64{small, small, small}, 0, small, 3, "3 of 3 bookies writable, the ack quorum is 2: ledger"},
		{"nobody", []int64{small, small, small}, 0, small + 1, 0, "0 of 3 bookies writable, the ack quorum is 2; b0, b1, b2 take entries of at most 8388480 bytes, " +
			"there may be some of 8388481: give bookies larger segments (a larger --disk-limit) or lower --max-message-bytes of the brokers: ledger"},
		{"one of each", []int64{small, large, silent}, 0, 32 << 20, 2, "2 of 3 bookies writable, the ack quorum is 2; b0 take"},
		{"a full one is not too small", []int64{small, small - 4096, large}, 1, 32 << 20, 1, "1 of 3 bookies writable, the ack quorum is 2; b1 take entries of at most 8384384 bytes"},
		{"many", []int64{small, small, small, small, small, small, small}, 0, 32 << 20, 0, "b3, b4, 2 more take"},
	} {
		p := &placer{class: ledger.Data, bodyBytes: c.body, remedy: remedyBefore, rand: draw(1)}
		for i, most := range c.takes {
			p.candidates = append(p.candidates, Candidate{Member: bookieNamed(fmt.Sprintf("b%d", i)), MaxBodyBytes: most, ReadOnly: i < c.readOnly})
		}
		f := ledger.Fragment{Ensemble: make([]ledger.Member, 3)}
		if p.fill(f.Ensemble); f.Live() != c.want {
			t.Errorf("%s: ensemble %v, want %d bookies", c.name, f.Ensemble, c.want)
		}
		for _, candidate := range p.candidates {
			if contains(f.Ensemble, candidate.Member) && candidate.MaxBodyBytes != silent && candidate.MaxBodyBytes < c.body {
				t.Errorf("%s: %s is in %v", c.name, candidate.Member.Bookie, f.Ensemble)
			}
		}
		if err := p.missing(ledger.Quorum{Write: 3, Ack: 2}); !errors.Is(err, ledger.ErrNotEnoughBookies) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
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
