package broker

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/topicname"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// pipe is the server's end of a stream without a network: what a client sends is
// put into in, what it would receive is noted. It carries no payloads to the
// server.
type pipe[Response proto.Message] struct {
	ctx    context.Context
	cancel context.CancelFunc
	in     chan proto.Message // closed: the client sends no more
	ended  chan error         // what the handler returned

	mu  sync.Mutex
	out []Response
}

func newPipe[Response proto.Message](t *testing.T) *pipe[Response] {
	p := &pipe[Response]{in: make(chan proto.Message, 100), ended: make(chan error, 1)}
	p.ctx, p.cancel = context.WithCancel(t.Context())
	return p
}

func (p *pipe[Response]) Context() context.Context { return p.ctx }

func (p *pipe[Response]) RecvMsg(m any) error {
	select {
	case next, more := <-p.in:
		if !more {
			return io.EOF
		}
		to, plain := m.(proto.Message)
		if !plain {
			to = m.(*rpc.Frame).Head
		}
		proto.Merge(to, next)
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe[Response]) SendMsg(m any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out = append(p.out, m.(*rpc.Frame).Head.(Response))
	return nil
}

// heard is what the client was sent so far.
func (p *pipe[Response]) heard() []Response {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Response(nil), p.out...)
}

// hangUp ends the connection, waits for the handler, and returns its error.
func (p *pipe[Response]) hangUp() error {
	p.cancel()
	err := <-p.ended
	p.ended <- err // for who asks again
	return err
}

type consumePipe struct {
	brokerv1.Messaging_ConsumeServer // for what is not called
	*pipe[*brokerv1.ConsumeResponse]
}

func (p consumePipe) Context() context.Context { return p.pipe.Context() }
func (p consumePipe) RecvMsg(m any) error      { return p.pipe.RecvMsg(m) }
func (p consumePipe) SendMsg(m any) error      { return p.pipe.SendMsg(m) }

// consume opens a Consume stream to a broker.
func (n *node) consume() *pipe[*brokerv1.ConsumeResponse] {
	p := newPipe[*brokerv1.ConsumeResponse](n.w.t)
	go func() { p.ended <- consume(consumePipe{pipe: p}, n.Broker, hclog.NewNullLogger()) }()
	return p
}

type producePipe struct {
	brokerv1.Messaging_ProduceServer // for what is not called
	*pipe[*brokerv1.ProduceResponse]
}

func (p producePipe) Context() context.Context { return p.pipe.Context() }
func (p producePipe) RecvMsg(m any) error      { return p.pipe.RecvMsg(m) }
func (p producePipe) SendMsg(m any) error      { return p.pipe.SendMsg(m) }

// produce opens a Produce stream to a broker.
func (n *node) produce() *pipe[*brokerv1.ProduceResponse] {
	p := newPipe[*brokerv1.ProduceResponse](n.w.t)
	go func() { p.ended <- produce(producePipe{pipe: p}, n.Broker, hclog.NewNullLogger()) }()
	return p
}

func openProducer(id uint64, topic topicname.Name, name string, epoch uint64) *brokerv1.ProduceRequest {
	return brokerv1.ProduceRequest_builder{Open: brokerv1.OpenProducer_builder{
		ProducerId: &id, Topic: new(topic.String()), ProducerName: &name, Epoch: &epoch,
	}.Build()}.Build()
}

// holdOpening makes the opening of a topic at a broker wait until release is
// called.
func (w *world) holdOpening(n *node, name topicname.Name) (release func()) {
	held := make(chan struct{})
	w.onCall(func(c meta.Call) meta.Fault {
		if c.Client == n.opts.ID && c.Kind == meta.CallGet && c.Key == w.catalog.TopicKey(name) {
			return meta.Fault{Until: held}
		}
		return meta.Fault{}
	})
	return sync.OnceFunc(func() { close(held) })
}

func subscribe(id uint64, topic topicname.Name, name string) *brokerv1.ConsumeRequest {
	return brokerv1.ConsumeRequest_builder{Subscribe: brokerv1.Subscribe_builder{
		ConsumerId: &id, Topic: new(topic.String()), Subscription: &name,
		InitialPosition: brokerv1.Position_builder{Earliest: new(true)}.Build(),
	}.Build()}.Build()
}

