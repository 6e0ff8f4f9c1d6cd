package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/magnetar-io/magnetar/client"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

// administer makes topics, uses each a little, and deletes it, until working
// ends; and once more after that, when everything must succeed.
func (c *cluster) administer(ctx, working context.Context) {
	rand := newChance(c.seed, 5)
	cl, err := c.connect(ctx, "operator", rand)
	if err != nil {
		return
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = cl.Close(closing)
	}()
	for n := 0; working.Err() == nil; n++ {
		if err := c.useTopic(ctx, cl, fmt.Sprintf("side-%d", n), rand); err != nil {
			c.journal.note("operator", "%v", err)
		}
		_ = sleep(working, rand.span(2*time.Second, 10*time.Second))
	}
	if sleep(ctx, 45*time.Second) != nil { // by then the last fault is over
		return
	}
	if err := c.useTopic(ctx, cl, "side-last", rand); err != nil && ctx.Err() == nil {
		c.problem("all is healed, and a topic cannot be used: %v", err)
	}
}

// useTopic makes a topic, publishes to it, consumes that, and deletes it; what
// was deleted must not be found.
func (c *cluster) useTopic(ctx context.Context, cl *client.Client, topic string, rand *chance) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := c.ask(ctx, rand, func(ctx context.Context, a adminv1.AdminClient) error {
		_, err := a.CreateTopic(ctx, adminv1.CreateTopicRequest_builder{Topic: &topic, Partitions: new(uint32(rand.n(3)))}.Build())
		return err
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", topic, err)
	}
	consumer, err := cl.Subscribe(ctx, topic, "all", client.From(client.Earliest()))
	if err != nil {
		return err
	}
	defer consumer.Close(ctx)
	p, err := cl.Producer(ctx, topic)
	if err != nil {
		return err
	}
	defer p.Close(ctx)
	for range 5 {
		if _, err := p.Send(ctx, client.Message{Value: []byte(topic)}); err != nil {
			return err
		}
	}
	for range 5 {
		m, err := consumer.Receive(ctx)
		if err != nil {
			return fmt.Errorf("receive from %s: %w", topic, err)
		}
		if string(m.Value) != topic {
			c.problem("%s gave a message of %q", topic, m.Value)
		}
		if err := m.Ack(ctx); err != nil {
			return err
		}
	}
	err = c.ask(ctx, rand, func(ctx context.Context, a adminv1.AdminClient) error {
		_, err := a.DeleteTopic(ctx, adminv1.DeleteTopicRequest_builder{Topic: &topic}.Build())
		return err
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", topic, err)
	}
	c.counts.add("topics deleted", 1)
	// While the metadata store is away, servers answer from what they knew.
	for {
		if _, err = cl.Partitions(ctx, topic); errors.Is(err, client.ErrNotFound) {
			return nil
		}
		if sleep(ctx, time.Second) != nil {
			return fmt.Errorf("%s was deleted and is still found: %w", topic, err)
		}
	}
}

// ask puts a question to one server after another until one answers for good. A
// change that was made by a question whose answer was lost counts as made.
func (c *cluster) ask(ctx context.Context, rand *chance, question func(context.Context, adminv1.AdminClient) error) error {
	for again := false; ; again = true {
		h := pick(rand, append(c.of(discoveryRole), c.of(brokerRole)...))
		asking, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := c.askOne(asking, h.address(), question)
		cancel()
		if err != nil {
			c.journal.note("operator", "asked %s: %v", h.name, err)
		}
		switch status.Code(err) {
		case codes.OK:
			return nil
		case codes.AlreadyExists, codes.NotFound:
			if again {
				return nil
			}
			return err
		case codes.InvalidArgument:
			return err
		}
		if sleep(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func (c *cluster) askOne(ctx context.Context, address string, question func(context.Context, adminv1.AdminClient) error) error {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(c.net.Dialer("operator")))
	if err != nil {
		return err
	}
	defer conn.Close()
	return question(ctx, adminv1.NewAdminClient(conn))
}
