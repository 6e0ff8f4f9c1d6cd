package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/magnetar-io/magnetar/client"
)

// place is where to start reading, as a person says it: earliest, latest, a
// message id LEDGER:ENTRY:PARTITION[:BATCHINDEX], or a time.
type place struct {
	earliest, latest bool
	id               *placeID
	time             time.Time
}

type placeID struct {
	Ledger, Entry int64
	Partition     int32
	BatchIndex    int32
}

func parsePlace(text string) (place, error) {
	switch text {
	case "earliest":
		return place{earliest: true}, nil
	case "latest":
		return place{latest: true}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return place{time: t}, nil
	}
	if d, ok := strings.CutPrefix(text, "-"); ok {
		if d, err := time.ParseDuration(d); err == nil {
			return place{time: time.Now().Add(-d)}, nil
		}
	}
	if id, err := client.ParseMessageID(text); err == nil {
		return place{id: &placeID{id.Ledger, id.Entry, id.Partition, id.BatchIndex}}, nil
	}
	return place{}, badPlace(text)
}

func badPlace(text string) error {
	return fmt.Errorf("%q is no place in a topic; want earliest, latest, a message id such as 17:4:-1, a time such as 2026-01-31T08:00:00Z, or -10m for ten minutes ago", text)
}
