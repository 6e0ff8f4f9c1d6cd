package subscription

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/murmur3"
)

// notice tells a consumer whether it is the one served.
type notice struct {
	to     *consumer
	active bool
}

// join adds a consumer. The first one decides the type.
func (m *machine) join(c *consumer, kind Type) ([]notice, error) {
	if len(m.consumers) > 0 {
		if m.kind != kind {
			return nil, fmt.Errorf("it is %s while consumer %s is connected, not %s: %w", m.kind, m.consumers[0].name, kind, ErrBusy)
		}
		if kind == Exclusive {
			return nil, fmt.Errorf("it is exclusive and consumer %s is connected: %w", m.consumers[0].name, ErrBusy)
		}
	}
	m.kind = kind
	m.joined++
	c.sequence = m.joined
	m.consumers = append(m.consumers, c)
	if len(m.consumers) == 1 {
		m.restart()
	}
	notices := m.elect()
	if kind == Failover && !slices.ContainsFunc(notices, func(n notice) bool { return n.to == c }) {
		notices = append(notices, notice{to: c})
	}
	return notices, nil
}

// leave takes a consumer out; what it holds goes back.
func (m *machine) leave(c *consumer) []notice {
	i := slices.Index(m.consumers, c)
	if i < 0 {
		return nil
	}
	if m.kind == Shared {
		m.giveBack(c, nil)
	}
	m.consumers = slices.Delete(m.consumers, i, i+1)
	if m.turn > i {
		m.turn--
	} else if m.turn == i {
		m.given = 0
	}
	if c == m.active || c == m.leaving {
		m.rewind()
		m.active, m.leaving, m.heir = nil, nil, nil
	}
	if len(m.consumers) == 0 {
		m.restart()
	}
	return m.elect()
}

// elect makes sure that the right consumer of an exclusive or failover
// subscription is served. While the one served before is still connected and
// holds entries it has not acknowledged, the new one waits: see handOver.
func (m *machine) elect() []notice {
	if m.kind == Shared || len(m.consumers) == 0 {
		m.active, m.leaving, m.heir = nil, nil, nil
		return nil
	}
	chosen := m.choose()
	switch {
	case chosen == m.active:
		return nil
	case m.leaving == chosen: // chosen again before the hand-over was done
		m.active, m.leaving, m.heir = chosen, nil, nil
		return m.tell(chosen, true)
	case m.leaving != nil:
		m.heir = chosen
		return nil
	case m.active != nil:
		m.leaving, m.heir, m.active = m.active, chosen, nil
		return append(m.tell(m.leaving, false), m.settle()...)
	}
	m.active = chosen
	return m.tell(chosen, true)
}

func (m *machine) tell(c *consumer, active bool) []notice {
	if m.kind != Failover {
		return nil
	}
	return []notice{{to: c, active: active}}
}

// settle ends a hand-over once everything delivered is acknowledged.
func (m *machine) settle() []notice {
	if m.leaving == nil || m.cursor.NextUnacked(m.chain, m.cursor.MarkDelete()).Before(m.read) {
		return nil
	}
	return m.handOver()
}

// handOver ends a hand-over: the new consumer gets everything that is not
// acknowledged.
func (m *machine) handOver() []notice {
	if m.leaving == nil {
		return nil
	}
	m.rewind()
	m.active, m.leaving, m.heir = m.heir, nil, nil
	return m.tell(m.active, true)
}

// choose says which consumer is to be served. Partitions of a topic are dealt
// out: consumers in order of name, partition number modulo their count. A topic
// without partitions goes to a place on a ring that its name hashes to.
func (m *machine) choose() *consumer {
	if m.partition < 0 && m.kind == Failover {
		return m.onRing()
	}
	sorted := slices.Clone(m.consumers)
	slices.SortFunc(sorted, byName)
	return sorted[max(0, m.partition)%len(sorted)]
}

func byName(a, b *consumer) int {
	if c := strings.Compare(a.name, b.name); c != 0 {
		return c
	}
	if a.sequence < b.sequence {
		return -1
	}
	return 1
}

// ringPoints is how many places each consumer has on the ring.
const ringPoints = 100

// onRing returns the consumer whose place follows the topic's on the ring.
func (m *machine) onRing() *consumer {
	const positive = 0x7fffffff
	topic := murmur3.StringSum32(m.topic) & positive
	var chosen *consumer
	best := uint32(0)
	for _, c := range m.consumers {
		for i := range ringPoints {
			// How far behind the topic the point is, going round.
			away := (murmur3.StringSum32(c.name+strconv.Itoa(i)) - topic) & positive
			if chosen == nil || away < best || away == best && byName(c, chosen) < 0 {
				chosen, best = c, away
			}
		}
	}
	return chosen
}
