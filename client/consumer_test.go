package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/client/internal/faketest"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// publish sends the values first to last-1 in batches of up to ten.
func publish(t *testing.T, ctx context.Context, c *client.Client, cluster *faketest.Cluster, topic string, first, last int) {
	t.Helper()
	p := must[*client.Producer](t)(c.Producer(ctx, topic, client.WithBatchLimit(1<<20, 10)))
	cluster.Hold(long+topic, true)
	synctest.Wait()
	for i := first; i < last; i++ {
		p.SendAsync(ctx, client.Message{Value: fmt.Append(nil, i)})
	}
	cluster.Hold(long+topic, false)
	closing(t, ctx, p)
}

func receive(t *testing.T, ctx context.Context, s interface {
	Receive(context.Context) (*client.Received, error)
}, want int) *client.Received {
	t.Helper()
	m, err := s.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if string(m.Value) != fmt.Sprint(want) {
		t.Fatalf("received %q, want %d", m.Value, want)
	}
	return m
}

func backlog(t *testing.T, cluster *faketest.Cluster, want int) {
	t.Helper()
	if n, err := cluster.Backlog("t", "s"); n != want || err != nil {
		t.Errorf("backlog %d, %v; want %d", n, err, want)
	}
}

// Shows that messages of one batch are acknowledged one by one, that what was
// not comes again to the next consumer, and only that.
func TestAckInsideABatch(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		publish(t, ctx, c, cluster, "t", 0, 30)
		for i := range 30 {
			m := receive(t, ctx, s, i)
			if m.ID.BatchIndex != int32(i%10) || m.Index != uint64(i) {
				t.Errorf("message %d is %v, index %d", i, m.ID, m.Index)
			}
			if i%3 == 0 {
				if err := m.Ack(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		backlog(t, cluster, 20)
		closing(t, ctx, s)
		s = must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s"))
		for i := range 30 {
			if i%3 != 0 {
				receive(t, ctx, s, i).AckAsync()
			}
		}
		closing(t, ctx, s)
		backlog(t, cluster, 0)
	})
}

// Shows that acknowledgements that do not wait are sent together, and not later
// than a while.
func TestAckAsync(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		publish(t, ctx, c, cluster, "t", 0, 1000)
		for i := range 995 {
			receive(t, ctx, s, i).AckAsync()
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		backlog(t, cluster, 5)
		if n := cluster.Acks("t", "s"); n > 300 {
			t.Errorf("%d positions told for 995 messages in 100 entries", n)
		}
	})
}

// Shows that an acknowledgement which the broker could not keep just now is sent
// again until it is durable, though nobody waits; and that one it refuses for good
// is reported as often as it is asked for.
func TestRefusedAcks(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		publish(t, ctx, c, cluster, "t", 0, 31)
		codes := []brokerv1.Code{brokerv1.Code_CODE_UNAVAILABLE, brokerv1.Code_CODE_INTERNAL, brokerv1.Code_CODE_QUOTA}
		for i := range 30 {
			m := receive(t, ctx, s, i)
			if i%10 == 9 {
				cluster.RefuseAcks(long+"t", codes[i/10])
			}
			m.AckAsync()
			synctest.Wait()
		}
		time.Sleep(time.Second)
		backlog(t, cluster, 1)
		m := receive(t, ctx, s, 30)
		cluster.RefuseAcks(long+"t", brokerv1.Code_CODE_INVALID)
		for range 2 {
			if err := m.Ack(ctx); !errors.Is(err, client.ErrInvalid) {
				t.Errorf("ack: %v", err)
			}
		}
	})
}

// Shows cumulative acknowledgement, to the middle of a batch too, and that a
// shared subscription refuses it.
func TestAckCumulative(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		publish(t, ctx, c, cluster, "t", 0, 50)
		var m *client.Received
		for i := range 50 {
			r := receive(t, ctx, s, i)
			switch {
			case i < 5:
				r.AckAsync()
			case i == 36:
				m = r
			}
		}
		if err := m.AckCumulative(ctx); err != nil {
			t.Fatal(err)
		}
		backlog(t, cluster, 13)
		cluster.Cut("broker-1")
		cluster.Cut("broker-2")
		time.Sleep(5 * time.Second)
		if err := m.Ack(ctx); err != nil {
			t.Errorf("acknowledged twice: %v", err)
		}
		backlog(t, cluster, 13)
		closing(t, ctx, s)
		s = must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.OfType(client.Shared)))
		m = receive(t, ctx, s, 37)
		if err := m.AckCumulative(ctx); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("on a shared subscription: %v", err)
		}
	})
}

