package topic

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
)

// Kinds of records of a topic, besides those of its subscriptions.
const (
	kindProducers subscription.Kind = 16 // a checkpoint of the producers
	kindDrop      subscription.Kind = 17 // the topic is deleted
)

// Ends reports whether a record of the bundle log ends its topic.
func Ends(r bundlelog.Record) bool { return subscription.Kind(r.Kind) == kindDrop }

// Drop is the record that ends a topic.
func Drop() subscription.Record { return subscription.Record{Kind: kindDrop, Data: []byte{}} }

// A topic's snapshot states its records anew:
//
//	| version 1 | { kind 1 | dataBytes uvarint | data } … |
const stateVersion = 1

func appendState(dst []byte, records []subscription.Record) []byte {
	dst = append(dst, stateVersion)
	for _, r := range records {
		dst = binary.AppendUvarint(append(dst, byte(r.Kind)), uint64(len(r.Data)))
		dst = append(dst, r.Data...)
	}
	return dst
}

func parseState(b []byte) ([]subscription.Record, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if b[0] != stateVersion {
		return nil, fmt.Errorf("snapshot of version %d, this build reads %d: %w", b[0], stateVersion, errStateVersion)
	}
	var out []subscription.Record
	for b = b[1:]; len(b) > 0; {
		n, size := binary.Uvarint(b[1:])
		if size <= 0 || n > uint64(len(b)-1-size) {
			return nil, fmt.Errorf("snapshot cut off: %w", errStateCorrupt)
		}
		start := 1 + size
		out = append(out, subscription.Record{Kind: subscription.Kind(b[0]), Data: b[start : start+int(n)]})
		b = b[start+int(n):]
	}
	return out, nil
}

// recordsOf are the records that a parked topic's state adds up from.
func recordsOf(parked bundlelog.Parked) ([]subscription.Record, error) {
	records, err := parseState(parked.Base)
	if err != nil {
		return nil, err
	}
	for _, rec := range parked.Records {
		records = append(records, subscription.Record{Kind: subscription.Kind(rec.Kind), Data: rec.Data})
	}
	return records, nil
}

// restored is what the journal knows of a topic.
type restored struct {
	producers     *producer.Registry
	checkpoint    position.Position
	subscriptions subscription.Restored
}

// restore adds up a parked topic's snapshot and records.
func restore(parked bundlelog.Parked, maxProducers int) (restored, error) {
	r := restored{producers: producer.New(maxProducers)}
	records, err := recordsOf(parked)
	if err != nil {
		return r, err
	}
	for _, rec := range records {
		switch rec.Kind {
		case kindProducers:
			r.producers = producer.New(maxProducers) // each checkpoint is whole
			if r.checkpoint, err = r.producers.Restore(rec.Data); err != nil {
				return r, err
			}
		default:
			if err := r.subscriptions.Apply(rec); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// Snapshot implements bundlelog.Live. With the topic and all its subscriptions
// locked nothing is appended for it.
//
// Invariant, of a pass and of what Close gives for the shelf alike: the state is
// what replay makes of all records that the journal has taken, durable or not. For
// subscriptions to the letter: each states what it has sent, not what it is about
// to. The producers are told as they are, but as of the newest checkpoint that was
// sent: what was published after it changes nothing when it is replayed, and
// whoever opens the topic from this state takes the position for durable, and trims
// up to it.
func (t *Topic) Snapshot(emit func(base []byte)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	records := []subscription.Record{
		{Kind: kindProducers, Data: t.producers.AppendCheckpoint(nil, t.checkpointSent)},
		// So that ids of subscriptions long deleted are not used again.
		{Kind: subscription.KindDelete, Data: subscription.AppendDelete(nil, t.nextSubscription-1)},
	}
	var durable []*subscription.Subscription
	for _, s := range t.subscriptions {
		durable = append(durable, s)
	}
	slices.SortFunc(durable, func(a, b *subscription.Subscription) int { return int(int64(a.ID()) - int64(b.ID())) })
	var descend func()
	descend = func() {
		if len(durable) == 0 {
			emit(appendState(nil, records))
			return
		}
		s := durable[0]
		durable = durable[1:]
		s.Snapshot(func(r subscription.Record) {
			records = append(records, r)
			descend()
		})
	}
	descend()
}
