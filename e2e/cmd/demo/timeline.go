package main

import (
	"math/bits"
	"time"
)

// timeline notes at which milliseconds something happened: a bit each.
type timeline struct {
	start time.Time
	words []uint64
}

// add notes a moment; one before start counts as start.
func (t *timeline) add(at time.Time) {
	ms := max(0, int(at.Sub(t.start)/time.Millisecond))
	for ms/64 >= len(t.words) {
		t.words = append(t.words, make([]uint64, ms/64+1-len(t.words))...)
	}
	t.words[ms/64] |= 1 << (ms % 64)
}

// longestGap is the longest time between two moments without one in between, and
// when it began after start. Both are 0 with fewer than two moments.
func (t *timeline) longestGap() (gap, begin time.Duration) {
	last := -1
	for i, word := range t.words {
		for word != 0 {
			ms := i*64 + bits.TrailingZeros64(word)
			word &= word - 1
			if d := time.Duration(ms-last) * time.Millisecond; last >= 0 && d > gap {
				gap, begin = d, time.Duration(last)*time.Millisecond
			}
			last = ms
		}
	}
	return gap, begin
}

// last is the last moment; start when there is none.
func (t *timeline) last() time.Time {
	for i := len(t.words) - 1; i >= 0; i-- {
		if t.words[i] != 0 {
			return t.start.Add(time.Duration(i*64+63-bits.LeadingZeros64(t.words[i])) * time.Millisecond)
		}
	}
	return t.start
}
