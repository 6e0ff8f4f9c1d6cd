// Package client publishes to and consumes from a Magnetar cluster.
//
//	c, err := client.Connect(ctx, "localhost:6660")
//	p, err := c.Producer(ctx, "orders")
//	id, err := p.Send(ctx, client.Message{Key: "customer-7", Value: []byte("…")})
//
//	s, err := c.Subscribe(ctx, "orders", "billing", client.From(client.Earliest()))
//	for m, err := range s.Messages(ctx) {
//		…
//		err = m.Ack(ctx)
//	}
//
// Any discovery or broker address will do: the client asks there which broker
// owns a topic, follows moves by itself, and learns of further addresses as it
// goes.
//
// # Producing
//
// Batches form by themselves: a message is sent at once while nothing of its
// partition is under way, else it travels with the next batch. So one message
// alone never waits, and many share the cost. There is no linger to tune.
// Messages of one goroutine to one partition keep their order; a message with a
// key goes to the partition whose range its key's hash falls in, one without to
// the partitions in turn, a batch each.
//
// When a connection breaks or a topic moves, the client sends what has no answer
// again, byte for byte; brokers recognise what they have. So a publish that
// answers with an id is stored once, and order holds.
//
// Send returns nil when the message is stored. Every other outcome is one of two
// kinds. An error that wraps ErrUnknownOutcome means the message may be stored.
// Any other error is definite: it is not stored. Retryable says whether trying
// again can help.
//
// What producers hold that has no answer yet is bounded by WithMemory; above it
// Send waits, as long as its context allows.
//
// # Consuming
//
// A Consumer reads all partitions of its topic, each in order. What it may hold
// ahead of the application is bounded by Queue, in messages and bytes. Delivery
// is at least once: what is not acknowledged when a subscription's consumer goes
// is delivered again. While one Consumer lives, it hides the redeliveries that a
// broken connection causes: a message in the application's hands does not come
// twice.
//
// Received.Ack returns when the acknowledgement is durable; AckAsync does not
// wait, and is flushed by Consumer.Close. Nack gives a message back, to be
// delivered again after a delay that grows with each attempt.
//
// A Reader reads without a subscription, from a place to a place, and leaves no
// trace on the server.
//
// Every type here is safe for concurrent use, unless it says otherwise. Every
// call that may wait takes a context and honours it. There is no global state;
// nothing is logged unless WithLogger is given.
package client
