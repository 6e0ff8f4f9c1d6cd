// Command rulescheck shows that the tests of docs/ledger-protocol.md can fail:
// for each rule it makes the one-line change that the page gives, in a scratch
// copy of the tree, and expects the rule's test to turn red.
//
// A rule on the page looks like this:
//
//	### R4 The fence is on disk before any reply
//	…prose…
//	Test: `TestRuleR4_FenceIsDurableBeforeReply` in `./bookie`
//	```diff bookie/fence.go
//	-	if err := n.appendSync(rec); err != nil {
//	+	if err := n.append(rec); err != nil {
//	```
//
// The lines after - must stand exactly once in the file; indentation counts.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// rule is one entry of the page: a test, and a change it must catch.
type rule struct {
	name      string
	test, pkg string
	file      string
	old, new  string
	line      int
}

func main() {
	page := flag.String("page", "docs/ledger-protocol.md", "the page with the rules")
	only := flag.String("rule", "", "check only this rule, such as R4")
	flag.Parse()
	if err := run(*page, *only); err != nil {
		fmt.Fprintln(os.Stderr, "rulescheck:", err)
		os.Exit(1)
	}
}

func run(page, only string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	rules, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	scratch, err := os.MkdirTemp("", "rulescheck")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if err := copyTree(scratch); err != nil {
		return err
	}
	bad, checked := 0, 0
	for _, r := range rules {
		if only != "" && r.name != only {
			continue
		}
		checked++
		start := time.Now()
		verdict := "red, as it should be"
		if err := check(scratch, r); err != nil {
			verdict = "NOT CAUGHT: " + err.Error()
			bad++
		}
		fmt.Printf("%-5s %-58s %6.1fs  %s\n", r.name, r.test, time.Since(start).Seconds(), verdict)
	}
	fmt.Printf("%d passed, %d failed\n", checked-bad, bad)
	if bad > 0 || checked == 0 {
		return fmt.Errorf("%d of %d changes were not caught", bad, checked)
	}
	return nil
}

var (
	heading  = regexp.MustCompile(`^### ([A-Z]+[0-9]+) `)
	testLine = regexp.MustCompile("^Test: `(Test[A-Za-z0-9_]+)` in `(\\./[a-z0-9_/]+)`")
	fence    = regexp.MustCompile("^```diff ([A-Za-z0-9_./-]+\\.go)$")
)

// parse reads the rules of a page. Every rule must have all its parts.
func parse(text string) ([]rule, error) {
	var rules []rule
	var r *rule
	inDiff := false
	for i, line := range strings.Split(text, "\n") {
		if m := heading.FindStringSubmatch(line); m != nil && !inDiff {
			rules = append(rules, rule{name: m[1], line: i + 1})
			r = &rules[len(rules)-1]
			continue
		}
		if r == nil {
			continue
		}
		switch {
		case inDiff && line == "```":
			inDiff = false
		case inDiff && strings.HasPrefix(line, "-"):
			r.old += line[1:] + "\n"
		case inDiff && strings.HasPrefix(line, "+"):
			r.new += line[1:] + "\n"
		case inDiff:
			return nil, fmt.Errorf("line %d: want a line that starts with - or +", i+1)
		default:
			if m := testLine.FindStringSubmatch(line); m != nil {
				r.test, r.pkg = m[1], m[2]
			}
			if m := fence.FindStringSubmatch(line); m != nil {
				r.file, inDiff = m[1], true
			}
		}
	}
	for _, r := range rules {
		if r.test == "" || r.file == "" || r.old == "" {
			return nil, fmt.Errorf("line %d: rule %s lacks its test or its change", r.line, r.name)
		}
	}
	return rules, nil
}

// copyTree copies the files that git knows to dir.
func copyTree(dir string) error {
	list, err := exec.Command("git", "ls-files", "-z").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(list), "\x00"), "\x00") {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// check applies r's change under dir, expects its test to fail, and takes the
// change back.
func check(dir string, r rule) error {
	file := filepath.Join(dir, r.file)
	before, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if n := bytes.Count(before, []byte(r.old)); n != 1 {
		return fmt.Errorf("the line to change stands %d times in %s, want once", n, r.file)
	}
	after := bytes.Replace(before, []byte(r.old), []byte(r.new), 1)
	if err := os.WriteFile(file, after, 0o644); err != nil {
		return err
	}
	defer os.WriteFile(file, before, 0o644) // the next check would notice

	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := goCommand(ctx, dir, "test", "-count=1", "-timeout=60s", "-run", "^"+r.test+"$", r.pkg)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return judge(out, err == nil, r)
}

// judge returns nil if the output of go test says that r's test itself failed.
func judge(out []byte, passed bool, r rule) error {
	switch {
	case bytes.Contains(out, []byte("no tests to run")):
		return fmt.Errorf("there is no such test in %s", r.pkg)
	case passed:
		return errors.New("the test still passes")
	case bytes.Contains(out, []byte("[build failed]")), bytes.Contains(out, []byte("[setup failed]")):
		return fmt.Errorf("the changed code does not compile:\n%s", out)
	case passLine.Match(out): // what failed is something after it, such as the search for leaked goroutines
		return fmt.Errorf("the test still passes, though not all is well after it:\n%s", out)
	}
	return nil
}

var passLine = regexp.MustCompile(`(?m)^PASS$`)

func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	return cmd.CombinedOutput()
}
