package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/client/internal/faketest"
)

// pretend stands in for a cluster at localhost:6660.
func pretend() (option client.Option, done func()) {
	cluster := faketest.New(1, 1, 0)
	return client.WithDialer(func(ctx context.Context, _ string) (net.Conn, error) { return cluster.Dial(ctx, "broker-1") }), cluster.Close
}

func Example() {
	inMemory, done := pretend() // leave it out to talk to a real cluster
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	c, err := client.Connect(ctx, "localhost:6660", inMemory)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close(ctx)

	s, err := c.Subscribe(ctx, "orders", "billing", client.From(client.Earliest()))
	if err != nil {
		log.Fatal(err)
	}
	p, err := c.Producer(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := p.Send(ctx, client.Message{Key: "customer-7", Value: []byte("3 lamps")}); err != nil {
		log.Fatal(err)
	}

	m, err := s.Receive(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", m.Key, m.Value)
	if err := m.Ack(ctx); err != nil { // durable when it returns
		log.Fatal(err)
	}
	// Output: customer-7: 3 lamps
}

// Many messages are sent without waiting for each; Flush waits for all.
func ExampleProducer_SendAsync() {
	inMemory, done := pretend()
	defer done()
	ctx := context.Background()
	c, err := client.Connect(ctx, "localhost:6660", inMemory)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close(ctx)
	p, err := c.Producer(ctx, "lines", client.WithCompression(client.Zstd))
	if err != nil {
		log.Fatal(err)
	}
	for i := range 1000 {
		p.SendAsync(ctx, client.Message{Value: fmt.Appendf(nil, "line %d", i)})
	}
	if err := p.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	last, err := p.SendAsync(ctx, client.Message{Value: []byte("the end")}).Wait(ctx)
	fmt.Println(last.Known(), err)
	// Output: true <nil>
}

// A handler is called with several messages at a time, those of one key in order.
func ExampleConsumer_Consume() {
	inMemory, done := pretend()
	defer done()
	ctx, stop := context.WithCancel(context.Background())
	c, err := client.Connect(ctx, "localhost:6660", inMemory)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close(context.Background())
	s, err := c.Subscribe(ctx, "jobs", "workers", client.OfType(client.Shared), client.From(client.Earliest()))
	if err != nil {
		log.Fatal(err)
	}
	p, err := c.Producer(ctx, "jobs")
	if err != nil {
		log.Fatal(err)
	}
	p.SendAsync(ctx, client.Message{Key: "a", Value: []byte("paint the fence")})

	err = s.Consume(ctx, func(ctx context.Context, m *client.Received) error {
		fmt.Println(string(m.Value))
		stop()
		return nil // nil acknowledges, an error gives back
	}, client.Workers(8))
	fmt.Println(err)
	// Output:
	// paint the fence
	// <nil>
}

// A reader replays what a topic holds, without a subscription.
func ExampleReader_Messages() {
	inMemory, done := pretend()
	defer done()
	ctx := context.Background()
	c, err := client.Connect(ctx, "localhost:6660", inMemory)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close(ctx)
	p, err := c.Producer(ctx, "log")
	if err != nil {
		log.Fatal(err)
	}
	for _, line := range []string{"one", "two", "three"} {
		if _, err := p.Send(ctx, client.Message{Value: []byte(line)}); err != nil {
			log.Fatal(err)
		}
	}
	r, err := c.Reader(ctx, "log", client.ReadFrom(client.Earliest()), client.ReadToEnd())
	if err != nil {
		log.Fatal(err)
	}
	for m, err := range r.Messages(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(m.Value))
	}
	// Output:
	// one
	// two
	// three
}

// An error of Send is definite, unless it wraps ErrUnknownOutcome.
func ExampleRetryable() {
	inMemory, done := pretend()
	defer done()
	ctx := context.Background()
	c, err := client.Connect(ctx, "localhost:6660", inMemory)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close(ctx)
	p, err := c.Producer(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	_, err = p.Send(ctx, client.Message{Value: make([]byte, 6<<20)})
	switch {
	case errors.Is(err, client.ErrUnknownOutcome):
		fmt.Println("it may be stored")
	case client.Retryable(err):
		fmt.Println("not stored, try again later")
	case errors.Is(err, client.ErrTooLarge):
		fmt.Println("not stored, and never will be")
	}
	// Output: not stored, and never will be
}
