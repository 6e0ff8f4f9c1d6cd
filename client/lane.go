package client

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/internal/entry"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// maxInFlight bounds the batches of a lane without an answer.
const maxInFlight = 64

// lane carries a producer's batches to one partition, in order, each once.
//
// Messages gather in builder until the batch is full, or until nothing is in
// flight any more; then the batch is closed, which fixes its bytes and its place
// in the chain of sequence ids, and joins pending. pending[:inFlight] were sent
// on the present link and wait for their answers, which come in order.
//
// There is one way out of every trouble, be it a broken link, a topic that moved
// or a refusal: the lane leaves its link, opens again under a higher epoch, and
// sends all of pending again from the front. The broker answers for what it has.
// Only while it asked for silence is a refusal waited out in place.
//
// Batches get their outcomes with mu held, in their order: a lane that fails while
// an answer is being taken cannot overtake it. Callbacks run elsewhere, without mu.
type lane struct {
	p         *Producer
	topic     string // long form, with the partition
	partition int32

	mu       sync.Mutex
	builder  entry.Builder
	gather   *batch // the fate of what is in builder; nil when that is empty
	pending  []*batch
	inFlight int
	flyBytes int
	queued   bool // the sender was asked for and has not come yet

	link    *link // nil while not attached
	id      uint64
	answer  chan error // of the attempt to open under way; buffered by one
	opening *link      // where that is
	held    bool       // the broker asked for silence
	recall  bool       // the first in flight was refused, the others' refusals are to come
	epoch   uint64     // of the last attempt to open
	window  int        // bytes in flight
	batches int        // batches in flight
	trouble int        // times the link was left since the last receipt
	damaged int        // of these for a checksum

	// The last attempt to open that was given up before its answer came; the broker
	// may have opened the producer all the same. nil: none, or one has come since.
	ghost   *link
	ghostID uint64

	name       string
	started    bool // was attached once
	stored     bool // lastStored counts
	lastStored uint64
	hasLast    bool // last counts
	last       uint64
	hasPrev    bool // the chain: highest sequence id before the next batch to be closed
	prev       uint64
	routing    uint64
	part       *discoveryv1.Partition // of that version

	failure  error     // nothing more is taken
	flushErr error     // first failure since the last Flush
	since    time.Time // of the last answer, or of the first send with none in flight
}

func (l *lane) topicName() string { return l.topic }

// outgoing is a message on its way into a lane.
type outgoing struct {
	entry.Message
	hash     uint32 // of the key
	held     int64  // bytes of the memory budget
	callback func(MessageID, error)
}

// add takes a message. It returns the batch it travels in and its place there;
// gathering tells that the batch is still open.
func (l *lane) add(m *outgoing) (b *batch, i int, gathering bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		return failed(l.failure), 0, false
	}
	if err := l.belongsLocked(m); err != nil {
		return failed(err), 0, false
	}
	if b := l.numberLocked(m); b != nil {
		return b, 0, false
	}
	limit := min(l.p.opts.batchBytes, int(l.p.maxMessage.Load()))
	if l.gather != nil && l.builder.Bytes()+m.Bytes() > limit {
		l.closeLocked()
	}
	if l.gather == nil {
		l.gather = &batch{done: make(chan struct{}), partition: l.partition}
	}
	b, i = l.gather, l.builder.Len()
	l.builder.Add(&m.Message, m.hash)
	b.held += m.held
	b.callback(i, m.callback)
	if l.builder.Bytes() >= limit || l.builder.Len() >= l.p.opts.batchMessages {
		l.closeLocked()
	}
	l.wantLocked()
	return b, i, l.gather == b
}

// belongsLocked reports whether the partition takes a message. It does not when the
// message was routed by a map older than the lane's: what has the same key goes
// elsewhere already, or soon, and would be overtaken.
func (l *lane) belongsLocked(m *outgoing) error {
	outside := m.HasKey && l.partition >= 0 && (m.hash < l.part.GetKeyHashFirst() || m.hash > l.part.GetKeyHashLast())
	if outside || l.part.GetSealed() {
		return l.rerouted()
	}
	return nil
}

func (l *lane) rerouted() error {
	return fmt.Errorf("topic %s takes no more of these keys, its partitions changed; send again: %w", l.topic, ErrUnavailable)
}

// numberLocked gives the message its sequence id. It returns an outcome for one
// that need not or cannot be sent.
func (l *lane) numberLocked(m *outgoing) *batch {
	switch {
	case !l.p.opts.sequences:
		m.SequenceID = 0
		if l.hasLast {
			m.SequenceID = l.last + 1
		}
	case l.hasLast && m.SequenceID <= l.last:
		return failed(fmt.Errorf("sequence %d after %d: %w", m.SequenceID, l.last, ErrInvalid))
	case l.stored && m.SequenceID <= l.lastStored:
		b := failed(nil)
		b.at, b.partition = noPlace, l.partition
		return b
	}
	l.hasLast, l.last = true, m.SequenceID
	return nil
}

