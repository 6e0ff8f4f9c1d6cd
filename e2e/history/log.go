package history

import (
	"errors"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/client"
)

// Log is a running record of one topic. Safe for concurrent use.
//
// Under its lock a record is appended and a counter moved, no more: it is meant to
// keep up with all clients of a test.
type Log struct {
	mu       sync.Mutex
	h        record
	messages map[Message]int32
	subs     map[string]int32
	outcomes []Outcome // by message
	ok       int       // publishes that ended OK
	got      []coverage
	now      func() time.Time
}

// coverage is what a subscription has got so far.
type coverage struct {
	messages []bool // by message
	ok       int    // of those that ended OK
}

// record is all that happened, in order, and the names it refers to by number.
type record struct {
	events    []event
	messages  []Message
	consumers []consumer
	subs      []subscription
	owners    []string
}

type consumer struct {
	name string
	sub  int32
}

type subscription struct {
	name string
	kind Kind
}

// what happened.
type what uint8

const (
	publishing what = iota + 1
	published       // outcome, position
	rested
	joined
	opened // the stream of a partition
	delivered
	acking   // individually, or all up to the position
	ackEnded // ok tells success; of the acknowledgement begun at began
	nacked
	seeking    // to position, or to a place
	seekEnded  // of the seek begun at began
	leaving    // the consumer holds nothing any more
	ownerMoved // n names the owner
	deleted    // the topic
)

// event is one thing that happened. Which fields it has is up to what it is.
type event struct {
	at       int64 // ns since 1970
	id       client.MessageID
	message  int32
	consumer int32
	n        int32 // redeliveries, or the number of an owner
	began    int32 // the event that this one ends
	time     int64 // where a seek to a time goes, ns since 1970
	what     what
	outcome  Outcome
	to       place
	ok       bool // ended well
	all      bool // cumulative
}

// place is where a seek goes.
type place uint8

const (
	toEarliest place = iota + 1
	toLatest
	toMessage // the event's id
	toAfter   // the event's id
	toTime    // the event's time
)

// New returns an empty Log.
func New() *Log {
	return &Log{messages: map[Message]int32{}, subs: map[string]int32{}, now: time.Now}
}

func (l *Log) appendLocked(e event) int32 {
	e.at = l.now().UnixNano()
	l.h.events = append(l.h.events, e)
	return int32(len(l.h.events) - 1)
}

func (l *Log) add(e event) int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.appendLocked(e)
}

func (l *Log) messageLocked(m Message) int32 {
	n, ok := l.messages[m]
	if !ok {
		n = int32(len(l.h.messages))
		l.messages[m] = n
		l.h.messages = append(l.h.messages, m)
		l.outcomes = append(l.outcomes, 0)
	}
	return n
}

// Publishing records that a publish is about to begin. Those of a producer are
// recorded in the order of their numbers.
func (l *Log) Publishing(m Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appendLocked(event{what: publishing, message: l.messageLocked(m)})
}

// Published records the outcome of a publish, once; id is what an OK told, the zero
// one where it told none.
func (l *Log) Published(m Message, o Outcome, id client.MessageID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.messageLocked(m)
	l.appendLocked(event{what: published, message: n, outcome: o, id: id})
	l.outcomes[n] = o
	if o != OK {
		return
	}
	l.ok++
	for i := range l.got {
		if g := &l.got[i]; int(n) < len(g.messages) && g.messages[n] {
			g.ok++
		}
	}
}

// Answered records the outcome of a publish as the client told it.
func (l *Log) Answered(m Message, id client.MessageID, err error) Outcome {
	o := Failed
	switch {
	case err == nil:
		o = OK
	case errors.Is(err, client.ErrUnknownOutcome):
		o = Unknown
	}
	l.Published(m, o, id)
	return o
}

// Rest says that publishing has ended for now: the next publish ends no gap.
func (l *Log) Rest() { l.add(event{what: rested}) }

// Owner records who serves the topic, or a part of it, from now on.
func (l *Log) Owner(owner string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.owners = append(l.h.owners, owner)
	l.appendLocked(event{what: ownerMoved, n: int32(len(l.h.owners) - 1)})
}

// Deleted records that the deletion of the topic was answered.
func (l *Log) Deleted() { l.add(event{what: deleted}) }

func (l *Log) subLocked(name string, kind Kind) int32 {
	n, ok := l.subs[name]
	if !ok {
		n = int32(len(l.h.subs))
		l.subs[name] = n
		l.h.subs = append(l.h.subs, subscription{name, kind})
		l.got = append(l.got, coverage{})
	}
	return n
}

// Subscription says that there is a subscription, which is judged from then on also
// if nobody ever joins it.
func (l *Log) Subscription(name string, kind Kind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subLocked(name, kind)
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
	n, ok := l.subs[subscription]
	if !ok {
		return l.ok
	}
	return l.ok - l.got[n].ok
}
