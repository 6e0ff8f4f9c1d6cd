package client

import "math/bits"

// bitset holds small numbers, bit i%64 of word i/64. Words that are not there
// are 0.
type bitset []uint64

// allBits holds 0 to n-1.
func allBits(n int) bitset {
	b := make(bitset, (n+63)/64)
	for i := range b {
		b[i] = ^uint64(0)
	}
	if n%64 != 0 {
		b[len(b)-1] = 1<<(n%64) - 1
	}
	return b
}

func (b bitset) has(i int) bool { return i/64 < len(b) && b[i/64]&(1<<(i%64)) != 0 }

// clear takes i out.
func (b bitset) clear(i int) {
	if i/64 < len(b) {
		b[i/64] &^= 1 << (i % 64)
	}
}

// clearThrough takes out 0 to i.
func (b bitset) clearThrough(i int) {
	for w := range b {
		switch {
		case w < i/64:
			b[w] = 0
		case w == i/64:
			b[w] &= ^uint64(0) << (i % 64) << 1
		}
	}
}

// add puts in what o holds; b is at least as long.
func (b bitset) add(o bitset) {
	for i, w := range o {
		b[i] |= w
	}
}

// and returns what both hold.
func (b bitset) and(o bitset) bitset {
	out := make(bitset, min(len(b), len(o)))
	for i := range out {
		out[i] = b[i] & o[i]
	}
	return out
}

// without returns what b holds and o does not.
func (b bitset) without(o bitset) bitset {
	out := append(bitset(nil), b...)
	for i := range out {
		if i < len(o) {
			out[i] &^= o[i]
		}
	}
	return out
}

func (b bitset) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

func (b bitset) empty() bool {
	for _, w := range b {
		if w != 0 {
			return false
		}
	}
	return true
}

// next returns the lowest number from i on, -1 when there is none.
func (b bitset) next(i int) int {
	for ; i < 64*len(b); i++ {
		if b[i/64]>>(i%64) == 0 {
			i |= 63 // skip the rest of the word
			continue
		}
		if b.has(i) {
			return i
		}
	}
	return -1
}
