package subscription

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

var (
	// ErrBusy reports a subscription that is taken: by consumers of another type,
	// by the one consumer of an exclusive subscription, or, for who wants to delete
	// it, by other consumers.
	ErrBusy = errors.New("subscription: busy")
	// ErrUnsupported reports a type or request this broker does not offer.
	ErrUnsupported = errors.New("subscription: not supported")
	// ErrInvalid reports a request that no subscription of this type can serve.
	ErrInvalid = errors.New("subscription: invalid request")
	// ErrOverCredit reports a consumer that gave back more bytes than it was sent.
	ErrOverCredit = errors.New("subscription: more credit given back than was used")
	// ErrTooBusy reports too many acknowledgements that are not durable yet. Back
	// off and acknowledge again.
	ErrTooBusy = errors.New("subscription: too many acknowledgements under way")
	// ErrClosed reports a subscription that is closed here; it may go on with
	// another broker.
	ErrClosed = errors.New("subscription: closed")
	// ErrDeleted reports a subscription that was deleted.
	ErrDeleted = errors.New("subscription: deleted")
	// ErrReplaced reports a consumer whose place was taken by another one of the
	// same client, or because nobody was at the other end any more.
	ErrReplaced = errors.New("subscription: consumer replaced")
)

// Type says how entries are shared out among the consumers.
type Type uint8

const (
	Exclusive Type = iota // one consumer
	Shared                // each entry to one of them, in turn
	Failover              // all to one of them, the others stand by
	KeyShared             // not offered
)

func (t Type) String() string {
	switch t {
	case Exclusive:
		return "exclusive"
	case Shared:
		return "shared"
	case Failover:
		return "failover"
	case KeyShared:
		return "key_shared"
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// Ledger is the chain of ledgers behind the topic. Its methods are those of
// managedledger.ManagedLedger and promise what they promise there.
type Ledger interface {
	LastConfirmed() position.Position
	Next(p position.Position) (position.Position, error)
	Normalize(p position.Position) (position.Position, error)
	Between(from, to position.Position) managedledger.Extent
	Read(ctx context.Context, from position.Position, maxEntries int, maxBytes int64) ([]managedledger.Entry, error)
	SeekTime(ctx context.Context, t time.Time) (position.Position, error)
}

// Record is something the journal keeps for a subscription.
type Record struct {
	Kind Kind
	Data []byte
}

// Journal makes records durable.
type Journal interface {
	// Append adds records, all or none of which survive a crash. It never blocks.
	// An error means that they were refused and are surely not in the journal;
	// ErrTooBusy that they may be offered again. Otherwise done is called once, in
	// the order of the calls, never from within Append: with nil once the records
	// are durable, else with an error that means their fate is unknown and that the
	// journal takes nothing more.
	Append(records []Record, done func(error)) error
}

// Delivery is an entry on its way to a consumer.
type Delivery struct {
	Position position.Position
	Attempts uint32      // how often it was delivered before and came back
	Left     cursor.Bits // messages still unacknowledged; nil: all
	Messages int         // how many of the consumer's permits it takes
	Body     []byte      // never altered by anyone
}

// Sink is the other end of a consumer. Its methods are called one at a time, with
// the subscription locked: they take what they are given and return, and never
// call back into the subscription.
type Sink interface {
	// Deliver takes entries over, all of one epoch: it counts from 1 and rises with
	// each seek.
	Deliver(epoch uint64, entries []Delivery)
	// Active tells a consumer of a failover subscription whether it is the one
	// served; said once after it joined, and at each change.
	Active(active bool)
	// Closed tells that the consumer is no more, and why. It is the last call; it
	// is not made for a consumer that left by itself.
	Closed(err error)
	// Alive reports whether there may still be somebody at the other end.
	Alive() bool
}

// ConsumerOptions describe a consumer.
type ConsumerOptions struct {
	Name string
	Type Type
	// Instance names the client process; a consumer of the same name and instance
	// takes the place of the one before it. Empty: it never does.
	Instance string
	// WindowBytes bounds the bytes of entries sent and not given back; an entry
	// larger than it is sent when nothing else is out. 0: 4 MiB.
	WindowBytes int64
}

const defaultWindowBytes = 4 << 20
