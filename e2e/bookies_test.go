package e2e

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/cluster"
	"github.com/magnetar-io/magnetar/e2e/history"
)

// steady is one producer on one topic that always has something to send.
type steady struct {
	t    *testing.T
	name string
	log  *history.Log
	p    *client.Producer

	number int
	ledger atomic.Int64 // of the newest acknowledged message
}

func newSteady(ctx context.Context, t *testing.T, c *client.Client, topic string, log *history.Log) *steady {
	t.Helper()
	s := &steady{t: t, name: "on-" + topic, log: log}
	var err error
	if s.p, err = c.Producer(ctx, topic, client.WithName(s.name), client.WithBatchLimit(1<<20, 1)); err != nil {
		t.Fatal(err)
	}
	return s
}

// begin begins a publish; its outcome is recorded by end.
func (s *steady) begin(ctx context.Context) (history.Message, client.Future) {
	m := history.Message{Producer: s.name, Number: s.number}
	s.number++
	s.log.Publishing(m)
	return m, s.p.SendAsync(ctx, client.Message{Value: m.Payload(8 << 10)})
}

// end waits until a publish is acknowledged.
func (s *steady) end(ctx context.Context, m history.Message, f client.Future) {
	s.t.Helper()
	id, err := f.Wait(ctx)
	if err != nil {
		s.t.Fatalf("publish %s: %v", m, err)
	}
	id.BatchIndex = -1
	s.log.Published(m, history.OK, id)
	s.ledger.Store(id.Ledger)
}

// send publishes n messages, each acknowledged before the next.
func (s *steady) send(ctx context.Context, n int) {
	s.t.Helper()
	for range n {
		m, f := s.begin(ctx)
		s.end(ctx, m, f)
	}
}

// roll publishes until the topic has gone on in a new ledger.
func (s *steady) roll(ctx context.Context) {
	s.t.Helper()
	for from := s.ledger.Load(); s.ledger.Load() == from; {
		s.send(ctx, 1)
	}
	s.send(ctx, 10)
}

// TestBookiesDown shows what three bookies, of which two have to acknowledge,
// allow without one of them: publishing, the next ledger of a topic, a take-over
// by another broker and a new topic; and that with two of them gone a publish
// waits, and is acknowledged by itself once either is back.
func TestBookiesDown(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	shape := cluster.Default
	shape.ExtraArgs = []string{"--memory", "128MiB"}
	shape.BrokerArgs = []string{"--ledger-bytes", "1MiB"}
	cl := startCluster(ctx, t, shape)
	c := connect(ctx, t, cl.Server)
	log, later := history.New(), history.New() // of the topic, and of one made later
	topic := createTopic(ctx, t, c, "bookies")
	s := newSteady(ctx, t, c, "bookies", log)
	s.send(ctx, 10)

	began := time.Now()
	step := func(what string) {
		t.Helper()
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
		began = time.Now()
	}
	kill(t, cl, "bookie-1")
	s.send(ctx, 10)
	step("one bookie is dead: publishing goes on")
	s.roll(ctx)
	step("the topic goes on in another ledger")
	was := owners(ctx, t, cl.Server, []string{topic})[topic]
	kill(t, cl, was)
	s.send(ctx, 10)
	if now := owners(ctx, t, cl.Server, []string{topic})[topic]; now == was {
		t.Errorf("%s is dead and owns the topic", was)
	}
	step("its owner died too: another broker has taken it over")
	created := createTopic(ctx, t, c, "bookies-later")
	fresh := newSteady(ctx, t, c, "bookies-later", later)
	fresh.send(ctx, 10)
	step("a new topic")
	restart(ctx, t, cl, was)

	// The one that died last comes back first, then the one that died first.
	for _, back := range []string{"bookie-2", "bookie-1"} {
		kill(t, cl, "bookie-2")
		message, future := s.begin(ctx)
		// That nothing happens has no signal: a while without an answer has to do.
		select {
		case <-future.Done():
			_, err := future.Wait(ctx)
			t.Errorf("a publish with two of three bookies dead was answered: %v", err)
		case <-time.After(time.Second):
		}
		began = time.Now()
		restart(ctx, t, cl, back)
		s.end(ctx, message, future)
		step("two bookies were dead, " + back + " is back: the publish that waited is acknowledged")
		s.roll(ctx)
		fresh.send(ctx, 10)
		step("both topics go on, one in another ledger")
	}

	// bookie-2 is still dead: what was acknowledged can be read all the same.
	for _, of := range []struct {
		topic string
		log   *history.Log
	}{{topic, log}, {created, later}} {
		readAll(ctx, t, cl.Server, of.topic, "reader", of.log)
		v := of.log.Check()
		t.Log(v)
		if v.Bad() || v.OK == 0 {
			t.Errorf("history of %s is bad: %v", of.topic, v)
		}
	}
}
