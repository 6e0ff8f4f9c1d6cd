package client

import (
	"context"
	"fmt"

	"github.com/magnetar-io/magnetar/internal/entry"
)

// batch is the fate of messages that travel together: first while they gather in
// a lane, then closed and on their way, until they have one outcome.
type batch struct {
	// part is the closed batch, nil while it gathers. It is sent again as it is.
	part        []byte
	first, last uint64 // sequence ids
	count       int
	sent        bool  // it was handed to a connection at least once
	doubt       bool  // an earlier attempt was not answered: it may be stored
	early       bool  // it is one message whose outcome was known before it began
	held        int64 // bytes of the memory budget

	callbacks []func(MessageID, error) // by message; nil, or shorter, where none asked

	// Written before done is closed, read after.
	done      chan struct{}
	err       error
	at        place
	partition int32
	skipped   int // messages at the front that were stored before, elsewhere
}

// callback keeps what to call for message i.
func (b *batch) callback(i int, f func(MessageID, error)) {
	if f == nil {
		return
	}
	for len(b.callbacks) < i {
		b.callbacks = append(b.callbacks, nil)
	}
	b.callbacks = append(b.callbacks, f)
}

// place is where an entry stands in a partition.
type place struct{ ledger, entry int64 }

func (p place) before(q place) bool {
	return p.ledger < q.ledger || p.ledger == q.ledger && p.entry < q.entry
}

// real reports whether an entry can stand there.
func (p place) real() bool { return p.ledger > 0 && p.entry >= 0 }

// noPlace stands for an entry stored at a place that nobody remembers.
var noPlace = place{-1, -1}

// id is that of message i.
func (b *batch) id(i int) MessageID {
	id := MessageID{Ledger: b.at.ledger, Entry: b.at.entry, Partition: b.partition, BatchIndex: -1}
	switch {
	case i < b.skipped:
		id.Ledger, id.Entry = noPlace.ledger, noPlace.entry
	case b.count-b.skipped > 1 && b.at != noPlace:
		id.BatchIndex = int32(i - b.skipped)
	}
	return id
}

// outcome is that of message i, once done is closed.
func (b *batch) outcome(i int) (MessageID, error) {
	if b.err != nil {
		return MessageID{}, b.err
	}
	return b.id(i), nil
}

// refusal is the outcome of a batch that the broker refused for cause: definite,
// unless an earlier attempt may have been stored.
func (b *batch) refusal(cause error) error {
	if b.doubt {
		return unknownOutcome(cause)
	}
	return cause
}

// failed returns a batch of one message that failed before it began.
func failed(err error) *batch {
	b := &batch{done: make(chan struct{}), err: err, count: 1, early: true}
	close(b.done)
	return b
}

// renumber writes the messages of a batch that the broker has refused anew: those
// up to sequence id after are left out when drop, else all get ids from after+1
// on. It returns the number of messages left out.
func (b *batch) renumber(after uint64, drop bool, h entry.BatchHeader) (dropped int, err error) {
	in, err := entry.Open(b.part, entry.MaxPayloadBytes)
	if err != nil {
		return 0, fmt.Errorf("read own batch again: %w", err)
	}
	h.Epoch, h.PublishTime = in.Header.ProducerEpoch, in.Header.PublishTime
	var out entry.Builder
	next := after + 1
	for {
		var m entry.Message
		ok, err := in.Next(&m)
		if err != nil {
			return 0, fmt.Errorf("read own batch again: %w", err)
		}
		if !ok {
			break
		}
		if drop && m.SequenceID <= after {
			dropped++
			continue
		}
		if !drop {
			m.SequenceID = next
			next++
		}
		out.Add(&m, keyHash(&m))
	}
	if out.Len() > 0 {
		b.first, b.last = out.Sequences()
		b.part = out.Close(h)
	}
	return dropped, nil
}

// Future is the outcome of a message sent with SendAsync. The zero Future is
// none.
type Future struct {
	batch *batch
	i     int
}

// Done is closed when the outcome is known.
func (f Future) Done() <-chan struct{} { return f.batch.done }

// Wait waits for the outcome. When ctx ends first it returns an error that wraps
// ErrUnknownOutcome and the context's; the message is still under way.
func (f Future) Wait(ctx context.Context) (MessageID, error) {
	select {
	case <-f.batch.done:
		return f.batch.outcome(f.i)
	default:
	}
	select {
	case <-f.batch.done:
		return f.batch.outcome(f.i)
	case <-ctx.Done():
		return MessageID{}, unknownOutcome(ctx.Err())
	}
}
