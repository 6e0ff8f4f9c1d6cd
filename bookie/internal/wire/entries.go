package wire

import (
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Cut takes the first entry off payload. Its body is a part of payload. headBytes
// above 0 says that bodies were cut to so many bytes. The body's checksum is not
// looked at.
func Cut(payload []byte, headBytes int) (e ledger.Entry, rest []byte, err error) {
	e.Envelope, err = ledger.DecodeEnvelope(payload)
	if err != nil {
		return ledger.Entry{}, nil, err
	}
	n := int(e.Envelope.BodyBytes)
	if headBytes > 0 {
		n = min(n, headBytes)
	}
	rest = payload[ledger.EnvelopeBytes:]
	if n > len(rest) {
		return ledger.Entry{}, nil, fmt.Errorf("entry %d of ledger %d: %d bytes of body, %d left: %w",
			e.Envelope.Entry, e.Envelope.Ledger, n, len(rest), ledger.ErrCorrupt)
	}
	e.Body = rest[:n:n]
	return e, rest[n:], nil
}

// Append appends to pieces the two that an entry travels as. The envelope's is
// made in one allocation; the body's is the body itself.
func Append(pieces [][]byte, e *ledger.Envelope, body []byte) [][]byte {
	head := make([]byte, ledger.EnvelopeBytes)
	e.Encode(head)
	return append(pieces, head, body)
}
