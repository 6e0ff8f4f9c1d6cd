package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/entry"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// open makes one attempt to open the producer at a broker. Each has a higher
// epoch, so that it takes the place of what an earlier one left behind there. One
// that is given up says no goodbye, for which the broker would forget what it
// knows of us, unless the producer ends: then nobody will take its place.
func (l *lane) open(ctx context.Context, address string) error {
	link, err := l.p.c.brokers.link(ctx, address, false)
	if err != nil {
		return err
	}
	answer := make(chan error, 1)
	l.mu.Lock()
	if l.failure != nil {
		l.mu.Unlock()
		return ErrClosed
	}
	l.epoch++
	l.answer, l.opening = answer, link
	// The answer cannot come before join returns: to hear it takes l.mu.
	l.id, err = link.join(l, func(id uint64) proto.Message {
		return brokerv1.ProduceRequest_builder{Open: brokerv1.OpenProducer_builder{
			ProducerId: &id, Topic: &l.topic, ProducerName: proto.String(l.name), Epoch: proto.Uint64(l.epoch),
			NameChosenByBroker: proto.Bool(l.p.opts.name == ""),
		}.Build()}.Build()
	})
	if err != nil {
		l.answer = nil
	}
	id := l.id
	l.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err = <-answer:
		return err
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case err = <-answer: // it came at the last moment
		return err
	default:
	}
	l.answer = nil
	link.leave(id, nil)
	l.ghost, l.ghostID = link, id
	if l.failure != nil || l.p.ctx.Err() != nil {
		l.goodbyeLocked()
	}
	return fmt.Errorf("open producer at %s: %w: %w", address, ErrUnavailable, ctx.Err())
}

// opened attaches the lane. The receiver calls it, so that what follows on the
// link finds it attached.
func (l *lane) opened(from *link, o *brokerv1.ProducerOpened) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.openingLocked(from, o.GetProducerId()) {
		return
	}
	l.link, l.held, l.recall, l.queued = from, false, false, false
	l.ghost = nil // this one took its place
	l.inFlight, l.flyBytes = 0, 0
	l.window = int(o.GetWindowBytes())
	l.batches = maxInFlight
	if n := int(o.GetWindowBatches()); n > 0 {
		l.batches = min(n, maxInFlight)
	}
	if n := int64(o.GetMaxMessageBytes()); n > 0 {
		l.p.maxMessage.Store(n)
	}
	if !l.started {
		l.started = true
		l.name = o.GetProducerName()
		if o.GetHasLastSequenceId() {
			l.stored, l.lastStored = true, o.GetLastSequenceId()
			l.resumeLocked()
		}
	} else if !o.GetHasLastSequenceId() {
		l.forgottenLocked()
	}
	l.since = time.Now()
	l.answer <- nil
	l.answer = nil
	if l.failure != nil { // the lane ended before the answer came
		l.goodbyeLocked()
		return
	}
	l.wantLocked()
}

// forgottenLocked ends the batches that may be stored, of a producer of which the
// broker remembers nothing though it had stored something: sent again they would
// be stored twice, and nobody can tell their outcome any more.
func (l *lane) forgottenLocked() {
	if len(l.pending) == 0 || !l.pending[0].doubt {
		return
	}
	h, _, err := entry.ParseHeader(l.pending[0].part)
	if err != nil || !h.HasPrevious {
		return // it was the first one, and is not stored
	}
	for len(l.pending) > 0 && l.pending[0].doubt {
		b := l.pending[0]
		l.takeFirstLocked()
		l.finishLocked(b, noPlace, b.refusal(fmt.Errorf("topic %s: the broker remembers nothing of producer %s any more: %w", l.topic, l.name, ErrUnavailable)))
	}
	l.chainLocked(false, 0)
}

// resumeLocked goes on after the last sequence id stored for the name. What was
// taken before that was known is numbered anew, unless the application numbers it.
func (l *lane) resumeLocked() {
	taken := l.gather != nil || len(l.pending) > 0
	switch {
	case !taken:
		l.hasPrev, l.prev = true, l.lastStored
		if !l.p.opts.sequences {
			l.hasLast, l.last = true, l.lastStored
		}
	case !l.p.opts.sequences:
		l.renumberLocked(l.lastStored)
	}
}

