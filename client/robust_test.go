package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/client/internal/faketest"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

const long = "persistent://public/default/"

// TestRuleM11_CutsNeitherLoseNorDuplicateNorReorder publishes to and consumes
// from a partitioned topic while connections are cut at random requests, brokers
// are killed and partitions move. Every message is stored once and in order, its
// receipt names the place where it is, and the consumer, who never goes, gets
// each exactly once and in order of its partition.
func TestRuleM11_CutsNeitherLoseNorDuplicateNorReorder(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			world(t, seed, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) { cuts(t, ctx, cluster, seed) })
		})
	}
}

func cuts(t *testing.T, ctx context.Context, cluster *faketest.Cluster, seed uint64) {
	const partitions, keys, messages = 4, 16, 3000
	rng := rand.New(rand.NewPCG(seed, 7))
	cluster.CreateTopic("t", partitions)
	c := connect(t, ctx, cluster)
	defer closing(t, ctx, c)
	kind := []client.Type{client.Exclusive, client.Failover}[seed%2]
	s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest()), client.OfType(kind), client.Queue(300, 200_000)))
	p := must[*client.Producer](t)(c.Producer(ctx, "t", client.WithBatchLimit(2000, 20), client.WithCompression(client.Compression(seed%5))))

	cluster.CutOneIn(25)
	if seed >= 3 {
		cluster.DelayAnswers(time.Duration(seed) * time.Millisecond)
	}
	stopChaos := make(chan struct{})
	chaosDone := make(chan struct{})
	go func() {
		defer close(chaosDone)
		rng := rand.New(rand.NewPCG(seed, 8))
		for {
			select {
			case <-stopChaos:
				return
			case <-time.After(time.Duration(50+rng.IntN(300)) * time.Millisecond):
			}
			part := fmt.Sprintf("t-partition-%d", rng.IntN(partitions))
			switch broker := fmt.Sprint("broker-", 1+rng.IntN(2)); rng.IntN(4) {
			case 0:
				cluster.Cut(broker)
			case 1:
				cluster.Kill(broker)
				time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
				cluster.Restart(broker)
			default:
				cluster.Move(part, broker, rng.IntN(2) == 0)
			}
		}
	}()

	received := make(chan map[int][]string)
	go func() {
		byPartition := map[int][]string{}
		n := 0
		for m, err := range s.Messages(ctx) {
			if err != nil {
				t.Error(err)
				break
			}
			byPartition[int(m.ID.Partition)] = append(byPartition[int(m.ID.Partition)], string(m.Value))
			if n%7 == 0 {
				if err := m.Ack(ctx); err != nil {
					t.Errorf("ack: %v", err)
				}
			} else {
				m.AckAsync()
			}
			if n++; n == messages {
				break
			}
		}
		received <- byPartition
	}()

	futures := make([]client.Future, messages)
	for i := range futures {
		futures[i] = p.SendAsync(ctx, client.Message{Key: fmt.Sprint("k", rng.IntN(keys)), Value: fmt.Append(nil, i)})
		if rng.IntN(20) == 0 {
			time.Sleep(time.Duration(rng.IntN(40)) * time.Millisecond)
		}
	}
	ids := map[client.MessageID]bool{}
	for i, f := range futures {
		id, err := f.Wait(ctx)
		if err != nil || !id.Known() || ids[id] {
			t.Fatalf("message %d: %v, %v", i, id, err)
		}
		ids[id] = true
	}
	got := <-received
	close(stopChaos)
	<-chaosDone
	cluster.CutOneIn(0)
	for i := range 2 {
		cluster.Restart(fmt.Sprint("broker-", i+1))
	}

	stored := cluster.Messages("t")
	if len(stored) != messages {
		t.Errorf("%d messages stored, %d sent", len(stored), messages)
	}
	want := map[int][]string{}
	last := map[string]int{}
	for _, m := range stored {
		var n, part int
		fmt.Sscan(m.Value, &n)
		fmt.Sscan(m.Topic[strings.LastIndex(m.Topic, "-")+1:], &part)
		if before, ok := last[m.Key]; ok && n <= before {
			t.Errorf("key %s: %d stored after %d", m.Key, n, before)
		}
		last[m.Key] = n
		want[part] = append(want[part], m.Value)
	}
	for part := range partitions {
		if fmt.Sprint(got[part]) != fmt.Sprint(want[part]) {
			t.Errorf("partition %d: received %d messages, stored %d, first difference at %d", part, len(got[part]), len(want[part]), differ(got[part], want[part]))
		}
	}
	closing(t, ctx, s)
	if n, err := cluster.Backlog("t", "s"); n != 0 || err != nil {
		t.Errorf("backlog %d, %v after Close", n, err)
	}
	if cluster.Cuts() < 10 {
		t.Errorf("only %d cuts: the test has tested nothing", cluster.Cuts())
	}
}

