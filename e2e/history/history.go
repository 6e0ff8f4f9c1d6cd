// Package history records what producers were told and what subscriptions got,
// and finds what must not happen: lost, duplicated, reordered, invented and
// wrongly refused messages.
//
// A message is named by its producer and number; the text of its payload is
// made by Payload, so that whoever receives it can name it. Each check is one
// pass over what was recorded.
package history

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Outcome of a publish.
type Outcome uint8

const (
	OK      Outcome = iota + 1 // acknowledged
	Failed                     // refused for good: must never be delivered
	Unknown                    // may be delivered, once
)

// Message names what was published.
type Message struct {
	Producer string
	Number   int
}

func (m Message) String() string { return fmt.Sprintf("%s/%d", m.Producer, m.Number) }

// Payload is the message's text, padded to at least size bytes.
func (m Message) Payload(size int) []byte {
	text := m.String() + " "
	if pad := size - len(text); pad > 0 {
		text += strings.Repeat(".", pad)
	}
	return []byte(text)
}

// Parse names the message of a payload.
func Parse(payload []byte) (Message, error) {
	text, _, _ := strings.Cut(string(payload), " ")
	producer, number, ok := strings.Cut(text, "/")
	n, err := strconv.Atoi(number)
	if !ok || err != nil {
		return Message{}, fmt.Errorf("payload %.40q names no message", payload)
	}
	return Message{producer, n}, nil
}

// Log is a running record. Safe for concurrent use.
type Log struct {
	mu         sync.Mutex
	published  map[Message]publish
	ok         int // publishes that ended OK
	subs       map[string]*subscription
	lastOK     time.Time
	longestGap time.Duration
}

// subscription is what a subscription got.
type subscription struct {
	deliveries []delivery
	got        map[Message]bool
	gotOK      int             // distinct messages whose publish ended OK
	acked      map[string]bool // positions
}

type publish struct {
	outcome  Outcome
	position string
}

type delivery struct {
	message   Message
	partition int
	position  string
	// afterAck: its acknowledgement had been answered before this delivery.
	afterAck bool
}

// New returns an empty Log.
func New() *Log {
	return &Log{published: map[Message]publish{}, subs: map[string]*subscription{}}
}

func (l *Log) subLocked(name string) *subscription {
	s := l.subs[name]
	if s == nil {
		s = &subscription{got: map[Message]bool{}, acked: map[string]bool{}}
		l.subs[name] = s
	}
	return s
}

// Published records the outcome of a publish, once; position is what an OK told.
func (l *Log) Published(m Message, o Outcome, position string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.published[m] = publish{o, position}
	if o != OK {
		return
	}
	l.ok++
	for _, s := range l.subs {
		if s.got[m] {
			s.gotOK++
		}
	}
	now := time.Now()
	if gap := now.Sub(l.lastOK); !l.lastOK.IsZero() && gap > l.longestGap {
		l.longestGap = gap
	}
	l.lastOK = now
}

// Rest says that publishing has ended for now: the next publish ends no gap.
func (l *Log) Rest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastOK = time.Time{}
}

// Delivered records a message that a subscription got, in the order it got it.
func (l *Log) Delivered(subscription string, m Message, partition int, position string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.subLocked(subscription)
	s.deliveries = append(s.deliveries, delivery{m, partition, position, s.acked[position]})
	if !s.got[m] {
		s.got[m] = true
		if l.published[m].outcome == OK {
			s.gotOK++
		}
	}
}

// Acked records that the acknowledgement of a position was answered with success.
func (l *Log) Acked(subscription, position string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subLocked(subscription).acked[position] = true
}

// Acknowledged tells how many publishes ended OK.
func (l *Log) Acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ok
}

// Missing tells how many publishes that ended OK a subscription has not got yet.
func (l *Log) Missing(subscription string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ok - l.subLocked(subscription).gotOK
}

// Verdict counts what was found; Problems describes the first few of each kind.
type Verdict struct {
	Published   int
	OK          int
	Unknown     int
	Failed      int
	Delivered   map[string]int // distinct messages by subscription
	Lost        int            // acknowledged, never delivered
	Duplicated  int            // at two positions, or again after its ack was answered
	Reordered   int            // first deliveries of one producer, or positions of a partition, out of order
	Invented    int            // never published, or another position than acknowledged
	Undead      int            // refused for good, delivered all the same
	Redelivered int            // again before its ack was answered: allowed, counted
	LongestGap  time.Duration  // between two acknowledged publishes
	Problems    []string
}