// closedBy handles the end of the producer on the broker's side, and the refusal
// to open it.
func (l *lane) closedBy(from *link, c *brokerv1.ProducerClosed) {
	err := &codeError{code: c.GetCode(), message: c.GetMessage(), movedTo: c.GetMovedTo()}
	from.leave(c.GetProducerId(), nil)
	l.mu.Lock()
	switch {
	case l.openingLocked(from, c.GetProducerId()):
		l.answer <- err
		l.answer = nil
	case l.link != from || l.id != c.GetProducerId():
	case err.permanent():
		l.mu.Unlock()
		l.fail(fmt.Errorf("topic %s: %w", l.topic, err))
		return
	default:
		l.doubtLocked()
		l.leaveLocked(err, err.movedTo)
	}
	l.mu.Unlock()
}

func (l *lane) hold(from *link, h *brokerv1.ProducerHold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link == from && l.id == h.GetProducerId() {
		l.held = h.GetHold()
		l.since = time.Now()
		l.wantLocked()
	}
}

// lost handles the end of the link.
func (l *lane) lost(from *link, id uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.openingLocked(from, id):
		l.answer <- err
		l.answer = nil
	case l.link == from && l.id == id:
		l.doubtLocked()
		l.leaveLocked(err, "")
	}
}

// doubtLocked notes that what is in flight may be stored for all we will hear
// here.
func (l *lane) doubtLocked() {
	if l.recall {
		return // it was refused, or will be
	}
	for _, b := range l.pending[:l.inFlight] {
		b.doubt = true
	}
}

// openingLocked reports whether the answer to the attempt to open under way
// comes from there.
func (l *lane) openingLocked(from *link, id uint64) bool {
	return l.answer != nil && l.opening == from && l.id == id
}

// leaveLocked leaves the link and starts to open again, first at address. Where
// that brings no receipt it waits longer each time.
func (l *lane) leaveLocked(why error, address string) {
	l.detachLocked()
	l.trouble++
	trouble := l.trouble
	c := l.p.c
	var said *codeError
	stale := errors.As(why, &said) && said.code == brokerv1.Code_CODE_STALE_ROUTING
	c.log.Info("producer reconnects", "topic", l.topic, "producer", l.name, "unanswered", len(l.pending), "error", why)
	c.spawn(func() {
		err := c.pause(l.p.ctx, trouble)
		if err == nil && stale {
			err = l.p.reroute()
		}
		if err != nil {
			l.failedToAttach(err)
			return
		}
		l.reattach(address)
	})
}

// reattach opens the lane until it is attached, first at address, or fails it.
func (l *lane) reattach(address string) {
	if err := l.p.c.attach(l.p.ctx, l, address, true); err != nil {
		l.failedToAttach(err)
	}
}

func (l *lane) failedToAttach(err error) {
	if l.p.ctx.Err() != nil {
		err = ErrClosed
	}
	l.fail(err)
}

func (l *lane) detachLocked() {
	if l.link != nil {
		l.link.leave(l.id, nil)
	}
	l.link, l.queued, l.held, l.recall = nil, false, false, false
	l.inFlight, l.flyBytes = 0, 0
}

// adopt takes a new version of the topic's partitions over. Batches that are not
// under way are made for it anew; those that the partition takes no more fail.
func (l *lane) adopt(version uint64, part *discoveryv1.Partition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gather != nil && l.routing != version {
		l.closeLocked() // made for the map before
	}
	l.routing, l.part = version, part
	if l.link != nil || l.answer != nil {
		return
	}
	kept := l.pending[:0:0]
	for _, b := range l.pending {
		if l.adoptLocked(b, part) {
			kept = append(kept, b)
		} else {
			l.finishLocked(b, noPlace, b.refusal(l.rerouted()))
		}
	}
	l.pending = kept
}

func (l *lane) adoptLocked(b *batch, part *discoveryv1.Partition) (kept bool) {
	h, _, err := entry.ParseHeader(b.part)
	if err != nil || h.RoutingVersion == l.routing {
		return true
	}
	outside := h.HasKeyHash && (h.KeyHashFirst < part.GetKeyHashFirst() || h.KeyHashLast > part.GetKeyHashLast())
	if part.GetSealed() || outside && part.GetNumber() >= 0 {
		return false
	}
	if p, err := entry.Reroute(b.part, l.routing); err == nil {
		b.part = p
	}
	return true
}

// maxDamaged is how often a batch is sent again that arrived damaged.
const maxDamaged = 3