func differ(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// Shows that a producer that is closed while it reconnects, before the broker has
// answered, leaves nothing there: its name is free for the next process. So does
// one whose caller did not wait for it to be opened.
func TestClosedWhileItOpens(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		cluster.CreateTopic("t", 0)
		free := func() {
			t.Helper()
			time.Sleep(time.Minute)
			if names := cluster.Connected("t"); len(names) > 0 {
				t.Errorf("connected: %v", names)
			}
		}
		p := must[*client.Producer](t)(c.Producer(ctx, "t", client.WithName("p")))
		cluster.CreateTopic("other", 0)
		cluster.Move("other", cluster.Owner("t"), false)
		must[*client.Producer](t)(c.Producer(ctx, "other")) // keeps the link
		cluster.DelayAnswers(30 * time.Second)
		cluster.Move("t", cluster.Owner("t"), true)
		for start := time.Now(); len(cluster.Connected("t")) == 0; time.Sleep(10 * time.Millisecond) {
			if time.Since(start) > time.Minute {
				t.Fatal("it does not reconnect")
			}
		}
		closing(t, ctx, p)
		free()
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := c.Producer(short, "t", client.WithName("p")); err == nil {
			t.Error("opened before the answer came")
		}
		free()
	})
}

// Shows that what a broker refuses for now, asks to hold back, or cannot tell the
// outcome of, is sent again until it is stored, once and in order.
func TestRefusalsThatPass(t *testing.T) {
	for _, code := range []brokerv1.Code{brokerv1.Code_CODE_UNAVAILABLE, brokerv1.Code_CODE_OVER_CREDIT, brokerv1.Code_CODE_CHECKSUM,
		brokerv1.Code_CODE_UNKNOWN_OUTCOME, brokerv1.Code_CODE_INTERNAL, brokerv1.Code_CODE_MOVED} {
		t.Run(code.String(), func(t *testing.T) {
			world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
				c := connect(t, ctx, cluster)
				defer closing(t, ctx, c)
				p := must[*client.Producer](t)(c.Producer(ctx, "t", client.WithBatchLimit(1<<10, 3)))
				for i := range 300 {
					if i%50 == 20 {
						if err := p.Flush(ctx); err != nil {
							t.Fatal(err)
						}
						cluster.Refuse(long+"t", code, code)
					}
					p.SendAsync(ctx, client.Message{Value: fmt.Append(nil, i)})
					if i%10 == 0 {
						time.Sleep(time.Millisecond)
					}
				}
				if err := p.Flush(ctx); err != nil {
					t.Fatal(err)
				}
				checkOrder(t, cluster.Messages("t"), 300)
			})
		})
	}
}