// Shows that a message given back comes again, after a delay that grows, and
// alone: its neighbours in the batch stay with the application.
func TestNack(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest()), client.OfType(client.Shared),
			client.NackDelay(time.Second, 5*time.Second)))
		publish(t, ctx, c, cluster, "t", 0, 10)
		var all []*client.Received
		for i := range 10 {
			all = append(all, receive(t, ctx, s, i))
		}
		for attempt, delay := range []time.Duration{1, 2, 4, 5, 5} {
			start := time.Now()
			all[3].Nack()
			all[3] = receive(t, ctx, s, 3)
			if took := time.Since(start).Round(time.Millisecond); took != delay*time.Second || all[3].Redeliveries != attempt+1 {
				t.Errorf("attempt %d came after %v, as redelivery %d", attempt, took, all[3].Redeliveries)
			}
		}
		for _, m := range all {
			if err := m.Ack(ctx); err != nil {
				t.Fatal(err)
			}
		}
		all[3].Nack() // it is acknowledged: nothing comes
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if m, err := s.Receive(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("received %v, %v", m, err)
		}
		backlog(t, cluster, 0)
	})
}

// Shows that after a broken connection the application gets what it has not had,
// in order, and not what it has in its hands; and that an acknowledgement lost
// with the connection is made again.
func TestReconnectHidesRedelivery(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		publish(t, ctx, c, cluster, "t", 0, 200)
		var kept []*client.Received
		for i := range 200 {
			m := receive(t, ctx, s, i)
			if i%17 == 0 {
				cluster.Cut("broker-1")
				cluster.Cut("broker-2")
			}
			if i%2 == 0 {
				m.AckAsync()
			} else {
				kept = append(kept, m)
			}
			if i%23 == 0 {
				time.Sleep(time.Second)
			}
		}
		for _, m := range kept {
			if err := m.Ack(ctx); err != nil {
				t.Fatal(err)
			}
		}
		closing(t, ctx, s)
		backlog(t, cluster, 0)
	})
}

// TestRuleM31_CreditBoundsWhatIsSentAhead shows that the broker sends no more
// ahead than the consumer's queue allows, in messages and in bytes, that
// everything arrives nevertheless, an entry larger than the queue too, and that
// a consumer which does not receive holds up no other on the same connection.
func TestRuleM31_CreditBoundsWhatIsSentAhead(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		cluster.CreateTopic("a", 0)
		cluster.CreateTopic("skip", 0)
		cluster.CreateTopic("b", 0)
		if cluster.Owner("a") != cluster.Owner("b") {
			t.Fatal("the topics are to share a broker")
		}
		stuck := must[*client.Consumer](t)(c.Subscribe(ctx, "a", "s", client.From(client.Earliest()), client.Queue(5, 1<<20)))
		tight := must[*client.Consumer](t)(c.Subscribe(ctx, "b", "s", client.From(client.Earliest()), client.Queue(1000, 4000)))
		for _, topic := range []string{"a", "b"} {
			p := must[*client.Producer](t)(c.Producer(ctx, topic))
			for i := range 100 {
				value := fmt.Appendf(nil, "%d", i)
				if i%10 == 9 {
					value = fmt.Appendf(nil, "%d%06000d", i, 0)
				}
				must[client.MessageID](t)(p.Send(ctx, client.Message{Value: value}))
			}
		}
		synctest.Wait()
		if n := cluster.Outstanding("a", "s"); n != 5 {
			t.Errorf("%d messages out, want 5", n)
		}
		for i := range 100 {
			m := must[*client.Received](t)(tight.Receive(ctx))
			if string(m.Value[:len(fmt.Sprint(i))]) != fmt.Sprint(i) {
				t.Fatalf("message %d is %.10q", i, m.Value)
			}
		}
		for range 100 {
			must[*client.Received](t)(stuck.Receive(ctx)).AckAsync()
		}
		closing(t, ctx, stuck)
		if n, err := cluster.Backlog("a", "s"); n != 0 || err != nil {
			t.Errorf("backlog %d, %v", n, err)
		}
	})
}

// Shows seeking: by the consumer and behind its back. What was received before is
// void, what was queued is not delivered.
func TestSeek(t *testing.T) {
	for first := range uint64(2) {
		t.Run(fmt.Sprint("first epoch ", first), func(t *testing.T) { seek(t, first) })
	}
}

