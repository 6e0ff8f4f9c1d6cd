package faketest

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/internal/entry"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

type messaging struct {
	brokerv1.UnimplementedMessagingServer
	node *node
}

// topic is one partition.
type topic struct {
	c             *Cluster
	name          string
	partition     int32
	owner         string
	log           []stored
	producers     map[string]*producer
	subscriptions map[string]*subscription
	open          []*openProducer
	chosen        int
	refuse        []brokerv1.Code // answers to the next batches, instead of taking them
	refuseAcks    []brokerv1.Code // answers to the next acknowledgements
	held          bool
	routing       uint64
	loseReceipt   bool
	silent        string // the broker that swallows what it hears
}

type stored struct {
	ledger, entry int64
	part          []byte
	body          []byte
	messages      int
	header        entry.Header
}

// producer is what a topic remembers of a name.
type producer struct {
	epoch    uint64
	open     *openProducer
	has      bool
	accepted uint64
	spans    map[uint64]span // by first sequence id
}

type span struct {
	last          uint64
	ledger, entry int64
}

// openProducer is one end of a producer on a stream.
type openProducer struct {
	id      uint64
	name    string
	t       *topic
	state   *producer
	out     *outbox[*brokerv1.ProduceResponse]
	stopped bool
	resume  uint64
	node    *node
}

// perLedger is how many entries a fake ledger has.
const perLedger = 37

