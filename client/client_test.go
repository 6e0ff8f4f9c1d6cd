package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/client/internal/faketest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world runs f in virtual time against a fake cluster with two brokers and two
// discovery processes, and checks at the end that the client kept the protocol's
// rules and left nothing behind.
func world(t *testing.T, seed uint64, f func(t *testing.T, ctx context.Context, cluster *faketest.Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cluster := faketest.New(seed, 2, 2)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer func() {
			cancel()
			cluster.Close()
			synctest.Wait()
			for _, fault := range cluster.Faults() {
				t.Errorf("protocol: %s", fault)
			}
		}()
		f(t, ctx, cluster)
	})
}

// connect gives a client that is closed when the test ends.
func connect(t *testing.T, ctx context.Context, cluster *faketest.Cluster, opts ...client.Option) *client.Client {
	t.Helper()
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(1, 1))
	random := func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return rng.Uint64()
	}
	c, err := client.Connect(ctx, "discovery-1,discovery-2", append([]client.Option{
		client.WithDialer(cluster.Dial), client.WithRandom(random),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func closing(t *testing.T, ctx context.Context, c interface{ Close(context.Context) error }) {
	t.Helper()
	if err := c.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

// Shows the way of a message from Send to an acknowledgement, with everything it
// carries.
func TestPublishAndConsume(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "orders", "billing", client.From(client.Earliest())))
		p := must[*client.Producer](t)(c.Producer(ctx, "orders"))
		sent := client.Message{Key: "k\xff", OrderingKey: []byte("o"), Value: []byte("value"), Properties: map[string]string{"a": "b"},
			EventTime: time.UnixMilli(1234), NoValue: true}
		id := must[client.MessageID](t)(p.Send(ctx, sent))
		m := must[*client.Received](t)(s.Receive(ctx))
		if m.ID != id || m.Key != sent.Key || string(m.OrderingKey) != "o" || string(m.Value) != "value" || m.Properties["a"] != "b" ||
			!m.EventTime.Equal(sent.EventTime) || !m.NoValue || m.Topic != "persistent://public/default/orders" || m.Producer != p.Name() ||
			m.Index != 0 || m.Redeliveries != 0 || !m.PublishTime.Equal(time.Now()) {
			t.Errorf("sent %+v as %v, received %+v", sent, id, m)
		}
		if err := m.Ack(ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := cluster.Backlog("orders", "billing"); n != 0 || err != nil {
			t.Errorf("backlog %d, %v after Ack returned", n, err)
		}
	})
}

// Shows that a message sent while nothing is under way does not wait, and that
// those sent meanwhile share a batch.
func TestSendWhileIdleBatchWhileInFlight(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		start := time.Now()
		for i := range 10 {
			must[client.MessageID](t)(p.Send(ctx, client.Message{Value: fmt.Append(nil, i)}))
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("10 sends one after the other took %v of virtual time", took)
		}
		for _, m := range cluster.Messages("t") {
			if m.Batch != 1 {
				t.Errorf("%s came in a batch of %d", m.Value, m.Batch)
			}
		}
		cluster.Hold("persistent://public/default/t", true)
		synctest.Wait()
		var last client.Future
		for i := range 500 {
			last = p.SendAsync(ctx, client.Message{Value: fmt.Append(nil, 10+i)})
		}
		cluster.Hold("persistent://public/default/t", false)
		id := must[client.MessageID](t)(last.Wait(ctx))
		if id.BatchIndex != 499 {
			t.Errorf("the last of 500 messages is %v, want batch index 499", id)
		}
		checkOrder(t, cluster.Messages("t"), 510)
	})
}

// checkOrder expects the values 0 to n-1 in order.
func checkOrder(t *testing.T, stored []faketest.Stored, n int) {
	t.Helper()
	if len(stored) != n {
		t.Errorf("%d messages stored, want %d", len(stored), n)
	}
	for i, m := range stored {
		if m.Value != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, m.Value)
		}
	}
}

// Shows that batches are bounded by bytes and by count, and that a message above
// the bound travels alone.
func TestBatchLimits(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t", client.WithBatchLimit(10_000, 7)))
		cluster.Hold("persistent://public/default/t", true)
		synctest.Wait()
		for range 21 {
			p.SendAsync(ctx, client.Message{Value: []byte("small")})
		}
		for range 20 {
			p.SendAsync(ctx, client.Message{Value: make([]byte, 3000)})
		}
		p.SendAsync(ctx, client.Message{Value: make([]byte, 50_000)})
		p.SendAsync(ctx, client.Message{Value: []byte("small")})
		cluster.Hold("persistent://public/default/t", false)
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		for i, m := range cluster.Messages("t") {
			switch {
			case m.Batch > 7:
				t.Errorf("message %d is in a batch of %d", i, m.Batch)
			case len(m.Value) == 3000 && m.Batch > 4:
				t.Errorf("message %d is in a batch of %d×3000 bytes", i, m.Batch)
			case len(m.Value) == 50_000 && m.Batch != 1:
				t.Errorf("message %d, of 50000 bytes, is in a batch of %d", i, m.Batch)
			}
		}
	})
}

