package e2e

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/cluster"
	"github.com/magnetar-io/magnetar/e2e/history"
)

const (
	pauseLease = 2 * time.Second // the shortest that etcd grants
	pauseTopic = "pauses"
)

// TestPauseBroker stops the broker that owns a topic for three times its lease,
// again and again, while one publisher is pinned to each broker and knows of no
// move. The other broker takes over; the one that wakes still has publishes
// before it, some sent after it lost the topic. Whatever it makes of them, it
// acknowledges none after losing: what both brokers acknowledged is disjoint, is
// in the log once each, where the answer said, with all of the old owner's before
// the first of the new one's; and two readers see one order.
func TestPauseBroker(t *testing.T) {
	pauses := times("MAGNETAR_PAUSES", 2)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(pauses)*time.Minute)
	defer cancel()
	shape := cluster.Default
	shape.ExtraArgs = []string{"--memory", "128MiB"}
	shape.BrokerArgs = []string{"--session-lease", pauseLease.String(), "--ledger-bytes", "1MiB"}
	cl := startCluster(ctx, t, shape)
	c := connect(ctx, t, cl.Server)
	topic := createTopic(ctx, t, c, pauseTopic)

	log := history.New()
	brokers := []string{"broker-1", "broker-2"}
	to := map[string]*pinned{}
	stop := make(chan struct{})
	var publishers sync.WaitGroup
	defer publishers.Wait()
	defer cancel()
	for _, id := range brokers {
		p := newPinned(t, "to-"+id, cl.Address(id), topic, log)
		to[id] = p
		publishers.Go(func() { p.run(ctx, stop) })
	}
	for round := range pauses {
		pauseOwner(ctx, t, cl, round, topic, to)
	}
	close(stop)
	publishers.Wait()

	seen := map[client.MessageID]string{}
	for _, id := range brokers {
		for _, at := range to[id].positions(0) {
			if other, taken := seen[at]; taken {
				t.Errorf("both %s and %s acknowledged a message at %s", other, id, at)
			}
			seen[at] = id
		}
	}
	first, second := readAll(ctx, t, cl.Server, topic, "reader-1", log), readAll(ctx, t, cl.Server, topic, "reader-2", log)
	if !slices.Equal(first, second) {
		t.Errorf("two readers saw %d and %d messages, or another order", len(first), len(second))
	}
	v := log.Check()
	t.Log(v)
	if v.Bad() || v.OK == 0 || v.Redelivered > 0 {
		t.Errorf("history is bad: %v", v)
	}
}

// pauseOwner stops the owner of the topic for three leases and lets it go on.
func pauseOwner(ctx context.Context, t *testing.T, cl *cluster.Cluster, round int, topic string, to map[string]*pinned) {
	t.Helper()
	// The owner is the broker that acknowledges. A topic that moves just now is
	// waited for.
	var owner, other string
	flows := func(id string, most time.Duration) bool {
		before, _ := to[id].counts()
		for deadline := time.Now().Add(most); time.Now().Before(deadline); <-time.After(time.Millisecond) {
			if now, _ := to[id].counts(); now >= before+50 {
				return true
			}
		}
		return false
	}
	eventually(ctx, t, 30*time.Second, "one broker acknowledges publishes", func() bool {
		owner = owners(ctx, t, cl.Server, []string{topic})[topic]
		other = map[string]string{"broker-1": "broker-2", "broker-2": "broker-1"}[owner]
		return flows(owner, 2*time.Second)
	})
	old, next := to[owner], to[other]
	eventually(ctx, t, 10*time.Second, "publishes in flight", func() bool { return old.flying() > 0 })
	if err := cl.Signal(owner, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	woken := false
	defer func() {
		if !woken {
			_ = cl.Signal(owner, syscall.SIGCONT)
		}
	}()
	stopped, firstOfNext := time.Now(), next.nextNumber()
	wake := time.After(3 * pauseLease)
	oldBefore, _ := old.counts()
	nextBefore, _ := next.counts()
	eventually(ctx, t, 3*pauseLease, other+" takes the topic over while "+owner+" is stopped", func() bool {
		now, _ := next.counts()
		return now > nextBefore
	})
	took := time.Since(stopped)
	// The old owner is sent more, though it has lost the topic.
	before := old.nextNumber()
	old.setWindow(3 * usualWindow)
	eventually(ctx, t, 10*time.Second, "publishes to "+owner+" after the take-over", func() bool { return old.nextNumber() >= before+usualWindow })
	pending := old.pending()
	select {
	case <-wake:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	if now, _ := old.counts(); now > oldBefore+usualWindow {
		t.Fatalf("%s acknowledged %d publishes while it was stopped", owner, now-oldBefore)
	}
	_, movedBefore := old.counts()
	nextBefore, _ = next.counts()
	firstAfter := old.nextNumber()
	if err := cl.Signal(owner, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	woken = true
	old.setWindow(usualWindow)
	var answers []answer
	eventually(ctx, t, 30*time.Second, "all publishes that waited for "+owner+" have ended", func() (ok bool) {
		answers, ok = old.answered(pending)
		return ok
	})
	eventually(ctx, t, 30*time.Second, owner+" says that the topic has moved, and "+other+" goes on acknowledging", func() bool {
		_, moved := old.counts()
		now, _ := next.counts()
		return moved > movedBefore && now >= nextBefore+50
	})
	ended := map[history.Outcome]int{}
	taken := next.positions(firstOfNext)
	for _, a := range answers {
		ended[a.outcome]++
		if a.outcome != history.OK {
			continue
		}
		for _, at := range taken {
			if at.Compare(a.at) <= 0 {
				t.Errorf("%s acknowledged %s, %s had acknowledged %s", owner, a.at, other, at)
				break
			}
		}
	}
	t.Logf("round %d: %s stopped with %d publishes in flight, %s acknowledged after %s; of those in flight at the end %d were acknowledged, %d unknown, %d refused; %d more sent since",
		round, owner, len(pending), other, took.Round(time.Millisecond), ended[history.OK], ended[history.Unknown], ended[history.Failed], old.nextNumber()-firstAfter)
	if len(pending) < usualWindow {
		t.Errorf("only %d publishes waited for the stopped broker", len(pending))
	}
}

// createTopic makes a topic without partitions and returns its long name.
func createTopic(ctx context.Context, t *testing.T, c *client.Client, topic string) string {
	t.Helper()
	p, err := c.Producer(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	return p.Topic()
}

// readAll reads a topic from its beginning to its end, with a client of its own.
func readAll(ctx context.Context, t *testing.T, server, topic, reader string, log *history.Log) []client.MessageID {
	t.Helper()
	r, err := connect(ctx, t, server).Reader(ctx, topic, client.ReadToEnd())
	if err != nil {
		t.Fatal(err)
	}
	records := log.Join(reader, history.Exclusive, reader)
	var ids []client.MessageID
	for {
		m, err := r.Receive(ctx)
		if errors.Is(err, client.ErrEnd) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", reader, err)
		}
		named, err := history.Parse(m.Value)
		if err != nil {
			t.Fatal(err)
		}
		// A batch of one: the entry names the message.
		id := m.ID
		id.BatchIndex = -1
		records.Delivered(named, id, m.Redeliveries)
		ids = append(ids, id)
	}
	if err := r.Close(ctx); err != nil {
		t.Errorf("close %s: %v", reader, err)
	}
	return ids
}
