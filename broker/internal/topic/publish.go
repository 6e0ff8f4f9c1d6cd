package topic

import (
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/internal/entry"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// Errors of a publish that was refused: it is surely not in the topic.
var (
	ErrInvalid    = errors.New("topic: invalid batch")
	ErrChecksum   = errors.New("topic: checksum of the batch does not match")
	ErrTooLarge   = errors.New("topic: message too large")
	ErrOutOfOrder = errors.New("topic: batch out of order")
	ErrOverCredit = errors.New("topic: more unanswered batches or bytes than granted")
	// ErrNoBookies: too few bookies take entries as large as this broker may write.
	// An operator has to act.
	ErrNoBookies = errors.New("topic: no bookies to store it on")
	ErrHold      = errors.New("topic: cannot take more for now")
	ErrFenced    = errors.New("topic: another producer took the name over")
	ErrClosed    = errors.New("topic: closed")
	// ErrStaleRouting: fetch the topic's partitions anew.
	ErrStaleRouting = errors.New("topic: batch was made for older partitions")
)

// ErrUnknownOutcome reports a publish that was taken and whose outcome is not
// known: it may be in the topic.
var ErrUnknownOutcome = errors.New("topic: outcome of the publish is unknown")

// Refusal is why a batch was refused, and where its producer goes on.
type Refusal struct {
	Sequence uint64 // the batch's last sequence id
	Err      error
	// HasExpected: resume after sequence id Expected; else with the batch refused.
	HasExpected bool
	Expected    uint64
}

// Receipt answers a batch that is stored.
type Receipt struct {
	Sequence  uint64            // the batch's last sequence id
	Position  position.Position // Start where a duplicate's position is forgotten
	Duplicate bool
}

// Sink is told what becomes of a producer's batches. Receipts and refusals come in
// the order the batches were published; a hold comes at once, its end only after
// the refusals that it is to blame for. Its methods must not block, may be called on any
// goroutine with the topic's lock held, and must not call the topic.
type Sink interface {
	// Opened is the first call, from within OpenProducer or later. stored: last is
	// the highest sequence id stored for the producer's name. Closed may come
	// instead.
	Opened(p *Producer, last uint64, stored bool)
	Receipt(Receipt)
	Refused(Refusal)
	// Closed ends the producer: nothing follows. What has no answer by then has an
	// unknown outcome.
	Closed(error)
	// Hold asks the producer to send nothing until it is called with false.
	Hold(hold bool, reason string)
}

// Producer is an open producer of a topic. Publish is called by one goroutine at
// a time.
type Producer struct {
	topic *Topic
	name  string
	// chosen: the broker made the name up, it will not come again.
	chosen bool
	sink   Sink

	// Below is guarded by topic.mu.
	opening bool // the sink has not heard Opened
	closed  bool
	held    bool
	// A refused batch stops the stream: of batches that cannot be judged by their
	// predecessor all with a higher sequence id are refused until the producer
	// resumes there.
	stopped   bool
	resumeAt  uint64 // first sequence id of the batch refused
	waiting   int    // batches taken and without an outcome
	waitBytes int
	latest    *pending // the last of them to be answered; of meaning while waiting > 0
	behind    int      // refusals that wait for batches published before
}

// Batch is a producer part in a buffer that has entry.BrokerPartRoom bytes of
// room in front of it. The topic owns it from now on.
type Batch struct {
	Buffer []byte
}

// pending is a batch that was appended and has no outcome yet.
type pending struct {
	producer string
	last     uint64 // sequence id
	messages int
	bytes    int
	number   uint64      // rises along the topic
	waiters  []*Producer // who wants the answer: the sender, and those who sent it again
	behind   []refused   // refusals to be told after it

	received, appended time.Time // off the stream; to the ledger's writer
}

// refused is a refusal on its way to its producer.
type refused struct {
	producer *Producer
	refusal  Refusal
}

// Publish takes a batch, or refuses it through the sink. It never waits.
//
// All that can be wrong with a batch is found here, before the entry has an id;
// from then on the answer is a receipt, or the outcome is unknown.
func (p *Producer) Publish(b Batch) {
	t := p.topic
	received := t.opts.Now()
	part := b.Buffer[entry.BrokerPartRoom:]
	h, _, err := entry.ParseHeader(part)
	if err != nil {
		p.refuseUnread(fmt.Errorf("%w: %w", ErrInvalid, err))
		return
	}
	partCRC, err := entry.VerifyProducerPart(part)
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrChecksum, err)
	case h.ProducerName != p.name:
		err = fmt.Errorf("%w: it names producer %q, sent by %q", ErrInvalid, h.ProducerName, p.name)
	case h.HighestSequence < h.SequenceID:
		err = fmt.Errorf("%w: sequence ids %d to %d", ErrInvalid, h.SequenceID, h.HighestSequence)
	case h.MarkerType != 0 || h.HasTxn:
		err = fmt.Errorf("%w: transactions and markers are not taken here", ErrInvalid)
	case h.DeliverAt != 0:
		err = fmt.Errorf("%w: a time of delivery: messages are delivered at once", ErrInvalid)
	case h.Messages > cursor.MaxBits:
		err = fmt.Errorf("%w: %d messages in a batch, at most %d", ErrTooLarge, h.Messages, cursor.MaxBits)
	}
	if err != nil {
		p.refuse(h.SequenceID, h.HighestSequence, err)
		return
	}
	t.take(p, h, b, partCRC, received)
}