func flow(id uint64, permits uint32, bytes uint64) *brokerv1.ConsumeRequest {
	return brokerv1.ConsumeRequest_builder{Flow: brokerv1.Flow_builder{ConsumerId: &id, Permits: &permits, Bytes: &bytes}.Build()}.Build()
}

// Permits that a client sends right behind its Subscribe are not lost, however
// long the topic takes to open; entries come after the answer.
func TestFlowBeforeSubscribedCounts(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		a.open(w.bundleOf(name))
		release := w.holdOpening(a, name)
		defer release()
		p := a.consume()
		defer p.hangUp()
		p.in <- subscribe(1, name, "s")
		p.in <- flow(1, 3, 0)
		p.in <- flow(1, 4, 0)
		synctest.Wait()
		release()
		a.publish(name, "p", 10)
		time.Sleep(time.Second)
		entries := 0
		for i, r := range p.heard() {
			if (i == 0) != r.HasSubscribed() {
				t.Errorf("answer %d is %v", i, r)
			}
			entries += len(r.GetDelivery().GetEntries())
		}
		if entries != 7 {
			t.Errorf("%d entries for 7 permits", entries)
		}
	})
}

// Bytes of entries that were never sent cannot be given back, also not early.
func TestFlowBeforeSubscribedGivesNothingBack(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		a.open(w.bundleOf(name))
		release := w.holdOpening(a, name)
		defer release()
		p := a.consume()
		p.in <- subscribe(1, name, "s")
		p.in <- flow(1, 3, 1)
		synctest.Wait()
		release()
		select {
		case err := <-p.ended:
			if err == nil {
				t.Error("the stream ended well")
			}
		case <-time.After(time.Minute):
			t.Error("the stream goes on")
			p.hangUp()
		}
	})
}

// A producer may have to wait, after its topic is open, for the outcome of what an
// earlier connection sent. Its stream ends it all the same: the name is free for
// whoever comes next, and nobody hears of it any more.
func TestStreamEndsProducersThatWaitToOpen(t *testing.T) {
	for how, end := range map[string]func(p *pipe[*brokerv1.ProduceResponse]){
		"connection lost": func(p *pipe[*brokerv1.ProduceResponse]) { p.hangUp() },
		"producer closed": func(p *pipe[*brokerv1.ProduceResponse]) {
			p.in <- brokerv1.ProduceRequest_builder{Close: brokerv1.CloseProducer_builder{ProducerId: new(uint64(1))}.Build()}.Build()
		},
	} {
		t.Run(how, func(t *testing.T) {
			story(t, func(t *testing.T, w *world) {
				a := w.start("a")
				name := w.topic("orders")
				a.open(w.bundleOf(name))
				s := a.publish(name, "p", 1)
				for i := range 3 {
					w.bookies.At(i).OnAdd(func(ledger.Add) ensembletest.AddFault { return ensembletest.AddFault{Delay: time.Minute} })
				}
				s.producer.Publish(batch("p", 1, 0)) // no outcome for a minute
				p := a.produce()
				defer func() { p.hangUp() }()
				p.in <- openProducer(1, name, "p", 1)
				synctest.Wait()
				end(p)
				synctest.Wait()
				next := a.produce()
				defer next.hangUp()
				next.in <- openProducer(7, name, "p", 1) // the same epoch: it takes nobody's place
				time.Sleep(2 * time.Minute)
				if heard := next.heard(); len(heard) != 1 || heard[0].GetOpened().GetLastSequenceId() != 1 {
					t.Errorf("the next one heard %v", heard)
				}
				if heard := p.heard(); len(heard) != 0 {
					t.Errorf("one that is gone heard %v", heard)
				}
			})
		})
	}
}

