package client

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/entry"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// feed is a consumer's end of one partition. All its fields but the first group
// are guarded by consumer.mu.
//
// Each time it is attached is a session: what an earlier one left in the queue is
// dropped, since the broker sends it again, and credits of it are void. What is
// in the application's hands stays there; see acks.
type feed struct {
	c         *Consumer
	topic     string // long form, with the partition
	partition int32
	permits   int // messages the broker may have sent ahead
	bytes     int // bytes likewise

	link     *link // nil while not attached
	id       uint64
	answer   chan error // of the attempt to open under way; buffered by one
	opening  *link      // where that is
	session  uint64
	window   int // bytes granted in this session
	queued   bool
	trouble  int
	heard    time.Time
	inQueue  int // entries of this session in the consumer's queue, the current one included
	owed     int // permits to give back
	owedSize int // bytes to give back
	flowNow  bool

	acks      acks
	redeliver []place
	requests  map[uint64]*request // that have no answer yet, by id
	unsent    []*request
	lastID    uint64 // of requests and acks

	from Position // where to start when nothing was read
	pos  readerPosition
}

// request is a call that the broker answers with Done, and that can be repeated.
type request struct {
	id      uint64
	epoch   uint64 // of the feed when it was sent
	message func(consumer, id uint64) proto.Message
	done    chan error // buffered by one
	seek    Position   // where to, of a seek
	sent    bool
	left    bool // nobody waits any more; it is not sent again
}

// delivered is an entry as it came.
type delivered struct {
	feed         *feed
	session      uint64
	at           place
	redeliveries int
	left         bitset // messages still unacknowledged; nil: all
	body         []byte
	known        *handed // what the application had of it when it came again
}

// messages is how many messages the broker counted the entry as.
func (d *delivered) messages() int {
	if d.left != nil {
		return d.left.count()
	}
	_, part, err := entry.ParseBody(d.body)
	if err != nil {
		return 1
	}
	h, _, err := entry.ParseHeader(part)
	if err != nil {
		return 1
	}
	return h.Messages
}

func (f *feed) topicName() string { return f.topic }

// open makes one attempt to subscribe at a broker.
func (f *feed) open(ctx context.Context, address string) error {
	link, err := f.c.c.brokers.link(ctx, address, true)
	if err != nil {
		return err
	}
	c := f.c
	answer := make(chan error, 1)
	c.mu.Lock()
	if c.failure != nil {
		c.mu.Unlock()
		return ErrClosed
	}
	f.answer, f.opening = answer, link
	// The answer cannot come before join returns: to hear it takes mu.
	f.id, err = link.join(f, f.subscribeLocked)
	if err != nil {
		f.answer = nil
	}
	id := f.id
	c.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err = <-answer:
		return err
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case err = <-answer: // it came at the last moment
		return err
	default:
	}
	f.answer = nil
	link.leave(id, closeConsumer(id))
	return fmt.Errorf("subscribe at %s: %w: %w", address, ErrUnavailable, ctx.Err())
}

func (f *feed) subscribeLocked(id uint64) proto.Message {
	o := &f.c.opts
	s := brokerv1.Subscribe_builder{
		ConsumerId: &id, Topic: &f.topic, Subscription: &f.c.subscription, Type: brokerv1.SubscriptionType(o.kind).Enum(),
		ConsumerName: &o.name, Instance: &f.c.instance, Properties: o.properties,
		MustExist: &o.mustExist, NonDurable: proto.Bool(f.c.reader), WindowBytes: proto.Uint64(uint64(f.bytes)),
		InitialPosition: f.pos.subscribeFrom(f.partition, f.from),
	}.Build()
	return brokerv1.ConsumeRequest_builder{Subscribe: s}.Build()
}

func closeConsumer(id uint64) proto.Message {
	return brokerv1.ConsumeRequest_builder{Close: brokerv1.CloseConsumer_builder{ConsumerId: &id}.Build()}.Build()
}

// openingLocked reports whether the answer to the attempt to subscribe under way
// comes from there.
func (f *feed) openingLocked(from *link, id uint64) bool {
	return f.answer != nil && f.opening == from && f.id == id
}

// subscribed begins a session. The receiver calls it, so that what follows on the
// link finds it begun.
func (f *feed) subscribed(from *link, s *brokerv1.Subscribed) {
	c := f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.openingLocked(from, s.GetConsumerId()) {
		return
	}
	if c.failure != nil { // the consumer ended before the answer came
		from.leave(f.id, closeConsumer(f.id))
		f.answer <- ErrClosed
		f.answer = nil
		return
	}
	f.link, f.queued, f.heard = from, false, time.Now()
	if f.session++; f.session == 1 && c.reader {
		f.pos.until(s.GetLastMessageId(), f.partition, f.from)
		f.from = f.from.pinned(f.partition, s.GetStartMessageId())
	}
	f.pos.standsAt(s.GetStartMessageId())
	c.dropQueuedLocked(f, false)
	if f.window = int(s.GetWindowBytes()); f.window == 0 {
		f.window = f.bytes
	}
	f.owed, f.owedSize, f.flowNow, f.inQueue = f.permits, 0, true, 0
	f.acks.voided = false
	f.acks.again()
	maps.DeleteFunc(f.requests, func(_ uint64, r *request) bool { return r.left })
	f.unsent = slices.SortedFunc(maps.Values(f.requests), func(a, b *request) int { return cmp.Compare(a.id, b.id) })
	f.answer <- nil
	f.answer = nil
	f.wantLocked()
	c.wakeLocked() // a reader may find that it is at its end
}