// closeLocked closes the gathering batch.
func (l *lane) closeLocked() {
	b := l.gather
	b.count = l.builder.Len()
	b.first, b.last = l.builder.Sequences()
	h := l.headerLocked(l.hasPrev, l.prev)
	h.PublishTime = uint64(time.Now().UnixMilli())
	b.part = l.builder.Close(h)
	l.hasPrev, l.prev = true, b.last
	l.gather = nil
	l.pending = append(l.pending, b)
}

func (l *lane) headerLocked(hasPrevious bool, previous uint64) entry.BatchHeader {
	return entry.BatchHeader{Producer: l.name, Epoch: l.epoch, HasPrevious: hasPrevious, Previous: previous,
		RoutingVersion: l.routing, Compression: entryv1.CompressionType(l.p.opts.compression)}
}

// wantLocked asks for the sender if there is something it may send.
func (l *lane) wantLocked() {
	if l.link == nil || l.queued || l.held || l.recall {
		return
	}
	next := l.inFlight < len(l.pending) && l.mayLocked(l.pending[l.inFlight])
	if next || l.gather != nil && len(l.pending) == 0 {
		l.queued = true
		l.link.want(l, l.id)
	}
}

// mayLocked reports whether the window has room for a batch. One alone always
// may.
func (l *lane) mayLocked(b *batch) bool {
	return l.inFlight == 0 || l.inFlight < l.batches && l.flyBytes+len(b.part) <= l.window
}

// pull gives the sender what may go out now.
func (l *lane) pull(from *link, id uint64, p *parcel) (more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link != from || l.id != id {
		return false
	}
	l.queued = false
	if l.held || l.recall {
		return false
	}
	if l.gather != nil && len(l.pending) == 0 {
		l.closeLocked()
	}
	if l.inFlight == 0 {
		l.since = time.Now()
	}
	for l.inFlight < len(l.pending) {
		b := l.pending[l.inFlight]
		if !l.mayLocked(b) {
			return false
		}
		if p.bytes > 0 && p.bytes+len(b.part) > parcelBytes {
			l.queued = true
			return true
		}
		b.sent = true
		l.inFlight++
		l.flyBytes += len(b.part)
		p.parts = append(p.parts, b.part)
		p.ids = append(p.ids, id)
		p.bytes += len(b.part)
	}
	return false
}

// receipt takes the answer to the oldest batch in flight.
func (l *lane) receipt(from *link, r *brokerv1.Receipt) {
	l.mu.Lock()
	if l.link != from || l.id != r.GetProducerId() || l.inFlight == 0 {
		l.mu.Unlock()
		return
	}
	b := l.pending[0]
	if b.last != r.GetSequenceId() || l.recall {
		l.doubtLocked()
		l.leaveLocked(fmt.Errorf("receipt of sequence %d, want %d: %w", r.GetSequenceId(), b.last, ErrInternal), "")
		l.mu.Unlock()
		return
	}
	l.inFlight--
	l.flyBytes -= len(b.part)
	l.takeFirstLocked()
	l.since, l.trouble, l.damaged = time.Now(), 0, 0
	at := place{r.GetLedger(), r.GetEntry()}
	if at.ledger < 1 {
		at = noPlace
	}
	l.finishLocked(b, at, nil)
	l.wantLocked()
	l.mu.Unlock()
}

func (l *lane) takeFirstLocked() {
	l.pending[0] = nil
	if l.pending = l.pending[1:]; len(l.pending) == 0 {
		l.pending = nil // let go of the array's used front
	}
}

// fail ends the lane: what was never sent fails with err, the outcome of the rest
// is unknown.
func (l *lane) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		return
	}
	l.failure = err
	if errors.Is(err, ErrClosed) {
		l.goodbyeLocked()
	}
	l.detachLocked()
	if l.gather != nil {
		l.closeLocked()
	}
	pending := l.pending
	l.pending = nil
	for _, b := range pending {
		if b.sent {
			l.finishLocked(b, place{}, unknownOutcome(err))
		} else {
			l.finishLocked(b, place{}, err)
		}
	}
}

// finishLocked gives a batch that left pending its outcome: at, or err.
func (l *lane) finishLocked(b *batch, at place, err error) {
	if err != nil && l.flushErr == nil {
		l.flushErr = err
	}
	l.p.finish(b, at, err)
}

// flush closes the gathering batch and returns the last one without an outcome,
// nil when there is none.
func (l *lane) flush() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gather != nil {
		l.closeLocked()
		l.wantLocked()
	}
	if len(l.pending) == 0 {
		return nil
	}
	return l.pending[len(l.pending)-1]
}

// takeFailure returns the first failure since it was called last.
func (l *lane) takeFailure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.flushErr
	l.flushErr = nil
	return err
}

// stalled reports where the lane is attached, if answers are overdue there.
func (l *lane) stalled(now time.Time) (address string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link == nil || l.inFlight == 0 && !l.held || now.Sub(l.since) < stallAfter {
		return "", false
	}
	return l.link.address, true
}

var errMoved = errors.New("another broker owns the topic")

// moveTo leaves a broker that owns the partition no more.
func (l *lane) moveTo(from, to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.link != nil && l.link.address == from && l.failure == nil {
		l.doubtLocked()
		l.leaveLocked(errMoved, to)
	}
}
