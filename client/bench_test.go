package client_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/client/internal/faketest"
)

// BenchmarkPublish measures the client with a broker that does next to nothing,
// in the same process.
func BenchmarkPublish(b *testing.B) {
	for _, size := range []int{100, 1024} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			cluster := faketest.New(1, 1, 0)
			defer cluster.Close()
			cluster.Discard = true
			ctx := context.Background()
			c, err := client.Connect(ctx, "broker-1", client.WithDialer(cluster.Dial))
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close(ctx)
			p, err := c.Producer(ctx, "t")
			if err != nil {
				b.Fatal(err)
			}
			value := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				p.SendAsync(ctx, client.Message{Value: value})
			}
			if err := p.Flush(ctx); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkReceive measures how fast the client hands out what it was sent.
func BenchmarkReceive(b *testing.B) {
	cluster := faketest.New(1, 1, 0)
	defer cluster.Close()
	ctx := context.Background()
	c, err := client.Connect(ctx, "broker-1", client.WithDialer(cluster.Dial))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(ctx)
	p, err := c.Producer(ctx, "t")
	if err != nil {
		b.Fatal(err)
	}
	const messages = 100_000
	for range messages {
		p.SendAsync(ctx, client.Message{Value: make([]byte, 100)})
	}
	if err := p.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	s, err := c.Subscribe(ctx, "t", "s", client.From(client.Earliest()), client.Queue(10_000, 8<<20))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		m, err := s.Receive(ctx)
		if err != nil {
			b.Fatal(err)
		}
		m.AckAsync()
		if n++; n%messages == 0 {
			b.StopTimer()
			if err := s.Seek(ctx, client.Earliest()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
}