// Shows that a refusal for good fails its batch alone, definitely, and that what
// follows is stored in order.
func TestRefusalForGood(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t", client.WithBatchLimit(1<<10, 1)))
		cluster.Hold(long+"t", true)
		synctest.Wait()
		var futures []client.Future
		for i := range 30 {
			futures = append(futures, p.SendAsync(ctx, client.Message{Value: fmt.Append(nil, i)}))
		}
		cluster.Refuse(long+"t", brokerv1.Code_CODE_QUOTA)
		cluster.Hold(long+"t", false)
		for i, f := range futures {
			_, err := f.Wait(ctx)
			switch {
			case i == 0 && (!errors.Is(err, client.ErrQuota) || errors.Is(err, client.ErrUnknownOutcome) || !client.Retryable(err)):
				t.Errorf("message 0: %v", err)
			case i > 0 && err != nil:
				t.Errorf("message %d: %v", i, err)
			}
		}
		if err := p.Flush(ctx); !errors.Is(err, client.ErrQuota) {
			t.Errorf("Flush tells %v", err)
		}
		if err := p.Flush(ctx); err != nil {
			t.Errorf("Flush tells it again: %v", err)
		}
		stored := cluster.Messages("t")
		if len(stored) != 29 || stored[0].Value != "1" || stored[28].Value != "29" {
			t.Errorf("%d messages stored, from %v", len(stored), stored[0])
		}
	})
}

// Shows that a refusal that comes before the answer to an earlier batch is not
// taken for that answer: the earlier batch is stored, and must not be reported as
// refused.
func TestRefusalOfALaterBatch(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t", client.WithBatchLimit(1<<10, 1)))
		cluster.LoseNextReceipt(long + "t")
		first := p.SendAsync(ctx, client.Message{Value: []byte("0")})
		synctest.Wait()
		cluster.Refuse(long+"t", brokerv1.Code_CODE_QUOTA)
		second := p.SendAsync(ctx, client.Message{Value: []byte("1")})
		synctest.Wait()
		if _, err := first.Wait(ctx); err != nil {
			t.Errorf("the message that is stored: %v", err)
		}
		if _, err := second.Wait(ctx); err != nil {
			t.Errorf("the message sent again: %v", err)
		}
		checkOrder(t, cluster.Messages("t"), 2)
	})
}

// Shows that a refusal is no proof for a batch whose earlier attempt was not
// answered: it may be stored, as it is here.
func TestRefusalAfterALostAnswer(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.LoseNextReceipt(long + "t")
		f := p.SendAsync(ctx, client.Message{Value: []byte("0")})
		synctest.Wait()
		cluster.Refuse(long+"t", brokerv1.Code_CODE_QUOTA)
		cluster.Cut(cluster.Owner("t"))
		if _, err := f.Wait(ctx); !errors.Is(err, client.ErrUnknownOutcome) || !errors.Is(err, client.ErrQuota) {
			t.Errorf("got %v", err)
		}
		checkOrder(t, cluster.Messages("t"), 1)
		if err := p.Flush(ctx); !errors.Is(err, client.ErrUnknownOutcome) {
			t.Errorf("flush: %v", err)
		}
	})
}

// Shows that a refusal is no proof either for a batch of which the broker said
// before that it does not know its outcome.
func TestRefusalAfterAnUnknownOutcome(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.Refuse(long+"t", brokerv1.Code_CODE_UNKNOWN_OUTCOME, brokerv1.Code_CODE_QUOTA)
		if _, err := p.Send(ctx, client.Message{Value: []byte("0")}); !errors.Is(err, client.ErrUnknownOutcome) || !errors.Is(err, client.ErrQuota) {
			t.Errorf("got %v", err)
		}
		if err := p.Flush(ctx); !errors.Is(err, client.ErrUnknownOutcome) {
			t.Errorf("flush: %v", err)
		}
	})
}

// Shows that a broker which forgot a producer is served from there on.
func TestForgottenProducer(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("0")}))
		cluster.Forget(long+"t", p.Name())
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("1")}))
		checkOrder(t, cluster.Messages("t"), 2)
	})
}

// Shows that a batch whose answer was lost is not sent again to a broker that
// forgot the producer meanwhile: it would be stored twice. Its outcome is unknown,
// and what follows is stored.
func TestForgottenProducerInDoubt(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("0")}))
		cluster.LoseNextReceipt(long + "t")
		doubtful := p.SendAsync(ctx, client.Message{Value: []byte("1")})
		synctest.Wait()
		cluster.Forget(long+"t", p.Name())
		cluster.Cut(cluster.Owner("t"))
		if id, err := doubtful.Wait(ctx); !errors.Is(err, client.ErrUnknownOutcome) {
			t.Errorf("got %v, %v", id, err)
		}
		if err := p.Flush(ctx); !errors.Is(err, client.ErrUnknownOutcome) {
			t.Errorf("flush: %v", err)
		}
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("2")}))
		checkOrder(t, cluster.Messages("t"), 3)
	})
}

