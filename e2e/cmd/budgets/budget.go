package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// budget is one figure to be kept, with what was measured of it, once a round.
type budget struct {
	name    string
	unit    string
	limit   float64
	atLeast bool // the figure must reach limit; else it must not pass it
	rounds  []float64
	detail  string // for people: what the figure is made of
}

// add notes the figure of a round.
func (b *budget) add(v float64) { b.rounds = append(b.rounds, v) }

// median is the middle of the rounds; the lower of two.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}

// kept reports whether the median is within the budget.
func (b *budget) kept() bool {
	m := median(b.rounds)
	return len(b.rounds) > 0 && (b.atLeast && m >= b.limit || !b.atLeast && m <= b.limit)
}

func (b *budget) verdict() string {
	if b.kept() {
		return "kept"
	}
	return "MISSED"
}

func (b *budget) limitText() string {
	if b.atLeast {
		return "≥ " + b.text(b.limit)
	}
	return "≤ " + b.text(b.limit)
}

// text writes a figure with its unit.
func (b *budget) text(v float64) string {
	digits := 0
	if v < 10 {
		digits = 2
	}
	return fmt.Sprintf("%.*f %s", digits, v, b.unit)
}

// table prints the budgets for people.
func table(out io.Writer, budgets []*budget) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "WHAT\tMEASURED\tSPREAD\tBUDGET\tVERDICT\tDETAIL")
	for _, b := range budgets {
		spread := "-"
		if len(b.rounds) > 1 {
			spread = b.text(slices.Min(b.rounds)) + " … " + b.text(slices.Max(b.rounds))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", b.name, b.text(median(b.rounds)), spread, b.limitText(), b.verdict(), b.detail)
	}
	return w.Flush()
}

// budgetJSON is a budget for programs.
type budgetJSON struct {
	Name     string    `json:"name"`
	Unit     string    `json:"unit"`
	Measured float64   `json:"measured"` // the median
	Rounds   []float64 `json:"rounds"`
	Limit    float64   `json:"limit"`
	AtLeast  bool      `json:"atLeast"`
	Kept     bool      `json:"kept"`
	Detail   string    `json:"detail,omitempty"`
}

func (b *budget) MarshalJSON() ([]byte, error) {
	return json.Marshal(budgetJSON{b.name, b.unit, median(b.rounds), b.rounds, b.limit, b.atLeast, b.kept(), b.detail})
}
