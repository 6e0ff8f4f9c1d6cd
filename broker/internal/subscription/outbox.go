package subscription

import (
	"errors"
	"time"

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
type outbox struct {
	s       *Subscription
	letters []letter // in order; the first is under way while sending
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
	mark    position.Position // of the cursor, once the letter has arrived
	answers []func(error)
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
	o.letters = append(o.letters, letter{
		data:    appendCursor(nil, o.s.saved.ID, o.s.saved.Cursor.AppendWhole(nil)),
		mark:    o.s.saved.Cursor.MarkDelete(),
		answers: append(o.gathering, answer),
	})
	o.gathering = nil
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
			return
		}
		data := appendCursor(nil, o.s.saved.ID, cur.TakeDelta(nil))
		next := letter{data: data, mark: cur.MarkDelete()}
		if !cur.Dirty() { // else the rest goes with another
			next.answers, o.gathering = o.gathering, nil
		}
		o.letters = append(o.letters, next)
	}
	err := o.s.journal.Append([]Record{{Kind: KindCursor, Data: o.letters[0].data}}, o.sent)
	switch {
	case err == nil:
		o.sending = true
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
