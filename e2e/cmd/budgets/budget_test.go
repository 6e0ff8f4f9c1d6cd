package main

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
)

// TestVerdict shows on which side of a limit a budget is kept, and that one
// without a measurement is not.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		limit   float64
		atLeast bool
		rounds  []float64
		kept    bool
	}{
		{65, true, []float64{64, 65, 99}, true},
		{65, true, []float64{99, 64.9, 60}, false},
		{5, false, []float64{5, 4, 100}, true},
		{5, false, []float64{5.1, 6, 1}, false},
		{5, false, nil, false},
		{5, true, nil, false},
		{5, false, []float64{6, 4}, true}, // the lower of two
	} {
		b := budget{limit: c.limit, atLeast: c.atLeast, rounds: c.rounds}
		if b.kept() != c.kept {
			t.Errorf("limit %g, at least %t, rounds %v: kept %t, want %t", c.limit, c.atLeast, c.rounds, b.kept(), c.kept)
		}
	}
}

// TestOutput shows what people and programs read.
func TestOutput(t *testing.T) {
	s := share{budget: &budget{name: "publish", unit: "%", limit: 65, atLeast: true}}
	s.add(300, 400)
	s.add(200, 400)
	s.add(240, 300)
	var text strings.Builder
	if err := table(&text, []*budget{s.budget}); err != nil {
		t.Fatal(err)
	}
	row := strings.Join(strings.Fields(strings.Split(text.String(), "\n")[1]), " ")
	if want := "publish 75 % 50 % … 80 % ≥ 65 % kept 240 of 400 MB/s"; row != want {
		t.Errorf("row %q, want %q", row, want)
	}
	data, err := json.Marshal(s.budget)
	if err != nil {
		t.Fatal(err)
	}
	var j budgetJSON
	if err := json.Unmarshal(data, &j); err != nil || j.Measured != 75 || !j.Kept || len(j.Rounds) != 3 {
		t.Errorf("%s: %+v, %v", data, j, err)
	}
}

// TestParse shows which command lines are refused.
func TestParse(t *testing.T) {
	if s, err := parse([]string{"-rounds", "1", "-o", "json"}, io.Discard); err != nil || s.rounds != 1 {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, args := range [][]string{{"-rounds", "0"}, {"-duration", "10ms"}, {"-o", "yaml"}, {"-only", "start,nothing"}, {"all"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
