package topic

import (
	"bytes"
	"errors"
	"sync"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
)

var errLogEnded = errors.New("the log has ended")

// slowLog is a journal that answers when the test says so, and remembers the
// snapshots that were taken of the topic between the records.
type slowLog struct {
	mu      sync.Mutex
	taken   []subscription.Record
	durable int // so many of them are answered
	waiting []waitingAppend
	passes  []pass
	busy    bool
	ended   error
}

type waitingAppend struct {
	through int // of taken
	done    func(error)
}

// pass is a snapshot and how many records stand before it.
type pass struct {
	place int
	base  []byte
}

func (l *slowLog) Append(records []subscription.Record, done func(error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended != nil:
		return l.ended
	case l.busy:
		return subscription.ErrTooBusy
	}
	for _, r := range records {
		l.taken = append(l.taken, subscription.Record{Kind: r.Kind, Data: bytes.Clone(r.Data)})
	}
	l.waiting = append(l.waiting, waitingAppend{len(l.taken), done})
	return nil
}

// settle answers up to n appends, the oldest first.
func (l *slowLog) settle(n int) {
	for range n {
		l.mu.Lock()
		if len(l.waiting) == 0 {
			l.mu.Unlock()
			return
		}
		w := l.waiting[0]
		l.waiting, l.durable = l.waiting[1:], w.through
		l.mu.Unlock()
		w.done(nil)
	}
}

// end makes the fate of what is not answered unknown.
func (l *slowLog) end() {
	l.mu.Lock()
	l.ended = errLogEnded
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, w := range waiting {
		w.done(errLogEnded)
	}
}

func (l *slowLog) pass(t *Topic) {
	t.Snapshot(func(base []byte) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.passes = append(l.passes, pass{len(l.taken), bytes.Clone(base)})
	})
}

// parked is what a replay from a pass on gives.
func (l *slowLog) parked(from pass) bundlelog.Parked {
	p := bundlelog.Parked{Base: from.base}
	for _, r := range l.taken[from.place:] {
		p.Records = append(p.Records, bundlelog.Record{Topic: 7, Kind: uint8(r.Kind), Data: r.Data})
	}
	return p
}
