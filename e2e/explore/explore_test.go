package explore

import (
	"os"
	"runtime/debug"
	"strings"
	"testing"
)

// TestMain lets the heap grow: a search makes little but garbage.
func TestMain(m *testing.M) {
	debug.SetGCPercent(800)
	os.Exit(m.Run())
}

// TestSmallWorldsHold sees small worlds whole: no order of events breaks an
// invariant.
func TestSmallWorldsHold(t *testing.T) {
	for _, c := range Small() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			r := Explore(c)
			t.Log(r)
			if r.Fault != "" || !r.Exhaustive {
				t.Errorf("broken: %q, seen whole: %v", r.Fault, r.Exhaustive)
			}
		})
	}
}

// TestBrokenRulesAreFound breaks one rule at a time in the world around the machines
// and shows that data is lost for it: the rules are needed, and the search can fail.
func TestBrokenRulesAreFound(t *testing.T) {
	for _, c := range Flawed() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			r := Explore(c)
			if r.Fault == "" {
				t.Fatalf("%s, and nothing was lost: %s", c.Flaw, r)
			}
			t.Logf("%s\n%s", c.Flaw, r)
			if last := r.Trace[len(r.Trace)-1]; !strings.HasSuffix(last, r.Fault) {
				t.Errorf("the trace ends in %q, the fault found is %q", last, r.Fault)
			}
		})
	}
}

// TestSameSearchTwice shows that a search is the same each time, walks included.
func TestSameSearchTwice(t *testing.T) {
	c := Config{Name: "walks", Quorum: q22, Spare: 1, Entries: 2, Recoverers: 1, Losses: 1, Ticks: 1, Limit: 3000}
	a, b := Explore(c), Explore(c)
	if a.Took, b.Took = 0, 0; a.String() != b.String() {
		t.Errorf("two searches differ:\n%s\n%s", a, b)
	}
}
