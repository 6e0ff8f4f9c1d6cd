package subscription

import (
	"fmt"

	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// machine decides who gets which entry. It is pure: events come in as calls, it
// changes only itself, and what is to happen is returned. Owned by
// Subscription, under its lock.
//
// An entry after the mark-delete position that is not acknowledged is in one
// place:
//
//   - new: at or after read; not delivered since the last rewind.
//   - replay: before read, came back, is to be delivered again.
//   - held: before read, delivered. Shared: in the held set of one consumer.
//     Exclusive and failover: everything before read that is not in replay.
//
// For each consumer permits = granted − spent, where spent counts the messages
// of all its deliveries; and out counts their bytes less those given back.
type machine struct {
	chain     cursor.Chain
	cursor    *cursor.Cursor
	topic     string // decides, with partition, which failover consumer is served
	partition int    // −1: the topic is not partitioned

	kind      Type // while there are consumers
	consumers []*consumer
	joined    uint64 // consumers so far

	// active is the consumer served; nil where shared, and while a hand-over waits
	// for leaving, the one served before, to acknowledge what it holds, so that
	// heir need not get it again.
	active, leaving, heir *consumer

	read     position.Position
	replay   position.Set
	attempts attempts

	turn  int // shared: who is next
	given int // entries the consumer whose turn it is has got in this round

	need       int64   // bytes of the entry that no consumer had room for; else 1
	batch      float64 // messages an entry had of late, at least 1
	holesLimit int64   // bytes of cursor above which nothing new is handed out
}

// consumer is a member as the machine sees it.
type consumer struct {
	name, instance string
	sequence       uint64 // order of joining
	sink           Sink
	window         int64

	granted, spent int64 // messages
	out            int64 // bytes
	held           position.Set

	deliveries, messages, bytes uint64 // totals, for stats
}

// noConsumer is the reason to wait of a machine without consumers.
const noConsumer = "no consumer is connected"

const (
	roundEntries = 20 // a consumer's share of a round
	readEntries  = 100
	readBytes    = 4 << 20
	batchWeight  = 0.2 // of the newest entry in machine.batch
)

func newMachine(chain cursor.Chain, c *cursor.Cursor, topic string, partition int, holesLimit int64) *machine {
	m := &machine{chain: chain, cursor: c, topic: topic, partition: partition, need: 1, batch: 1, holesLimit: holesLimit}
	m.read = chain.After(c.MarkDelete())
	return m
}

func (c *consumer) permits() int64 { return c.granted - c.spent }

// takes reports whether the consumer may be sent an entry of so many bytes.
func (c *consumer) takes(bytes int64) bool {
	return c.permits() > 0 && (c.out == 0 || c.out+bytes <= c.window)
}

// step is what to do next: wait for the reason given, or read.
type step struct {
	wait   string // "" : read
	replay bool   // what is read came back, else it is new
	from   position.Position
	// Bounds of the read. Fewer entries are as good.
	maxEntries int
	maxBytes   int64
}

// plan says what to do next, given the last entry that can be read.
func (m *machine) plan(last position.Position) step {
	if reason := m.nobody(); reason != "" {
		return step{wait: reason}
	}
	entries, bytes := m.room()
	for m.replay.Len() > 0 {
		first, end, _ := m.replay.RunFrom(position.Start)
		if there := m.chain.After(first.Prev()); there != first {
			m.replay.RemoveThrough(there.Prev()) // trimmed under a cursor that holds nothing back
			continue
		}
		n := min(int64(end-first.Entry)+1, entries)
		return step{replay: true, from: first, maxEntries: int(n), maxBytes: bytes}
	}
	m.read = m.cursor.NextUnacked(m.chain, m.read)
	if last.Before(m.read) || last.IsStart() {
		return step{wait: "caught up: every entry was delivered"}
	}
	if m.cursor.Exceeds(m.holesLimit) {
		return step{wait: fmt.Sprintf("what is acknowledged out of order after %v takes more than %d bytes: nothing new is handed out before older entries are acknowledged",
			m.cursor.MarkDelete(), m.holesLimit)}
	}
	return step{from: m.read, maxEntries: int(entries), maxBytes: bytes}
}

// nobody says why no consumer can be sent anything; "": one can.
func (m *machine) nobody() string {
	switch {
	case len(m.consumers) == 0:
		return noConsumer
	case m.leaving != nil:
		return fmt.Sprintf("hand-over: consumer %s has not acknowledged all it was given before consumer %s is served", m.leaving.name, m.heir.name)
	}
	permits := false
	for _, c := range m.served() {
		if c.takes(m.need) {
			return ""
		}
		permits = permits || c.permits() > 0
	}
	switch {
	case permits && m.active != nil:
		return fmt.Sprintf("consumer %s has %d bytes it has not given back, its window is %d", m.active.name, m.active.out, m.active.window)
	case permits:
		return "the consumers that have permits have not given back the bytes of their windows"
	case m.active != nil:
		return fmt.Sprintf("consumer %s has no permits", m.active.name)
	}
	return fmt.Sprintf("none of %d consumers has permits", len(m.consumers))
}

// served are the consumers that may be sent something.
func (m *machine) served() []*consumer {
	switch {
	case m.kind == Shared:
		return m.consumers
	case m.active != nil:
		return []*consumer{m.active}
	}
	return nil
}

// room is how much a read should bring, given what consumers take.
func (m *machine) room() (entries, bytes int64) {
	permits := int64(0)
	for _, c := range m.served() {
		if c.takes(m.need) {
			permits += c.permits()
			bytes += max(c.window-c.out, m.need)
		}
	}
	entries = int64(float64(permits)/m.batch) + 1
	return min(entries, permits, readEntries), min(bytes, readBytes)
}

// item is an entry that was read.
type item struct {
	at       position.Position
	messages int
	body     []byte
}

// parcel is what one consumer gets.
type parcel struct {
	to      *consumer
	entries []Delivery
}

// assign hands out what was read for step s, in order. What no consumer takes
// stays where it was and is read again.
func (m *machine) assign(s step, items []item) []parcel {
	if !s.replay && m.read != s.from {
		return nil // rewound or sought while the read was under way
	}
	var out []parcel
	m.need = 1
	for _, it := range items {
		if left := m.cursor.Remaining(it.at); left != nil && left.Count(it.messages) == 0 {
			m.cursor.Ack(m.chain, it.at) // the bits that are left are those of no message
			m.acked(nil, it.at)
		}
		if m.cursor.Acked(it.at) || s.replay && !m.replay.Contains(it.at) {
			if !s.replay {
				m.read = it.at.Next()
			}
			continue
		}
		bytes := int64(len(it.body))
		c := m.pick(bytes)
		if c == nil {
			m.need = max(1, bytes)
			break
		}
		if s.replay {
			m.replay.Remove(it.at)
		} else {
			m.read = it.at.Next()
		}
		d := m.deliver(c, it)
		if len(out) == 0 || out[len(out)-1].to != c {
			out = append(out, parcel{to: c})
		}
		p := &out[len(out)-1]
		p.entries = append(p.entries, d)
	}
	return out
}

// deliver books an entry on a consumer.
func (m *machine) deliver(c *consumer, it item) Delivery {
	d := Delivery{Position: it.at, Attempts: m.attempts.of(it.at), Left: m.cursor.Remaining(it.at), Messages: it.messages, Body: it.body}
	if d.Left != nil {
		d.Messages = d.Left.Count(it.messages)
	}
	c.spent += int64(d.Messages)
	c.out += int64(len(it.body))
	c.deliveries++
	c.messages += uint64(d.Messages)
	c.bytes += uint64(len(it.body))
	if m.kind == Shared {
		c.held.Add(it.at)
	}
	m.batch = max(1, (1-batchWeight)*m.batch+batchWeight*float64(it.messages))
	return d
}

// pick chooses who gets an entry of so many bytes; nil: nobody takes it.
func (m *machine) pick(bytes int64) *consumer {
	if m.kind != Shared {
		if m.active != nil && m.active.takes(bytes) {
			return m.active
		}
		return nil
	}
	for i := 0; i <= len(m.consumers) && len(m.consumers) > 0; i++ { // all may have left meanwhile
		m.turn %= len(m.consumers)
		if c := m.consumers[m.turn]; m.given < roundEntries && c.takes(bytes) {
			m.given++
			return c
		}
		m.turn, m.given = m.turn+1, 0
	}
	return nil
}

// flow books permits and bytes that the consumer gave.
func (c *consumer) flow(messages uint32, bytes uint64) error {
	if bytes > uint64(c.out) {
		return fmt.Errorf("consumer %s gave back %d bytes, %d were out: %w", c.name, bytes, c.out, ErrOverCredit)
	}
	c.granted += int64(messages)
	c.out -= int64(bytes)
	return nil
}

// giveBack puts entries the consumer holds where they will be delivered again;
// all it holds when which is nil. What it does not hold is left alone.
func (m *machine) giveBack(c *consumer, which []position.Position) {
	switch {
	case m.kind == Shared && which == nil:
		m.attempts.raise(&c.held)
		m.replay.Union(&c.held)
		c.held.Clear()
	case m.kind == Shared:
		for _, p := range which {
			if c.held.Remove(p) {
				m.attempts.raiseOne(p)
				m.replay.Add(p)
			}
		}
	case c != m.active:
	case which == nil:
		m.rewind()
	default:
		for _, p := range which {
			if p.Before(m.read) && p.Entry >= 0 && !m.cursor.Acked(p) && m.chain.After(p.Prev()) == p && m.replay.Add(p) {
				m.attempts.raiseOne(p)
			}
		}
	}
}

// rewind begins anew after the mark-delete position; what was delivered and not
// acknowledged has come back once more.
func (m *machine) rewind() {
	delivered := m.cursor.UnackedBefore(m.chain, m.read)
	delivered.Subtract(&m.replay)
	m.attempts.raise(&delivered)
	m.restart()
}

// restart begins anew after the mark-delete position.
func (m *machine) restart() {
	m.replay.Clear()
	m.read = m.chain.After(m.cursor.MarkDelete())
	m.need = 1
}

// acked is called after the whole entry at p was acknowledged by c.
func (m *machine) acked(c *consumer, p position.Position) {
	m.attempts.forget(p)
	if m.kind != Shared {
		m.replay.Remove(p)
		return
	}
	if c != nil && c.held.Remove(p) || m.replay.Remove(p) {
		return
	}
	for _, other := range m.consumers {
		if other.held.Remove(p) {
			return
		}
	}
}

// ackedThrough is called after everything up to the mark-delete position was
// acknowledged at once.
func (m *machine) ackedThrough() {
	mark := m.cursor.MarkDelete()
	m.attempts.forgetThrough(mark)
	m.replay.RemoveThrough(mark)
	for _, c := range m.consumers {
		c.held.RemoveThrough(mark)
	}
}

// sought is called after the cursor was moved.
func (m *machine) sought() {
	for _, c := range m.consumers {
		c.held.Clear()
	}
	m.attempts.clear()
	m.restart()
}

// idle reports whether a new machine would be the same.
func (m *machine) idle() bool {
	return len(m.consumers) == 0 && m.replay.Len() == 0 && m.attempts.slices == nil
}

// bytes is about what the machine takes in memory beyond its fixed size and the
// cursor.
func (m *machine) bytes() int64 {
	sum := m.replay.Bytes() + m.attempts.bytes()
	for _, c := range m.consumers {
		sum += c.held.Bytes()
	}
	return sum
}
