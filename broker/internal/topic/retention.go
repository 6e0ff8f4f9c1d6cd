package topic

import (
	"context"
	"fmt"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
)

// Trim removes ledgers that every subscription is done with and that r lets go,
// and returns how many.
func (t *Topic) Trim(ctx context.Context, r managedledger.Retention) (int, error) {
	t.mu.Lock()
	subscriptions := len(t.subscriptions)
	t.mu.Unlock()
	if keepsAll(subscriptions, r) {
		return 0, nil
	}
	return t.ledger.Trim(ctx, t.keepFrom(), r)
}

// keepsAll reports whether nothing of a topic is let go. Where r keeps nothing
// beyond the subscriptions and there is none yet, nobody is done with anything: all
// of it stays for the first one.
func keepsAll(subscriptions int, r managedledger.Retention) bool {
	return r.KeepsForever() || subscriptions == 0 && (r.Bytes == 0 || r.Age == 0)
}

// keepFrom is the oldest position that somebody needs: the slowest durable
// subscription's, or the checkpoint's; both as the journal has them. Where the
// checkpoint is what keeps entries, a newer one is begun.
func (t *Topic) keepFrom() position.Position {
	t.mu.Lock()
	defer t.mu.Unlock()
	keep := t.storedAt.Next()
	for _, s := range t.subscriptions {
		keep = position.Min(keep, s.KeepFrom())
	}
	if needed := t.checkpointAt.Next(); needed.Before(keep) {
		if t.closing == nil {
			t.checkpointLocked(true)
		}
		return needed
	}
	return keep
}

// NeedsOf reads off the state of a topic that is not open, durable as it is, what
// Trim would go by. It needs neither the topic nor its ledgers. some is false when
// r lets go of nothing, whatever the ledgers hold.
func NeedsOf(parked bundlelog.Parked, r managedledger.Retention) (needs managedledger.Needs, some bool, err error) {
	records, err := recordsOf(parked)
	if err != nil {
		return needs, false, err
	}
	checkpoint := position.Start // without one all entries have to be replayed
	var subscriptions subscription.Restored
	for _, rec := range records {
		if rec.Kind == kindProducers {
			checkpoint, err = producer.CheckpointAt(rec.Data)
		} else {
			err = subscriptions.Apply(rec)
		}
		if err != nil {
			return needs, false, fmt.Errorf("read what keeps its entries: %w", err)
		}
	}
	needs.From = checkpoint.Next()
	needs.Known = append(needs.Known, checkpoint)
	for _, s := range subscriptions.ByID {
		needs.From = position.Min(needs.From, s.Cursor.MarkDelete().Next())
		needs.Known = append(needs.Known, s.Cursor.Last())
	}
	return needs, !needs.From.IsStart() && !keepsAll(len(subscriptions.ByID), r), nil
}