// refuse answers a batch that never reached the topic's order.
func (p *Producer) refuse(first, last uint64, err error) {
	p.topic.mu.Lock()
	defer p.topic.mu.Unlock()
	p.refuseLocked(first, last, Refusal{Sequence: last, Err: err})
}

// refuseUnread answers a batch of which not even the sequence id can be read.
func (p *Producer) refuseUnread(err error) {
	p.topic.mu.Lock()
	defer p.topic.mu.Unlock()
	next := uint64(0)
	if accepted, has := p.topic.producers.Accepted(p.name); has {
		next = accepted + 1
	}
	p.refuseLocked(next, next, Refusal{Err: err})
}

// refuseLocked tells the producer of a refusal once all it published before is
// answered: producers take an answer for that of their oldest batch. One that
// goes on publishing what is refused, while an outcome is awaited, is ended.
func (p *Producer) refuseLocked(first, last uint64, r Refusal) {
	if p.closed {
		return
	}
	if !p.stopped || first < p.resumeAt {
		p.stopped, p.resumeAt = true, first
	}
	r.Sequence = last
	t := p.topic
	t.opts.Metrics.refused.Inc()
	switch {
	case p.waiting == 0:
		p.sink.Refused(r)
	case p.behind == producer.Window:
		delete(t.open, p.name)
		t.producers.Close(p.name, false)
		t.endProducerLocked(p, fmt.Errorf("%w: %d refusals wait to be heard", ErrOverCredit, p.behind))
	default:
		p.behind++
		p.latest.behind = append(p.latest.behind, refused{p, r})
	}
}

// awaitLocked has p told the outcome of w.
func (p *Producer) awaitLocked(w *pending) {
	if p.waiting == 0 || w.number > p.latest.number {
		p.latest = w
	}
	w.waiters = append(w.waiters, p)
	p.waiting, p.waitBytes = p.waiting+1, p.waitBytes+w.bytes
}

// rules are those that may change between a batch and its retry. They are for
// batches that are new: what was taken once keeps the outcome it had.
func (t *Topic) rules(h entry.Header, partBytes int) error {
	version := t.opts.RoutingVersion()
	switch {
	case h.RoutingVersion != 0 && h.RoutingVersion < version:
		return fmt.Errorf("%w: version %d, the topic is at %d", ErrStaleRouting, h.RoutingVersion, version)
	case partBytes > t.opts.MaxMessageBytes+entry.MaxHeaderBytes:
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, partBytes, t.opts.MaxMessageBytes)
	}
	return nil
}

// take judges the order, gives the entry its index and time, and appends it.
func (t *Topic) take(p *Producer, h entry.Header, b Batch, partCRC uint32, received time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.closed {
		return
	}
	first, last := h.SequenceID, h.HighestSequence
	if t.closing != nil {
		p.refuseLocked(first, last, Refusal{Err: t.closing})
		return
	}
	_, known := t.producers.Accepted(p.name)
	if chained := h.HasPrevious && known; p.stopped && first > p.resumeAt && !chained {
		p.refuseLocked(first, last, Refusal{Err: fmt.Errorf("%w: an earlier batch was refused", ErrOutOfOrder),
			HasExpected: p.resumeAt > 0, Expected: p.resumeAt - 1})
		return
	}
	partBytes := len(b.Buffer) - entry.BrokerPartRoom
	if p.waiting >= producer.Window || p.waitBytes+partBytes > t.opts.WindowBytes && p.waiting > 0 {
		p.refuseLocked(first, last, Refusal{Err: ErrOverCredit})
		return
	}
	order := producer.Batch{First: first, Last: last, HasPrevious: h.HasPrevious, Previous: h.PreviousSequence}
	answer := t.producers.Admit(p.name, order)
	switch answer.Verdict {
	case producer.Duplicate:
		p.stopped = false
		t.opts.Metrics.duplicates.Inc()
		p.answerInOrderLocked(Receipt{Sequence: last, Position: answer.Position, Duplicate: true})
		return
	case producer.InFlight:
		p.stopped = false
		p.awaitLocked(answer.Tag.(*pending))
		return
	case producer.OutOfOrder:
		p.refuseLocked(first, last, Refusal{Err: ErrOutOfOrder, HasExpected: answer.HasExpected, Expected: answer.Expected})
		return
	case producer.TooMany:
		p.refuseLocked(first, last, Refusal{Err: ErrOverCredit})
		return
	}
	if err := t.rules(h, partBytes); err != nil {
		p.refuseLocked(first, last, Refusal{Err: err})
		return
	}
	t.appendLocked(p, order, h, b, partCRC, received)
}

