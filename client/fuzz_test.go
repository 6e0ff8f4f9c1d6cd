package client

import (
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// FuzzDelivery shows that whatever a broker delivers, twice, the application gets
// messages or ErrCorrupt, and can acknowledge what it got.
func FuzzDelivery(f *testing.F) {
	var b entry.Builder
	for i := range uint64(3) {
		b.Add(&entry.Message{SequenceID: i, HasKey: true, Key: "k", Value: []byte("value")}, 1)
	}
	body := append(entry.BrokerPart{Index: 2, Time: 1}.AppendTo(nil), b.Close(entry.BatchHeader{Producer: "p"})...)
	delivery := func(left []uint64, lengths ...uint32) []byte {
		d := brokerv1.Delivery_builder{ConsumerId: new(uint64(1)), Epoch: new(uint64(1))}
		for _, n := range lengths {
			d.Entries = append(d.Entries, brokerv1.DeliveredEntry_builder{Ledger: new(int64(4)), Entry: new(int64(2)), Length: &n, AckSet: left}.Build())
		}
		head, err := proto.Marshal(brokerv1.ConsumeResponse_builder{Delivery: d.Build()}.Build())
		if err != nil {
			f.Fatal(err)
		}
		return head
	}
	f.Add(delivery(nil, uint32(len(body))), body, false)
	f.Add(delivery([]uint64{2, 1 << 63}, uint32(len(body))), body, true)
	f.Add(delivery([]uint64{0}, uint32(len(body)), 0), body, false)
	f.Add(delivery(nil, 1<<32-1, 1<<32-1), body, false)
	f.Add([]byte{0x7a, 0xff, 0xff, 0xff, 0xff, 0x07}, body, false)
	f.Fuzz(func(t *testing.T, head, payload []byte, reader bool) {
		message := append([]byte(nil), head...)
		message = protowire.AppendBytes(protowire.AppendTag(message, rpc.PayloadField, protowire.BytesType), payload)
		c := &Consumer{wake: make(chan struct{}, 1), reader: reader, ticking: true} // its timer does not run
		c.opts.nackFirst, c.opts.nackMost = time.Hour, time.Hour
		defer c.nacks.stop()
		l := &link{wake: make(chan struct{}, 1)}
		d := &feed{c: c, link: l, id: 1, permits: 9, bytes: 9, window: 9, acks: acks{entries: map[place]*handed{}}}
		l.members = map[uint64]member{1: d}
		c.feeds = []*feed{d}
		for range 2 {
			frame := rpc.Frame{Head: &brokerv1.ConsumeResponse{}}
			if rpc.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(message)}, &frame) != nil {
				return
			}
			if frame.Head.(*brokerv1.ConsumeResponse).HasClosed() {
				return
			}
			err := dispatchConsume(l, &frame)
			frame.Free()
			if err != nil {
				return
			}
			for n := 0; ; n++ {
				c.mu.Lock()
				m, err := c.nextLocked()
				c.mu.Unlock()
				if m == nil && err == nil {
					break
				}
				if m != nil && n%2 == 0 {
					m.AckAsync()
				} else if m != nil {
					m.Nack()
				}
			}
			d.pull(l, 1, &parcel{})
		}
		if d.inQueue != 0 {
			t.Errorf("%d entries stay in the queue", d.inQueue)
		}
	})
}
