package broker

import (
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// maxDeliveryBytes bounds the entries that go out in one gRPC message; a larger
// entry goes alone.
const maxDeliveryBytes = 512 << 10

// send sends events in order, neighbouring entries of one consumer together.
func (s *consumeStream) send(stream brokerv1.Messaging_ConsumeServer, events []consumeEvent) error {
	var d delivery
	for _, e := range events {
		if e.entries == nil || d.from != e.from || d.epoch != e.epoch {
			if err := d.flush(stream); err != nil {
				return err
			}
			d.from, d.epoch = e.from, e.epoch
		}
		for _, entry := range e.entries {
			if d.bytes+deliveryBytes(entry) > maxDeliveryBytes {
				if err := d.flush(stream); err != nil {
					return err
				}
			}
			d.add(entry)
		}
		if e.entries != nil {
			continue
		}
		if e.closed != nil {
			e.response = s.closedMessage(e)
		}
		if err := stream.SendMsg(&rpc.Frame{Head: e.response}); err != nil {
			return err
		}
	}
	return d.flush(stream)
}

// delivery gathers entries of one consumer for one message.
type delivery struct {
	from    *streamConsumer
	epoch   uint64
	entries []*brokerv1.DeliveredEntry
	payload [][]byte
	bytes   int
}

func (d *delivery) add(e subscription.Delivery) {
	m := &brokerv1.DeliveredEntry{}
	m.SetLedger(int64(e.Position.Ledger))
	m.SetEntry(int64(e.Position.Entry))
	m.SetLength(uint32(len(e.Body)))
	if e.Attempts > 0 {
		m.SetRedeliveryCount(e.Attempts)
	}
	if e.Left != nil {
		m.SetAckSet(e.Left)
	}
	d.entries = append(d.entries, m)
	d.payload = append(d.payload, e.Body)
	d.bytes += deliveryBytes(e)
}

// deliveryBytes is what an entry takes of maxDeliveryBytes: which messages are left
// of a batch that compresses well may be more than its body.
func deliveryBytes(e subscription.Delivery) int { return len(e.Body) + 8*len(e.Left) }

func (d *delivery) flush(stream brokerv1.Messaging_ConsumeServer) error {
	if len(d.entries) == 0 {
		return nil
	}
	head := brokerv1.ConsumeResponse_builder{Delivery: brokerv1.Delivery_builder{
		ConsumerId: &d.from.id, Entries: d.entries, Epoch: &d.epoch,
	}.Build()}.Build()
	err := stream.SendMsg(&rpc.Frame{Head: head, Payload: d.payload})
	d.entries, d.payload, d.bytes = nil, nil, 0
	return err
}

// closedMessage forgets a consumer that ended from this side and says why.
func (s *consumeStream) closedMessage(e consumeEvent) *brokerv1.ConsumeResponse {
	s.mu.Lock()
	if s.consumers[e.from.id] == e.from {
		delete(s.consumers, e.from.id)
	}
	s.mu.Unlock()
	closed := brokerv1.ConsumerClosed_builder{
		ConsumerId: &e.from.id, Code: new(codeOf(e.closed)), Message: new(e.closed.Error()),
	}.Build()
	if closed.GetCode() == brokerv1.Code_CODE_MOVED {
		closed.SetMovedTo(s.topics.movedTo(e.topic))
	}
	return brokerv1.ConsumeResponse_builder{Closed: closed}.Build()
}
