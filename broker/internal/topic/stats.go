package topic

import (
	"context"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/internal/entry"
)

// Stats describe a topic at one moment. Counters count since it was opened here.
type Stats struct {
	Last          position.Position // last stored entry
	MessagesIn    uint64
	BytesIn       uint64
	Producers     int
	Subscriptions []SubscriptionStats
	Ledger        managedledger.Stats
}

// SubscriptionStats describe a subscription; Lag is the age of the oldest entry
// it has not acknowledged.
type SubscriptionStats struct {
	subscription.Stats
	Lag time.Duration
}

// Stats returns a picture of the topic. The heads of the oldest entries not
// acknowledged are read from the bookies.
func (t *Topic) Stats(ctx context.Context) Stats {
	t.mu.Lock()
	st := Stats{Last: t.storedAt, MessagesIn: t.counters.messagesIn, BytesIn: t.counters.bytesIn, Producers: len(t.open)}
	t.mu.Unlock()
	st.Ledger = t.ledger.Stats()
	for _, s := range *t.listeners.Load() {
		if !s.Durable() {
			continue
		}
		stats := SubscriptionStats{Stats: s.Stats()}
		if stats.Backlog > 0 {
			stats.Lag = t.age(ctx, s.KeepFrom())
		}
		st.Subscriptions = append(st.Subscriptions, stats)
	}
	return st
}

// age is how long ago the entry at or after p was published; 0 where that cannot
// be read now.
func (t *Topic) age(ctx context.Context, p position.Position) time.Duration {
	at, ok := t.PublishedAt(ctx, p)
	if !ok {
		return 0
	}
	return max(0, t.opts.Now().Sub(at))
}

// PublishedAt is when the entry at or after p was published, read from its
// broker part; false where that cannot be read now.
func (t *Topic) PublishedAt(ctx context.Context, p position.Position) (time.Time, bool) {
	p, err := t.ledger.Normalize(p)
	if err != nil {
		return time.Time{}, false
	}
	heads, err := t.ledger.ReadHeads(ctx, p, 1, entry.BrokerPartRoom)
	if err != nil || len(heads) == 0 {
		return time.Time{}, false
	}
	broker, _, err := entry.ParseBody(heads[0].Body)
	if err != nil {
		return time.Time{}, false
	}
	return time.UnixMilli(broker.Time), true
}

// Load is what a topic carries at one moment, as far as memory tells.
type Load struct {
	Producers int
	Consumers int      // of readers too
	Behind    []Behind // durable subscriptions with a backlog
}

// Behind is a subscription that has not acknowledged everything.
type Behind struct {
	Name     string
	Messages int64             // see subscription.Stats
	From     position.Position // nothing before is still needed
}

// Load returns the topic's load. It reads nothing.
func (t *Topic) Load() Load {
	t.mu.Lock()
	l := Load{Producers: len(t.open)}
	t.mu.Unlock()
	for _, s := range *t.listeners.Load() {
		stats := s.Stats()
		l.Consumers += len(stats.Consumers)
		if s.Durable() && stats.Backlog > 0 {
			l.Behind = append(l.Behind, Behind{Name: stats.Name, Messages: stats.BacklogMessages, From: s.KeepFrom()})
		}
	}
	return l
}

// Last is the position of the last stored entry.
func (t *Topic) Last() position.Position {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.storedAt
}

// Read returns entries from p on, for people who look into the topic.
func (t *Topic) Read(ctx context.Context, from position.Position, entries int, bytes int64) ([]managedledger.Entry, error) {
	from, err := t.ledger.Normalize(from)
	if err != nil {
		return nil, err
	}
	return t.ledger.Read(ctx, from, entries, bytes)
}
