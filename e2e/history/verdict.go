package history

import (
	"fmt"
	"strings"
	"time"
)

// Anomaly is a kind of thing that must not happen.
type Anomaly uint8

const (
	// InconsistentOffsets: one position holds two messages.
	InconsistentOffsets Anomaly = iota
	// LostWrite: acknowledged, below the highest position the subscription got of the
	// partition, and never got.
	LostWrite
	// Unseen: acknowledged and never got, though nothing behind it was got either.
	Unseen
	// AbortedRead: refused for good, delivered all the same.
	AbortedRead
	// Duplicate: one message at two positions.
	Duplicate
	// Invented: delivered though nobody published it, or before it was published, or
	// at another position than it was acknowledged at.
	Invented
	// PollSkip: an ordered subscription went past a message it had not got.
	PollSkip
	// NonmonotonicPoll: a consumer of an ordered subscription was taken back, without
	// a seek, a redelivery or a hand-over; or in front of where its seek went.
	NonmonotonicPoll
	// NonmonotonicSend: positions do not follow the order in which one producer
	// published to the partition.
	NonmonotonicSend
	// OrderOfIDs: a publish that began after another one of the partition had been
	// acknowledged has the lower position.
	OrderOfIDs
	// AckUndone: delivered to a consumer that came after its acknowledgement had been
	// answered, with no seek between.
	AckUndone
	// TwoHolders: two consumers of an exclusive subscription had one message at once.
	TwoHolders
	// AfterDelete: delivered to a consumer that came after the topic had been deleted.
	AfterDelete

	anomalies
)

var anomalyNames = [anomalies]string{
	"inconsistent-offsets", "lost-write", "unseen", "G1a aborted-read", "duplicate", "invented", "poll-skip",
	"nonmonotonic-poll", "nonmonotonic-send", "id-order", "ack-undone", "two-holders", "delivery-after-delete",
}

func (a Anomaly) String() string { return anomalyNames[a] }

// Verdict is what a history shows.
type Verdict struct {
	Published   int
	OK          int
	Unknown     int
	Failed      int
	Delivered   map[string]int // distinct messages by subscription
	Found       [anomalies]int // distinct messages or deliveries, by anomaly
	Redelivered int            // again, with no seek between: allowed, counted
	AfterAck    int            // of these, after the ack was answered: may have been under way
	Replayed    int            // again, after a seek
	Owners      int            // changes of ownership
	// PublishGap and DeliveryGap are the longest times between two acknowledged
	// publishes and between two deliveries, rests left out.
	PublishGap, DeliveryGap time.Duration
	Findings                []Finding // the first few of each anomaly
}

// Finding is one anomaly, with the operations around it.
type Finding struct {
	Anomaly    Anomaly
	What       string
	Operations []string

	event    int32 // where it was noticed
	messages [2]int32
	rank     int32
}

// described is how many of each anomaly are described, and around how many
// operations at most.
const described, around = 3, 16

// Bad reports whether something happened that must not.
func (v *Verdict) Bad() bool { return v.Found != [anomalies]int{} }

// Lost is how many acknowledged messages did not come, summed over subscriptions.
func (v *Verdict) Lost() int { return v.Found[LostWrite] + v.Found[Unseen] }

func (v *Verdict) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "published %d (ok %d, unknown %d, refused %d), delivered %v, redelivered %d (%d after the ack was answered), replayed %d, owner changes %d, longest publish gap %s, longest delivery gap %s",
		v.Published, v.OK, v.Unknown, v.Failed, v.Delivered, v.Redelivered, v.AfterAck, v.Replayed, v.Owners,
		v.PublishGap.Round(time.Millisecond), v.DeliveryGap.Round(time.Millisecond))
	if !v.Bad() {
		b.WriteString("; no anomaly")
	}
	for a, n := range v.Found {
		if n > 0 {
			fmt.Fprintf(&b, "\n  %s: %d", Anomaly(a), n)
		}
	}
	for _, f := range v.Findings {
		fmt.Fprintf(&b, "\n  %s: %s", f.Anomaly, f.What)
		for _, o := range f.Operations {
			b.WriteString("\n      " + o)
		}
	}
	return b.String()
}
