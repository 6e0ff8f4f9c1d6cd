package broker

import (
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

func positionOf(l, e int64) position.Position {
	return position.Position{Ledger: ledger.ID(l), Entry: ledger.EntryID(e)}
}

// messageIDOf names an entry; −1:−1 where there is none.
func messageIDOf(p position.Position, partition int32) *brokerv1.MessageId {
	if p.IsStart() {
		p = position.Position{Ledger: -1, Entry: ledger.NoEntry}
	}
	return brokerv1.MessageId_builder{
		Ledger: new(int64(p.Ledger)), Entry: new(int64(p.Entry)), Partition: &partition, BatchIndex: new(int32(-1)),
	}.Build()
}

// placeOf turns a position as clients say it into a place in the topic.
func placeOf(p *brokerv1.Position) (subscription.Place, error) {
	at := func(anchor subscription.Anchor, id *brokerv1.MessageId) (subscription.Place, error) {
		return subscription.Place{Anchor: anchor, Position: positionOf(id.GetLedger(), id.GetEntry()), Index: int(id.GetBatchIndex())}, nil
	}
	switch p.WhichAt() {
	case brokerv1.Position_Earliest_case:
		return subscription.Place{Anchor: subscription.Earliest}, nil
	case brokerv1.Position_Latest_case:
		return subscription.Place{Anchor: subscription.Latest}, nil
	case brokerv1.Position_Id_case:
		return at(subscription.At, p.GetId())
	case brokerv1.Position_AfterId_case:
		return at(subscription.AfterID, p.GetAfterId())
	case brokerv1.Position_PublishTimeMs_case:
		return subscription.Place{Anchor: subscription.AtTime, Time: time.UnixMilli(p.GetPublishTimeMs())}, nil
	}
	return subscription.Place{}, fmt.Errorf("a position that says nothing: %w", subscription.ErrInvalid)
}
