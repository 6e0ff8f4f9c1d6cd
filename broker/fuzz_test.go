package broker

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/topicname"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// wireStream is the server's end of a stream on which messages come as bytes, each a
// second after the one before, and go through the codec.
type wireStream struct {
	brokerv1.Messaging_ConsumeServer // for what is not called
	ctx                              context.Context
	messages                         [][]byte
	largest                          int // head sent
}

func (s *wireStream) Context() context.Context { return s.ctx }

func (s *wireStream) RecvMsg(m any) error {
	time.Sleep(time.Second)
	if len(s.messages) == 0 {
		return io.EOF
	}
	data := mem.BufferSlice{mem.SliceBuffer(s.messages[0])}
	s.messages = s.messages[1:]
	return rpc.Codec().Unmarshal(data, m)
}

func (s *wireStream) SendMsg(m any) error {
	s.largest = max(s.largest, proto.Size(m.(*rpc.Frame).Head))
	return nil
}

type wireProduce struct {
	producePipe // for what is not called
	s           *wireStream
}

func (p wireProduce) Context() context.Context { return p.s.ctx }
func (p wireProduce) RecvMsg(m any) error      { return p.s.RecvMsg(m) }
func (p wireProduce) SendMsg(m any) error      { return p.s.SendMsg(m) }

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// served runs a story of a broker with a topic of three messages, and shows that it
// serves on after a stream.
func served(t *testing.T, stream func(t *testing.T, n *node, name topicname.Name)) {
	story(t, func(t *testing.T, w *world) {
		n := w.start("a")
		name := w.topic("orders")
		n.open(w.bundleOf(name))
		n.publish(name, "p", 3)
		stream(t, n, name)
		n.publish(name, "after", 1)
	})
}

// FuzzConsume shows that no request of a consumer keeps its stream from ending, or
// the broker from serving the topic.
func FuzzConsume(f *testing.F) {
	id := new(uint64(1))
	far := brokerv1.MessageId_builder{Ledger: new(int64(1 << 62)), Entry: new(int64(-9)), BatchIndex: new(int32(1<<31 - 1))}.Build()
	for _, r := range []*brokerv1.ConsumeRequest{
		flow(1, 1<<32-1, 1<<63),
		subscribe(1, topicname.MustParse("orders"), "s"),
		brokerv1.ConsumeRequest_builder{Ack: brokerv1.Ack_builder{ConsumerId: id, RequestId: id, Positions: []*brokerv1.AckPosition{
			brokerv1.AckPosition_builder{Ledger: new(int64(4)), Entry: new(int64(1)), AckSet: []uint64{1, 0}}.Build(),
		}}.Build()}.Build(),
		brokerv1.ConsumeRequest_builder{Ack: brokerv1.Ack_builder{ConsumerId: id, Cumulative: new(true), Positions: []*brokerv1.AckPosition{{}}}.Build()}.Build(),
		brokerv1.ConsumeRequest_builder{Redeliver: brokerv1.Redeliver_builder{ConsumerId: id, Positions: []*brokerv1.AckPosition{{}}}.Build()}.Build(),
		brokerv1.ConsumeRequest_builder{Seek: brokerv1.Seek_builder{ConsumerId: id, RequestId: id, To: brokerv1.Position_builder{Id: far}.Build()}.Build()}.Build(),
		brokerv1.ConsumeRequest_builder{Seek: brokerv1.Seek_builder{ConsumerId: id, To: brokerv1.Position_builder{PublishTimeMs: new(int64(-1 << 63))}.Build()}.Build()}.Build(),
		brokerv1.ConsumeRequest_builder{Unsubscribe: brokerv1.Unsubscribe_builder{ConsumerId: id, RequestId: id}.Build()}.Build(),
	} {
		f.Add(marshal(f, r))
	}
	f.Add([]byte{0x7a, 0xff, 0xff, 0xff, 0xff, 0x07})
	f.Fuzz(func(t *testing.T, request []byte) {
		served(t, func(t *testing.T, n *node, name topicname.Name) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			before := [][]byte{marshal(t, subscribe(1, name, "s")), marshal(t, flow(1, 2, 0))}
			_ = consume(&wireStream{ctx: ctx, messages: append(before, request, request)}, n.Broker, hclog.NewNullLogger())
		})
	})
}

// FuzzProduce shows the same of the requests of a producer.
func FuzzProduce(f *testing.F) {
	body := batch("q", 0, 0).Buffer[entry.BrokerPartRoom:]
	publish := func(lengths ...uint32) []byte {
		p := &brokerv1.Publish{}
		for _, n := range lengths {
			p.SetBatches(append(p.GetBatches(), brokerv1.PublishedBatch_builder{ProducerId: new(uint64(1)), Length: &n}.Build()))
		}
		return marshal(f, brokerv1.ProduceRequest_builder{Publish: p}.Build())
	}
	f.Add(publish(uint32(len(body))), body)
	f.Add(publish(0, 0, uint32(len(body))), body)
	f.Add(publish(uint32(len(body)-1), 1), body)
	f.Add(publish(1<<32-1), body)
	f.Add(marshal(f, openProducer(1, topicname.MustParse("orders"), "q", 1)), []byte{})
	f.Add(marshal(f, brokerv1.ProduceRequest_builder{Close: brokerv1.CloseProducer_builder{ProducerId: new(uint64(1))}.Build()}.Build()), body)
	f.Fuzz(func(t *testing.T, head, payload []byte) {
		served(t, func(t *testing.T, n *node, name topicname.Name) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			message := append([]byte(nil), head...)
			message = protowire.AppendBytes(protowire.AppendTag(message, rpc.PayloadField, protowire.BytesType), payload)
			s := &wireStream{ctx: ctx, messages: [][]byte{marshal(t, openProducer(1, name, "q", 0)), message, message}}
			_ = produce(wireProduce{s: s}, n.Broker, hclog.NewNullLogger())
		})
	})
}

// A request above the bound is refused before it is decoded, where it would take
// sixty times its size.
func TestConsumeRequestIsBounded(t *testing.T) {
	var positions []byte
	for len(positions) < rpc.MaxHeadBytes {
		positions = append(positions, 4<<3|2, 0) // an empty AckPosition
	}
	request := protowire.AppendBytes([]byte{3<<3 | 2}, positions)
	served(t, func(t *testing.T, n *node, name topicname.Name) {
		s := &wireStream{ctx: t.Context(), messages: [][]byte{marshal(t, subscribe(1, name, "s")), request}}
		if err := consume(s, n.Broker, hclog.NewNullLogger()); err == nil {
			t.Errorf("a request of %d bytes was taken", len(request))
		}
	})
}

// What is left of batches counts in a delivery: with as many messages in a batch as
// there can be it is more than the bodies, and a client takes only so much of it.
func TestDeliveryCountsWhatIsLeft(t *testing.T) {
	left := cursor.From(0, cursor.MaxBits)
	event := consumeEvent{from: &streamConsumer{id: 1}}
	for range 1000 {
		event.entries = append(event.entries, subscription.Delivery{Left: left, Body: []byte("body")})
	}
	s := &wireStream{ctx: t.Context()}
	if err := (&consumeStream{}).send(s, []consumeEvent{event}); err != nil || s.largest > rpc.MaxHeadBytes {
		t.Errorf("a head of %d bytes, %v", s.largest, err)
	}
}
