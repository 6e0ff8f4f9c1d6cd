package subscription

import (
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// outbox takes what happened to the cursor to the journal, one letter at a time:
// while one is under way, what happens meanwhile gathers for the next. So a flood
// of acknowledgements costs the journal no more than it can take, and a single
// one waits for nobody.
//
// Owned by Subscription, under its lock. durable follows the letters that have
// arrived; an answer is given only then. Without a journal everything has arrived
// at once.
//
// Invariant: given is what replay makes of the records that the journal has taken.
// The subscription's own cursor is ahead of it, by the letters that are not under
// way and by what gathers, and some of that may never be sent. So given is what
// snapshots state. Where they stated the cursor itself, a topic closed before all
// was sent and opened again went on from what no record tells: an acknowledgement
// made again was answered as durable, and was lost with the broker; and what was
// acknowledged after a seek stood in the log without the seek, which no replay
// accepts. To append in the course of a snapshot what is behind does not do: a
// journal may be too busy.
type outbox struct {
	s       *Subscription
	given   *cursor.Cursor // nil: no other than the cursor, or there is no journal
	letters []letter       // in order; the first is under way while sending
	sending bool
	// gathering wait for the letter that is not written yet.
	gathering []func(error)
	waiting   int // answers owed
	durable   position.Position
	retry     *time.Timer
}

// letter is a record on its way.
type letter struct {
	data    []byte
	cursor  []byte            // the end of data: a delta of the cursor, or the whole
	mark    position.Position // of the cursor, once the letter has arrived
	answers []func(error)
}

// keepGivenLocked is called before the cursor changes. Where it is nothing but a
// mark, as that of most idle subscriptions is, given need not be there till then.
func (o *outbox) keepGivenLocked() {
	if o.s.journal != nil && o.given == nil {
		o.given = o.s.saved.Cursor.Clone()
	}
}

// letterLocked returns a letter about the cursor, of which encoded tells.
func (o *outbox) letterLocked(encoded []byte) letter {
	data := appendCursor(nil, o.s.saved.ID, encoded)
	return letter{data: data, cursor: data[len(data)-len(encoded):], mark: o.s.saved.Cursor.MarkDelete()}
}

// retryAfter is how long a journal that is too busy is left alone.
const retryAfter = 20 * time.Millisecond

// oweLocked has answer called once everything acknowledged so far is durable; it
// returns true when that is so already, and answer is the caller's to call.
func (o *outbox) oweLocked(answer func(error)) bool {
	switch {
	case o.s.journal == nil:
		return true
	case o.s.saved.Cursor.Dirty():
		o.gathering = append(o.gathering, answer)
	case len(o.letters) > 0:
		last := &o.letters[len(o.letters)-1]
		last.answers = append(last.answers, answer)
	default:
		return true
	}
	o.waiting++
	return false
}

// soughtLocked writes the letter that states the cursor anew. It answers what was
// gathering too: the seek undid it.
func (o *outbox) soughtLocked(answer func(error)) {
	next := o.letterLocked(o.s.saved.Cursor.AppendWhole(nil))
	next.answers, o.gathering = append(o.gathering, answer), nil
	o.letters = append(o.letters, next)
	o.waiting++
}

// sendLocked sends the next letter, if none is under way.
func (o *outbox) sendLocked() {
	cur := o.s.saved.Cursor
	if o.s.journal == nil {
		o.durable = cur.MarkDelete()
		return
	}
	if o.sending || o.retry != nil || o.s.closed != nil {
		return
	}
	if len(o.letters) == 0 {
		if !cur.Dirty() {
			if cur.Last() == cur.MarkDelete() {
				o.given = nil
			}
			return
		}
		next := o.letterLocked(cur.TakeDelta(nil))
		if !cur.Dirty() { // else the rest goes with another
			next.answers, o.gathering = o.gathering, nil
		}
		o.letters = append(o.letters, next)
	}
	err := o.s.journal.Append([]Record{{Kind: KindCursor, Data: o.letters[0].data}}, o.sent)
	switch {
	case err == nil:
		o.sending = true
		if err := o.given.Apply(o.letters[0].cursor); err != nil {
			panic(fmt.Sprintf("subscription %s: its own record cannot be replayed: %v", o.s.saved.Name, err))
		}
	case errors.Is(err, ErrTooBusy):
		o.retry = time.AfterFunc(retryAfter, o.again)
	default:
		o.s.work.Add(1)
		go func() {
			defer o.s.work.Done()
			o.s.fail(err)
		}()
	}
}

// again offers the first letter once more.
func (o *outbox) again() {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.retry = nil
	o.sendLocked()
}

// sent is called by the journal when the first letter has arrived, or its fate is
// unknown.
func (o *outbox) sent(err error) {
	s := o.s
	if err != nil {
		s.fail(err)
		return
	}
	s.mu.Lock()
	o.sending = false
	var answers []func(error)
	if len(o.letters) > 0 { // else abandoned
		first := o.letters[0]
		o.letters[0] = letter{}
		if o.letters = o.letters[1:]; len(o.letters) == 0 {
			o.letters = nil
		}
		o.durable = first.mark
		answers = first.answers
		o.waiting -= len(answers)
	}
	o.sendLocked()
	s.mu.Unlock()
	for _, answer := range answers {
		answer(nil)
	}
}

// abandonLocked gives up what is under way and returns who waits for it.
func (o *outbox) abandonLocked() []func(error) {
	var answers []func(error)
	for _, l := range o.letters {
		answers = append(answers, l.answers...)
	}
	answers = append(answers, o.gathering...)
	o.letters, o.gathering, o.waiting = nil, nil, 0
	if o.retry != nil {
		o.retry.Stop()
		o.retry = nil
	}
	return answers
}
