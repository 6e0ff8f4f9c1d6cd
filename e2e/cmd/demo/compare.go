package main

// difference is what separates two sequences of lines.
type difference struct{ lost, duplicated, outOfOrder, invented int }

// compare says how the lines that were delivered, by their hashes, differ from
// those that were sent. Lines may repeat, so they are counted: of a line that
// stands in the file n times and came m times, n−m were lost or m−n came too
// often. What is common to both but not in the longest common subsequence is out
// of order.
func compare(sent, delivered []uint64) difference {
	counts := make(map[uint64]int, len(sent))
	for _, line := range sent {
		counts[line]++
	}
	var d difference
	common := 0
	for _, line := range delivered {
		left, known := counts[line]
		switch {
		case !known:
			d.invented++
		case left == 0:
			d.duplicated++
		default:
			counts[line] = left - 1
			common++
		}
	}
	d.lost = len(sent) - common
	d.outOfOrder = common - longestCommon(sent, delivered)
	return d
}

// longestCommon is the length of the longest common subsequence of a and b, by
// Myers' greedy algorithm: its time is the length times the number of
// differences, and it needs no more than the lengths.
func longestCommon(a, b []uint64) int {
	same := 0
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b, same = a[1:], b[1:], same+1
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b, same = a[:len(a)-1], b[:len(b)-1], same+1
	}
	// furthest[k] is how far into a the furthest path on diagonal k has come; a
	// path on diagonal k is at x in a and x−k in b.
	n, m := len(a), len(b)
	furthest := make([]int, 2*(n+m)+3)
	at := func(k int) *int { return &furthest[k+n+m+1] }
	for edits := 0; ; edits++ {
		for k := -edits; k <= edits; k += 2 {
			x := *at(k - 1) + 1 // a line of a is left out
			if k == -edits || k != edits && *at(k - 1) < *at(k + 1) {
				x = *at(k + 1) // a line of b is left out
			}
			for x < n && x-k < m && a[x] == b[x-k] {
				x++
			}
			*at(k) = x
			if x >= n && x-k >= m {
				return same + (n+m-edits)/2
			}
		}
	}
}