// Shows that a batch is no larger than the largest message the topic takes: many
// small messages are not refused because they travel together.
func TestBatchKeepsToTheMessageLimit(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		cluster.MaxMessage = 10_000
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.Hold("persistent://public/default/t", true)
		synctest.Wait()
		for range 200 {
			p.SendAsync(ctx, client.Message{Value: make([]byte, 1000)})
		}
		cluster.Hold("persistent://public/default/t", false)
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		for i, m := range cluster.Messages("t") {
			if m.Batch > 10 {
				t.Errorf("message %d is in a batch of %d×1000 bytes, the limit is 10000", i, m.Batch)
			}
		}
	})
}

// Shows every compression end to end.
func TestCompression(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		for _, how := range []client.Compression{client.NoCompression, client.LZ4, client.Zlib, client.Zstd, client.Snappy} {
			p := must[*client.Producer](t)(c.Producer(ctx, "t", client.WithCompression(how)))
			value := fmt.Sprintf("%d %01000d", how, 7)
			must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte(value)}))
			m := must[*client.Received](t)(s.Receive(ctx))
			if string(m.Value) != value {
				t.Errorf("compression %d: got %q", how, m.Value)
			}
			stored := cluster.Messages("t")
			if got := client.Compression(stored[len(stored)-1].Header.Compression); got != how {
				t.Errorf("compression %d: stored with %d", how, got)
			}
		}
	})
}

// TestRuleM32_RoutingByKeyRange shows that a key's messages go to the partition
// whose range its hash falls in, in order, and that messages without a key use
// all partitions.
func TestRuleM32_RoutingByKeyRange(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		cluster.CreateTopic("p", 4)
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "p", client.WithBatchLimit(1<<10, 10)))
		for i := range 400 {
			p.SendAsync(ctx, client.Message{Key: fmt.Sprint("key", i%20), Value: fmt.Append(nil, i)})
			p.SendAsync(ctx, client.Message{Value: []byte("keyless")})
		}
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		home, last, keyless := map[string]string{}, map[string]int{}, map[string]int{}
		for _, m := range cluster.Messages("p") {
			if m.Key == "" {
				keyless[m.Topic]++
				continue
			}
			if home[m.Key] == "" {
				home[m.Key] = m.Topic
			}
			var n int
			fmt.Sscan(m.Value, &n)
			if home[m.Key] != m.Topic || n < last[m.Key] {
				t.Errorf("key %s: message %d in %s after %d in %s", m.Key, n, m.Topic, last[m.Key], home[m.Key])
			}
			last[m.Key] = n
			if m.Header.RoutingVersion != 1 {
				t.Errorf("routing version %d", m.Header.RoutingVersion)
			}
		}
		partitions := map[string]bool{}
		for _, topic := range home {
			partitions[topic] = true
		}
		if len(home) != 20 || len(partitions) != 4 || len(keyless) != 4 {
			t.Errorf("%d keys in %d partitions, keyless messages in %v", len(home), len(partitions), keyless)
		}
		one := must[*client.Producer](t)(c.Producer(ctx, "p-partition-2"))
		id := must[client.MessageID](t)(one.Send(ctx, client.Message{Key: "any", Value: []byte("x")}))
		if id.Partition != 2 {
			t.Errorf("sent to partition 2, got %v", id)
		}
	})
}

// TestRuleM32_GrowthIsFollowed shows that a producer with an older map of the
// partitions gets the new one and goes on: what still belongs where it was sent is
// stored there, in order, what does not fails definitely and can be sent again.
func TestRuleM32_GrowthIsFollowed(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		cluster.CreateTopic("p", 2)
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "p", client.WithBatchLimit(1<<10, 1)))
		send := func(i int) error {
			return second(p.Send(ctx, client.Message{Key: fmt.Sprint("key", i%30), Value: fmt.Append(nil, i)}))
		}
		var futures []client.Future
		for i := range 600 {
			if i == 300 {
				cluster.Split("p", 1)
			}
			futures = append(futures, p.SendAsync(ctx, client.Message{Key: fmt.Sprint("key", i%30), Value: fmt.Append(nil, i)}))
			if i%10 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		if err := p.Flush(ctx); !client.Retryable(err) {
			t.Errorf("flush: %v", err)
		}
		failed := 0
		for i, f := range futures {
			if _, err := f.Wait(ctx); err != nil {
				failed++
				if !client.Retryable(err) || send(i) != nil {
					t.Errorf("message %d: %v", i, err)
				}
			}
		}
		stored := cluster.Messages("p")
		topics := map[string]int{}
		values := map[string]bool{}
		for _, m := range stored {
			topics[m.Topic]++
			values[m.Value] = true
		}
		if len(stored) != 600 || len(values) != 600 || len(topics) != 3 || failed == 0 || failed > 100 {
			t.Errorf("%d messages stored, %d different, in %v; %d sent twice", len(stored), len(values), topics, failed)
		}
	})
}

