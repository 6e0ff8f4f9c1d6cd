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

// skip takes out of all what a reader has handed out before.
func (r *readerPosition) skip(at place, all bitset) bitset {
	switch {
	case !r.read || r.at.before(at):
		return all
	case at.before(r.at) || r.whole:
		return nil
	}
	all = append(bitset(nil), all...)
	all.clearThrough(r.bit)
	return all
}

// handedOut notes a message; whole: it was the last of its entry.
func (r *readerPosition) handedOut(at place, bit int, whole bool) {
	r.read, r.at, r.bit, r.whole = true, at, bit, whole
	if r.bounded && whole && !at.before(r.end) {
		r.ended = true
	}
}

// until takes the topic's last entry as the end of a bounded reader, which is
// there already when it starts behind that.
func (r *readerPosition) until(last *brokerv1.MessageId, partition int32, start Position) {
	if !r.bounded {
		return
	}
	r.end = place{last.GetLedger(), last.GetEntry()}
	p := start.on(partition)
	id, after := p.GetId(), p.GetAfterId()
	switch {
	case last == nil || last.GetEntry() < 0, p.HasLatest():
		r.ended = true
	case p.HasId():
		r.ended = r.end.before(place{id.GetLedger(), id.GetEntry()})
	case p.HasAfterId() && after.GetBatchIndex() < 0:
		r.ended = !place{after.GetLedger(), after.GetEntry()}.before(r.end)
	}
}
