package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/client"
)

// TestSendWritesEveryLine shows what the producer is given: every line of every
// Go file and nothing else, the lines of a file in order, a newline after each.
func TestSendWritesEveryLine(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"a.go":          strings.Repeat("line\n\n", 100) + "no newline",
		"sub/b.go":      "\ttab\r\n" + strings.Repeat("y", 70<<10) + "\n",
		"sub/deep/e.go": "",
		"sub/c.txt":     "not Go\n",
	}
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.go"), 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := readCorpus(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.count(); err != nil || n != 203 {
		t.Errorf("counted %d lines, %v; want 203", n, err)
	}
	var out bytes.Buffer
	var progress atomic.Int64
	sent, err := c.send(&out, &progress)
	if err != nil || progress.Load() != 203 {
		t.Fatalf("sent %d lines, %v; want 203", progress.Load(), err)
	}
	got := map[string]string{}
	for line := range strings.Lines(out.String()) {
		file, text, _ := strings.Cut(line, keySeparator)
		got[file] += text
	}
	want := texts{"a.go": files["a.go"], "sub/b.go": files["sub/b.go"], "sub/deep/e.go": ""}
	if got["a.go"] != want["a.go"]+"\n" || got["sub/b.go"] != want["sub/b.go"] || len(got) != 2 {
		t.Errorf("files that were written: %q", slices.Collect(maps.Keys(got)))
	}
	if !maps.Equal(sent, want.sent()) {
		t.Errorf("sent %v, want %v", sent, want.sent())
	}
	if _, err := c.open("sub/c.txt"); !errors.Is(err, errNotSent) {
		t.Errorf("a file that was not sent: %v", err)
	}
}

// TestReadDeliveries shows that values of any bytes come out of what `magnetar
// consume` prints, and that what is cut off is noticed.
func TestReadDeliveries(t *testing.T) {
	values := []string{"", "a\tb", "12:3:0\t4\tkey", "\r\xff\x00", strings.Repeat("z", 3<<20)}
	var out strings.Builder
	for i, v := range values {
		fmt.Fprintf(&out, "12:%d:3:7\t%d\tsome/file.go\n%s\n", i, len(v), v)
	}
	var got []string
	take := func(file string, id client.MessageID, value []byte, _ time.Time) error {
		if want := (client.MessageID{Ledger: 12, Entry: int64(len(got)), Partition: 3, BatchIndex: 7}); file != "some/file.go" || id != want {
			t.Errorf("message %d: %s of %s", len(got), id, file)
		}
		got = append(got, string(value))
		return nil
	}
	if err := readDeliveries(strings.NewReader(out.String()), take); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, values) {
		t.Errorf("got %.100q", got)
	}
	ignore := func(string, client.MessageID, []byte, time.Time) error { return nil }
	for _, bad := range []string{"12:0:3", "12:0:3\t1\tf\n", "12:0:3\t1\tf\nab\n", "12:0:3\t1\tf\na", "12:0:3\tx\tf\na\n", "12:0\t1\tf\na\n", "12:0:3\t-1\tf\na\n", "12:0:3\t1\na\n"} {
		if err := readDeliveries(strings.NewReader(bad), ignore); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestLongestGap shows the gap between moments that come in any order.
func TestLongestGap(t *testing.T) {
	start := time.UnixMilli(1_000_000)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	line := timeline{start: start}
	if gap, _ := line.longestGap(); gap != 0 || !line.last().Equal(start) {
		t.Errorf("of nothing: %s, %s", gap, line.last())
	}
	for _, ms := range []int{900, 40, 41, 900, 300, 130, 500} {
		line.add(at(ms))
	}
	if gap, begin := line.longestGap(); gap != 400*time.Millisecond || begin != 500*time.Millisecond {
		t.Errorf("gap %s from %s", gap, begin)
	}
	line.add(at(600))
	line.add(at(-5))
	if gap, begin := line.longestGap(); gap != 300*time.Millisecond || begin != 600*time.Millisecond {
		t.Errorf("gap %s from %s", gap, begin)
	}
	if !line.last().Equal(at(900)) {
		t.Errorf("last is %s", line.last())
	}
}

// TestMostPartitions shows which broker is killed.
func TestMostPartitions(t *testing.T) {
	row := func(broker string) string {
		return `{"topic":"t","partition":0,"broker":"` + broker + `","address":"x"}` + "\n"
	}
	for _, c := range []struct {
		lookup, broker string
		owned          int
	}{
		{row("broker-1") + row("broker-2") + row("broker-2"), "broker-2", 2},
		{row("broker-2") + row("broker-1"), "broker-1", 1},
		{row("") + row("") + row("broker-2"), "broker-2", 1},
	} {
		if broker, owned, err := mostPartitions([]byte(c.lookup)); broker != c.broker || owned != c.owned || err != nil {
			t.Errorf("%s: %s, %d, %v", c.lookup, broker, owned, err)
		}
	}
	for _, bad := range []string{"", row(""), "none\n"} {
		if broker, _, err := mostPartitions([]byte(bad)); err == nil {
			t.Errorf("%q: %s", bad, broker)
		}
	}
}

// TestFaults shows that a run counts as good only if everything was, the kills
// included.
func TestFaults(t *testing.T) {
	whole := func() report {
		return report{
			lines: 10, stored: 10, afterKills: time.Second,
			verdicts: []named{{"s", verdict{delivered: 10, redelivered: 3}}, {"t", verdict{delivered: 10}}},
			kills:    []kill{{process: "broker-1", producing: true}, {process: "bookie-1", producing: true}},
		}
	}
	if err := whole().fault(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*report){
		"lost":               func(r *report) { r.verdicts[1].lost = 1 },
		"duplicated":         func(r *report) { r.verdicts[0].duplicated = 1 },
		"out of order":       func(r *report) { r.verdicts[1].outOfOrder = 1 },
		"invented":           func(r *report) { r.verdicts[1].invented = 1 },
		"another SHA-256":    func(r *report) { r.verdicts[1].differ = 1 },
		"not stored":         func(r *report) { r.stored = 9 },
		"nothing sent":       func(r *report) { r.lines, r.stored = 0, 0 },
		"no subscription":    func(r *report) { r.verdicts = nil },
		"one kill":           func(r *report) { r.kills = r.kills[:1] },
		"killed too late":    func(r *report) { r.kills[1].producing = false },
		"nothing after them": func(r *report) { r.afterKills = 0 },
	} {
		r := whole()
		spoil(&r)
		if r.fault() == nil {
			t.Errorf("%s: no fault", name)
		}
	}
}