// What a stream is opening is bounded, also where its client closes each before it
// is open: beyond that it is refused, to be tried again, and the stream goes on.
func TestOpeningsOfAStreamAreBounded(t *testing.T) {
	const over = 5
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		a.open(w.bundleOf(name))
		release := w.holdOpening(a, name)
		defer release()
		consumers, producers := a.consume(), a.produce()
		defer consumers.hangUp()
		defer producers.hangUp()
		for id := range uint64(maxPerStream + over) {
			consumers.in <- subscribe(id, name, "s")
			consumers.in <- brokerv1.ConsumeRequest_builder{Close: brokerv1.CloseConsumer_builder{ConsumerId: &id}.Build()}.Build()
			producers.in <- openProducer(id, name, "p", id)
			producers.in <- brokerv1.ProduceRequest_builder{Close: brokerv1.CloseProducer_builder{ProducerId: &id}.Build()}.Build()
		}
		synctest.Wait()
		refused := map[string]int{}
		for _, r := range consumers.heard() {
			if r.GetClosed().GetCode() == brokerv1.Code_CODE_UNAVAILABLE {
				refused["consumers"]++
			}
		}
		for _, r := range producers.heard() {
			if r.GetClosed().GetCode() == brokerv1.Code_CODE_UNAVAILABLE {
				refused["producers"]++
			}
		}
		if refused["consumers"] != over || refused["producers"] != over {
			t.Errorf("refused %v, want %d of each", refused, over)
		}
		release()
		time.Sleep(time.Minute)
		consumers.in <- subscribe(maxPerStream+over, name, "s")
		producers.in <- openProducer(maxPerStream+over, name, "q", 1)
		time.Sleep(time.Second)
		if heard := consumers.heard(); !heard[len(heard)-1].HasSubscribed() {
			t.Errorf("a consumer after all others hears %v", heard[len(heard)-1])
		}
		if heard := producers.heard(); !heard[len(heard)-1].HasOpened() {
			t.Errorf("a producer after all others hears %v", heard[len(heard)-1])
		}
	})
}

// A consumer of a topic without entries is told that none is the last, in a way that
// cannot be taken for an entry's id.
func TestEmptyTopicHasNoLastEntry(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		a.open(w.bundleOf(name))
		p := a.consume()
		defer p.hangUp()
		p.in <- subscribe(1, name, "s")
		time.Sleep(time.Second)
		heard := p.heard()
		if len(heard) != 1 || !heard[0].HasSubscribed() {
			t.Fatalf("heard %v", heard)
		}
		if last := heard[0].GetSubscribed().GetLastMessageId(); last.GetLedger() != -1 || last.GetEntry() != -1 {
			t.Errorf("the last entry is %v", last)
		}
	})
}

// A consumer is told where it is served from, when it begins and after each seek: a
// reader from the latest entry or from a time goes on there, whatever was published
// by the time it comes back.
func TestConsumerIsToldWhereItStarts(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		a.open(w.bundleOf(name))
		p := a.consume()
		defer p.hangUp()
		reader := func(id uint64) {
			req := subscribe(id, name, "r")
			req.GetSubscribe().SetNonDurable(true)
			p.in <- req
			time.Sleep(time.Second)
		}
		reader(1)
		a.publish(name, "p", 10)
		reader(2)
		seek := func(to *brokerv1.Position) {
			p.in <- brokerv1.ConsumeRequest_builder{Seek: brokerv1.Seek_builder{ConsumerId: new(uint64(2)), RequestId: new(uint64(7)), To: to}.Build()}.Build()
			time.Sleep(time.Second)
		}
		seek(brokerv1.Position_builder{Latest: new(true)}.Build())
		seek(brokerv1.Position_builder{Earliest: new(true)}.Build())
		seek(brokerv1.Position_builder{PublishTimeMs: new(time.Now().Add(time.Hour).UnixMilli())}.Build())
		heard := p.heard()
		if len(heard) != 5 {
			t.Fatalf("heard %v", heard)
		}
		if start := heard[0].GetSubscribed().GetStartMessageId(); start.GetEntry() != -1 {
			t.Errorf("an empty topic starts at %v", start)
		}
		last := heard[1].GetSubscribed().GetLastMessageId()
		for i, want := range []int64{0, last.GetEntry() + 1, 0, last.GetEntry() + 1} {
			start := heard[i+1].GetDone().GetStartMessageId()
			if i == 0 {
				start = heard[1].GetSubscribed().GetStartMessageId()
			}
			if start.GetLedger() != last.GetLedger() || start.GetEntry() != want {
				t.Errorf("answer %d: starts at %v, want entry %d of ledger %d", i+1, start, want, last.GetLedger())
			}
		}
	})
}