func (m *messaging) Produce(s grpc.BidiStreamingServer[brokerv1.ProduceRequest, brokerv1.ProduceResponse]) error {
	ctx, cancel := context.WithCancel(s.Context())
	out := newOutbox[*brokerv1.ProduceResponse]()
	var wg sync.WaitGroup
	wg.Go(func() { out.run(ctx, m.node.cluster.answerDelay, s.Send) })
	mine := map[uint64]*openProducer{}
	defer func() {
		cancel()
		wg.Wait()
		m.node.cluster.mu.Lock()
		for _, p := range mine {
			p.closeLocked()
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
		switch r.WhichCommand() {
		case brokerv1.ProduceRequest_Open_case:
			if p := m.openLocked(r.GetOpen(), out); p != nil {
				mine[p.id] = p
			}
		case brokerv1.ProduceRequest_Close_case:
			if p := mine[r.GetClose().GetProducerId()]; p != nil {
				p.closeLocked()
				if p.state.open == nil && p.t.producers[p.name] == p.state && p.state.spans == nil {
					delete(p.t.producers, p.name)
				}
				delete(mine, p.id)
			}
		case brokerv1.ProduceRequest_Publish_case:
			payload := r.GetPayload()
			for _, b := range r.GetPublish().GetBatches() {
				part := payload[:b.GetLength()]
				payload = payload[b.GetLength():]
				if p := mine[b.GetProducerId()]; p != nil {
					p.publishLocked(part)
				} else {
					m.node.cluster.faultLocked("batch of producer %d that is not open", b.GetProducerId())
				}
			}
			if len(payload) > 0 {
				m.node.cluster.faultLocked("%d bytes belong to no batch", len(payload))
			}
		}
		m.node.cluster.mu.Unlock()
		if after {
			m.node.lis.cutAll()
			return nil
		}
	}
}

func (m *messaging) openLocked(o *brokerv1.OpenProducer, out *outbox[*brokerv1.ProduceResponse]) *openProducer {
	c := m.node.cluster
	t := c.topics[o.GetTopic()]
	refuse := func(code brokerv1.Code, movedTo, format string, args ...any) *openProducer {
		out.put(brokerv1.ProduceResponse_builder{Closed: brokerv1.ProducerClosed_builder{
			ProducerId: new(o.GetProducerId()), Code: &code, Message: new(fmt.Sprintf(format, args...)), MovedTo: &movedTo}.Build()}.Build())
		return nil
	}
	switch {
	case t == nil:
		return refuse(brokerv1.Code_CODE_TOPIC_NOT_FOUND, "", "no topic %s", o.GetTopic())
	case t.owner != m.node.address:
		return refuse(brokerv1.Code_CODE_MOVED, "", "topic %s is at %s", t.name, t.owner)
	case t.silent == m.node.address:
		return nil
	}
	name := o.GetProducerName()
	if name == "" {
		t.chosen++
		name = fmt.Sprintf("chosen-%s-%d", t.name, t.chosen)
	}
	p := t.producers[name]
	if p == nil {
		p = &producer{spans: map[uint64]span{}}
		t.producers[name] = p
	}
	if p.open != nil {
		if o.GetEpoch() <= p.epoch && p.open.node == m.node {
			return refuse(brokerv1.Code_CODE_PRODUCER_BUSY, "", "producer %s is connected", name)
		}
		p.open.sayClosed(brokerv1.Code_CODE_PRODUCER_FENCED, "")
		p.open.closeLocked()
	}
	open := &openProducer{id: o.GetProducerId(), name: name, t: t, state: p, out: out, node: m.node}
	p.epoch, p.open = o.GetEpoch(), open
	t.open = append(t.open, open)
	out.put(brokerv1.ProduceResponse_builder{Opened: brokerv1.ProducerOpened_builder{ProducerId: &open.id, ProducerName: &name,
		HasLastSequenceId: new(p.has), LastSequenceId: new(p.accepted), WindowBytes: new(uint64(c.WindowBytes)),
		WindowBatches: new(uint32(c.WindowBatches)), MaxMessageBytes: new(uint64(c.MaxMessage))}.Build()}.Build())
	if t.held {
		open.hold(true)
	}
	return open
}

func (p *openProducer) hold(hold bool) {
	p.out.put(brokerv1.ProduceResponse_builder{Hold: brokerv1.ProducerHold_builder{ProducerId: &p.id, Hold: &hold}.Build()}.Build())
}

func (p *openProducer) sayClosed(code brokerv1.Code, movedTo string) {
	p.out.put(brokerv1.ProduceResponse_builder{Closed: brokerv1.ProducerClosed_builder{ProducerId: &p.id, Code: &code, MovedTo: &movedTo}.Build()}.Build())
}

func (p *openProducer) closeLocked() {
	for i, o := range p.t.open {
		if o == p {
			p.t.open = append(p.t.open[:i:i], p.t.open[i+1:]...)
			break
		}
	}
	if p.state.open == p {
		p.state.open = nil
	}
}

// publishLocked takes a batch by the rules of a producer's order.
func (p *openProducer) publishLocked(part []byte) {
	c := p.t.c
	if p.state.open != p || p.t.owner != p.node.address || p.t.silent == p.node.address {
		return // it was told, or will be
	}
	h, _, err := entry.ParseHeader(part)
	if err == nil {
		_, err = entry.VerifyProducerPart(part)
	}
	if err != nil || h.ProducerName != p.name {
		c.faultLocked("batch of %s, opened as %s: %v", h.ProducerName, p.name, err)
		return
	}
	refuse := func(code brokerv1.Code, has bool, expected uint64) {
		if !p.stopped || h.SequenceID < p.resume {
			p.stopped, p.resume = true, h.SequenceID
		}
		p.out.put(brokerv1.ProduceResponse_builder{Refused: brokerv1.PublishRefused_builder{ProducerId: &p.id, SequenceId: new(h.HighestSequence),
			Code: &code, HasExpected: &has, ExpectedSequenceId: &expected}.Build()}.Build())
	}
	s := p.state
	switch {
	case p.stopped && h.SequenceID > p.resume:
		refuse(brokerv1.Code_CODE_OUT_OF_ORDER, p.resume > 0, p.resume-1)
		return
	case len(p.t.refuse) > 0:
		code := p.t.refuse[0]
		p.t.refuse = p.t.refuse[1:]
		refuse(code, false, 0)
		return
	case h.RoutingVersion < p.t.routing:
		refuse(brokerv1.Code_CODE_STALE_ROUTING, false, 0)
		return
	case len(part) > c.MaxMessage+entry.MaxHeaderBytes:
		refuse(brokerv1.Code_CODE_TOO_LARGE, false, 0)
		return
	case p.t.held:
		p.hold(true)
		refuse(brokerv1.Code_CODE_UNAVAILABLE, false, 0)
		return
	}
	if sp, ok := s.spans[h.SequenceID]; ok && sp.last == h.HighestSequence {
		p.stopped = false
		p.receipt(h.HighestSequence, sp.ledger, sp.entry, true)
		return
	}
	switch {
	case s.has && h.SequenceID <= s.accepted:
		refuse(brokerv1.Code_CODE_OUT_OF_ORDER, true, s.accepted)
		return
	case s.has && h.HasPrevious && h.PreviousSequence != s.accepted, !s.has && h.HasPrevious:
		refuse(brokerv1.Code_CODE_OUT_OF_ORDER, s.has, s.accepted)
		return
	}
	p.stopped = false
	s.has, s.accepted = true, h.HighestSequence
	if c.Discard {
		p.receipt(h.HighestSequence, 1, 1, false)
		return
	}
	e := p.t.appendLocked(part, h)
	s.spans[h.SequenceID] = span{h.HighestSequence, e.ledger, e.entry}
	if p.t.loseReceipt {
		p.t.loseReceipt = false
		return
	}
	p.receipt(h.HighestSequence, e.ledger, e.entry, false)
}

func (p *openProducer) receipt(sequence uint64, ledger, entryID int64, duplicate bool) {
	p.out.put(brokerv1.ProduceResponse_builder{Receipts: brokerv1.Receipts_builder{Receipts: []*brokerv1.Receipt{brokerv1.Receipt_builder{
		ProducerId: &p.id, SequenceId: &sequence, Ledger: &ledger, Entry: &entryID, Duplicate: &duplicate}.Build()}}.Build()}.Build())
}

func (t *topic) appendLocked(part []byte, h entry.Header) stored {
	n := len(t.log)
	index := uint64(h.Messages)
	if n > 0 {
		b, _, _ := entry.ParseBody(t.log[n-1].body)
		index += b.Index
	} else {
		index--
	}
	e := stored{ledger: int64(1 + n/perLedger), entry: int64(n % perLedger), part: part, messages: h.Messages, header: h}
	e.body = append(entry.BrokerPart{Index: index, Time: int64(h.PublishTime)}.AppendTo(nil), part...)
	t.log = append(t.log, e)
	for _, s := range t.subscriptions {
		s.dispatchLocked()
	}
	return e
}

// closeAllLocked ends all producers and consumers.
func (t *topic) closeAllLocked(code brokerv1.Code, movedTo string) {
	for len(t.open) > 0 {
		p := t.open[0]
		p.sayClosed(code, movedTo)
		p.closeLocked()
	}
	for _, s := range t.subscriptions {
		for len(s.consumers) > 0 {
			c := s.consumers[0]
			c.sayClosed(code, movedTo)
			s.leaveLocked(c)
		}
	}
}

// Refuse makes the topic refuse its next batches with codes, and forget codes of
// an earlier call that met no batch.
func (c *Cluster) Refuse(name string, codes ...brokerv1.Code) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.topics {
		if t.name == name {
			t.refuse = append([]brokerv1.Code(nil), codes...)
		}
	}
}

// Hold asks all producers of a topic for silence, or lets them go on.
func (c *Cluster) Hold(name string, hold bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[name]
	t.held = hold
	for _, p := range t.open {
		p.hold(hold)
	}
}

// Forget makes a topic forget a producer's history, as when too many are known.
func (c *Cluster) Forget(name, producerName string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.topics[name].producers[producerName]
	p.has, p.spans = false, map[uint64]span{}
}

// Advance makes a topic believe that another producer of the name wrote up to
// sequence id last.
func (c *Cluster) Advance(name, producerName string, last uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.topics[name].producers[producerName]
	p.has, p.accepted = true, last
}

// CloseProducers ends all producers of a topic.
func (c *Cluster) CloseProducers(name string, code brokerv1.Code) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[name]
	for len(t.open) > 0 {
		t.open[0].sayClosed(code, "")
		t.open[0].closeLocked()
	}
}

// Silence makes the owner of a topic swallow everything that concerns it, as a
// paused process would, until the topic moves.
func (c *Cluster) Silence(name string, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[name]
	if t.silent = ""; on {
		t.silent = t.owner
	}
}

// LoseNextReceipt makes a topic store its next batch without a word.
func (c *Cluster) LoseNextReceipt(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.topics[name].loseReceipt = true
}