// TestRuleM32_NoKeyIsInTwoPlaces shows that while a partition is split no message
// of a key that moved is stored where the key was: neither one that waited in a
// batch to be closed, nor one sent while the new partition has no owner yet.
func TestRuleM32_NoKeyIsInTwoPlaces(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		cluster.CreateTopic("p", 2)
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "p"))
		cluster.Hold(long+"p-partition-1", true)
		synctest.Wait()
		var futures []client.Future
		send := func() {
			for i := range 30 {
				futures = append(futures, p.SendAsync(ctx, client.Message{Key: fmt.Sprint("key", i), Value: []byte("x")}))
			}
			synctest.Wait()
		}
		send()
		send()
		cluster.Split("p", 1)
		cluster.Move("p-partition-2", "", false)
		cluster.Hold(long+"p-partition-1", false)
		for range 3 {
			send()
			time.Sleep(time.Second)
		}
		cluster.Move("p-partition-2", "broker-1", false)
		time.Sleep(10 * time.Second)
		send()
		p.Flush(ctx)
		failed := 0
		for _, f := range futures {
			if _, err := f.Wait(ctx); err != nil {
				if failed++; !client.Retryable(err) {
					t.Errorf("got %v", err)
				}
			}
		}
		where := map[string]string{}
		topics := map[string]int{}
		stored := cluster.Messages("p")
		for _, m := range stored {
			topics[m.Topic]++
			if before := where[m.Key]; before != "" && before != m.Topic {
				t.Errorf("%s is in %s and in %s", m.Key, before, m.Topic)
			}
			where[m.Key] = m.Topic
		}
		if len(stored)+failed != len(futures) || failed == 0 || len(topics) != 3 {
			t.Errorf("%d stored, in %v, %d failed, of %d", len(stored), topics, failed, len(futures))
		}
	})
}

// Shows that the memory budget holds producers back, that waiting ends with the
// context, definitely, and that a message above all limits is refused at once.
func TestMemoryBudget(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster, client.WithMemory(100_000))
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.Hold("persistent://public/default/t", true)
		synctest.Wait()
		taken := 0
		for range 20 {
			short, cancel := context.WithTimeout(ctx, time.Second)
			f := p.SendAsync(short, client.Message{Value: make([]byte, 10_000)})
			select {
			case <-f.Done():
				_, err := f.Wait(ctx)
				if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrUnknownOutcome) {
					t.Errorf("over budget: %v", err)
				}
			default:
				taken++
			}
			cancel()
		}
		if taken != 9 {
			t.Errorf("%d messages of 10 kB taken on a budget of 100 kB", taken)
		}
		if _, err := p.Send(ctx, client.Message{Value: make([]byte, 200_000)}); !errors.Is(err, client.ErrTooLarge) {
			t.Errorf("message above the budget: %v", err)
		}
		cluster.Hold("persistent://public/default/t", false)
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if n := len(cluster.Messages("t")); n != taken {
			t.Errorf("%d messages stored, %d taken", n, taken)
		}
		big := must[*client.Producer](t)(c.Producer(ctx, "t"))
		if _, err := big.Send(ctx, client.Message{Value: make([]byte, 6<<20)}); !errors.Is(err, client.ErrTooLarge) {
			t.Errorf("message above the topic's limit: %v", err)
		}
	})
}

// Shows callbacks: once each, in order, also for messages that are not taken.
func TestCallbacks(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		var order []int
		for i := range 100 {
			p.Publish(ctx, client.Message{Value: fmt.Append(nil, i)}, func(id client.MessageID, err error) {
				if err != nil || !id.Known() {
					t.Errorf("message %d: %v, %v", i, id, err)
				}
				order = append(order, i)
			})
		}
		closing(t, ctx, c)
		for i, got := range order {
			if i != got {
				t.Fatalf("callback %d was for message %d", i, got)
			}
		}
		called := 0
		p.Publish(ctx, client.Message{Value: []byte("x")}, func(_ client.MessageID, err error) {
			if called++; !errors.Is(err, client.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
		if len(order) != 100 || called != 1 {
			t.Errorf("%d callbacks before Close, %d after", len(order), called)
		}
	})
}

// Shows the ids people type.
func TestMessageIDText(t *testing.T) {
	for s, want := range map[string]client.MessageID{
		"5:7:-1":   {Ledger: 5, Entry: 7, Partition: -1, BatchIndex: -1},
		"5:0:3:12": {Ledger: 5, Entry: 0, Partition: 3, BatchIndex: 12},
	} {
		got, err := client.ParseMessageID(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("%s: %+v (%v), %v", s, got, got, err)
		}
	}
	for _, bad := range []string{"", "5", "5:7", "5:7:-2", "0:1:0", "5:-1:0", "5:7:0:-1", "5:7:0:1:2", "x:1:0", "5:7:4294967296", "9223372036854775808:1:0"} {
		if id, err := client.ParseMessageID(bad); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("%q: %v, %v", bad, id, err)
		}
	}
}