func seek(t *testing.T, firstEpoch uint64) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		cluster.FirstEpoch = firstEpoch
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		publish(t, ctx, c, cluster, "t", 0, 100)
		var old, fifth *client.Received
		for i := range 60 {
			old = receive(t, ctx, s, i)
			if i == 50 {
				fifth = old
			}
		}
		if err := s.Seek(ctx, client.Earliest()); err != nil {
			t.Fatal(err)
		}
		if err := old.Ack(ctx); !errors.Is(err, client.ErrVoid) {
			t.Errorf("a message from before the seek: %v", err)
		}
		for i := range 100 {
			receive(t, ctx, s, i).AckAsync()
		}
		if err := s.Seek(ctx, client.At(fifth.ID)); err != nil {
			t.Fatal(err)
		}
		for i := 50; i < 70; i++ {
			receive(t, ctx, s, i).AckAsync()
		}
		cluster.SeekOutside(long+"t", "s")
		synctest.Wait()
		for i := range 100 {
			receive(t, ctx, s, i).AckAsync()
		}
		if err := s.Seek(ctx, client.Latest()); err != nil {
			t.Fatal(err)
		}
		publish(t, ctx, c, cluster, "t", 100, 101)
		receive(t, ctx, s, 100)
		cut := time.AfterFunc(0, func() { cluster.Cut("broker-1"); cluster.Cut("broker-2") })
		defer cut.Stop()
		if err := s.Seek(ctx, client.After(fifth.ID)); err != nil { // the answer may be lost: it is asked again
			t.Fatal(err)
		}
	})
}

// Shows that a subscription that is taken refuses, that failover consumers take
// over from each other, and that Unsubscribe deletes.
func TestSubscriptionTypes(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		a := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		if _, err := c.Subscribe(ctx, "t", "s"); !errors.Is(err, client.ErrBusy) || !client.Retryable(err) {
			t.Errorf("second exclusive consumer: %v", err)
		}
		closing(t, ctx, a)
		a = must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.OfType(client.Failover), client.Named("a")))
		b := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.OfType(client.Failover), client.Named("b")))
		publish(t, ctx, c, cluster, "t", 0, 20)
		for i := range 10 {
			if err := receive(t, ctx, a, i).Ack(ctx); err != nil {
				t.Fatal(err)
			}
		}
		closing(t, ctx, a)
		for i := 10; i < 20; i++ {
			receive(t, ctx, b, i)
		}
		if err := b.Unsubscribe(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Receive(ctx); !errors.Is(err, client.ErrClosed) {
			t.Errorf("receive after Unsubscribe: %v", err)
		}
		if _, err := cluster.Backlog("t", "s"); err == nil {
			t.Error("the subscription is still there")
		}
	})
}

// Shows the handler: acknowledged when it returns nil, given back when it fails,
// messages of a key in order however many workers there are.
func TestConsumeWithWorkers(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest()), client.OfType(client.Shared)))
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		const messages, keys = 500, 10
		for i := range messages {
			p.SendAsync(ctx, client.Message{Key: fmt.Sprint(i % keys), Value: fmt.Append(nil, i)})
		}
		handling, stop := context.WithCancel(ctx)
		var mu sync.Mutex
		byKey := map[string][]int{}
		failures, done, running, most := 0, 0, 0, 0
		err := s.Consume(handling, func(_ context.Context, m *client.Received) error {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			running--
			var n int
			fmt.Sscan(string(m.Value), &n)
			if n%100 == 50 && m.Redeliveries == 0 {
				failures++
				return errors.New("try again")
			}
			if m.Redeliveries == 0 {
				byKey[m.Key] = append(byKey[m.Key], n)
			}
			if done++; done == messages {
				stop()
			}
			return nil
		}, client.Workers(4))
		if err != nil {
			t.Fatal(err)
		}
		for key, got := range byKey {
			if !slices.IsSorted(got) {
				t.Errorf("key %s: handled in order %v", key, got)
			}
		}
		if failures != 5 || most < 2 || most > 4 {
			t.Errorf("%d failures, at most %d at a time", failures, most)
		}
		closing(t, ctx, s)
		backlog(t, cluster, 0)
	})
}

// Shows that a handler loop which is ended, while workers are full and more comes
// in, returns, and that what it had taken and not handled comes again to the same
// consumer.
func TestConsumeEndsAndGivesBack(t *testing.T) {
	for _, workers := range []int{1, 3} {
		world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
			c := connect(t, ctx, cluster)
			defer closing(t, ctx, c)
			s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest()), client.Queue(300, 1<<20)))
			publish(t, ctx, c, cluster, "t", 0, 1000)
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			var mu sync.Mutex
			handled := map[string]int{}
			handle := func(ctx context.Context, m *client.Received) error {
				mu.Lock()
				defer mu.Unlock()
				handled[string(m.Value)]++
				return nil
			}
			err := s.Consume(short, func(ctx context.Context, m *client.Received) error {
				<-ctx.Done()
				return handle(ctx, m)
			}, client.Workers(workers))
			if err != nil || len(handled) > workers {
				t.Errorf("%d handled before the end: %v", len(handled), err)
			}
			again, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if err := s.Consume(again, handle, client.Workers(workers)); err != nil {
				t.Fatal(err)
			}
			for i := range 1000 {
				if handled[fmt.Sprint(i)] != 1 {
					t.Fatalf("message %d was handled %d times", i, handled[fmt.Sprint(i)])
				}
			}
			backlog(t, cluster, 0)
		})
	}
}

