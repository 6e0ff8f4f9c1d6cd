package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// quietLink is a link whose sender never runs: what is said on it stays in
// controls.
func quietLink() *link {
	return &link{address: "broker-1", cancel: func() {}, members: map[uint64]member{}, wake: make(chan struct{}, 1)}
}

// Shows that an answer to Subscribe which comes after the consumer was closed, but
// before the attempt has heard of that, makes it leave again.
func TestSubscribedAfterClose(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := &Client{opts: newOptions(nil), ctx: ctx, open: map[closer]struct{}{}}
	s := newConsumer(c, "t", "s", newConsumerOptions(nil), false, []*discoveryv1.Partition{{}})
	f, l := s.feeds[0], quietLink()
	answer := make(chan error, 1)
	f.answer, f.opening = answer, l
	id, err := l.join(f, f.subscribeLocked)
	if err != nil {
		t.Fatal(err)
	}
	f.id = id
	s.stop()
	f.subscribed(l, brokerv1.Subscribed_builder{ConsumerId: &id}.Build())
	if err := <-answer; !errors.Is(err, ErrClosed) {
		t.Errorf("the attempt ends with %v", err)
	}
	if len(l.members) != 0 || len(l.controls) != 2 || !proto.Equal(l.controls[1], closeConsumer(id)) {
		t.Errorf("%d members, said: %v", len(l.members), l.controls)
	}
}

// Shows that what was to be asked for again when the link ended is not asked for on
// the next one, which brings it back by itself: asked for as well it came twice, the
// second time though it was acknowledged by then.
func TestNothingIsAskedForTwice(t *testing.T) {
	c := &Client{opts: newOptions(nil), log: newOptions(nil).log, ctx: t.Context(), open: map[closer]struct{}{}, over: true}
	s := newConsumer(c, "t", "s", newConsumerOptions(nil), false, []*discoveryv1.Partition{{}})
	defer s.stop()
	f := s.feeds[0]
	attach := func() *link {
		l := quietLink()
		f.answer, f.opening = make(chan error, 1), l
		f.id, _ = l.join(f, f.subscribeLocked)
		f.subscribed(l, brokerv1.Subscribed_builder{ConsumerId: proto.Uint64(f.id)}.Build())
		return l
	}
	l := attach()
	h := &handed{at: place{1, 1}, left: allBits(1), out: allBits(1)}
	f.acks.entries[h.at] = h
	s.nacks.waiting = []nack{{time.Now(), &Received{feed: f, entry: h}}}
	s.onNacks()
	if len(f.redeliver) != 1 {
		t.Fatalf("to be asked for: %v", f.redeliver)
	}
	l.end(ErrUnavailable)
	var p parcel
	f.pull(attach(), f.id, &p)
	for _, m := range p.messages {
		if m.(*brokerv1.ConsumeRequest).HasRedeliver() {
			t.Errorf("said: %v", m)
		}
	}
}

// Shows that a topic of which the broker names no last entry, in either of the
// ways that are in use, is at its end for a bounded reader.
func TestEmptyTopicIsAtItsEnd(t *testing.T) {
	for _, last := range []*brokerv1.MessageId{
		nil,
		brokerv1.MessageId_builder{Entry: proto.Int64(-1)}.Build(),
		brokerv1.MessageId_builder{Ledger: proto.Int64(0), Entry: proto.Int64(0)}.Build(),
	} {
		r := readerPosition{bounded: true}
		if r.until(last, -1, Earliest()); !r.ended {
			t.Errorf("%v: not at its end", last)
		}
	}
}

// Shows that a link which ends for want of users does not end the member that was
// about to join it: it may try again, elsewhere.
func TestIdleLinkEndsNobody(t *testing.T) {
	conn, err := grpc.NewClient("passthrough:///broker-1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	l := quietLink()
	l.lastUsed = time.Now().Add(-linger)
	b := &brokers{done: t.Context(), byAddress: map[string]*brokerConn{"broker-1": {address: "broker-1", conn: conn, produce: l}}}
	b.sweep()
	_, err = l.join(&lane{}, func(uint64) proto.Message { return nil })
	if !Retryable(err) || errors.Is(err, ErrClosed) {
		t.Errorf("join: %v", err)
	}
	if len(b.byAddress) != 0 {
		t.Error("the connection stays")
	}
}

// Shows that a client that lives long knows the brokers of today, however many came
// and went, and still the addresses it was given.
func TestAddressesAreRenewed(t *testing.T) {
	d := newDiscovery(t.Context(), nil, []string{"given"}, nil)
	for i := range 3 * maxAddresses {
		d.learn(fmt.Sprint("gone-", i))
	}
	d.renew([]*discoveryv1.Broker{discoveryv1.Broker_builder{Address: proto.String("new")}.Build()})
	if want := []string{"given", "new"}; !slices.Equal(d.addresses, want) {
		t.Errorf("knows %v, want %v", d.addresses, want)
	}
}
