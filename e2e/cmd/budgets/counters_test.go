package main

import (
	"strings"
	"testing"
)

// TestCounters shows that values of one name are summed, and that a metric that
// is not there, or a line that cannot be read, is an error.
func TestCounters(t *testing.T) {
	c, err := parseCounters("# HELP a text\na{x=\"1\"} 2\na{x=\"2 3\"} 3\nb 1.5e+09\n")
	if err != nil || c["a"] != 5 || c["b"] != 1.5e9 {
		t.Fatalf("%v, %v", c, err)
	}
	if d, err := c.since(counters{"a": 1}, "a"); err != nil || d != 4 {
		t.Errorf("a rose by %g, %v", d, err)
	}
	if _, err := c.since(counters{}, "absent"); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a metric that is not there: %v", err)
	}
	for _, text := range []string{"alone\n", "a b\n"} {
		if _, err := parseCounters(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
