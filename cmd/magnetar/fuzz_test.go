package main

import (
	"testing"

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
		if print, err := parseFormat(text); err == nil {
			print(nil, &client.Received{})
		}
	})
}
