package client

import (
	"errors"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// acks is what a feed knows of the entries in the application's hands, and of
// acknowledgements on their way. Guarded by the consumer's lock.
//
// An entry is kept from its first message handed out until all of it is
// acknowledged and the broker has said that this is durable, or until none of it
// is in the application's hands any more. While it is kept, a redelivery gives
// the application only what it has neither acknowledged nor in its hands; so a
// broken connection shows up as nothing but a pause.
//
// One acknowledgement request is under way at a time; what comes meanwhile goes
// with the next.
type acks struct {
	epoch uint64 // of the entries, as the broker told; raised by a seek
	told  bool
	// voided: what comes in this session of epochs up to voidThrough was sent before
	// a seek that has been answered.
	voided      bool
	voidThrough uint64
	entries     map[place]*handed

	dirty []*handed // acknowledged further than the broker was told
	upTo  *mark     // cumulative, not yet told
	now   bool      // worth a message at once
	next  []*ackGroup

	flying *flight
}

// handed is an entry of which messages are in the application's hands.
type handed struct {
	at    place
	left  bitset // messages the application has not acknowledged
	out   bitset // of these, the ones in its hands
	dirty bool
	void  bool // a seek made it meaningless
	// refused is why the broker took no acknowledgement of the entry, and never will.
	refused error
	// copies is how many redeliveries of the entry wait in the queue. They were
	// sent before the broker heard of what is acknowledged meanwhile, so the entry
	// is kept for them.
	copies int
}

// mark is a cumulative acknowledgement: all before at, and of at all but left.
type mark struct {
	at   place
	left bitset
}

// flight is the acknowledgement under way.
type flight struct {
	id      uint64
	entries []*handed
	upTo    *mark
	groups  []*ackGroup
}

// ackGroup is who waits for one request.
type ackGroup struct {
	done chan struct{}
	err  error
}

// maxAckPositions and maxAckBytes bound the positions of one request; the broker
// refuses one above 1 MiB.
const (
	maxAckPositions = 4096
	maxAckBytes     = 512 << 10
)

// due reports whether a request is to be sent.
func (a *acks) due() bool {
	return a.flying == nil && (a.now && (len(a.dirty) > 0 || a.upTo != nil))
}

// waits reports whether there is something to be sent some time.
func (a *acks) waits() bool { return a.flying == nil && !a.now && (len(a.dirty) > 0 || a.upTo != nil) }

// idle reports whether everything acknowledged is durable.
func (a *acks) idle() bool { return a.flying == nil && len(a.dirty) == 0 && a.upTo == nil }

// group returns who waits for the next request.
func (a *acks) group() *ackGroup {
	if len(a.next) == 0 {
		a.next = append(a.next, &ackGroup{done: make(chan struct{})})
	}
	return a.next[len(a.next)-1]
}

// ack acknowledges message bit of an entry. It reports whether that changed
// anything.
func (a *acks) ack(h *handed, bit int) bool {
	if !h.left.has(bit) {
		return false
	}
	h.left.clear(bit)
	h.out.clear(bit)
	a.touch(h)
	if h.left.empty() {
		a.now = true // the broker can move its mark
	}
	return true
}

func (a *acks) touch(h *handed) {
	if !h.dirty {
		h.dirty = true
		a.dirty = append(a.dirty, h)
	}
}

// ackThrough acknowledges everything up to message bit of an entry.
func (a *acks) ackThrough(h *handed, bit int) {
	h.left.clearThrough(bit)
	h.out.clearThrough(bit)
	if a.upTo == nil || !h.at.before(a.upTo.at) {
		a.upTo = &mark{h.at, append(bitset(nil), h.left...)}
	}
	a.now = true
	// What was to be told one by one is told at once.
	kept := a.dirty[:0]
	for _, e := range a.dirty {
		if h.at.before(e.at) {
			kept = append(kept, e)
		} else {
			e.dirty = false
		}
	}
	a.dirty = kept
	for at, e := range a.entries {
		if at.before(h.at) {
			clear(e.left)
			clear(e.out)
		}
	}
}

// giveBack takes message bit of an entry out of the application's hands, and
// reports whether it was there.
func (a *acks) giveBack(h *handed, bit int) bool {
	if !h.out.has(bit) {
		return false
	}
	h.out.clear(bit)
	a.settle(h)
	return true
}

// settle forgets an entry of which nothing is in the application's hands, on its
// way to the broker, or about to be delivered.
func (a *acks) settle(h *handed) {
	if h.out.empty() && !h.dirty && h.copies == 0 && !a.flying.has(h) && a.entries[h.at] == h {
		delete(a.entries, h.at)
	}
}

// arrived notes that an entry was delivered and waits in the queue.
func (a *acks) arrived(d *delivered) {
	if h := a.entries[d.at]; h != nil {
		h.copies++
		d.known = h
	}
}

// dropped notes that an entry left the queue unseen.
func (a *acks) dropped(d *delivered) {
	if h := d.known; h != nil {
		h.copies--
		a.settle(h)
	}
}

func (f *flight) has(h *handed) bool {
	if f == nil {
		return false
	}
	for _, e := range f.entries {
		if e == h {
			return true
		}
	}
	return false
}

// deliver says which messages of a delivered entry, now out of the queue, the
// application gets. all are those the broker holds to be unacknowledged.
func (a *acks) deliver(d *delivered, all bitset) (h *handed, take bitset) {
	if h = d.known; h != nil {
		h.copies--
	} else if h = a.entries[d.at]; h == nil {
		h = &handed{at: d.at, left: append(bitset(nil), all...), out: append(bitset(nil), all...)}
		a.entries[d.at] = h
		return h, all
	}
	if known := all.without(h.left); !known.empty() {
		a.touch(h) // the broker has not heard of some acknowledgement
		a.now = true
	}
	take = all.and(h.left).without(h.out)
	h.out.add(take)
	a.settle(h)
	return h, take
}

// take returns the next request, which is from then on under way.
func (a *acks) take(id uint64) *brokerv1.Ack {
	ack := brokerv1.Ack_builder{RequestId: &id, Epoch: proto.Uint64(a.epoch)}.Build()
	f := &flight{id: id}
	a.flying = f
	if a.upTo != nil {
		f.upTo, a.upTo = a.upTo, nil
		ack.SetCumulative(true)
		ack.SetPositions([]*brokerv1.AckPosition{ackPosition(f.upTo.at, f.upTo.left)})
	} else {
		ack.SetPositions(a.takeDirty(f))
	}
	// Who waits may wait for what did not fit.
	if a.now = len(a.dirty) > 0; !a.now {
		f.groups, a.next = a.next, nil
	}
	return ack
}

func (a *acks) takeDirty(f *flight) []*brokerv1.AckPosition {
	n, bytes := 0, 0
	for n < min(len(a.dirty), maxAckPositions) && bytes < maxAckBytes {
		bytes += 32 + 8*len(a.dirty[n].left)
		n++
	}
	f.entries = append(f.entries, a.dirty[:n]...)
	a.dirty = append(a.dirty[:0], a.dirty[n:]...)
	positions := make([]*brokerv1.AckPosition, n)
	for i, h := range f.entries {
		h.dirty = false
		positions[i] = ackPosition(h.at, h.left)
	}
	return positions
}

func ackPosition(at place, left bitset) *brokerv1.AckPosition {
	p := brokerv1.AckPosition_builder{Ledger: &at.ledger, Entry: &at.entry}.Build()
	if !left.empty() {
		p.SetAckSet(append([]uint64(nil), left...))
	}
	return p
}

// answered takes the answer to request id. again tells that it is to be sent
// again, after a while.
func (a *acks) answered(id uint64, err error) (again bool) {
	f := a.flying
	if f == nil || f.id != id {
		return false
	}
	var said *codeError
	if err != nil && !(errors.As(err, &said) && said.permanent()) {
		a.again()
		a.now = false
		return true
	}
	a.flying = nil
	for _, h := range f.entries {
		h.refused = err
		a.settle(h)
	}
	if f.upTo != nil {
		for at, h := range a.entries {
			if !f.upTo.at.before(at) {
				h.refused = err
				a.settle(h)
			}
		}
	}
	resolve(f.groups, err)
	if len(a.dirty) == 0 && a.upTo == nil {
		resolve(a.next, err)
		a.next = nil
	}
	return false
}

func resolve(groups []*ackGroup, err error) {
	for _, g := range groups {
		g.err = err
		close(g.done)
	}
}

// again puts what is under way back: its answer will not come.
func (a *acks) again() {
	f := a.flying
	if f == nil {
		return
	}
	a.flying = nil
	for _, h := range f.entries {
		a.touch(h)
	}
	if f.upTo != nil && (a.upTo == nil || a.upTo.at.before(f.upTo.at)) {
		a.upTo = f.upTo
	}
	a.next = append(f.groups, a.next...)
	a.now = true
}

// void reports whether deliveries of an epoch are from before a seek.
func (a *acks) void(epoch uint64) bool { return a.voided && epoch <= a.voidThrough }

// end forgets everything and fails who waits.
func (a *acks) end(err error) {
	if a.flying != nil {
		resolve(a.flying.groups, err)
	}
	resolve(a.next, err)
	for _, h := range a.entries {
		h.void = true
	}
	*a = acks{epoch: a.epoch, told: a.told, voided: a.voided, voidThrough: a.voidThrough, entries: map[place]*handed{}}
}
