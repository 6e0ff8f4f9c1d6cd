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

// TestJudge shows that only a failure of the test itself counts: not code that
// does not compile, a test that is not there, or a leak after a test that passed.
func TestJudge(t *testing.T) {
	r := rule{test: "TestRuleR4_Fence", pkg: "./bookie"}
	for _, test := range []struct {
		out    string
		passed bool
		caught bool
	}{
		{"--- FAIL: TestRuleR4_Fence (0.00s)\n    a_test.go:7: got 1\nFAIL\nFAIL\tbookie\t0.1s\nFAIL\n", false, true},
		{"panic: index out of range\n\ngoroutine 9 [running]:\nFAIL\tbookie\t0.1s\nFAIL\n", false, true},
		{"ok  \tbookie\t0.1s\n", true, false},
		{"ok  \tbookie\t0.1s [no tests to run]\n", true, false},
		{"# bookie\nfence.go:7: undefined: x\nFAIL\tbookie [build failed]\nFAIL\n", false, false},
		{"PASS\ngoleak: Errors on successful test run: found unexpected goroutines\nFAIL\tbookie\t0.5s\nFAIL\n", false, false},
	} {
		if err := judge([]byte(test.out), test.passed, r); (err == nil) != test.caught {
			t.Errorf("%q: %v, caught should be %v", test.out, err, test.caught)
		}
	}
}