// refused handles the refusal of the oldest batch in flight. Those behind it are
// refused too.
func (l *lane) refused(from *link, r *brokerv1.PublishRefused) {
	err := &codeError{code: r.GetCode(), message: r.GetMessage()}
	l.mu.Lock()
	if l.link != from || l.id != r.GetProducerId() || l.inFlight == 0 {
		l.mu.Unlock()
		return
	}
	code := r.GetCode()
	if code == brokerv1.Code_CODE_UNKNOWN_OUTCOME {
		l.doubtLocked()
	}
	if b := l.pending[0]; !l.recall && r.GetSequenceId() > b.last {
		l.doubtLocked()
		l.leaveLocked(fmt.Errorf("refusal of sequence %d before the answer to %d: %w", r.GetSequenceId(), b.last, ErrInternal), "")
		l.mu.Unlock()
		return
	}
	if l.recall || l.held && code == brokerv1.Code_CODE_UNAVAILABLE {
		l.recalledLocked()
		l.mu.Unlock()
		return
	}
	if code == brokerv1.Code_CODE_CHECKSUM {
		l.damaged++
	}
	var done *batch
	var doneErr error
	switch {
	case code == brokerv1.Code_CODE_PRODUCER_FENCED:
		l.mu.Unlock()
		l.fail(fmt.Errorf("topic %s: %w", l.topic, err))
		return
	case code == brokerv1.Code_CODE_OUT_OF_ORDER:
		done = l.rejoinLocked(r)
	case err.definite() || l.damaged > maxDamaged:
		done, doneErr = l.pending[0], l.pending[0].refusal(fmt.Errorf("topic %s: %w", l.topic, err))
		l.dropFirstLocked()
	}
	if done != nil {
		l.finishLocked(done, noPlace, doneErr)
	}
	l.leaveLocked(err, "")
	l.mu.Unlock()
	if code == brokerv1.Code_CODE_CHECKSUM {
		// Not the refusal itself: to those who are attaching it is only a lost link.
		from.end(fmt.Errorf("link to %s: a batch arrived damaged: %v: %w", from.address, err, ErrUnavailable))
	}
}

// recalledLocked counts one refusal of those that follow from the first; after
// the last one all can be sent again, when the broker asks no more for silence.
func (l *lane) recalledLocked() {
	l.recall = true
	if l.inFlight--; l.inFlight == 0 {
		l.recall, l.flyBytes = false, 0
		l.wantLocked()
	}
}

// dropFirstLocked takes the first pending batch out of the chain: the one behind
// it, which the broker cannot have accepted, takes its place there.
func (l *lane) dropFirstLocked() {
	h, _, err := entry.ParseHeader(l.pending[0].part)
	l.takeFirstLocked()
	if err == nil {
		l.chainLocked(h.HasPrevious, h.PreviousSequence)
	}
}

// chainLocked makes the first pending batch, or the next one closed, follow
// sequence id prev; not has: be its producer's first.
func (l *lane) chainLocked(has bool, prev uint64) {
	if len(l.pending) == 0 {
		l.hasPrev, l.prev = has, prev
		return
	}
	if part, err := entry.Follow(l.pending[0].part, has, prev); err == nil {
		l.pending[0].part = part
	}
}

// rejoinLocked makes the first pending batch one that the broker can accept after
// what it says it has.
//
// Where that is beyond the batch's first sequence id, the ids are another's: a
// producer of the same name wrote them before we opened. Numbers the application
// gave are then stored already; numbers we made up are given anew. It returns
// the batch when all of it is stored.
func (l *lane) rejoinLocked(r *brokerv1.PublishRefused) (done *batch) {
	b, expected := l.pending[0], r.GetExpectedSequenceId()
	switch {
	case !r.GetHasExpected() || expected < b.first:
		l.chainLocked(r.GetHasExpected(), expected)
	case !l.p.opts.sequences:
		l.renumberLocked(expected)
	case expected >= b.last:
		b.skipped = b.count
		l.takeFirstLocked()
		l.chainLocked(true, expected)
		return b
	default:
		if n, err := b.renumber(expected, true, l.headerLocked(true, expected)); err == nil {
			b.skipped += n
		}
	}
	return nil
}

// renumberLocked numbers everything without an answer anew, from after+1 on.
func (l *lane) renumberLocked(after uint64) {
	if l.gather != nil {
		l.closeLocked()
	}
	for _, b := range l.pending {
		if _, err := b.renumber(after, false, l.headerLocked(true, after)); err == nil {
			after = b.last
		}
	}
	l.prev, l.last = after, after
}

// goodbye tells the broker that the producer ends for good.
func (l *lane) goodbye() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.goodbyeLocked()
}

func (l *lane) goodbyeLocked() {
	bye := func(id uint64) proto.Message {
		return brokerv1.ProduceRequest_builder{Close: brokerv1.CloseProducer_builder{ProducerId: &id}.Build()}.Build()
	}
	if l.link != nil {
		l.link.leave(l.id, bye(l.id))
		l.link = nil
	}
	if l.ghost != nil {
		l.ghost.say(bye(l.ghostID))
		l.ghost = nil
	}
}
