package main

import (
	"strings"
	"testing"
)

const page = "# Rules\n\n### R4 The fence is on disk before any reply\nprose - with a dash\n" +
	"Test: `TestRuleR4_Fence` in `./bookie`\n\n```diff bookie/fence.go\n-\twait()\n+\t_ = wait\n```\n"

// TestParse shows that a rule needs all its parts, and what they are.
func TestParse(t *testing.T) {
	rules, err := parse(page)
	if err != nil || len(rules) != 1 {
		t.Fatalf("got %v, %v", rules, err)
	}
	want := rule{name: "R4", test: "TestRuleR4_Fence", pkg: "./bookie", file: "bookie/fence.go", old: "\twait()\n", new: "\t_ = wait\n", line: 3}
	if rules[0] != want {
		t.Errorf("got %+v, want %+v", rules[0], want)
	}
	for _, lacking := range []string{"Test: ", "-\twait()"} {
		if _, err := parse(strings.Replace(page, lacking, "", 1)); err == nil {
			t.Errorf("a page without %q is accepted", lacking)
		}
	}
}
