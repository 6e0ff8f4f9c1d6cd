package client_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/client/internal/faketest"
)

// Shows that closing a client ends a producer that is being closed and waits for a
// broker that is silent: its Close returns, and every callback runs, once, before
// the client's Close returns.
func TestClientClosesProducersThatAreClosing(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.Silence(long+"t", true)
		called := 0
		for range 3 {
			p.Publish(ctx, client.Message{Value: []byte("x")}, func(_ client.MessageID, err error) {
				if called++; !errors.Is(err, client.ErrUnknownOutcome) && !errors.Is(err, client.ErrClosed) {
					t.Errorf("callback: %v", err)
				}
			})
		}
		synctest.Wait()
		ended := make(chan error, 1)
		go func() { ended <- p.Close(ctx) }()
		synctest.Wait()
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := c.Close(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close of the client: %v", err)
		}
		if called != 3 {
			t.Errorf("%d of 3 callbacks ran before the client was closed", called)
		}
		synctest.Wait()
		select {
		case err := <-ended:
			if !errors.Is(err, client.ErrClosed) && !errors.Is(err, client.ErrUnknownOutcome) {
				t.Errorf("close of the producer: %v", err)
			}
		default:
			t.Error("the producer's Close hangs")
		}
	})
}

// Shows that a second Close waits for the first one, so that after it nothing is
// on its way any more.
func TestSecondCloseWaits(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.Hold(long+"t", true)
		synctest.Wait()
		f := p.SendAsync(ctx, client.Message{Value: []byte("0")})
		go p.Close(ctx)
		synctest.Wait()
		time.AfterFunc(time.Second, func() { cluster.Hold(long+"t", false) })
		closing(t, ctx, p)
		over, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := f.Wait(over); err != nil {
			t.Errorf("after Close has returned: %v", err)
		}
		checkOrder(t, cluster.Messages("t"), 1)
	})
}

// Shows that a consumer which ends because one partition is gone leaves the other
// partitions too, though their links live on for others: nobody would hear what
// the broker went on sending there.
func TestFailedConsumerLeavesAllPartitions(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		cluster.CreateTopic("p", 2)
		s := must[*client.Consumer](t)(c.Subscribe(ctx, "p", "s"))
		cluster.CreateTopic("other", 2)
		must[*client.Consumer](t)(c.Subscribe(ctx, "other", "s"))
		cluster.Delete("p-partition-0")
		if _, err := s.Receive(ctx); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("receive: %v", err)
		}
		synctest.Wait()
		if names := cluster.Consumers("p-partition-1"); len(names) != 0 {
			t.Errorf("still subscribed: %v", names)
		}
	})
}

// Shows that closing a client ends a Producer and a Subscribe that wait for a
// cluster which is away, and that a second Close waits for the first.
func TestClientClosesWhatIsBeingOpened(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		for _, n := range []string{"discovery-1", "discovery-2", "broker-1", "broker-2"} {
			cluster.Kill(n)
		}
		opened := make(chan error, 3)
		go func() { opened <- second(c.Producer(ctx, "a")) }()
		go func() { opened <- second(c.Subscribe(ctx, "a", "s")) }()
		go func() { opened <- second(c.Reader(ctx, "t")) }()
		f := p.SendAsync(ctx, client.Message{Value: []byte("0")})
		time.Sleep(10 * time.Second)
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		go c.Close(short)
		synctest.Wait()
		c.Close(ctx)
		select {
		case <-f.Done():
		default:
			t.Error("the second Close returned before the first")
		}
		time.Sleep(time.Second)
		for range 3 {
			select {
			case err := <-opened:
				if !errors.Is(err, client.ErrClosed) {
					t.Errorf("got %v", err)
				}
			default:
				t.Error("still waiting")
			}
		}
	})
}

// Shows that Send stops waiting for memory when its producer ends, though another
// one fills the budget.
func TestSendWaitingForMemoryEndsWithItsProducer(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster, client.WithMemory(1000))
		defer closing(t, ctx, c)
		other := must[*client.Producer](t)(c.Producer(ctx, "other"))
		p := must[*client.Producer](t)(c.Producer(ctx, "t"))
		cluster.Hold(long+"other", true)
		other.SendAsync(ctx, client.Message{Value: make([]byte, 900)})
		sent := make(chan error, 1)
		go func() { sent <- second(p.Send(ctx, client.Message{Value: make([]byte, 900)})) }()
		synctest.Wait()
		closing(t, ctx, p)
		synctest.Wait()
		select {
		case err := <-sent:
			if !errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrUnknownOutcome) {
				t.Errorf("got %v", err)
			}
		default:
			t.Error("still waiting")
		}
		cluster.Hold(long+"other", false)
	})
}