// Shows that a named producer goes on where its name stopped, and that a message
// numbered by the application is stored once across restarts.
func TestNamedProducer(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		first := connect(t, ctx, cluster)
		p := must[*client.Producer](t)(first.Producer(ctx, "t", client.WithName("importer"), client.WithSequences()))
		if _, ok := p.LastSequence(); ok {
			t.Error("a new name has a last sequence")
		}
		for i := range 10 {
			must[client.MessageID](t)(p.Send(ctx, client.Message{Sequence: uint64(10 * i), Value: fmt.Append(nil, i)}))
		}
		if _, err := p.Send(ctx, client.Message{Sequence: 90}); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("a number used twice: %v", err)
		}
		closing(t, ctx, first)

		second := connect(t, ctx, cluster)
		defer closing(t, ctx, second)
		p = must[*client.Producer](t)(second.Producer(ctx, "t", client.WithName("importer"), client.WithSequences()))
		if last, ok := p.LastSequence(); last != 90 || !ok {
			t.Errorf("last sequence %d, %v", last, ok)
		}
		for i := range 12 {
			id, err := p.Send(ctx, client.Message{Sequence: uint64(10 * i), Value: fmt.Append(nil, i)})
			if err != nil || id.Known() != (i >= 10) {
				t.Errorf("message %d: %v, %v", i, id, err)
			}
		}
		checkOrder(t, cluster.Messages("t"), 12)
		if _, err := second.Producer(ctx, "t", client.WithName("importer")); !errors.Is(err, client.ErrBusy) || !client.Retryable(err) {
			t.Errorf("the name is taken: %v", err)
		}
	})
}

// Shows what becomes of numbers that another producer of the name used behind our
// back: the application's are stored already, ours are given anew.
func TestSequencesTakenByAnother(t *testing.T) {
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprint("application numbers ", own), func(t *testing.T) {
			world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
				c := connect(t, ctx, cluster)
				defer closing(t, ctx, c)
				opts := []client.ProducerOption{client.WithName("n")}
				if own {
					opts = append(opts, client.WithSequences())
				}
				p := must[*client.Producer](t)(c.Producer(ctx, "t", opts...))
				must[client.MessageID](t)(p.Send(ctx, client.Message{Sequence: 0, Value: []byte("0")}))
				cluster.Hold(long+"t", true)
				synctest.Wait()
				var futures []client.Future
				for i := 1; i < 8; i++ {
					futures = append(futures, p.SendAsync(ctx, client.Message{Sequence: uint64(i), Value: fmt.Append(nil, i)}))
				}
				cluster.Advance(long+"t", "n", 3)
				cluster.Hold(long+"t", false)
				known := 0
				for i, f := range futures {
					id, err := f.Wait(ctx)
					if err != nil {
						t.Errorf("message %d: %v", i+1, err)
					}
					if id.Known() {
						known++
					}
				}
				want := 7
				if own {
					want = 4 // 1 to 3 are stored, by the other
				}
				if stored := cluster.Messages("t"); known != want || len(stored) != 1+want || stored[len(stored)-1].Value != "7" {
					t.Errorf("%d ids known, want %d; stored %v", known, want, stored)
				}
			})
		})
	}
}

// Shows that a producer whose name was taken over stops for good.
func TestFenced(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t", client.WithName("n")))
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("0")}))
		cluster.CloseProducers(long+"t", brokerv1.Code_CODE_PRODUCER_FENCED)
		synctest.Wait()
		if _, err := p.Send(ctx, client.Message{Value: []byte("1")}); !errors.Is(err, client.ErrFenced) || client.Retryable(err) {
			t.Errorf("got %v", err)
		}
	})
}

