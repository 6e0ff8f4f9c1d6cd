package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documented is a row of docs/metrics.md: name, labels, type, meaning.
var documented = regexp.MustCompile("^\\| `(\\w+)(?:\\{(.*)\\})?` \\| (\\w+) \\| [^|]+ \\| (.*) \\|$")

// unseen ends the meaning of a metric that has no series before it counts something.
const unseen = " Absent until there is one."

// Shows that docs/metrics.md lists every metric of ours that the processes register
// and no other, each with the labels that vary, its type and its own words.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	r := register(t)
	var rows []string
	for line := range strings.Lines(string(text)) {
		m := documented.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue
		}
		name, labels, kind, meaning := m[1], m[2], m[3], m[4]
		rows = append(rows, name)
		if _, ok := r.found[name]; !ok {
			t.Errorf("%s is registered nowhere", name)
			continue
		}
		if want := r.labels[name]; labels != want {
			t.Errorf("%s has labels {%s}, it says {%s}", name, want, labels)
		}
		if want, seen := r.kinds[name]; seen && (kind != want || strings.HasSuffix(meaning, unseen)) {
			t.Errorf("%s is a %s that has series at the start, it says %s, %q", name, want, kind, meaning)
		}
		if want := r.help[name]; strings.TrimSuffix(meaning, unseen) != want {
			t.Errorf("%s: %q, it says %q", name, want, meaning)
		}
	}
	slices.Sort(rows)
	for i, name := range rows[:max(0, len(rows)-1)] {
		if name == rows[i+1] {
			t.Errorf("%s comes twice", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.found)) {
		if strings.HasPrefix(name, "magnetar_") && !slices.Contains(rows, name) {
			t.Errorf("%s is not listed: %v, %s", name, r.found[name], r.help[name])
		}
	}
}