// answerInOrderLocked gives a receipt at once. A duplicate comes only while
// nothing newer of this producer waits: retries are sent in order, and batches
// in flight are newer than stored ones.
func (p *Producer) answerInOrderLocked(r Receipt) { p.sink.Receipt(r) }

func (t *Topic) appendLocked(p *Producer, order producer.Batch, h entry.Header, b Batch, partCRC uint32, received time.Time) {
	appended := t.opts.Now()
	now := max(appended.UnixMilli(), t.lastTime)
	broker := entry.BrokerPart{Kind: entryv1.Kind_KIND_DATA, Index: t.nextIndex + uint64(h.Messages) - 1, Time: now}
	room := entry.BrokerPartRoom - broker.Size()
	broker.AppendTo(b.Buffer[room:room])
	body := b.Buffer[room:]
	w := &pending{
		producer: p.name, last: order.Last, messages: h.Messages,
		bytes: len(b.Buffer) - entry.BrokerPartRoom, number: t.taken,
		received: received, appended: appended,
	}
	err := t.ledger.Append(managedledger.Add{
		Body:     body,
		BodyCRC:  entry.BodyCRC(body[:broker.Size()], partCRC, w.bytes),
		Messages: uint32(h.Messages),
		Time:     now,
	}, t.appended)
	if err != nil {
		t.refuseAppendLocked(p, order, err)
		return
	}
	p.stopped = false
	p.awaitLocked(w)
	t.taken++
	t.nextIndex += uint64(h.Messages)
	t.lastTime = now
	t.producers.Taken(p.name, order, w)
	t.countForgottenLocked()
	t.inFlight = append(t.inFlight, w)
	t.flying += int64(w.bytes)
}

// refuseAppendLocked answers a batch that the managed ledger did not take. One that
// will take nothing any more ends the topic, as an unknown outcome does: it may have
// been lost when nothing was in flight that would have told.
func (t *Topic) refuseAppendLocked(p *Producer, order producer.Batch, err error) {
	switch {
	case errors.Is(err, ledger.ErrTooLarge):
		err = fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, ledger.ErrTooBusy):
		err = fmt.Errorf("%w: %w", ErrHold, err)
		if !p.held {
			p.held = true
			t.held = append(t.held, p)
			p.sink.Hold(true, err.Error())
		}
		if len(t.inFlight) == 0 && t.release == nil {
			// What fills the queues is not ours: no outcome will tell when to go on.
			t.release = time.AfterFunc(holdRetry, t.releaseHeld)
		}
	case errors.Is(err, ledger.ErrNotEnoughBookies):
		err = fmt.Errorf("%w: %w", ErrNoBookies, err)
	default:
		err = fmt.Errorf("%w: %w", ErrClosed, err)
		defer t.endLocked(err)
	}
	p.refuseLocked(order.First, order.Last, Refusal{Err: err})
}

// appended is told the outcome of the oldest append in flight.
func (t *Topic) appended(at position.Position, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.inFlight[0]
	t.inFlight[0] = nil
	t.inFlight = t.inFlight[1:]
	t.flying -= int64(w.bytes)
	for _, p := range w.waiters {
		p.waiting, p.waitBytes = p.waiting-1, p.waitBytes-w.bytes
	}
	if err != nil {
		// The order of what follows is lost with it: the topic ends, and is opened
		// again from what the ledgers hold.
		t.endLocked(fmt.Errorf("%w: %w", ErrUnknownOutcome, err))
		return
	}
	t.producers.Stored(w.producer, at)
	t.storedAt = at
	t.counters.messagesIn += uint64(w.messages)
	t.counters.bytesIn += uint64(w.bytes)
	t.opts.Metrics.published.Add(float64(w.messages))
	t.opts.Metrics.publishedBytes.Add(float64(w.bytes))
	t.opts.Metrics.publishLatency(w.received, w.appended, t.opts.Now())
	for i, p := range w.waiters {
		if !p.closed {
			p.sink.Receipt(Receipt{Sequence: w.last, Position: at, Duplicate: i > 0})
		}
	}
	for _, r := range w.behind {
		if r.producer.behind--; !r.producer.closed {
			r.producer.sink.Refused(r.refusal)
		}
	}
	t.openedLocked(w.producer)
	if t.flying <= t.opts.ResumeBytes {
		t.resumeLocked()
	}
	t.sinceCheckpoint.entries++
	t.sinceCheckpoint.bytes += int64(w.bytes)
	t.checkpointLocked(false)
}

// holdRetry is how long producers are held where nothing of the topic is in
// flight.
const holdRetry = 100 * time.Millisecond

// releaseHeld lets the producers on hold try again.
func (t *Topic) releaseHeld() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.release = nil; t.closing == nil {
		t.resumeLocked()
	}
}

// resumeLocked lets the producers on hold go on, save those that have refusals to
// hear first: an outcome that is awaited brings these.
func (t *Topic) resumeLocked() {
	var later []*Producer
	for _, p := range t.held {
		if p.behind > 0 && !p.closed {
			later = append(later, p)
		} else if p.held = false; !p.closed {
			p.sink.Hold(false, "")
		}
	}
	t.held = later
}
