package entry

import "hash/crc32"

// CombineCRC returns CRC-32C of A||B from those of A and B and the length of B,
// in a few hundred steps whatever the length.
//
// Appending lenB bytes to A multiplies A's remainder by x^(8·lenB) modulo the
// polynomial; the pre- and post-conditioning of the two checksums cancel out.
func CombineCRC(crcA, crcB uint32, lenB int64) uint32 {
	if lenB <= 0 {
		return crcA
	}
	return mulMod(powX(uint64(lenB)), crcA) ^ crcB
}

// BodyCRC returns CRC-32C of a body from its broker part and what
// VerifyProducerPart said of its producer part, so that the payload is read once.
func BodyCRC(brokerPart []byte, producerPartCRC uint32, producerPartLen int) uint32 {
	return CombineCRC(crc32.Checksum(brokerPart, castagnoli), producerPartCRC, int64(producerPartLen))
}

// mulMod multiplies two polynomials over GF(2) modulo the Castagnoli one. Bit 31
// is the coefficient of x^0.
func mulMod(a, b uint32) uint32 {
	var p uint32
	for a != 0 {
		if a&(1<<31) != 0 {
			p ^= b
		}
		a <<= 1
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return p
}

// squares[i] is x^(8·2^i).
var squares = func() (s [63]uint32) {
	s[0] = 1 << (31 - 8)
	for i := 1; i < len(s); i++ {
		s[i] = mulMod(s[i-1], s[i-1])
	}
	return s
}()

// powX returns x^(8n); n is below 2^63.
func powX(n uint64) uint32 {
	p := uint32(1 << 31)
	for i := 0; n != 0; i, n = i+1, n>>1 {
		if n&1 != 0 {
			p = mulMod(squares[i], p)
		}
	}
	return p
}
