package main

import (
	"math/rand/v2"
	"testing"
)

// TestLongestCommonIsThatOfTheTable shows that the greedy algorithm finds what the
// quadratic one does.
func TestLongestCommonIsThatOfTheTable(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	draw := func() []uint64 {
		list := make([]uint64, random.IntN(12))
		for i := range list {
			list[i] = random.Uint64N(4)
		}
		return list
	}
	for range 5000 {
		a, b := draw(), draw()
		if got, want := longestCommon(a, b), table(a, b); got != want {
			t.Fatalf("%v and %v: %d, want %d", a, b, got, want)
		}
	}
}

// table is the longest common subsequence by the textbook.
func table(a, b []uint64) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	for i := range a {
		for j := range b {
			if a[i] == b[j] {
				rows[i+1][j+1] = rows[i][j] + 1
			} else {
				rows[i+1][j+1] = max(rows[i][j+1], rows[i+1][j])
			}
		}
	}
	return rows[len(a)][len(b)]
}