// Shows that only what was sent is of unknown outcome when a producer ends.
func TestOutcomeAtClose(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		cluster.WindowBatches = 1
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.Silence(long+"t", true)
		flying := p.SendAsync(ctx, client.Message{Value: []byte("sent")})
		synctest.Wait()
		kept := p.SendAsync(ctx, client.Message{Value: []byte("not sent")})
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := flying.Wait(short); !errors.Is(err, client.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait given up: %v", err)
		}
		if err := p.Close(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
		if _, err := flying.Wait(ctx); !errors.Is(err, client.ErrUnknownOutcome) || client.Retryable(err) {
			t.Errorf("sent: %v", err)
		}
		if _, err := kept.Wait(ctx); errors.Is(err, client.ErrUnknownOutcome) || !errors.Is(err, client.ErrClosed) {
			t.Errorf("not sent: %v", err)
		}
	})
}

// Shows that a client leaves a broker that stopped answering, as a paused process
// does, once another one owns the topic.
func TestSilentBroker(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s", client.From(client.Earliest())))
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("0")}))
		cluster.Silence(long+"t", true)
		start := time.Now()
		f := p.SendAsync(ctx, client.Message{Value: []byte("1")})
		synctest.Wait()
		other := map[string]string{"broker-1": "broker-2", "broker-2": "broker-1"}[cluster.Owner("t")]
		cluster.Move("t", other, false)
		must[client.MessageID](t)(f.Wait(ctx))
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("publish resumed after %v", took)
		}
		for i := range 2 {
			m := must[*client.Received](t)(s.Receive(ctx))
			if string(m.Value) != fmt.Sprint(i) {
				t.Errorf("message %d is %q", i, m.Value)
			}
		}
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("consumer resumed after %v", took)
		}
	})
}

// Shows that an attempt to attach at a broker that says nothing, or to which not
// even a connection comes about, is given up once another one owns the topic.
func TestSilentBrokerWhileAttaching(t *testing.T) {
	for name, dark := range map[string]bool{"no answer": false, "no connection": true} {
		t.Run(name, func(t *testing.T) {
			world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
				cluster.CreateTopic("t", 0)
				from := cluster.Owner("t")
				other := map[string]string{"broker-1": "broker-2", "broker-2": "broker-1"}[from]
				c := connect(t, ctx, cluster, client.WithDialer(func(ctx context.Context, address string) (net.Conn, error) {
					if dark && address == from {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return cluster.Dial(ctx, address)
				}))
				defer closing(t, ctx, c)
				cluster.Silence(long+"t", true)
				time.AfterFunc(time.Second, func() { cluster.Move("t", other, false) })
				start := time.Now()
				subscribed := make(chan error, 1)
				go func() { subscribed <- second(c.Subscribe(ctx, "t", "s")) }()
				p := must[*client.Producer](t)(c.Producer(ctx, "t"))
				must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("0")}))
				if err := <-subscribed; err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took > 4*time.Second {
					t.Errorf("attached after %v", took)
				}
			})
		})
	}
}

// Shows that a client which asked a discovery process that is cut off from the
// cluster, and names an owner that is dead, asks another one.
func TestStaleDiscovery(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "s"))
		from := cluster.Owner("t")
		cluster.Freeze("discovery-1")
		cluster.Move("t", map[string]string{"broker-1": "broker-2", "broker-2": "broker-1"}[from], false)
		cluster.Kill(from)
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		must[client.MessageID](t)(p.Send(short, client.Message{Value: []byte("0")}))
		receive(t, short, s, 0)
	})
}

// Shows that one discovery address is enough, that open producers do not need it,
// and that brokers answer in its place.
func TestDiscoveryGone(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := must[*client.Client](t)(client.Connect(ctx, "discovery-1", client.WithDialer(cluster.Dial)))
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.Kill("discovery-1")
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("0")}))
		cluster.Move("t", map[string]string{"broker-1": "broker-2", "broker-2": "broker-1"}[cluster.Owner("t")], true)
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("1")}))
		must[*client.Producer](t)(c.Producer(ctx, "another"))
		checkOrder(t, cluster.Messages("t"), 2)
	})
}

