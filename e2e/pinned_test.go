package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/history"
	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// pinned publishes to one broker, whoever owns the topic: it asks nobody, follows
// no move, and publishes nothing twice. When its producer ends, it opens another
// one at the same address. Each message is an entry of its own.
type pinned struct {
	t     *testing.T
	name  string // of its messages
	topic string // long form
	log   *history.Log
	conn  *grpc.ClientConn

	mu      sync.Mutex
	window  int // most publishes without an answer
	next    int // number of the next message
	waiting map[int]bool
	answers map[int]answer
	stored  int // answers that are ok
	moved   int // times it was told that another broker owns the topic
}

// answer is how a publish ended.
type answer struct {
	outcome history.Outcome
	at      client.MessageID
}

// usualWindow is small enough to be full long before a lease is over.
const usualWindow = 64

func newPinned(t *testing.T, name, address, topic string, log *history.Log) *pinned {
	t.Helper()
	conn, err := grpc.NewClient(address, rpc.DialOptions(rpc.ClientFacing, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &pinned{t: t, name: name, topic: topic, log: log, conn: conn, window: usualWindow, waiting: map[int]bool{}, answers: map[int]answer{}}
}

// run publishes until stop is closed and every publish has ended.
func (p *pinned) run(ctx context.Context, stop <-chan struct{}) {
	for {
		p.session(ctx, stop)
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Millisecond): // refused: do not ask at full speed
		}
	}
}

// session publishes through one producer until it ends. What has no answer by
// then is unknown.
func (p *pinned) session(ctx context.Context, stop <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := brokerv1.NewMessagingClient(p.conn).Produce(ctx)
	if err != nil {
		return
	}
	open := brokerv1.ProduceRequest_builder{Open: brokerv1.OpenProducer_builder{ProducerId: new(uint64(1)), Topic: &p.topic}.Build()}.Build()
	if err := stream.SendMsg(&rpc.Frame{Head: open}); err != nil {
		return
	}
	opened, over := make(chan string, 1), make(chan struct{})
	var receiver sync.WaitGroup
	receiver.Go(func() {
		defer close(over)
		p.receive(stream, opened)
	})
	defer p.endAll()
	defer receiver.Wait()
	defer cancel()
	var producer string
	select {
	case producer = <-opened:
	case <-over:
		return
	case <-stop: // nothing was published through it
		return
	}
	p.publish(stream, producer, stop, over)
}

// publish publishes until the producer is over; after stop, until all is answered.
func (p *pinned) publish(stream brokerv1.Messaging_ProduceClient, producer string, stop <-chan struct{}, over <-chan struct{}) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var previous uint64
	for stopping := false; ; {
		select {
		case <-over:
			return
		case <-stop:
			stopping, stop = true, nil
		case <-tick.C:
		}
		if stopping {
			if p.flying() == 0 {
				return
			}
			continue
		}
		m, ok := p.take()
		if !ok {
			continue
		}
		var b entry.Builder
		sequence := uint64(m.Number) + 1
		b.Add(&entry.Message{SequenceID: sequence, Value: m.Payload(payloadBytes)}, 0)
		part := b.Close(entry.BatchHeader{Producer: producer, PublishTime: uint64(time.Now().UnixMilli()), HasPrevious: previous > 0, Previous: previous})
		previous = sequence
		head := brokerv1.ProduceRequest_builder{Publish: brokerv1.Publish_builder{Batches: []*brokerv1.PublishedBatch{
			brokerv1.PublishedBatch_builder{ProducerId: new(uint64(1)), Length: new(uint32(len(part)))}.Build(),
		}}.Build()}.Build()
		if err := stream.SendMsg(&rpc.Frame{Head: head, Payload: [][]byte{part}}); err != nil {
			return
		}
	}
}

// receive takes answers until the producer or the stream ends.
func (p *pinned) receive(stream brokerv1.Messaging_ProduceClient, opened chan<- string) {
	for {
		r, err := stream.Recv()
		if err != nil {
			return
		}
		switch r.WhichEvent() {
		case brokerv1.ProduceResponse_Opened_case:
			opened <- r.GetOpened().GetProducerName()
		case brokerv1.ProduceResponse_Receipts_case:
			for _, a := range r.GetReceipts().GetReceipts() {
				if a.GetDuplicate() {
					p.t.Errorf("%s: message %d was published once, answered as a duplicate", p.name, a.GetSequenceId()-1)
				}
				p.end(int(a.GetSequenceId())-1, answer{history.OK, client.MessageID{Ledger: a.GetLedger(), Entry: a.GetEntry(), Partition: -1, BatchIndex: -1}})
			}
		case brokerv1.ProduceResponse_Refused_case:
			outcome := history.Failed
			if r.GetRefused().GetCode() == brokerv1.Code_CODE_UNKNOWN_OUTCOME {
				outcome = history.Unknown
			}
			p.end(int(r.GetRefused().GetSequenceId())-1, answer{outcome: outcome})
		case brokerv1.ProduceResponse_Closed_case:
			if r.GetClosed().GetCode() == brokerv1.Code_CODE_MOVED {
				p.mu.Lock()
				p.moved++
				p.mu.Unlock()
			}
			return
		}
	}
}

// take returns the next message, if there is room for it in the window.
func (p *pinned) take() (history.Message, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) >= p.window {
		return history.Message{}, false
	}
	m := history.Message{Producer: p.name, Number: p.next}
	p.waiting[p.next] = true
	p.next++
	p.log.Publishing(m)
	return m, true
}

// end notes the answer to a publish.
func (p *pinned) end(number int, a answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.waiting[number] {
		p.t.Errorf("%s: message %d was answered and has no publish that waits", p.name, number)
		return
	}
	p.endLocked(number, a)
}

func (p *pinned) endLocked(number int, a answer) {
	delete(p.waiting, number)
	p.answers[number] = a
	if a.outcome == history.OK {
		p.stored++
	}
	p.log.Published(history.Message{Producer: p.name, Number: number}, a.outcome, a.at)
}

// endAll ends what waits for an answer that will not come.
func (p *pinned) endAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for number := range p.waiting {
		p.endLocked(number, answer{outcome: history.Unknown})
	}
}

func (p *pinned) flying() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waiting)
}

// pending returns the publishes that have no answer.
func (p *pinned) pending() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	var numbers []int
	for number := range p.waiting {
		numbers = append(numbers, number)
	}
	return numbers
}

// answered returns the answers to some publishes; ok is false while one has none.
func (p *pinned) answered(numbers []int) (answers []answer, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, number := range numbers {
		a, has := p.answers[number]
		if !has {
			return nil, false
		}
		answers = append(answers, a)
	}
	return answers, true
}

// counts returns how many publishes were acknowledged, and how often it was told
// that another broker owns the topic.
func (p *pinned) counts() (stored, moved int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stored, p.moved
}

func (p *pinned) setWindow(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.window = n
}

// positions returns where the acknowledged messages with numbers of at least
// first are.
func (p *pinned) positions(first int) []client.MessageID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var at []client.MessageID
	for number, a := range p.answers {
		if a.outcome == history.OK && number >= first {
			at = append(at, a.at)
		}
	}
	return at
}

// nextNumber is that of the next message.
func (p *pinned) nextNumber() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}
