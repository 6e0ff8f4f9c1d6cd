package e2e

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/history"
)

// TestDiskFull publishes more than a node's disk holds while nobody consumes:
// publishes wait, none fails and none is lost. Once a consumer acknowledges what is
// stored, the rest is published and delivered without anybody's doing.
func TestDiskFull(t *testing.T) {
	if os.Getenv("MAGNETAR_DISK") == "" {
		t.Skip("takes a minute; 'make e2e' runs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	node := startStandalone(ctx, t, "--disk-limit", "128MiB")
	c := connect(ctx, t, node.Server)
	const topic, subscription, messages, bytes = "full", "s", 16000, 10 << 10
	s, err := c.Subscribe(ctx, topic, subscription, client.From(client.Earliest()))
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Producer(ctx, topic, client.WithName("p"))
	if err != nil {
		t.Fatal(err)
	}
	log := history.New()
	var outcomes, publishing sync.WaitGroup
	outcomes.Add(messages)
	publishing.Go(func() {
		for i := range messages { // waits while what is unanswered fills the client's memory
			m := history.Message{Producer: "p", Number: i}
			log.Publishing(m)
			p.Publish(ctx, client.Message{Value: m.Payload(bytes)}, func(id client.MessageID, err error) {
				defer outcomes.Done()
				if err != nil {
					t.Errorf("publish %s: %v", m, err)
				}
				log.Published(m, history.OK, id)
			})
		}
	})
	began := time.Now()
	step := func(what string) {
		t.Helper()
		t.Logf("%s: %s, %d acknowledged", what, time.Since(began).Round(time.Millisecond), log.Acknowledged())
		began = time.Now()
	}
	eventually(ctx, t, time.Minute, "the bookie is read-only", func() bool { return readOnly(ctx, t, node.Server) == 1 })
	step("the disk is full")
	if log.Acknowledged() == messages {
		t.Fatal("all of it fits: nothing is shown")
	}
	consumer := log.Join(subscription, history.Exclusive, "consumer")
	for i := range messages {
		m, err := s.Receive(ctx)
		if err != nil {
			t.Fatalf("after %d messages: %v", i, err)
		}
		if _, err := consumer.Receive(m); err != nil {
			t.Fatal(err)
		}
		ack := consumer.Acking(m.ID, false)
		if err := m.Ack(ctx); err != nil {
			t.Fatalf("acknowledge %s: %v", m.ID, err)
		}
		ack.Ended(nil)
	}
	step("everything is consumed")
	publishing.Wait()
	outcomes.Wait()
	eventually(ctx, t, 2*time.Minute, "the bookie is writable", func() bool { return readOnly(ctx, t, node.Server) == 0 })
	step("the bookie is writable")
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	v := log.Check()
	t.Log(v)
	if v.Bad() || v.OK != messages {
		t.Errorf("history is bad: %v", v)
	}
}
