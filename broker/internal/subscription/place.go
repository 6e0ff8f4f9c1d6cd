package subscription

import (
	"context"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Anchor says what a Place is counted from.
type Anchor uint8

const (
	Latest   Anchor = iota // after the last entry there is
	Earliest               // before the first entry there is
	At                     // the message named is the next one delivered
	AfterID                // the one after the message named is
	AtTime                 // the first message published at or after Time is
)

// Place is where a new subscription starts, or where a seek goes.
type Place struct {
	Anchor   Anchor
	Position position.Position // with At and AfterID
	Index    int               // of the message in its batch; −1: the whole entry
	Time     time.Time         // with AtTime
}

// Target is a place found in the topic: everything up to Mark is acknowledged,
// and of the entry at First, which follows it, all but Left, unless that is nil.
type Target struct {
	Mark  position.Position
	First position.Position
	Left  cursor.Bits
}

// Find looks a place up. A position in what was trimmed counts as the first one
// after it; one beyond the end is ErrInvalid.
func Find(ctx context.Context, l Ledger, at Place) (Target, error) {
	switch at.Anchor {
	case Latest:
		return Target{Mark: l.LastConfirmed()}, nil
	case Earliest:
		return Target{Mark: position.Start}, nil
	case AtTime:
		p, err := l.SeekTime(ctx, at.Time)
		if err != nil {
			return Target{}, fmt.Errorf("find %v: %w", at.Time, err)
		}
		return Target{Mark: p.Prev(), First: p}, nil
	case At, AfterID:
		return findID(ctx, l, at)
	}
	return Target{}, fmt.Errorf("start at %d: %w", at.Anchor, ErrInvalid)
}

func findID(ctx context.Context, l Ledger, at Place) (Target, error) {
	p := at.Position
	if last := l.LastConfirmed(); last.Before(p) && p != last.Next() {
		return Target{}, fmt.Errorf("position %v, the last entry is %v: %w", p, last, ErrInvalid)
	}
	first, err := l.Normalize(p)
	if err != nil {
		return Target{}, fmt.Errorf("position %v: %w: %w", p, ErrInvalid, err)
	}
	if first != p { // trimmed away, or the end of a ledger
		return Target{Mark: first.Prev(), First: first}, nil
	}
	skip := at.Index
	if at.Anchor == AfterID {
		if skip < 0 {
			return Target{Mark: p, First: p.Next()}, nil
		}
		skip++
	}
	if skip <= 0 {
		return Target{Mark: p.Prev(), First: p}, nil
	}
	entries, err := l.Read(ctx, p, 1, 1)
	if err != nil || len(entries) == 0 || entries[0].Position != p {
		return Target{}, fmt.Errorf("read %v to find message %d in it: %w", p, at.Index, err)
	}
	n, err := messagesIn(entries[0].Body)
	if err != nil {
		return Target{}, fmt.Errorf("entry %v: %w", p, err)
	}
	if skip >= n {
		return Target{Mark: p, First: p.Next()}, nil
	}
	return Target{Mark: p.Prev(), First: p, Left: cursor.From(skip, n)}, nil
}

// Cursor returns a cursor that stands at t. Its epoch is 1, so that 0 is free to
// mean an epoch that is not told.
func (t Target) Cursor() *cursor.Cursor {
	c := cursor.New(position.Start)
	t.seek(c)
	return c
}

func (t Target) seek(c *cursor.Cursor) { c.Seek(t.Mark, t.First, t.Left) }

// Seek moves the cursor; it may go back. Consumers stay, and what they hold from
// before means nothing any more. done is called once, as that of Consumer.Ack.
func (s *Subscription) Seek(t Target, done func(error)) {
	s.mu.Lock()
	if s.closed != nil {
		err := s.closed
		s.mu.Unlock()
		done(err)
		return
	}
	s.outbox.keepGivenLocked()
	t.seek(s.saved.Cursor)
	if s.m != nil {
		s.m.sought()
	}
	s.reads.stopRetry() // what could not be read may not be wanted any more
	now := s.journal == nil
	if !now {
		s.outbox.soughtLocked(done)
	}
	s.outbox.sendLocked()
	s.eventLocked(nil)
	s.mu.Unlock()
	if now {
		done(nil)
	}
}

// Flush calls done once everything acknowledged so far is durable, with the error
// that keeps it from being so otherwise.
func (s *Subscription) Flush(done func(error)) {
	s.mu.Lock()
	err, now := s.closed, true
	if err == nil {
		now = s.outbox.oweLocked(done)
		s.outbox.sendLocked()
	}
	s.mu.Unlock()
	if now {
		done(err)
	}
}
