// Package history records what producers were told and what subscriptions got of
// one topic, and finds what must not happen: the anomalies of Kafka's workload in
// Jepsen, and those of acknowledgements and ownership that are our own.
//
// A message is named by its producer and number; the text of its payload is made
// by Payload, so that whoever receives it can name it. Everything is recorded in
// one order: what ended before something else began stands before it, as long as
// a beginning is recorded before the call, and an end after it. Check then makes
// one pass over the record, besides sorting the positions once.
//
// A finding is proof, given an honest record: where what happened at the same time
// could explain a delivery, nothing is found. A subscription has to be there before
// the first message, starting from the earliest.
package history

import (
	"fmt"
	"strconv"
	"strings"
)

// Outcome of a publish.
type Outcome uint8

const (
	OK      Outcome = iota + 1 // acknowledged
	Failed                     // refused for good: must never be delivered
	Unknown                    // may be delivered, once
)

func (o Outcome) String() string {
	switch o {
	case OK:
		return "ok"
	case Failed:
		return "refused"
	case Unknown:
		return "unknown"
	}
	return "no outcome"
}

// Kind says what a subscription promises.
type Kind uint8

const (
	Exclusive Kind = iota + 1 // one consumer at a time, in order; a reader is one too
	Failover                  // one consumer of a partition at a time, in order
	Shared                    // no order
)

func (k Kind) ordered() bool { return k == Exclusive || k == Failover }

// Message names what was published.
type Message struct {
	Producer string
	Number   int
}

func (m Message) String() string { return fmt.Sprintf("%s/%d", m.Producer, m.Number) }

// Payload is the message's text, padded to at least size bytes.
func (m Message) Payload(size int) []byte {
	text := m.String() + " "
	if pad := size - len(text); pad > 0 {
		text += strings.Repeat(".", pad)
	}
	return []byte(text)
}

// Parse names the message of a payload.
func Parse(payload []byte) (Message, error) {
	text, _, _ := strings.Cut(string(payload), " ")
	producer, number, ok := strings.Cut(text, "/")
	n, err := strconv.Atoi(number)
	if !ok || err != nil {
		return Message{}, fmt.Errorf("payload %.40q names no message", payload)
	}
	return Message{producer, n}, nil
}
