package client

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Message is what an application publishes.
type Message struct {
	// Key routes the message and keeps its order among those of the same key. Any
	// bytes; empty: none.
	Key string
	// OrderingKey takes Key's place when a subscription shares out messages by key.
	OrderingKey []byte
	Value       []byte
	Properties  map[string]string // UTF-8
	EventTime   time.Time         // the application's; zero: none
	// Sequence numbers the message for producers with WithSequences; others leave
	// it alone. It rises from message to message.
	Sequence uint64
	// NoValue tells that Key has no value any more, apart from an empty one.
	NoValue bool
}

// MessageID names a message for good. The zero MessageID names none.
type MessageID struct {
	Ledger    int64
	Entry     int64
	Partition int32 // -1: the topic is not partitioned
	// BatchIndex is the message's place in its entry, or -1 where the entry holds
	// one message only.
	BatchIndex int32
}

// Known reports whether the id names a place. It does not for a duplicate that
// was stored so long ago that the cluster has forgotten where.
func (id MessageID) Known() bool { return id.Ledger > 0 }

// String is LEDGER:ENTRY:PARTITION, with :BATCHINDEX where there is one.
func (id MessageID) String() string {
	s := fmt.Sprintf("%d:%d:%d", id.Ledger, id.Entry, id.Partition)
	if id.BatchIndex >= 0 {
		s += ":" + strconv.Itoa(int(id.BatchIndex))
	}
	return s
}

// ParseMessageID reads what String prints.
func ParseMessageID(s string) (MessageID, error) {
	id := MessageID{BatchIndex: -1}
	parts := strings.Split(s, ":")
	bad := fmt.Errorf("message id %q: want LEDGER:ENTRY:PARTITION or LEDGER:ENTRY:PARTITION:BATCHINDEX: %w", s, ErrInvalid)
	if len(parts) != 3 && len(parts) != 4 {
		return MessageID{}, bad
	}
	var numbers [4]int64
	for i, p := range parts {
		bits := 64
		if i >= 2 {
			bits = 32
		}
		n, err := strconv.ParseInt(p, 10, bits)
		if err != nil {
			return MessageID{}, bad
		}
		numbers[i] = n
	}
	id.Ledger, id.Entry, id.Partition = numbers[0], numbers[1], int32(numbers[2])
	if len(parts) == 4 {
		id.BatchIndex = int32(numbers[3])
	}
	if id.Ledger < 1 || id.Entry < 0 || id.Partition < -1 || id.BatchIndex < -1 || (len(parts) == 4 && id.BatchIndex < 0) {
		return MessageID{}, bad
	}
	return id, nil
}

// Compare orders ids of one partition: negative when id comes before other.
func (id MessageID) Compare(other MessageID) int {
	for _, d := range [3]int64{id.Ledger - other.Ledger, id.Entry - other.Entry, int64(id.BatchIndex) - int64(other.BatchIndex)} {
		switch {
		case d < 0:
			return -1
		case d > 0:
			return 1
		}
	}
	return 0
}

// Received is a message as it was delivered.
type Received struct {
	Message
	ID    MessageID
	Topic string // long form, with the partition
	// Producer and Sequence (in Message) name the publish.
	Producer    string
	PublishTime time.Time // the producer's clock
	BrokerTime  time.Time // the broker's; never falls along a partition
	Index       uint64    // counts the messages of the partition from 0
	// Redeliveries is how often the message was delivered before.
	Redeliveries int

	feed  *feed
	entry *handed // nil for a Reader
	bit   int
}