// Bad reports whether something happened that must not.
func (v *Verdict) Bad() bool {
	return v.Lost+v.Duplicated+v.Reordered+v.Invented+v.Undead > 0
}

func (v *Verdict) String() string {
	s := fmt.Sprintf("published %d (ok %d, unknown %d, refused %d), delivered %v, lost %d, duplicated %d, out of order %d, invented %d, refused but delivered %d, redelivered %d, longest publish gap %s",
		v.Published, v.OK, v.Unknown, v.Failed, v.Delivered, v.Lost, v.Duplicated, v.Reordered, v.Invented, v.Undead, v.Redelivered, v.LongestGap.Round(time.Millisecond))
	return strings.Join(append([]string{s}, v.Problems...), "\n  ")
}

func (v *Verdict) note(count *int, format string, args ...any) {
	if *count++; *count <= 5 {
		v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
	}
}

// Check judges all that was recorded, after the subscriptions were drained.
// ordered names the subscriptions that promise order (exclusive, failover).
func (l *Log) Check(subscriptions []string, ordered []string) *Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &Verdict{Published: len(l.published), Delivered: map[string]int{}, LongestGap: l.longestGap}
	for _, p := range l.published {
		switch p.outcome {
		case OK:
			v.OK++
		case Unknown:
			v.Unknown++
		case Failed:
			v.Failed++
		}
	}
	contents := map[string]Message{} // by position, over all subscriptions
	for _, sub := range subscriptions {
		l.checkSubscription(v, sub, slices.Contains(ordered, sub), contents)
	}
	return v
}

// comparePositions compares positions as message ids print, number by number.
func comparePositions(a, b string) int {
	return slices.CompareFunc(strings.Split(a, ":"), strings.Split(b, ":"), func(x, y string) int {
		return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	})
}

func (l *Log) checkSubscription(v *Verdict, sub string, inOrder bool, contents map[string]Message) {
	type stream struct {
		producer  string
		partition int
	}
	first := map[Message]string{} // position of the first delivery
	highest := map[stream]int{}
	furthest := map[int]string{} // position of the newest first delivery, by partition
	for _, d := range l.subLocked(sub).deliveries {
		p, known := l.published[d.message]
		switch {
		case !known:
			v.note(&v.Invented, "%s: got %s at %s, which nobody published", sub, d.message, d.position)
		case p.outcome == Failed:
			v.note(&v.Undead, "%s: got %s at %s, which was refused", sub, d.message, d.position)
		case p.outcome == OK && p.position != "" && p.position != d.position:
			v.note(&v.Invented, "%s: got %s at %s, acknowledged at %s", sub, d.message, d.position, p.position)
		}
		if c, ok := contents[d.position]; ok && c != d.message {
			v.note(&v.Invented, "%s: position %s holds %s and %s", sub, d.position, c, d.message)
		}
		contents[d.position] = d.message
		at, again := first[d.message]
		switch {
		case again && at != d.position:
			v.note(&v.Duplicated, "%s: got %s at %s and at %s", sub, d.message, at, d.position)
		case again && d.afterAck:
			v.note(&v.Duplicated, "%s: got %s at %s again after its acknowledgement was answered", sub, d.message, d.position)
		case again:
			v.Redelivered++
		default:
			first[d.message] = d.position
			s := stream{d.message.Producer, d.partition}
			at, moved := furthest[d.partition]
			if n, ok := highest[s]; ok && inOrder && d.message.Number < n {
				v.note(&v.Reordered, "%s: got %s of partition %d after number %d", sub, d.message, d.partition, n)
			} else if moved && inOrder && comparePositions(d.position, at) < 0 {
				v.note(&v.Reordered, "%s: got %s of partition %d at %s after %s", sub, d.message, d.partition, d.position, at)
			} else {
				highest[s], furthest[d.partition] = d.message.Number, d.position
			}
		}
	}
	v.Delivered[sub] = len(first)
	for m, p := range l.published {
		if p.outcome == OK && first[m] == "" {
			v.note(&v.Lost, "%s: never got %s, acknowledged at %s", sub, m, p.position)
		}
	}
}
