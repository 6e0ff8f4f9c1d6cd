package main

import (
	"bufio"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/client"
)

// FuzzArguments shows that no place and no format makes their readers panic, and
// that a message id taken is the one that was typed.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{"earliest", "17:4:-1", "17:4:0:3", "5:0:4294967296", "-10m", "2026-01-31T08:00:00Z", `%t %p %i %k\t%v %s %T %h%%\n`, `%`, `\`, "%é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := parsePlace(text); err == nil {
			p.position()
			if p.id != nil {
				id := client.MessageID{Ledger: p.id.Ledger, Entry: p.id.Entry, Partition: p.id.Partition, BatchIndex: p.id.BatchIndex}
				if again, err := client.ParseMessageID(id.String()); err != nil || again != id {
					t.Fatalf("%q became %v: %v", text, id, err)
				}
			}
		}
		if n, err := retentionSeconds(text); err == nil && n < -1 {
			t.Fatalf("retention of %q is %d seconds", text, n)
		}
		if id, err := ledgerArgument(&cobra.Command{}, text); err == nil && id < 1 {
			t.Fatalf("%q is ledger %d", text, id)
		}
		stamped([]byte(text))
		if print, err := parseFormat(text); err == nil {
			print(nil, &client.Received{})
		}
	})
}

// FuzzLines shows that lines are read as they stand, however a reader cuts them.
func FuzzLines(f *testing.F) {
	f.Add("a\nb\n\nlast")
	f.Add(strings.Repeat("x", 100) + "\r\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		r := bufio.NewReaderSize(strings.NewReader(text), 16) // the least there is
		var lines []string
		for {
			line, err := readLine(r)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, string(line))
		}
		want := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if text == "" {
			want = nil
		}
		if !slices.Equal(lines, want) {
			t.Fatalf("%q was read as %q", text, lines)
		}
	})
}
