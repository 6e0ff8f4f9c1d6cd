package standalone

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

var stockCRC = crc32.MakeTable(crc32.Castagnoli)

// stockBatch frames values as "A batch, byte by byte" of docs/formats.md says,
// with nothing of this repository but the generated messages.
func stockBatch(t *testing.T, producer string, first uint64, values ...string) []byte {
	t.Helper()
	var payload []byte
	for i, v := range values {
		single, err := proto.Marshal(entryv1.SingleMessageMetadata_builder{
			PayloadSize: new(int32(len(v))), SequenceId: new(first + uint64(i)), PartitionKey: new("key"),
		}.Build())
		if err != nil {
			t.Fatal(err)
		}
		payload = binary.BigEndian.AppendUint32(payload, uint32(len(single)))
		payload = append(append(payload, single...), v...)
	}
	md := entryv1.MessageMetadata_builder{
		ProducerName: &producer, SequenceId: &first, HighestSequenceId: new(first + uint64(len(values)) - 1),
		PublishTime: new(uint64(time.Now().UnixMilli())), NumMessagesInBatch: new(int32(len(values))),
	}.Build()
	if first > 0 {
		md.SetPreviousSequenceId(first - 1)
	}
	header, err := proto.Marshal(md)
	if err != nil {
		t.Fatal(err)
	}
	checked := binary.BigEndian.AppendUint32(nil, uint32(len(header)))
	checked = append(append(checked, header...), payload...)
	part := []byte{0x0e, 0x01}
	part = binary.BigEndian.AppendUint32(part, crc32.Checksum(checked, stockCRC))
	return append(part, checked...)
}

// stockValues opens a body by hand: the broker part, the producer's checksum, and
// each message.
func stockValues(body []byte) ([]string, error) {
	if len(body) < 6 || binary.BigEndian.Uint16(body) != 0x0e02 {
		return nil, fmt.Errorf("body starts with % x", body[:min(len(body), 6)])
	}
	n := int(binary.BigEndian.Uint32(body[2:]))
	broker := &entryv1.BrokerEntryMetadata{}
	if err := proto.Unmarshal(body[6:6+n], broker); err != nil {
		return nil, err
	}
	part := body[6+n:]
	if binary.BigEndian.Uint16(part) != 0x0e01 {
		return nil, fmt.Errorf("producer part starts with % x", part[:2])
	}
	if want, got := binary.BigEndian.Uint32(part[2:]), crc32.Checksum(part[6:], stockCRC); want != got {
		return nil, fmt.Errorf("checksum %08x, stated %08x", got, want)
	}
	m := int(binary.BigEndian.Uint32(part[6:]))
	md := &entryv1.MessageMetadata{}
	if err := proto.Unmarshal(part[10:10+m], md); err != nil {
		return nil, err
	}
	payload := part[10+m:]
	var values []string
	for range md.GetNumMessagesInBatch() {
		n := int(binary.BigEndian.Uint32(payload))
		single := &entryv1.SingleMessageMetadata{}
		if err := proto.Unmarshal(payload[4:4+n], single); err != nil {
			return nil, err
		}
		payload = payload[4+n:]
		values = append(values, string(payload[:single.GetPayloadSize()]))
		payload = payload[single.GetPayloadSize():]
	}
	if len(payload) > 0 {
		return nil, fmt.Errorf("%d bytes after the last message", len(payload))
	}
	return values, nil
}

