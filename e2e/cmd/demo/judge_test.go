package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/magnetar-io/magnetar/client"
)

// texts is a corpus in memory.
type texts map[string]string

func (c texts) open(file string) (io.ReadCloser, error) {
	text, ok := c[file]
	if !ok {
		return nil, errNotSent
	}
	return io.NopCloser(strings.NewReader(text)), nil
}

func (c texts) sent() map[string]published {
	all := map[string]published{}
	for file, text := range c {
		lines := strings.SplitAfter(text, "\n")
		if lines[len(lines)-1] == "" {
			lines = lines[:len(lines)-1]
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		all[file] = published{len(lines), sha256.Sum256([]byte(text))}
	}
	return all
}

// TestEachFaultIsFound shows, for every kind of fault, deliveries that have it.
// A delivery is ENTRY:INDEX FILE LINE; ids of one entry are one batch.
func TestEachFaultIsFound(t *testing.T) {
	long := strings.Repeat("x", 100<<10) // longer than a reader's buffer
	corpus := texts{
		"f":     "a\n}\n\nb\n}\nc\n",
		"g":     "one\r\n" + long, // no newline at the end
		"empty": "",
	}
	f := func(lines string) []string { // of f, an entry each, from id 10 on
		var all []string
		for i, line := range strings.Split(lines, "") {
			if line == "_" {
				line = ""
			}
			all = append(all, fmt.Sprintf("%d:0 f %s", 10+i, line))
		}
		return all
	}
	g := []string{"1:0 g one\r", "1:1 g " + long}
	all := func(parts ...[]string) []string {
		var list []string
		for _, p := range parts {
			list = append(list, p...)
		}
		return list
	}
	for _, c := range []struct {
		name       string
		deliveries []string
		want       verdict
	}{
		{"clean", all(g, f("a}_b}c")), verdict{delivered: 8}},
		{"files in turn", all(f("a}_b}c")[:3], g, f("a}_b}c")[3:]), verdict{delivered: 8}},
		{"nothing came", nil, verdict{differ: 2, lost: 8}},
		{"lost in the middle", all(g, f("a}b}c")), verdict{delivered: 7, differ: 1, lost: 1}},
		{"lost a line that comes twice", all(g, f("a_b}c")), verdict{delivered: 7, differ: 1, lost: 1}},
		{"lost at the beginning", all(g, f("}_b}c")), verdict{delivered: 7, differ: 1, lost: 1}},
		{"lost at the end", all(g, f("a}_b")), verdict{delivered: 6, differ: 1, lost: 2}},
		{"lost the long line", all(g[:1], f("a}_b}c")), verdict{delivered: 7, differ: 1, lost: 1}},
		{"one line under two ids", all(g, f("a}_bb}c")), verdict{delivered: 9, differ: 1, duplicated: 1}},
		{"an empty line under two ids", all(g, f("a}__b}c")), verdict{delivered: 9, differ: 1, duplicated: 1}},
		{"last line under two ids", all(g, f("a}_b}cc")), verdict{delivered: 9, differ: 1, duplicated: 1}},
		{"all again under new ids", all(g, f("a}_b}ca}_b}c")), verdict{delivered: 14, differ: 1, duplicated: 6}},
		{"the same id again", all(g, f("a}_b}c"), f("a}_b}c")[3:5], g), verdict{delivered: 8, redelivered: 4}},
		{"the same id again in between", all(g, f("a}_b")[:2], f("a}_b}c")), verdict{delivered: 8, redelivered: 2}},
		{"swapped", all(g, f("a}b_}c")), verdict{delivered: 8, differ: 1, outOfOrder: 1}},
		{"first comes last", all(g, f("}_b}ca")), verdict{delivered: 8, differ: 1, outOfOrder: 1}},
		{"late by a batch", all(g, f("ab}c}_")), verdict{delivered: 8, differ: 1, outOfOrder: 2}},
		{"two faults", all(g, f("aab}c")), verdict{delivered: 7, differ: 1, lost: 2, duplicated: 1}},
		{"another line in its place", all(g, f("a}_z}c")), verdict{delivered: 8, differ: 1, lost: 1, invented: 1}},
		{"carriage return gone", all([]string{"1:0 g one"}, g[1:], f("a}_b}c")), verdict{delivered: 8, differ: 1, lost: 1, invented: 1}},
		{"a line of an empty file", all(g, f("a}_b}c"), []string{"2:0 empty "}), verdict{delivered: 9, differ: 1, invented: 1}},
		{"a file that was not sent", all(g, f("a}_b}c"), []string{"2:0 h a", "3:0 h b"}), verdict{delivered: 10, differ: 1, invented: 2}},
	} {
		j := newJudge(corpus.open)
		for _, d := range c.deliveries {
			parts := strings.SplitN(d, " ", 3)
			id := client.MessageID{Ledger: 7, Partition: 2}
			if _, err := fmt.Sscanf(parts[0], "%d:%d", &id.Entry, &id.BatchIndex); err != nil {
				t.Fatal(err)
			}
			if err := j.deliver(parts[1], id, []byte(parts[2])); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		got, err := j.verdict(corpus.sent())
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
		if clean := got.delivered == 8 && got.differ == 0; got.good() != clean {
			t.Errorf("%s: good is %t", c.name, got.good())
		}
	}
}

// TestIDs shows which ids are the same: all of partition, ledger, entry and index
// count, and an entry with one message has the index -1.
func TestIDs(t *testing.T) {
	j := newJudge(nil)
	for _, c := range []struct {
		id    client.MessageID
		first bool
	}{
		{client.MessageID{Ledger: 1, Entry: 0, Partition: 0, BatchIndex: -1}, true},
		{client.MessageID{Ledger: 1, Entry: 0, Partition: 0, BatchIndex: -1}, false},
		{client.MessageID{Ledger: 1, Entry: 0, Partition: 1, BatchIndex: -1}, true},
		{client.MessageID{Ledger: 2, Entry: 0, Partition: 0, BatchIndex: -1}, true},
		{client.MessageID{Ledger: 1, Entry: 1, Partition: 0, BatchIndex: 300}, true},
		{client.MessageID{Ledger: 1, Entry: 1, Partition: 0, BatchIndex: 63}, true},
		{client.MessageID{Ledger: 1, Entry: 1, Partition: 0, BatchIndex: 64}, true},
		{client.MessageID{Ledger: 1, Entry: 1, Partition: 0, BatchIndex: 300}, false},
	} {
		if got := j.first(c.id); got != c.first {
			t.Errorf("%s: first %t, want %t", c.id, got, c.first)
		}
	}
}
