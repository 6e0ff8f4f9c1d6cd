package managedledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Needs is what the bundle's log, durably, says of positions in a topic that is
// not open.
type Needs struct {
	From  position.Position   // the earliest that anything still needs
	Known []position.Position // all that it names; the chain has or had an entry there
}

// Swept is what a sweep did.
type Swept struct {
	Ledgers int  // trimmed
	More    bool // sweep it again, there is more to trim
	// Unclosed: a ledger is not closed, and nothing was trimmed. Open the topic, so
	// that it is recovered.
	Unclosed bool
}

// sweepBackoff is how soon a transaction of unknown outcome is looked into; it
// doubles up to lastSweepBackoff.
const (
	sweepBackoff     = 50 * time.Millisecond
	lastSweepBackoff = 5 * time.Second
)

// Sweep trims a topic that is not open, from its chain's keys alone: no more than
// goes in one transaction, so that who wants to open the topic does not wait for
// long. Nobody may open or delete it before Sweep returns.
//
// A transaction whose outcome is not known is made again until it is, so that the
// topic's next user does not read a chain that changes under it; that ends with
// ctx, which should be as long as the ownership of the bundle.
//
// ErrBeyondEnd: the log names a position after the end. That is damage, and
// nothing is trimmed.
func Sweep(ctx context.Context, opts Options, needs Needs, ret Retention) (Swept, error) {
	m, err := newManagedLedger(opts)
	if err != nil {
		return Swept{}, err
	}
	r := m.record
	if err := r.load(ctx); err != nil {
		return Swept{}, err
	}
	if len(m.links.open()) > 0 {
		return Swept{Unclosed: true}, nil // where it ends is not known
	}
	for _, p := range needs.Known {
		if _, err := m.links.after(p); err != nil {
			return Swept{}, fmt.Errorf("sweep topic %d: %w", opts.Topic, err)
		}
	}
	unknown := false // a transaction may be done, or be done yet
	for backoff := sweepBackoff; ; backoff = min(2*backoff, lastSweepBackoff) {
		var s Swept
		if err = r.take(ctx); err == nil {
			s.Ledgers, s.More, err = r.trimSome(ctx, needs.From, ret)
			r.give()
		}
		unknown = unknown || r.unsure
		if err == nil || !unknown || errors.Is(err, chain.ErrNotOwner) {
			return s, err
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return s, err
		}
	}
}
