package faketest

import (
	"context"
	"fmt"
	"math/bits"
	"sync"

	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/internal/topicname"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// subscription is one of a topic. Entries are named by their place in the log.
type subscription struct {
	t         *topic
	name      string
	kind      brokerv1.SubscriptionType
	durable   bool
	consumers []*consumer
	turn      int
	epoch     uint64
	next      int              // first entry never delivered, or all since a rewind
	left      map[int][]uint64 // partly acknowledged entries
	acked     map[int]bool
	again     []int // given back
	counts    map[int]uint32

	// AcksApplied counts positions acknowledged.
	acks int
}

type consumer struct {
	s              *subscription
	id             uint64
	name, instance string
	out            *outbox[*brokerv1.ConsumeResponse]
	node           *node
	permits        int64
	window, bytes  int64
	held           map[int]bool
}

const windowBytes = 1 << 20

func (m *messaging) Consume(s grpc.BidiStreamingServer[brokerv1.ConsumeRequest, brokerv1.ConsumeResponse]) error {
	ctx, cancel := context.WithCancel(s.Context())
	out := newOutbox[*brokerv1.ConsumeResponse]()
	var wg sync.WaitGroup
	wg.Go(func() { out.run(ctx, m.node.cluster.answerDelay, s.Send) })
	mine := map[uint64]*consumer{}
	defer func() {
		cancel()
		wg.Wait()
		m.node.cluster.mu.Lock()
		for _, c := range mine {
			c.s.leaveLocked(c)
		}
		m.node.cluster.mu.Unlock()
	}()
	for {
		r, err := s.Recv()
		if err != nil {
			return nil
		}
		before, after := m.node.cluster.cutNow()
		if before {
			m.node.lis.cutAll()
			return nil
		}
		m.node.cluster.mu.Lock()
		m.consumeLocked(r, mine, out)
		m.node.cluster.mu.Unlock()
		if after {
			m.node.lis.cutAll()
			return nil
		}
	}
}

func (m *messaging) consumeLocked(r *brokerv1.ConsumeRequest, mine map[uint64]*consumer, out *outbox[*brokerv1.ConsumeResponse]) {
	switch r.WhichCommand() {
	case brokerv1.ConsumeRequest_Subscribe_case:
		if c := m.subscribeLocked(r.GetSubscribe(), out); c != nil {
			mine[c.id] = c
		}
	case brokerv1.ConsumeRequest_Flow_case:
		f := r.GetFlow()
		if c := mine[f.GetConsumerId()]; c != nil {
			c.permits += int64(f.GetPermits())
			if c.bytes -= int64(f.GetBytes()); c.bytes < 0 {
				m.node.cluster.faultLocked("consumer %s gave back %d bytes more than were out", c.name, -c.bytes)
			}
			c.s.dispatchLocked()
		}
	case brokerv1.ConsumeRequest_Ack_case:
		a := r.GetAck()
		if c := mine[a.GetConsumerId()]; c != nil {
			code := brokerv1.Code_CODE_UNSPECIFIED
			if t := c.s.t; len(t.refuseAcks) > 0 {
				code, t.refuseAcks = t.refuseAcks[0], t.refuseAcks[1:]
			} else {
				c.s.ackLocked(a)
			}
			c.done(a.GetRequestId(), code)
			c.s.dispatchLocked()
		}
	case brokerv1.ConsumeRequest_Redeliver_case:
		d := r.GetRedeliver()
		if c := mine[d.GetConsumerId()]; c != nil {
			for _, p := range d.GetPositions() {
				if i, ok := c.s.t.find(p.GetLedger(), p.GetEntry()); ok && c.held[i] && !c.s.acked[i] {
					delete(c.held, i)
					c.s.again = append(c.s.again, i)
					c.s.counts[i]++
				}
			}
			c.s.dispatchLocked()
		}
	case brokerv1.ConsumeRequest_Seek_case:
		k := r.GetSeek()
		if c := mine[k.GetConsumerId()]; c != nil {
			c.s.seekLocked(k.GetTo())
			start := c.s.t.id(c.s.next)
			early := m.node.cluster.rng.IntN(2) == 0 // what is delivered from there may overtake the answer
			if early {
				c.s.dispatchLocked()
			}
			c.out.put(brokerv1.ConsumeResponse_builder{Done: brokerv1.Done_builder{ConsumerId: &c.id, RequestId: new(k.GetRequestId()),
				Code: new(brokerv1.Code_CODE_UNSPECIFIED), StartMessageId: start}.Build()}.Build())
			c.s.dispatchLocked()
		}
	case brokerv1.ConsumeRequest_Unsubscribe_case:
		u := r.GetUnsubscribe()
		if c := mine[u.GetConsumerId()]; c != nil {
			delete(c.s.t.subscriptions, c.s.name)
			c.done(u.GetRequestId(), brokerv1.Code_CODE_UNSPECIFIED)
		}
	case brokerv1.ConsumeRequest_Close_case:
		if c := mine[r.GetClose().GetConsumerId()]; c != nil {
			delete(mine, c.id)
			c.s.leaveLocked(c)
		}
	}
}

func (m *messaging) subscribeLocked(r *brokerv1.Subscribe, out *outbox[*brokerv1.ConsumeResponse]) *consumer {
	t := m.node.cluster.topics[r.GetTopic()]
	refuse := func(code brokerv1.Code, message string) *consumer {
		out.put(brokerv1.ConsumeResponse_builder{Closed: brokerv1.ConsumerClosed_builder{ConsumerId: new(r.GetConsumerId()), Code: &code, Message: &message}.Build()}.Build())
		return nil
	}
	switch {
	case t == nil:
		return refuse(brokerv1.Code_CODE_TOPIC_NOT_FOUND, "no topic "+r.GetTopic())
	case t.owner != m.node.address:
		return refuse(brokerv1.Code_CODE_MOVED, "topic is at "+t.owner)
	case t.silent == m.node.address:
		return nil
	}
	s := t.subscriptions[r.GetSubscription()]
	if s == nil && r.GetMustExist() {
		return refuse(brokerv1.Code_CODE_SUBSCRIPTION_NOT_FOUND, "no subscription "+r.GetSubscription())
	}
	created := s == nil
	if created {
		s = &subscription{t: t, name: r.GetSubscription(), durable: !r.GetNonDurable(), left: map[int][]uint64{}, acked: map[int]bool{}, counts: map[int]uint32{}, epoch: t.c.FirstEpoch}
		s.next = t.seek(r.GetInitialPosition())
		for i := range s.next {
			s.acked[i] = true
		}
		t.subscriptions[s.name] = s
	}
	for _, o := range append([]*consumer(nil), s.consumers...) {
		if o.node != m.node { // left behind at a former owner
			s.leaveLocked(o)
			continue
		}
		if o.name == r.GetConsumerName() && o.instance == r.GetInstance() && o.instance != "" {
			o.sayClosed(brokerv1.Code_CODE_SUBSCRIPTION_BUSY, "")
			s.leaveLocked(o)
		}
	}
	if len(s.consumers) > 0 && (s.kind != r.GetType() || s.kind == brokerv1.SubscriptionType_SUBSCRIPTION_TYPE_EXCLUSIVE) {
		return refuse(brokerv1.Code_CODE_SUBSCRIPTION_BUSY, "subscription is taken")
	}
	s.kind = r.GetType()
	c := &consumer{s: s, id: r.GetConsumerId(), name: r.GetConsumerName(), instance: r.GetInstance(), out: out, node: m.node, held: map[int]bool{}, window: windowBytes}
	if w := int64(r.GetWindowBytes()); w > 0 {
		c.window = min(c.window, w)
	}
	s.consumers = append(s.consumers, c)
	if len(s.consumers) == 1 && !created {
		s.rewindLocked()
	}
	last := brokerv1.MessageId_builder{Entry: new(int64(-1)), Partition: &t.partition}.Build()
	if n := len(t.log); n > 0 {
		last = brokerv1.MessageId_builder{Ledger: &t.log[n-1].ledger, Entry: &t.log[n-1].entry, Partition: &t.partition}.Build()
	}
	out.put(brokerv1.ConsumeResponse_builder{Subscribed: brokerv1.Subscribed_builder{ConsumerId: &c.id, LastMessageId: last, StartMessageId: t.id(s.next), Created: &created, WindowBytes: new(uint64(c.window))}.Build()}.Build())
	return c
}

func (c *consumer) done(id uint64, code brokerv1.Code) {
	if id != 0 {
		c.out.put(brokerv1.ConsumeResponse_builder{Done: brokerv1.Done_builder{ConsumerId: &c.id, RequestId: &id, Code: &code}.Build()}.Build())
	}
}

func (c *consumer) sayClosed(code brokerv1.Code, movedTo string) {
	c.out.put(brokerv1.ConsumeResponse_builder{Closed: brokerv1.ConsumerClosed_builder{ConsumerId: &c.id, Code: &code, MovedTo: &movedTo}.Build()}.Build())
}

// leaveLocked takes a consumer out; what it holds is delivered again.
func (s *subscription) leaveLocked(c *consumer) {
	for i, o := range s.consumers {
		if o != c {
			continue
		}
		s.consumers = append(s.consumers[:i:i], s.consumers[i+1:]...)
		for i := range s.t.log {
			if c.held[i] && !s.acked[i] {
				s.again = append(s.again, i)
			}
		}
		c.held = map[int]bool{}
		if len(s.consumers) == 0 && !s.durable {
			delete(s.t.subscriptions, s.name)
		}
		s.dispatchLocked()
		return
	}
}

// rewindLocked delivers all that is unacknowledged again, in order.
func (s *subscription) rewindLocked() {
	s.again, s.next = nil, 0
}

func (t *topic) find(ledger, entry int64) (i int, ok bool) {
	i = int((ledger-1)*perLedger + entry)
	return i, ledger > 0 && entry >= 0 && entry < perLedger && i < len(t.log)
}

// id names entry i of the log, also the one to come; -1:-1 when there never was one.
func (t *topic) id(i int) *brokerv1.MessageId {
	ledger, entry := int64(i)/perLedger+1, int64(i)%perLedger
	if len(t.log) == 0 {
		ledger, entry = -1, -1
	}
	return brokerv1.MessageId_builder{Ledger: &ledger, Entry: &entry, Partition: &t.partition}.Build()
}

// seek returns the first entry of the log to be delivered.
func (t *topic) seek(to *brokerv1.Position) int {
	switch to.WhichAt() {
	case brokerv1.Position_Earliest_case:
		return 0
	case brokerv1.Position_Id_case:
		i, _ := t.find(to.GetId().GetLedger(), to.GetId().GetEntry())
		return i
	case brokerv1.Position_AfterId_case:
		i, _ := t.find(to.GetAfterId().GetLedger(), to.GetAfterId().GetEntry())
		return i + 1
	case brokerv1.Position_PublishTimeMs_case:
		for i, e := range t.log {
			if int64(e.header.PublishTime) >= to.GetPublishTimeMs() {
				return i
			}
		}
	}
	return len(t.log)
}

func (s *subscription) seekLocked(to *brokerv1.Position) {
	at := s.t.seek(to)
	s.left, s.acked, s.again = map[int][]uint64{}, map[int]bool{}, nil
	for i := range at {
		s.acked[i] = true
	}
	s.next = at
	s.epoch++
	for _, c := range s.consumers {
		c.held = map[int]bool{}
	}
}

func (s *subscription) ackLocked(a *brokerv1.Ack) {
	if a.GetEpoch() != 0 && a.GetEpoch() < s.epoch {
		return
	}
	for _, p := range a.GetPositions() {
		i, ok := s.t.find(p.GetLedger(), p.GetEntry())
		if !ok {
			s.t.c.faultLocked("acknowledgement of %d:%d, which does not exist", p.GetLedger(), p.GetEntry())
			continue
		}
		s.acks++
		if a.GetCumulative() {
			for j := range i {
				s.acked[j] = true
			}
		}
		if len(p.GetAckSet()) == 0 {
			s.acked[i] = true
			continue
		}
		left := s.leftOf(i)
		for w := range left {
			if w < len(p.GetAckSet()) {
				left[w] &= p.GetAckSet()[w]
			} else {
				left[w] = 0
			}
		}
		s.left[i] = left
		if count(left) == 0 {
			s.acked[i] = true
		}
	}
}

// leftOf returns the unacknowledged messages of an entry.
func (s *subscription) leftOf(i int) []uint64 {
	if l := s.left[i]; l != nil {
		return l
	}
	n := s.t.log[i].messages
	l := make([]uint64, (n+63)/64)
	for b := range n {
		l[b/64] |= 1 << (b % 64)
	}
	return l
}

func count(words []uint64) (n int) {
	for _, w := range words {
		n += bits.OnesCount64(w)
	}
	return n
}

// dispatchLocked delivers while somebody takes.
func (s *subscription) dispatchLocked() {
	if s.t.silent == s.t.owner {
		return
	}
	for {
		var i int
		switch {
		case len(s.again) > 0:
			i = s.again[0]
		case s.next < len(s.t.log):
			i = s.next
		default:
			return
		}
		if !s.acked[i] {
			c := s.pick(int64(len(s.t.log[i].body)))
			if c == nil {
				return
			}
			s.deliverLocked(c, i)
		}
		if len(s.again) > 0 {
			s.again = s.again[1:]
		} else {
			s.next++
		}
	}
}

func (s *subscription) pick(size int64) *consumer {
	n := len(s.consumers)
	if s.kind != brokerv1.SubscriptionType_SUBSCRIPTION_TYPE_SHARED {
		n = min(n, 1)
	}
	for range n {
		s.turn = (s.turn + 1) % n
		if c := s.consumers[s.turn]; c.permits > 0 && (c.bytes == 0 || c.bytes+size <= c.window) {
			return c
		}
	}
	return nil
}

func (s *subscription) deliverLocked(c *consumer, i int) {
	e := s.t.log[i]
	messages := e.messages
	d := brokerv1.DeliveredEntry_builder{Ledger: &e.ledger, Entry: &e.entry, RedeliveryCount: new(s.counts[i]), Length: new(uint32(len(e.body)))}.Build()
	if s.left[i] != nil {
		d.SetAckSet(append([]uint64(nil), s.left[i]...))
		messages = count(s.left[i])
	}
	c.permits -= int64(messages)
	c.bytes += int64(len(e.body))
	c.held[i] = true
	c.out.put(brokerv1.ConsumeResponse_builder{
		Delivery: brokerv1.Delivery_builder{ConsumerId: &c.id, Entries: []*brokerv1.DeliveredEntry{d}, Epoch: new(s.epoch)}.Build(),
		Payload:  e.body,
	}.Build())
}

// Backlog is how many messages of a subscription are not acknowledged, over all
// partitions.
func (c *Cluster) Backlog(name, subscriptionName string) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.maps[topicname.MustParse(name).Base().String()].GetPartitions() {
		t := c.topics[p.GetTopic()]
		s := t.subscriptions[subscriptionName]
		if s == nil {
			return 0, fmt.Errorf("no subscription %s of %s", subscriptionName, t.name)
		}
		for i := range t.log {
			if !s.acked[i] {
				n += count(s.leftOf(i))
			}
		}
	}
	return n, nil
}

