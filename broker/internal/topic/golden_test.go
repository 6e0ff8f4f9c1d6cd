package topic

import (
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
)

// TestGoldenState shows that a topic's state in the bundle log, its snapshot with a
// checkpoint of its producers and records of its subscriptions, is written as version
// 1 is, and that what was written so is read as it was meant.
func TestGoldenState(t *testing.T) {
	const want = "01100e010004030101700309010504040303020108011901030762696c6c696e67d20901016b01760701020104010000"
	last := position.Position{Ledger: 4, Entry: 2}
	registry := producer.New(10)
	registry.Replay("p", 3, producer.Batch{First: 5, Last: 9}, last)
	saved := subscription.Saved{ID: 3, Name: "billing", Created: time.UnixMilli(1234), Properties: map[string]string{"k": "v"},
		Cursor: subscription.Target{Mark: position.Position{Ledger: 4}}.Cursor()}
	got := hex.EncodeToString(appendState(nil, []subscription.Record{
		{Kind: kindProducers, Data: registry.AppendCheckpoint(nil, last)},
		{Kind: subscription.KindDelete, Data: subscription.AppendDelete(nil, 8)},
		{Kind: subscription.KindCreate, Data: saved.AppendCreate(nil)},
	}))
	if got != want {
		t.Errorf("written as %s, want %s", got, want)
	}
	b, err := hex.DecodeString(want)
	if err != nil {
		t.Fatal(err)
	}
	r, err := restore(bundlelog.Parked{Base: b}, 10)
	if err != nil {
		t.Fatal(err)
	}
	if seq, stored := r.producers.Last("p"); !stored || seq != 9 || r.checkpoint != last {
		t.Errorf("producer at %d, checkpoint at %v", seq, r.checkpoint)
	}
	s := r.subscriptions.ByID[3]
	if s == nil || s.Name != "billing" || !s.Created.Equal(saved.Created) || s.Properties["k"] != "v" ||
		s.Cursor.MarkDelete() != saved.Cursor.MarkDelete() || r.subscriptions.NextID != 9 {
		t.Errorf("subscription read as %+v, next id %d", s, r.subscriptions.NextID)
	}
}

// TestNewerState shows that state of a newer build is named as such, not as damage.
func TestNewerState(t *testing.T) {
	checkpoint := producer.New(10).AppendCheckpoint(nil, position.Start)
	checkpoint[0]++
	snapshot := appendState(nil, nil)
	snapshot[0]++
	for what, base := range map[string][]byte{
		"checkpoint": appendState(nil, []subscription.Record{{Kind: kindProducers, Data: checkpoint}}),
		"snapshot":   snapshot,
	} {
		_, err := restore(bundlelog.Parked{Base: base}, 10)
		newer := errors.Is(err, producer.ErrVersion) || errors.Is(err, errStateVersion)
		if !newer || errors.Is(err, producer.ErrCorrupt) || errors.Is(err, errStateCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
