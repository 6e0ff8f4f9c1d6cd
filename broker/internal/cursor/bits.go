package cursor

import "math/bits"

// Bits says which messages of a batch are still unacknowledged: message i is
// bit i%64 of word i/64, and 1 means unacknowledged. Words that are not there
// are 0.
type Bits []uint64

// MaxBits bounds how many messages a batch can have.
const MaxBits = 1 << 17

const maxWords = MaxBits / 64

// From returns the bits of a batch of n messages of which those before first
// are acknowledged.
func From(first, n int) Bits {
	if first >= n {
		return nil
	}
	b := make(Bits, (n+63)/64)
	for i := first; i < n; i++ {
		b[i/64] |= 1 << (i % 64)
	}
	return b
}

// Count is how many of the first n messages are unacknowledged.
func (b Bits) Count(n int) int {
	sum := 0
	for i, w := range b {
		if left := n - 64*i; left < 64 {
			if left <= 0 {
				break
			}
			w &= 1<<left - 1
		}
		sum += bits.OnesCount64(w)
	}
	return sum
}

// trimmed is b without zero words at its end; it shares b's memory.
func (b Bits) trimmed() Bits {
	n := len(b)
	for n > 0 && b[n-1] == 0 {
		n--
	}
	return b[:n]
}

// and returns what is unacknowledged in both.
func (b Bits) and(o Bits) Bits {
	out := make(Bits, min(len(b), len(o)))
	for i := range out {
		out[i] = b[i] & o[i]
	}
	return out.trimmed()
}

func (b Bits) equal(o Bits) bool {
	if len(b) != len(o) {
		return false
	}
	for i := range b {
		if b[i] != o[i] {
			return false
		}
	}
	return true
}

func (b Bits) clone() Bits { return append(Bits(nil), b...) }