// Acks is how many positions were acknowledged on a subscription.
func (c *Cluster) Acks(name, subscriptionName string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.maps[topicname.MustParse(name).Base().String()].GetPartitions() {
		if s := c.topics[p.GetTopic()].subscriptions[subscriptionName]; s != nil {
			n += s.acks
		}
	}
	return n
}

// RefuseAcks makes a topic refuse its next acknowledgements with codes.
func (c *Cluster) RefuseAcks(name string, codes ...brokerv1.Code) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.topics[name].refuseAcks = codes
}

// SeekOutside moves a subscription's cursor as an operator would.
func (c *Cluster) SeekOutside(partition, subscriptionName string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.topics[partition].subscriptions[subscriptionName]
	s.seekLocked(brokerv1.Position_builder{Earliest: new(true)}.Build())
	s.dispatchLocked()
}

// Outstanding is how many messages the consumers of a topic's subscription were
// sent and have not given the permits of back.
func (c *Cluster) Outstanding(name, subscriptionName string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.topics[topicname.MustParse(name).String()].subscriptions[subscriptionName]
	for _, o := range s.consumers {
		n += len(o.held)
	}
	return n
}

// Consumers returns the names of the consumers that are connected to a topic.
func (c *Cluster) Consumers(name string) (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.topics[topicname.MustParse(name).String()].subscriptions {
		for _, o := range s.consumers {
			names = append(names, o.name)
		}
	}
	return names
}

// Subscriptions is how many a topic has.
func (c *Cluster) Subscriptions(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.topics[topicname.MustParse(name).String()].subscriptions)
}

// Damage changes a byte of the payload of an entry.
func (c *Cluster) Damage(partition string, i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body := append([]byte(nil), c.topics[partition].log[i].body...)
	body[len(body)-1] ^= 1
	c.topics[partition].log[i].body = body
}
