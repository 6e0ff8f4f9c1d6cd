package client

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/entry"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

func quietLane(t *testing.T) *lane {
	c := &Client{opts: newOptions(nil), log: newOptions(nil).log, ctx: t.Context()}
	p := &Producer{c: c, ctx: t.Context(), opts: newProducerOptions(nil)}
	p.maxMessage.Store(defaultMaxMessage)
	return &lane{p: p, topic: "t", partition: 1, name: "p", part: discoveryv1.Partition_builder{KeyHashLast: proto.Uint32(10)}.Build()}
}

func keyed(hash uint32) *outgoing {
	return &outgoing{Message: entry.Message{HasKey: true, Key: "k", Value: []byte("x")}, hash: hash}
}

// TestRuleM32_LaneTakesNoKeyThatMoved shows that a message routed by a map older
// than the lane's is refused when its key went elsewhere, and when the partition
// was sealed.
func TestRuleM32_LaneTakesNoKeyThatMoved(t *testing.T) {
	l := quietLane(t)
	if b, _, _ := l.add(keyed(10)); b.early {
		t.Errorf("a key of the partition: %v", b.err)
	}
	if b, _, _ := l.add(keyed(11)); !Retryable(b.err) {
		t.Errorf("a key of another one: %v", b.err)
	}
	l.part.SetSealed(true)
	if b, _, _ := l.add(keyed(10)); !Retryable(b.err) {
		t.Errorf("sealed: %v", b.err)
	}
}

// Shows that a lane which took messages before it was opened, and then hears that
// more is stored under its name, numbers them behind that: they would pass for
// stored otherwise.
func TestTakenBeforeOpened(t *testing.T) {
	l := quietLane(t)
	for range 3 {
		l.add(keyed(1))
	}
	from := quietLink()
	l.answer, l.opening = make(chan error, 1), from
	l.id, _ = from.join(l, func(uint64) proto.Message { return nil })
	l.opened(from, brokerv1.ProducerOpened_builder{ProducerId: proto.Uint64(l.id), ProducerName: proto.String("p"),
		HasLastSequenceId: proto.Bool(true), LastSequenceId: proto.Uint64(41)}.Build())
	var p parcel
	l.pull(from, l.id, &p)
	if len(p.parts) != 1 {
		t.Fatalf("%d batches", len(p.parts))
	}
	h, _, err := entry.ParseHeader(p.parts[0])
	if err != nil || h.SequenceID != 42 || h.HighestSequence != 44 || !h.HasPrevious || h.PreviousSequence != 41 {
		t.Errorf("%+v, %v", h, err)
	}
}

// Shows that a lane which fails while an answer is being taken runs the callback
// that the answer belongs to first, as the messages were sent.
func TestCallbacksKeepOrderWhenTheLaneFails(t *testing.T) {
	l := quietLane(t)
	l.p.c.over = true // nothing runs: callbacks gather in run
	from := quietLink()
	l.answer, l.opening = make(chan error, 1), from
	l.id, _ = from.join(l, func(uint64) proto.Message { return nil })
	l.opened(from, brokerv1.ProducerOpened_builder{ProducerId: proto.Uint64(l.id), ProducerName: proto.String("p"), WindowBytes: proto.Uint64(1 << 20)}.Build())
	for range 2 {
		m := keyed(1)
		m.callback = func(MessageID, error) {}
		l.add(m)
		l.flush()
	}
	var p parcel
	l.pull(from, l.id, &p)
	if len(p.parts) != 2 {
		t.Fatalf("%d batches in flight", len(p.parts))
	}
	first, second := l.pending[0], l.pending[1]
	l.damaged = maxDamaged
	from.cancel = func() { l.fail(ErrClosed) } // the refusal ends the link
	l.refused(from, brokerv1.PublishRefused_builder{ProducerId: &l.id, SequenceId: &first.last, Code: brokerv1.Code_CODE_CHECKSUM.Enum()}.Build())
	if len(l.p.run) != 2 || l.p.run[0] != first || l.p.run[1] != second {
		t.Errorf("%d batches with outcomes, the first one comes first: %v", len(l.p.run), l.p.run[0] == first)
	}
}
