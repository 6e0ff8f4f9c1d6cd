package history

import (
	"time"

	"github.com/magnetar-io/magnetar/client"
)

// Consumer records what one consumer of a subscription does, from joining to
// leaving; one that subscribes again is another one. Deliveries are recorded by one
// goroutine, in the order they came; all else may be recorded by any.
type Consumer struct {
	l        *Log
	sub, num int32
}

// Join records that a consumer is about to subscribe. name tells one from another.
func (l *Log) Join(subscription string, kind Kind, name string) *Consumer {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &Consumer{l: l, sub: l.subLocked(subscription, kind), num: int32(len(l.h.consumers))}
	l.h.consumers = append(l.h.consumers, consumer{name, c.sub})
	l.appendLocked(event{what: joined, consumer: c.num})
	return c
}

// Opened records that the consumer is about to open its stream of a partition anew,
// having dropped all that came before.
func (c *Consumer) Opened(partition int32) {
	c.l.add(event{what: opened, consumer: c.num, id: client.MessageID{Partition: partition}})
}

// Delivered records a message that the consumer got.
func (c *Consumer) Delivered(m Message, id client.MessageID, redeliveries int) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	n := c.l.messageLocked(m)
	c.l.appendLocked(event{what: delivered, consumer: c.num, message: n, id: id, n: int32(redeliveries)})
	g := &c.l.got[c.sub]
	for len(g.messages) <= int(n) {
		g.messages = append(g.messages, false)
	}
	if !g.messages[n] {
		g.messages[n] = true
		if c.l.outcomes[n] == OK {
			g.ok++
		}
	}
}

// Receive records a message that the client handed out, and names it.
func (c *Consumer) Receive(r *client.Received) (Message, error) {
	m, err := Parse(r.Value)
	if err == nil {
		c.Delivered(m, r.ID, r.Redeliveries)
	}
	return m, err
}

// Pending is an acknowledgement or a seek that has no answer yet.
type Pending struct {
	l     *Log
	event event
}

// Ended records the answer. After any but success, and when it is not called, the
// outcome is unknown: it may be done at any time.
func (p *Pending) Ended(err error) {
	e := p.event
	e.ok = err == nil
	p.l.add(e)
}

// Acking records that an acknowledgement is about to begin, of one message or, when
// cumulative, of all of its partition up to it.
func (c *Consumer) Acking(id client.MessageID, cumulative bool) *Pending {
	n := c.l.add(event{what: acking, consumer: c.num, id: id, all: cumulative})
	return &Pending{c.l, event{what: ackEnded, consumer: c.num, id: id, all: cumulative, began: n}}
}

// Nacked records that a message is about to be given back.
func (c *Consumer) Nacked(id client.MessageID) {
	c.l.add(event{what: nacked, consumer: c.num, id: id})
}

// Target is where a seek goes.
type Target struct {
	to place
	id client.MessageID
	at time.Time
}

// Places to seek to, as the client has them.
func Earliest() Target                 { return Target{to: toEarliest} }
func Latest() Target                   { return Target{to: toLatest} }
func At(id client.MessageID) Target    { return Target{to: toMessage, id: id} }
func After(id client.MessageID) Target { return Target{to: toAfter, id: id} }
func Since(t time.Time) Target         { return Target{to: toTime, at: t} }

// Position is the place as the client takes it.
func (t Target) Position() client.Position {
	switch t.to {
	case toEarliest:
		return client.Earliest()
	case toMessage:
		return client.At(t.id)
	case toAfter:
		return client.After(t.id)
	case toTime:
		return client.Since(t.at)
	}
	return client.Latest()
}

// Seeking records that a seek is about to begin.
func (c *Consumer) Seeking(t Target) *Pending {
	e := event{what: seeking, consumer: c.num, to: t.to, id: t.id}
	if t.to == toTime {
		e.time = t.at.UnixNano()
	}
	n := c.l.add(e)
	e.what, e.began = seekEnded, n
	return &Pending{c.l, e}
}

// Leaving records that the consumer is about to leave, or to be killed: what it
// holds it gives back.
func (c *Consumer) Leaving() { c.l.add(event{what: leaving, consumer: c.num}) }
