package sim

import (
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/history"
)

// plan is all that a seed decides before the run begins; faults are drawn as it
// goes.
type plan struct {
	Brokers, Bookies, Discoveries int
	Quorum                        ledger.Quorum
	Storage                       storage
	LedgerBytes, LogBytes         int64         // of topics and of bundle logs
	Settle                        time.Duration // after all is drained; 0: not
	Length                        time.Duration // of the workload and its faults
	FaultEvery                    time.Duration // on average
	Delay, Jitter                 time.Duration // of the network when it is well
	Topics                        []topicPlan
}

// maxMessageBytes, and the header that may come with it, fit into the smallest
// segment of a bookie.
const maxMessageBytes = 64 << 10

// storage is how a bookie is built: small, so that everything in it happens soon.
type storage struct {
	MemoryBytes, DiskBytes, HotBytes, SegmentBytes, ReserveBytes int64
}

type topicPlan struct {
	Name        string
	Partitions  int // 0: not partitioned
	Producers   int
	Keys        int // 0: messages have none
	Pause       time.Duration
	Bytes       int // of a message, at most
	Compression client.Compression
	// Audited: a subscription that nobody uses before the end keeps all that was
	// published. Without it what is consumed is trimmed.
	Audited       bool
	Subscriptions []subscriptionPlan
}

type subscriptionPlan struct {
	Name      string
	Type      client.Type
	Consumers int
	// Cumulative: acknowledgements are cumulative, where the type allows it.
	Cumulative bool
	// Careless is how many in a hundred messages are given back the first time.
	Careless int
	// Seeks: the first consumer moves the subscription after so many messages, on
	// average; 0: never.
	Seeks int
}

// promises is what the history is judged by.
func (s *subscriptionPlan) promises() history.Kind {
	switch s.Type {
	case client.Shared:
		return history.Shared
	case client.Failover:
		return history.Failover
	}
	return history.Exclusive
}

func newPlan(seed uint64, faults bool) plan {
	c := newChance(seed, 1)
	later := newChance(seed, 5) // so that what it decides alters nothing else
	p := plan{
		Brokers: c.from(2, 3), Bookies: c.from(3, 5), Discoveries: c.from(1, 2),
		Quorum:      ledger.Quorum{Write: 3, Ack: 2},
		LedgerBytes: int64(c.from(8, 64)) << 10,
		Length:      time.Duration(c.from(10, 20)) * time.Second,
		FaultEvery:  c.span(300*time.Millisecond, 5*time.Second),
		Delay:       c.span(50*time.Microsecond, 2*time.Millisecond),
	}
	p.Jitter = p.Delay
	p.LogBytes = int64(c.from(4, 32)) << 10
	if c.once(16) {
		p.Settle = 15 * time.Minute
	}
	switch c.n(8) {
	case 0:
		p.Quorum = ledger.Quorum{Write: 2, Ack: 2}
	case 1:
		p.Quorum = ledger.Quorum{Write: 3, Ack: 3}
	case 2:
		p.Quorum = ledger.Quorum{Write: 1, Ack: 1}
	}
	segment := int64(c.from(1, 3)) * (256 << 10)
	p.Storage = storage{MemoryBytes: 16 << 20, DiskBytes: 64 << 20, HotBytes: 4 * segment, SegmentBytes: segment}
	if !faults {
		p.FaultEvery = 0
	}
	for i := range c.from(1, 3) {
		t := topicPlan{
			Name: fmt.Sprintf("topic-%d", i+1), Partitions: c.n(4), Producers: c.from(1, 2),
			Pause: c.span(40*time.Millisecond, 500*time.Millisecond), Bytes: pick(c, []int{40, 400, 4000}),
			// Not zstd: its coders hold channels and are pooled, and a channel made in one
			// bubble must not be used in another.
			Compression: pick(c, []client.Compression{client.NoCompression, client.LZ4, client.Snappy, client.Zlib}),
		}
		t.Audited = c.once(2)
		if c.once(2) {
			t.Keys = c.from(1, 20)
		}
		for k := range c.from(1, 2) {
			s := subscriptionPlan{
				Name: fmt.Sprintf("sub-%d", k+1), Type: pick(c, []client.Type{client.Exclusive, client.Failover, client.Shared}), Consumers: c.from(1, 3),
			}
			switch s.Type {
			case client.Exclusive:
				s.Consumers = 1
				fallthrough
			case client.Failover:
				s.Cumulative = c.once(2)
			case client.Shared:
				s.Careless = c.n(10)
			}
			if s.Type != client.Shared && !s.Cumulative && later.once(3) {
				s.Careless = later.n(5)
			}
			if later.once(4) {
				s.Seeks = later.from(20, 200)
			}
			t.Subscriptions = append(t.Subscriptions, s)
		}
		p.Topics = append(p.Topics, t)
	}
	return p
}