// delivery queues entries for the application.
func (f *feed) delivery(from *link, id, epoch uint64, entries []*delivered) {
	c := f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.link != from || f.id != id {
		return
	}
	f.heard, f.trouble = time.Now(), 0
	if epoch > f.acks.epoch && f.acks.told {
		f.voidLocked()
		f.soughtLocked()
		if c.reader && len(entries) > 0 {
			f.from = f.from.pinned(f.partition, wireID(MessageID{Ledger: entries[0].at.ledger, Entry: entries[0].at.entry}))
		}
	}
	if !f.acks.void(epoch) {
		f.acks.epoch, f.acks.told = epoch, true
	}
	for _, d := range entries {
		d.feed, d.session = f, f.session
		f.inQueue++
		if f.acks.void(epoch) {
			f.returnLocked(d, d.messages())
			continue
		}
		f.acks.arrived(d)
		c.queue.push(d)
	}
	c.wakeLocked()
}

// passedLocked lets go of an entry of which nothing is left to be handed out.
func (f *feed) passedLocked(d *delivered) {
	if f.c.reader {
		f.pos.passed(d.at)
	}
	f.returnLocked(d, d.messages())
}

// returnLocked gives the credit of an entry back: it left the queue, and the
// broker had counted messages for it.
func (f *feed) returnLocked(d *delivered, messages int) {
	if d.session != f.session {
		return
	}
	f.inQueue--
	f.owed += messages
	f.owedSize += len(d.body)
	f.wantLocked()
}

// flowDueLocked reports whether credits are worth a message: half of what is
// allowed is owed. Less is given back when nothing else is on the way, for an
// entry too large for what is left of the window would never come.
func (f *feed) flowDueLocked() bool {
	if f.owed == 0 && f.owedSize == 0 {
		return false
	}
	return f.flowNow || 2*f.owed >= f.permits || 2*f.owedSize >= f.window
}

// wantLocked asks for the sender if there is something to send.
func (f *feed) wantLocked() {
	if f.link == nil || f.queued {
		return
	}
	if f.flowDueLocked() || f.acks.due() || len(f.redeliver) > 0 || len(f.unsent) > 0 {
		f.queued = true
		f.link.want(f, f.id)
		return
	}
	if f.acks.waits() || f.inQueue == 0 && f.owedSize > 0 {
		f.c.tickLocked()
	}
}

// pull gives the sender what is to be said to the broker.
func (f *feed) pull(from *link, id uint64, p *parcel) (more bool) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.link != from || f.id != id {
		return false
	}
	f.queued = false
	for _, r := range f.unsent {
		r.epoch, r.sent = f.acks.epoch, true
		p.messages = append(p.messages, r.message(id, r.id))
	}
	f.unsent = nil
	if f.flowDueLocked() {
		flow := brokerv1.Flow_builder{ConsumerId: &id, Permits: proto.Uint32(uint32(f.owed)), Bytes: proto.Uint64(uint64(f.owedSize))}.Build()
		p.messages = append(p.messages, brokerv1.ConsumeRequest_builder{Flow: flow}.Build())
		f.owed, f.owedSize, f.flowNow = 0, 0, false
	}
	if f.acks.due() {
		f.lastID++
		ack := f.acks.take(f.lastID)
		ack.SetConsumerId(id)
		p.messages = append(p.messages, brokerv1.ConsumeRequest_builder{Ack: ack}.Build())
	}
	for places := range slices.Chunk(f.redeliver, maxAckPositions) {
		positions := make([]*brokerv1.AckPosition, len(places))
		for i, at := range places {
			positions[i] = ackPosition(at, nil)
		}
		again := brokerv1.Redeliver_builder{ConsumerId: &id, Positions: positions}.Build()
		p.messages = append(p.messages, brokerv1.ConsumeRequest_builder{Redeliver: again}.Build())
	}
	f.redeliver = nil
	p.bytes += 1 << 10 // so that one round does not take in all of a thousand feeds
	return false
}