// stockNode runs a whole node, its metadata store and files included, and returns
// a connection to it with nothing but the address set.
func stockNode(t *testing.T) (context.Context, *grpc.ClientConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	node, err := Start(ctx, Options{DataDir: t.TempDir(), GRPC: l, MemoryBytes: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stopping, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := node.Close(stopping); err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient(node.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return ctx, conn
}

// TestStockClient shows that a client in any language can be written from the
// .proto files and docs/formats.md: generated stubs, gRPC's own codec and plain
// dial options find the services by reflection, see the node healthy, look a topic
// up, publish, are told of a wrong checksum, consume, and have an acknowledgement
// answered that a later consumer finds kept.
func TestStockClient(t *testing.T) {
	ctx, conn := stockNode(t)
	stockServices(t, ctx, conn)
	topic := stockTopic(t, ctx, conn, "stock")

	produce, err := brokerv1.NewMessagingClient(conn).Produce(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sendProduce := func(r *brokerv1.ProduceRequest) *brokerv1.ProduceResponse {
		t.Helper()
		if err := produce.Send(r); err != nil {
			t.Fatal(err)
		}
		resp, err := produce.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	publish := func(parts ...[]byte) *brokerv1.ProduceResponse {
		t.Helper()
		var batches []*brokerv1.PublishedBatch
		for _, p := range parts {
			batches = append(batches, brokerv1.PublishedBatch_builder{ProducerId: new(uint64(7)), Length: new(uint32(len(p)))}.Build())
		}
		return sendProduce(brokerv1.ProduceRequest_builder{
			Publish: brokerv1.Publish_builder{Batches: batches}.Build(), Payload: slices.Concat(parts...),
		}.Build())
	}
	opened := sendProduce(brokerv1.ProduceRequest_builder{Open: brokerv1.OpenProducer_builder{
		ProducerId: new(uint64(7)), Topic: &topic, ProducerName: new("by-hand"), Epoch: new(uint64(1)),
	}.Build()}.Build()).GetOpened()
	if opened.GetProducerId() != 7 || opened.GetProducerName() != "by-hand" || opened.GetHasLastSequenceId() || opened.GetWindowBytes() == 0 {
		t.Fatalf("opened: %v", opened)
	}

	receipts := publish(stockBatch(t, "by-hand", 0, "zero", "one", "two")).GetReceipts().GetReceipts()
	if len(receipts) != 1 || receipts[0].GetSequenceId() != 2 || receipts[0].GetEntry() != 0 || receipts[0].GetDuplicate() {
		t.Fatalf("receipts: %v", receipts)
	}
	again := publish(stockBatch(t, "by-hand", 0, "zero", "one", "two")).GetReceipts().GetReceipts()
	if len(again) != 1 || !again[0].GetDuplicate() || again[0].GetLedger() != receipts[0].GetLedger() || again[0].GetEntry() != 0 {
		t.Fatalf("receipts of a retry: %v", again)
	}
	bad := stockBatch(t, "by-hand", 3, "three")
	bad[len(bad)-1] ^= 1
	if r := publish(bad).GetRefused(); r.GetCode() != brokerv1.Code_CODE_CHECKSUM || r.GetSequenceId() != 3 || r.GetMessage() == "" {
		t.Fatalf("a damaged batch: %v", r)
	}
	if r := publish(stockBatch(t, "by-hand", 3, "three")).GetReceipts().GetReceipts(); len(r) != 1 || r[0].GetEntry() != 1 {
		t.Fatalf("receipts after a refusal: %v", r)
	}
	if err := produce.CloseSend(); err != nil {
		t.Fatal(err)
	}

	if got := stockConsume(t, ctx, conn, topic, 4); !slices.Equal(got, []string{"zero", "one", "two", "three"}) {
		t.Fatalf("consumed %q", got)
	}
	// Acknowledged is acknowledged: the next message is the next one delivered.
	if produce, err = brokerv1.NewMessagingClient(conn).Produce(ctx); err != nil {
		t.Fatal(err)
	}
	opened = sendProduce(brokerv1.ProduceRequest_builder{Open: brokerv1.OpenProducer_builder{
		ProducerId: new(uint64(7)), Topic: &topic, ProducerName: new("by-hand"), Epoch: new(uint64(2)),
	}.Build()}.Build()).GetOpened()
	if opened.GetLastSequenceId() != 3 {
		t.Fatalf("opened again: %v", opened)
	}
	if r := publish(stockBatch(t, "by-hand", 4, "four")).GetReceipts().GetReceipts(); len(r) != 1 {
		t.Fatalf("receipts: %v", r)
	}
	if got := stockConsume(t, ctx, conn, topic, 1); !slices.Equal(got, []string{"four"}) {
		t.Fatalf("consumed %q", got)
	}
}

// stockServices shows that reflection lists the services and that health says
// SERVING.
func stockServices(t *testing.T, ctx context.Context, conn *grpc.ClientConn) {
	t.Helper()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	var names []string
	list := &reflectionpb.ServerReflectionRequest_ListServices{ListServices: "*"}
	for _, s := range ask(&reflectionpb.ServerReflectionRequest{MessageRequest: list}).GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, want := range []string{"magnetar.broker.v1.Messaging", "magnetar.discovery.v1.Discovery", "magnetar.admin.v1.Admin", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("reflection lists %q, not %s", names, want)
		}
	}
	symbol := &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "magnetar.broker.v1.Messaging"}
	if files := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: symbol}).GetFileDescriptorResponse().GetFileDescriptorProto(); len(files) == 0 {
		t.Error("reflection has no file of the messaging service")
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	health, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("health: %v, %v", health, err)
	}
}

// stockTopic makes a topic and waits until a broker owns it.
func stockTopic(t *testing.T, ctx context.Context, conn *grpc.ClientConn, name string) string {
	t.Helper()
	discovery := discoveryv1.NewDiscoveryClient(conn)
	topics, err := discovery.Topics(ctx, discoveryv1.TopicsRequest_builder{Topics: []string{name}, Create: new(true)}.Build())
	if err != nil || len(topics.GetTopics()) != 1 || len(topics.GetTopics()[0].GetPartitions()) != 1 {
		t.Fatalf("topics: %v, %v", topics, err)
	}
	topic := topics.GetTopics()[0].GetPartitions()[0].GetTopic()
	for {
		owners, err := discovery.Lookup(ctx, discoveryv1.LookupRequest_builder{Topics: []string{topic}}.Build())
		if err != nil {
			t.Fatal(err)
		}
		if o := owners.GetOwners()[0]; o.GetAddress() == conn.Target() {
			return topic
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no owner of %s: %v", topic, owners)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stockConsume receives n messages of the subscription "sub" and acknowledges
// them, waiting for the answer.
func stockConsume(t *testing.T, ctx context.Context, conn *grpc.ClientConn, topic string, n int) []string {
	t.Helper()
	stream, err := brokerv1.NewMessagingClient(conn).Consume(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *brokerv1.ConsumeRequest) {
		t.Helper()
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	receive := func() *brokerv1.ConsumeResponse {
		t.Helper()
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	id := new(uint64(9))
	send(brokerv1.ConsumeRequest_builder{Subscribe: brokerv1.Subscribe_builder{
		ConsumerId: id, Topic: &topic, Subscription: new("sub"), InitialPosition: brokerv1.Position_builder{Earliest: new(true)}.Build(),
	}.Build()}.Build())
	if s := receive(); s.GetSubscribed().GetConsumerId() != *id {
		t.Fatalf("want subscribed, got %v", s)
	}
	send(brokerv1.ConsumeRequest_builder{Flow: brokerv1.Flow_builder{ConsumerId: id, Permits: new(uint32(100))}.Build()}.Build())

	var values []string
	ack := brokerv1.Ack_builder{ConsumerId: id, RequestId: new(uint64(1))}.Build()
	for len(values) < n {
		r := receive()
		if r.WhichEvent() != brokerv1.ConsumeResponse_Delivery_case {
			t.Fatalf("want a delivery, got %v", r)
		}
		payload := r.GetPayload()
		for _, e := range r.GetDelivery().GetEntries() {
			got, err := stockValues(payload[:e.GetLength()])
			if err != nil {
				t.Fatalf("entry %d:%d: %v", e.GetLedger(), e.GetEntry(), err)
			}
			values = append(values, got...)
			payload = payload[e.GetLength():]
			ack.SetPositions(append(ack.GetPositions(), brokerv1.AckPosition_builder{
				Ledger: new(e.GetLedger()), Entry: new(e.GetEntry()),
			}.Build()))
		}
		if len(payload) > 0 {
			t.Fatalf("%d bytes of a delivery belong to no entry", len(payload))
		}
		ack.SetEpoch(r.GetDelivery().GetEpoch())
	}
	send(brokerv1.ConsumeRequest_builder{Ack: ack}.Build())
	if d := receive().GetDone(); d.GetRequestId() != 1 || d.GetCode() != brokerv1.Code_CODE_UNSPECIFIED {
		t.Fatalf("the acknowledgement: %v", d)
	}
	send(brokerv1.ConsumeRequest_builder{Close: brokerv1.CloseConsumer_builder{ConsumerId: id}.Build()}.Build())
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	return values
}
