package client

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// Shows that what a consumer says to its broker comes in requests the broker takes,
// however much there is of it, and that nothing of it is left out.
func TestRequestsFitTheBroker(t *testing.T) {
	const entries, words = 20_000, 2048 // as many messages in a batch as there can be
	a := acks{entries: map[place]*handed{}, now: true}
	left := make(bitset, words)
	left[words-1] = 1
	for e := range int64(entries) {
		a.touch(&handed{at: place{1, e}, left: left, out: left})
	}
	next := int64(0)
	for id := uint64(1); next < entries; id++ {
		if !a.due() {
			t.Fatalf("%d of %d entries were told", next, entries)
		}
		ack := a.take(id)
		if n := proto.Size(ack); n > rpc.MaxHeadBytes {
			t.Fatalf("a request of %d bytes", n)
		}
		for _, p := range ack.GetPositions() {
			if p.GetEntry() != next {
				t.Fatalf("entry %d told, want %d", p.GetEntry(), next)
			}
			next++
		}
		a.answered(id, nil)
	}

	f := &feed{c: &Consumer{}, link: &link{}, id: 1}
	for e := range int64(100_000) {
		f.redeliver = append(f.redeliver, place{1 << 62, 1<<61 + e})
	}
	var p parcel
	f.pull(f.link, 1, &p)
	told := 0
	for _, m := range p.messages {
		if n := proto.Size(m); n > rpc.MaxHeadBytes {
			t.Errorf("a request of %d bytes", n)
		}
		told += len(m.(*brokerv1.ConsumeRequest).GetRedeliver().GetPositions())
	}
	if told != 100_000 || len(f.redeliver) != 0 {
		t.Errorf("%d places told, %d left", told, len(f.redeliver))
	}
}