// answered takes the answer to an acknowledgement or a request.
func (f *feed) answered(from *link, d *brokerv1.Done) {
	c := f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.link != from || f.id != d.GetConsumerId() {
		return
	}
	f.heard = time.Now()
	var err error
	if d.GetCode() != brokerv1.Code_CODE_UNSPECIFIED {
		err = fmt.Errorf("topic %s: %w", f.topic, &codeError{code: d.GetCode(), message: d.GetMessage()})
	}
	if r := f.requests[d.GetRequestId()]; r != nil {
		delete(f.requests, r.id)
		if err == nil && r.seek.p != nil {
			f.from = r.seek
			if c.reader {
				f.from = r.seek.pinned(f.partition, d.GetStartMessageId())
			}
			if r.epoch == f.acks.epoch { // nothing came from behind the seek yet
				f.acks.voided = f.acks.told
				f.acks.voidThrough = f.acks.epoch
				f.voidLocked()
				f.soughtLocked()
				f.c.wakeLocked() // a reader may find that it is at its end
			}
		}
		r.done <- err
		return
	}
	if again := f.acks.answered(d.GetRequestId(), err); again {
		c.tickLocked()
	}
	f.wantLocked()
}

// soughtLocked makes a reader stand where the last seek went. It is called at
// each sign that one was done: its answer, and the first delivery from behind it,
// which may come sooner.
func (f *feed) soughtLocked() {
	last := uint64(0)
	for id, r := range f.requests {
		if r.seek.p != nil && id > last {
			last, f.from = id, r.seek
		}
	}
	if f.c.reader {
		f.pos.begin(f.partition, f.from)
	}
}

// voidLocked drops all that was delivered before a seek.
func (f *feed) voidLocked() {
	f.c.dropQueuedLocked(f, true)
	f.acks.end(ErrVoid)
	f.redeliver = nil
}

// closedBy handles the end of the consumer on the broker's side, and the refusal
// to subscribe.
func (f *feed) closedBy(from *link, cl *brokerv1.ConsumerClosed) {
	err := &codeError{code: cl.GetCode(), message: cl.GetMessage(), movedTo: cl.GetMovedTo()}
	from.leave(cl.GetConsumerId(), nil)
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	switch {
	case f.openingLocked(from, cl.GetConsumerId()):
		f.answer <- err
		f.answer = nil
	case f.link != from || f.id != cl.GetConsumerId():
	case err.permanent():
		f.c.failLocked(fmt.Errorf("topic %s: %w", f.topic, err))
	default:
		f.leaveLocked(err, err.movedTo)
	}
}

// lost handles the end of the link.
func (f *feed) lost(from *link, id uint64, err error) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	switch {
	case f.openingLocked(from, id):
		f.answer <- err
		f.answer = nil
	case f.link == from && f.id == id:
		f.leaveLocked(err, "")
	}
}

// leaveLocked leaves the link and starts to subscribe again, first at address.
func (f *feed) leaveLocked(why error, address string) {
	f.detachLocked()
	f.trouble++
	trouble := f.trouble
	c := f.c
	c.c.log.Info("consumer reconnects", "topic", f.topic, "subscription", c.subscription, "error", why)
	c.c.spawn(func() {
		err := c.c.pause(c.ctx, trouble)
		if err == nil {
			err = c.c.attach(c.ctx, f, address, true)
		}
		if err != nil {
			c.fail(err)
		}
	})
}

// detachLocked leaves the link. A consumer that ends says so to the broker, which
// would else keep its place on a link that others live on.
func (f *feed) detachLocked() {
	if f.link != nil {
		var goodbye proto.Message
		if f.c.failure != nil {
			goodbye = closeConsumer(f.id)
		}
		f.link.leave(f.id, goodbye)
	}
	f.link, f.queued = nil, false
	f.redeliver = nil // subscribing again brings it back
	f.c.dropQueuedLocked(f, false)
	f.inQueue = 0
}

// stalled reports where the feed is attached, if nothing was heard from there.
func (f *feed) stalled(now time.Time) (address string, ok bool) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.link == nil || now.Sub(f.heard) < idleAfter {
		return "", false
	}
	f.heard = now // ask again after as long
	return f.link.address, true
}

// moveTo leaves a broker that owns the partition no more.
func (f *feed) moveTo(from, to string) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.link != nil && f.link.address == from && f.c.failure == nil {
		f.leaveLocked(errMoved, to)
	}
}

// ask sends a request and waits for its answer; across sessions.
func (f *feed) ask(ctx context.Context, seek Position, message func(consumer, id uint64) proto.Message) error {
	r := &request{message: message, done: make(chan error, 1), seek: seek}
	c := f.c
	c.mu.Lock()
	if c.failure != nil {
		c.mu.Unlock()
		return c.failure
	}
	f.lastID++
	r.id = f.lastID
	f.requests[r.id] = r
	f.unsent = append(f.unsent, r)
	f.wantLocked()
	c.mu.Unlock()
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// One that was sent stays, for its answer may come yet.
	if r.left = true; slices.Contains(f.unsent, r) {
		delete(f.requests, r.id)
		f.unsent = slices.DeleteFunc(f.unsent, func(u *request) bool { return u == r })
	}
	err := cmp.Or(ctx.Err(), c.failure, ErrClosed)
	if r.sent {
		err = unknownOutcome(err)
	}
	return err
}
