package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
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
	parts := strings.Split(text, ":")
	if len(parts) == 3 || len(parts) == 4 {
		var n [4]int64
		n[3] = -1
		for i, p := range parts {
			v, err := strconv.ParseInt(p, 10, 64)
			if err != nil {
				return place{}, badPlace(text)
			}
			n[i] = v
		}
		return place{id: &placeID{n[0], n[1], int32(n[2]), int32(n[3])}}, nil
	}
	return place{}, badPlace(text)
}

func badPlace(text string) error {
	return fmt.Errorf("%q is no place in a topic; want earliest, latest, a message id such as 17:4:-1, a time such as 2026-01-31T08:00:00Z, or -10m for ten minutes ago", text)
}