// Shows that Connect, Producer and Subscribe wait for a cluster that is not there
// yet, and say why when the context ends.
func TestWaitsForTheCluster(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		for _, n := range []string{"discovery-1", "discovery-2", "broker-1", "broker-2"} {
			cluster.Kill(n)
		}
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if _, err := client.Connect(short, "discovery-1", client.WithDialer(cluster.Dial)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("nobody there: %v", err)
		}
		time.AfterFunc(2*time.Second, func() { cluster.Restart("discovery-2") })
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		short, cancel = context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if _, err := c.Producer(short, "t"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("no broker: %v", err)
		}
		time.AfterFunc(2*time.Second, func() { cluster.Restart("broker-1"); cluster.Restart("broker-2") })
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		must[client.MessageID](t)(p.Send(ctx, client.Message{Value: []byte("0")}))
	})
}

// Shows the errors of wrong arguments and of what does not exist.
func TestErrors(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		if _, err := client.Connect(ctx, " , "); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("no address: %v", err)
		}
		c := connect(t, ctx, cluster)
		for name, err := range map[string]error{
			"bad topic":           second(c.Producer(ctx, "a/b")),
			"non-persistent":      second(c.Producer(ctx, "non-persistent://a/b/c")),
			"bad name":            second(c.Producer(ctx, "t", client.WithName("a\n"))),
			"bad batch":           second(c.Producer(ctx, "t", client.WithBatchLimit(0, 1))),
			"bad subscription":    second(c.Subscribe(ctx, "t", "a/b")),
			"bad queue":           second(c.Subscribe(ctx, "t", "s", client.Queue(0, 0))),
			"property not UTF-8":  badProperty(t, ctx, c),
			"seek of a partition": badSeek(t, ctx, c),
		} {
			if !errors.Is(err, client.ErrInvalid) || client.Retryable(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, err := range map[string]error{
			"topic to write":     second(c.Producer(ctx, "missing", client.WithExistingTopic())),
			"topic to read":      second(c.Reader(ctx, "missing")),
			"subscription":       second(c.Subscribe(ctx, "t", "missing", client.ExistingSubscription())),
			"partition":          second(c.Producer(ctx, "t-partition-3")),
			"names of partition": second(c.Partitions(ctx, "missing")),
		} {
			if !errors.Is(err, client.ErrNotFound) || client.Retryable(err) {
				t.Errorf("missing %s: %v", name, err)
			}
		}
		p := must[*client.Producer](t)(c.Producer(ctx, "gone"))
		cluster.Delete("gone")
		synctest.Wait()
		if _, err := p.Send(ctx, client.Message{}); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("deleted topic: %v", err)
		}
		closing(t, ctx, c)
		closing(t, ctx, c)
		if _, err := p.Send(ctx, client.Message{}); !errors.Is(err, client.ErrClosed) {
			t.Errorf("send after close: %v", err)
		}
		if _, err := c.Producer(ctx, "t"); !errors.Is(err, client.ErrClosed) {
			t.Errorf("producer after close: %v", err)
		}
		if _, err := c.Subscribe(ctx, "t", "s"); !errors.Is(err, client.ErrClosed) {
			t.Errorf("subscribe after close: %v", err)
		}
		if _, err := c.Partitions(ctx, "t"); !errors.Is(err, client.ErrClosed) {
			t.Errorf("partitions after close: %v", err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func badProperty(t *testing.T, ctx context.Context, c *client.Client) error {
	p := must[*client.Producer](t)(c.Producer(ctx, "t"))
	return second(p.Send(ctx, client.Message{Properties: map[string]string{"a": "\xff"}}))
}

func badSeek(t *testing.T, ctx context.Context, c *client.Client) error {
	s := must[*client.Consumer](t)(c.Subscribe(ctx, "t", "seeker"))
	return s.Seek(ctx, client.At(client.MessageID{Ledger: 1, Partition: 9}))
}
