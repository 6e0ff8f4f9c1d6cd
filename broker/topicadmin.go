package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

const (
	maxPeekEntries = 1000
	maxPeekBytes   = 8 << 20
)

// topicAdmin serves TopicAdmin for the topics this broker owns.
type topicAdmin struct {
	adminv1.UnimplementedTopicAdminServer
	broker *Broker
}

func (a *topicAdmin) topic(ctx context.Context, text string) (*topic.Topic, topicname.Name, error) {
	name, err := topicname.Parse(text)
	if err != nil {
		return nil, name, err
	}
	t, err := a.broker.topic(ctx, name)
	return t, name, err
}

// TopicStats implements TopicAdmin.
func (a *topicAdmin) TopicStats(ctx context.Context, req *adminv1.TopicStatsRequest) (*adminv1.TopicStatsResponse, error) {
	t, name, err := a.topic(ctx, req.GetTopic())
	if err != nil {
		return nil, err
	}
	st := t.Stats(ctx)
	partition := int32(name.Partition)
	resp := adminv1.TopicStatsResponse_builder{
		Topic: new(name.String()), Id: new(t.ID()), Broker: &a.broker.opts.ID,
		LastMessageId: adminMessageID(st.Last, partition),
		MsgInCounter:  &st.MessagesIn, BytesInCounter: &st.BytesIn,
		StorageSize: new(uint64(st.Ledger.Bytes)), Producers: new(uint32(st.Producers)),
	}.Build()
	var subs []*adminv1.SubscriptionStats
	var messagesOut, bytesOut uint64
	for _, s := range st.Subscriptions {
		m := adminv1.SubscriptionStats_builder{
			Name: &s.Name, Type: new(s.Type.String()), MsgBacklog: new(uint64(max(0, s.BacklogMessages))),
			MarkDeletePosition: adminMessageID(s.MarkDelete, partition),
			Consumers:          new(uint32(len(s.Consumers))), LagSeconds: new(s.Lag.Seconds()), Waiting: &s.Waiting,
			AckedRanges: new(uint64(s.Holes)), BacklogEntries: new(uint64(max(0, s.Backlog))),
		}.Build()
		var consumers []*adminv1.ConsumerStats
		var unacked int64
		for _, c := range s.Consumers {
			unacked += c.Held
			messagesOut += c.Messages
			bytesOut += c.Bytes
			consumers = append(consumers, adminv1.ConsumerStats_builder{
				Name: &c.Name, Permits: &c.Permits, UnackedMessages: new(uint64(c.Held)), Active: &c.Active,
			}.Build())
		}
		m.SetConsumerStats(consumers)
		m.SetUnackedMessages(uint64(unacked))
		subs = append(subs, m)
	}
	resp.SetSubscriptions(subs)
	resp.SetMsgOutCounter(messagesOut)
	resp.SetBytesOutCounter(bytesOut)
	var ledgers []*adminv1.LedgerStats
	for _, l := range st.Ledger.Ledgers {
		ledgers = append(ledgers, adminv1.LedgerStats_builder{
			Ledger: new(int64(l.Ledger)), Entries: &l.Entries, Bytes: &l.Bytes, Closed: &l.Closed,
		}.Build())
	}
	resp.SetLedgers(ledgers)
	return resp, nil
}

// Peek implements TopicAdmin.
func (a *topicAdmin) Peek(ctx context.Context, req *adminv1.PeekRequest) (*adminv1.PeekResponse, error) {
	t, _, err := a.topic(ctx, req.GetTopic())
	if err != nil {
		return nil, err
	}
	from := position.Start
	if req.HasFrom() {
		from = positionOf(req.GetFrom().GetLedger(), req.GetFrom().GetEntry())
	}
	entries, err := t.Read(ctx, from, int(min(max(req.GetEntries(), 1), maxPeekEntries)), maxPeekBytes)
	if err != nil {
		return nil, err
	}
	resp := &adminv1.PeekResponse{}
	var out []*adminv1.PeekedEntry
	for _, e := range entries {
		out = append(out, adminv1.PeekedEntry_builder{
			Ledger: new(int64(e.Position.Ledger)), Entry: new(int64(e.Position.Entry)), Body: e.Body,
		}.Build())
	}
	resp.SetEntries(out)
	return resp, nil
}

// SeekSubscription implements TopicAdmin.
func (a *topicAdmin) SeekSubscription(ctx context.Context, req *adminv1.SeekSubscriptionRequest) (*adminv1.SeekSubscriptionResponse, error) {
	t, name, err := a.topic(ctx, req.GetTopic())
	if err != nil {
		return nil, err
	}
	var to subscription.Place
	switch req.WhichTo() {
	case adminv1.SeekSubscriptionRequest_Earliest_case:
		to.Anchor = subscription.Earliest
	case adminv1.SeekSubscriptionRequest_Latest_case:
		to.Anchor = subscription.Latest
	case adminv1.SeekSubscriptionRequest_Id_case:
		to = subscription.Place{Anchor: subscription.At, Position: positionOf(req.GetId().GetLedger(), req.GetId().GetEntry()),
			Index: int(req.GetId().GetBatchIndex())}
	case adminv1.SeekSubscriptionRequest_PublishTimeMs_case:
		to = subscription.Place{Anchor: subscription.AtTime, Time: time.UnixMilli(req.GetPublishTimeMs())}
	default:
		return nil, fmt.Errorf("seek without a place to go to: %w", rpcerr.ErrInvalid)
	}
	at, err := t.Seek(ctx, req.GetSubscription(), to)
	if err != nil {
		return nil, adminError(err)
	}
	return adminv1.SeekSubscriptionResponse_builder{Position: adminMessageID(at, int32(name.Partition))}.Build(), nil
}

// DeleteSubscription implements TopicAdmin.
func (a *topicAdmin) DeleteSubscription(ctx context.Context, req *adminv1.DeleteSubscriptionRequest) (*adminv1.DeleteSubscriptionResponse, error) {
	t, _, err := a.topic(ctx, req.GetTopic())
	if err != nil {
		return nil, err
	}
	if err := t.DeleteSubscription(ctx, req.GetSubscription(), req.GetForce()); err != nil {
		return nil, adminError(err)
	}
	return &adminv1.DeleteSubscriptionResponse{}, nil
}

func adminMessageID(p position.Position, partition int32) *adminv1.MessageId {
	return adminv1.MessageId_builder{
		Ledger: new(int64(p.Ledger)), Entry: new(int64(p.Entry)), Partition: &partition, BatchIndex: new(int32(-1)),
	}.Build()
}

// adminTable says which of rpcerr's sentinels an error of a topic is.
var adminTable = []struct{ is, as error }{
	{topic.ErrNoSubscription, rpcerr.ErrNotFound},
	{errTopicDeleted, rpcerr.ErrNotFound},
	{subscription.ErrBusy, rpcerr.ErrRefused},
	{subscription.ErrInvalid, rpcerr.ErrInvalid},
	{subscription.ErrUnsupported, rpcerr.ErrUnsupported},
	{errMoved, rpcerr.ErrNotOwner},
	{topic.ErrClosed, rpcerr.ErrUnavailable},
}

// adminError adds to an error of a topic what it is in rpcerr's words.
func adminError(err error) error { return rewrap(err, adminTable) }
