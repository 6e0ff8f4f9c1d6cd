package client

import (
	"time"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// Position is a place in a topic to start or to seek to.
type Position struct{ p *brokerv1.Position }

// Earliest is before the oldest message that is kept.
func Earliest() Position {
	return Position{brokerv1.Position_builder{Earliest: proto.Bool(true)}.Build()}
}

// Latest is after the newest message.
func Latest() Position { return Position{brokerv1.Position_builder{Latest: proto.Bool(true)}.Build()} }

// At is right before a message. Other partitions than the message's start at
// their latest.
func At(id MessageID) Position {
	return Position{brokerv1.Position_builder{Id: wireID(id)}.Build()}
}

// After is right after a message. Other partitions than the message's start at
// their latest.
func After(id MessageID) Position {
	return Position{brokerv1.Position_builder{AfterId: wireID(id)}.Build()}
}

// Since is before the first message published at t or later.
func Since(t time.Time) Position {
	return Position{brokerv1.Position_builder{PublishTimeMs: proto.Int64(t.UnixMilli())}.Build()}
}

func wireID(id MessageID) *brokerv1.MessageId {
	return brokerv1.MessageId_builder{Ledger: &id.Ledger, Entry: &id.Entry, Partition: &id.Partition, BatchIndex: &id.BatchIndex}.Build()
}

// partition returns the partition the position names, ok when it names one.
func (p Position) partition() (n int32, ok bool) {
	switch {
	case p.p.HasId():
		return p.p.GetId().GetPartition(), true
	case p.p.HasAfterId():
		return p.p.GetAfterId().GetPartition(), true
	}
	return 0, false
}

// on is the position as it applies to a partition.
func (p Position) on(partition int32) *brokerv1.Position {
	if n, ok := p.partition(); ok && n != partition {
		return Latest().p
	}
	return p.p
}

// pinned is the position as it applies to a partition where it was looked up: at
// start, as the broker told, nil when it did not. Looked up again, because the
// connection broke before anything was read, the latest message would be another one
// by then, and what came between would be passed over.
func (p Position) pinned(partition int32, start *brokerv1.MessageId) Position {
	if start == nil {
		return p
	}
	at := place{start.GetLedger(), start.GetEntry()}
	on := p.on(partition)
	for _, named := range []*brokerv1.MessageId{on.GetId(), on.GetAfterId()} {
		if named != nil && !(place{named.GetLedger(), named.GetEntry()}).before(at) {
			return p // it may be in the middle of an entry
		}
	}
	if !at.real() {
		return Earliest()
	}
	return At(MessageID{Ledger: at.ledger, Entry: at.entry, Partition: partition, BatchIndex: -1})
}

// readerPosition is how far a reader has come in a partition, and where it ends.
type readerPosition struct {
	read  bool
	at    place // of the last message handed out
	bit   int   // its place in the entry
	whole bool  // it was the last of its entry

	bounded bool  // the reader ends at end
	end     place // the last entry to be read
	ended   bool
}

// begin makes the reader stand at start. Behind a message it stands as if it had
// handed that one out: only so it knows, within an entry, what is left to be read
// before its end.
func (r *readerPosition) begin(partition int32, start Position) {
	*r = readerPosition{bounded: r.bounded, end: r.end}
	if start.p == nil {
		return
	}
	p := start.on(partition)
	if p.HasAfterId() {
		id := p.GetAfterId()
		r.read, r.at = true, place{id.GetLedger(), id.GetEntry()}
		r.bit, r.whole = int(id.GetBatchIndex()), id.GetBatchIndex() < 0
	}
	switch {
	case !r.bounded:
	case !r.end.real(), p.HasLatest():
		r.ended = true
	case p.HasId():
		r.ended = r.end.before(place{p.GetId().GetLedger(), p.GetId().GetEntry()})
	case r.read:
		r.ended = r.end.before(r.at) || r.whole && r.at == r.end
	}
}

// standsAt takes over where the broker says the reader stands. A bounded one is at
// its end when that is behind it: it started at a time after all there is, or what it
// was to read was trimmed.
func (r *readerPosition) standsAt(start *brokerv1.MessageId) {
	if r.bounded && r.end.before(place{start.GetLedger(), start.GetEntry()}) {
		r.ended = true
	}
}

// until takes the topic's last entry as the end of a bounded reader, which is
// there already when it starts behind that.
func (r *readerPosition) until(last *brokerv1.MessageId, partition int32, start Position) {
	if r.bounded {
		r.end = place{last.GetLedger(), last.GetEntry()}
		r.begin(partition, start)
	}
}

// subscribeFrom is where to subscribe: where the consumer's options say or, once a reader
// has read something, behind that. Within an entry the reader skips by itself.
func (r *readerPosition) subscribeFrom(partition int32, start Position) *brokerv1.Position {
	id := MessageID{Ledger: r.at.ledger, Entry: r.at.entry, Partition: partition, BatchIndex: -1}
	switch {
	case !r.read && start.p == nil:
		return nil
	case !r.read:
		return start.on(partition)
	case r.whole:
		return After(id).p
	}
	return At(id).p
}

// skip takes out of all what a reader has handed out before, or is not to read.
func (r *readerPosition) skip(at place, all bitset) bitset {
	switch {
	case r.bounded && r.end.before(at):
		return nil
	case !r.read || r.at.before(at):
		return all
	case at.before(r.at) || r.whole:
		return nil
	}
	all = append(bitset(nil), all...)
	all.clearThrough(r.bit)
	return all
}

// handedOut notes a message.
func (r *readerPosition) handedOut(at place, bit int) {
	r.read, r.at, r.bit, r.whole = true, at, bit, false
}

// passed notes that nothing of an entry is left to be handed out.
func (r *readerPosition) passed(at place) {
	if !r.read || !at.before(r.at) {
		r.read, r.at, r.whole = true, at, true
	}
	r.ended = r.ended || r.bounded && !at.before(r.end)
}