// Shows a reader: from a place, to the end there was, across broken connections
// and inside batches, without a trace on the broker.
func TestReader(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		cluster.CreateTopic("t", 0)
		empty := must[*client.Reader](t)(c.Reader(ctx, "t", client.ReadToEnd()))
		if m, err := empty.Receive(ctx); !errors.Is(err, client.ErrEnd) {
			t.Errorf("empty topic: %v, %v", m, err)
		}
		closing(t, ctx, empty)
		publish(t, ctx, c, cluster, "t", 0, 60)
		time.Sleep(time.Minute)
		middle := time.Now()
		publish(t, ctx, c, cluster, "t", 60, 100)

		r := must[*client.Reader](t)(c.Reader(ctx, "t", client.ReadToEnd(), client.ReadQueue(20, 1<<20)))
		var ids []client.MessageID
		for m, err := range r.Messages(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if string(m.Value) != fmt.Sprint(len(ids)) {
				t.Fatalf("message %d is %q", len(ids), m.Value)
			}
			if err := errors.Join(m.Ack(ctx), m.AckCumulative(ctx)); err != nil {
				t.Errorf("ack of a reader's message: %v", err)
			}
			if ids = append(ids, m.ID); len(ids)%7 == 0 {
				cluster.Cut("broker-1")
				cluster.Cut("broker-2")
				time.Sleep(10 * time.Millisecond)
			}
		}
		if len(ids) != 100 {
			t.Errorf("read %d messages", len(ids))
		}
		closing(t, ctx, r)

		for name, x := range map[string]struct {
			opts        []client.ReaderOption
			first, last int
		}{
			"since":     {[]client.ReaderOption{client.ReadFrom(client.Since(middle)), client.ReadToEnd()}, 60, 99},
			"until":     {[]client.ReaderOption{client.ReadUntil(middle)}, 0, 59},
			"from id":   {[]client.ReaderOption{client.ReadFrom(client.At(entryOf(ids[40]))), client.ReadToEnd()}, 40, 99},
			"after id":  {[]client.ReaderOption{client.ReadFrom(client.After(entryOf(ids[49]))), client.ReadToEnd()}, 50, 99},
			"after end": {[]client.ReaderOption{client.ReadFrom(client.After(entryOf(ids[99]))), client.ReadToEnd()}, 0, -1},
			"latest":    {[]client.ReaderOption{client.ReadFrom(client.Latest()), client.ReadToEnd()}, 0, -1},
		} {
			r := must[*client.Reader](t)(c.Reader(ctx, "t", x.opts...))
			next := x.first
			for m, err := range r.Messages(ctx) {
				if err != nil {
					t.Fatal(err)
				}
				if string(m.Value) != fmt.Sprint(next) {
					t.Errorf("%s: read %q, want %d", name, m.Value, next)
				}
				next++
			}
			if next != x.last+1 {
				t.Errorf("%s: read up to %d, want %d", name, next-1, x.last)
			}
			closing(t, ctx, r)
		}
		r = must[*client.Reader](t)(c.Reader(ctx, "t"))
		receive(t, ctx, r, 0)
		if err := r.Seek(ctx, client.At(entryOf(ids[90]))); err != nil {
			t.Fatal(err)
		}
		receive(t, ctx, r, 90)
		closing(t, ctx, r)
		synctest.Wait()
		if n := cluster.Subscriptions("t"); n != 0 {
			t.Errorf("%d subscriptions left behind", n)
		}
	})
}

// entryOf names the whole entry of a message.
func entryOf(id client.MessageID) client.MessageID {
	id.BatchIndex = -1
	return id
}

// Shows that a damaged entry is told and passed over.
func TestDamagedEntry(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		publish(t, ctx, c, cluster, "t", 0, 30)
		cluster.Damage(long+"t", 1)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		var got []string
		for m, err := range s.Messages(ctx) {
			if errors.Is(err, client.ErrCorrupt) {
				got = append(got, "damage")
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(m.Value))
			if len(got) == 21 {
				break
			}
		}
		if got[9] != "9" || got[10] != "damage" || got[11] != "20" {
			t.Errorf("got %v", got)
		}
	})
}
