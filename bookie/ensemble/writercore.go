package ensemble

import (
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// send asks for one entry to go to one slot's bookie.
type send struct {
	slot int
	gen  uint32
	add  ledger.Add
}

// completion is an entry's outcome on its way to the application.
type completion struct {
	entry ledger.EntryID
	done  func(ledger.EntryID, error)
	err   error
	took  time.Duration
}

// timing holds the durations the core decides by; see Options.
type timing struct {
	addTimeout  time.Duration
	refillAfter time.Duration
}

// writerCore is the writer's state machine: events come in as method calls, with
// the time since the writer began; what should happen gathers in sends and acks,
// which the caller takes. It has no clock, goroutine, lock or IO.
//
// Invariants:
//   - an entry is acknowledged when ack quorum slots of the present ensemble have
//     it and all before it are acknowledged (A3, A4);
//   - while changing or sealed, lac does not move (E1);
//   - members are those of the last fragment of md, as stored (E3);
//   - window.first <= lac+1 <= window.next; entries in (lac, next) are in flight;
//   - an acknowledged entry leaves the window only when each bookie of its
//     fragment has it or short names the bookie that does not (A9).
type writerCore struct {
	md     ledger.Metadata // as last known to be stored
	timing timing
	over   func(slot int) bool // too many bytes on the way to the slot's bookie

	window window
	slots  []slot
	live   uint16 // bits of the slots that are not vacant
	short  shortList

	lac      ledger.EntryID // last add confirmed
	lacTotal int64          // bodies up to it
	total    int64          // bodies appended
	headAt   time.Duration  // when lac+1 became the head, or was appended

	changing bool  // an ensemble change is being written (E1)
	closing  bool  // takes no more appends
	sealed   bool  // acknowledges nothing more
	stuck    error // can take no more appends, but can be sealed
	failed   error // over: everything in flight was answered

	neededAt time.Duration // next attempt at a change the head waits for
	wantedAt time.Duration // next attempt at one it can do without

	heldBytes    int64 // cost of the entries in the window
	laggingBytes int64 // those of them that are acknowledged

	sends []send
	acks  []completion
}

// newWriterCore starts a writer of a ledger just created with md.
func newWriterCore(now time.Duration, md ledger.Metadata, t timing, over func(int) bool) *writerCore {
	c := &writerCore{md: md, timing: t, over: over, lac: ledger.NoEntry, slots: make([]slot, md.Quorum.Write)}
	for s, m := range md.Last().Ensemble {
		c.slots[s].put(now, m, 0)
	}
	c.countLive()
	return c
}

func (c *writerCore) countLive() {
	c.live = 0
	for s := range c.slots {
		if !c.slots[s].member.Vacant() {
			c.live |= 1 << s
		}
	}
}

// refusal is why an append is refused now; nil: it is not.
func (c *writerCore) refusal() error {
	switch {
	case c.failed != nil:
		return c.failed
	case c.stuck != nil:
		return c.stuck
	case c.closing || c.sealed:
		return fmt.Errorf("ledger %d is being closed: %w", c.md.ID, ledger.ErrClosed)
	}
	return nil
}

// append takes one entry (A1). refusal must be nil.
func (c *writerCore) append(now time.Duration, body []byte, crc uint32, done func(ledger.EntryID, error)) ledger.EntryID {
	e := c.window.next
	c.total += int64(len(body))
	c.window.push(pending{body: body, done: done, total: c.total, at: now, crc: crc})
	c.heldBytes += c.window.at(e).cost()
	if e == c.lac+1 {
		c.headAt = now
	}
	for s := range c.slots {
		c.pump(now, s)
	}
	return e
}

// pump sends slot s what it lacks, in order of ids, as far as its health and the
// bytes on their way allow.
func (c *writerCore) pump(now time.Duration, s int) {
	sl, bit := &c.slots[s], uint16(1)<<s
	if sl.member.Vacant() || c.sealed || c.failed != nil {
		return
	}
	for sl.next = max(sl.next, c.window.first); sl.next < c.window.next; sl.next++ {
		if sl.health == failing && (sl.waiting > 0 || now < sl.retryAt) {
			return
		}
		if sl.waiting > 0 && c.over(s) {
			return
		}
		p := c.window.at(sl.next)
		if (p.ok|p.sent|p.left)&bit != 0 {
			continue
		}
		p.sent |= bit
		if sl.waiting == 0 {
			sl.moved = now
		}
		sl.waiting++
		c.sends = append(c.sends, send{slot: s, gen: sl.gen, add: ledger.Add{
			Envelope: c.envelope(sl.next, p), Body: p.body, Create: !sl.created,
		}})
	}
}

// envelope of an entry that is sent now. Its LAC is never above what was
// acknowledged (A6), nor, when an acknowledged entry is sent again, above what
// an envelope may say.
func (c *writerCore) envelope(e ledger.EntryID, p *pending) ledger.Envelope {
	return ledger.Envelope{
		Class: c.md.Class, Ledger: c.md.ID, Entry: e, LAC: min(c.lac, e-1),
		TotalBytes: p.total, BodyBytes: uint32(len(p.body)), BodyCRC: p.crc,
	}
}

// answered takes the answer to one send. Answers of a bookie that no longer
// holds the slot are dropped (A3, E11).
func (c *writerCore) answered(now time.Duration, s int, gen uint32, e ledger.EntryID, err error) {
	sl, bit := &c.slots[s], uint16(1)<<s
	if c.failed != nil || sl.gen != gen {
		return
	}
	sl.waiting--
	sl.moved = now
	switch v := judge(err); v {
	case stored:
		sl.worked()
		if e < c.window.first { // its body was dropped meanwhile
			c.short.confirm(sl.member, e, e)
			break
		}
		c.window.at(e).ok |= bit // also after it is complete: a change may undo that (A5)
		c.advance(now)
		c.release()
	case shutOut:
		c.die(fmt.Errorf("add entry %d to ledger %d: %w", e, c.md.ID, err))
		return
	case refused, uncertain:
		sl.failed(now, v == refused)
		if errors.Is(err, ledger.ErrTooLarge) {
			sl.tooLarge = err
		}
		if e >= c.window.first {
			c.window.at(e).sent &^= bit
			sl.next = min(sl.next, e)
		}
	}
	c.pump(now, s)
}

// advance acknowledges what is complete, in order (A4), unless a change is being
// written (E1).
func (c *writerCore) advance(now time.Duration) {
	for !c.changing && !c.sealed && c.lac+1 < c.window.next {
		p := c.window.at(c.lac + 1)
		if bits.OnesCount16(p.ok) < c.md.Quorum.Ack {
			return
		}
		c.lac++
		c.lacTotal, c.headAt = p.total, now
		p.left |= ^c.live // its fragment is settled: a vacant slot stays without it
		c.laggingBytes += p.cost()
		c.acks = append(c.acks, completion{entry: c.lac, done: p.done, took: now - p.at})
		p.done = nil
	}
}

// release lets go of acknowledged entries that every bookie has.
func (c *writerCore) release() {
	for c.window.first <= c.lac {
		if p := c.window.at(c.window.first); (p.ok|p.left)&c.live != c.live {
			return
		}
		c.pop()
	}
}

// drop lets go of acknowledged entries until at least bytes are freed, noting
// which bookie lacks them (A12).
func (c *writerCore) drop(bytes int64) {
	for freed := int64(0); freed < bytes && c.window.first <= c.lac; c.release() {
		p := c.window.at(c.window.first)
		freed += p.cost()
		for s := range c.slots {
			c.note(s, c.window.first, p)
		}
		c.pop()
	}
}

func (c *writerCore) pop() {
	n := c.window.at(c.window.first).cost()
	c.heldBytes -= n
	c.laggingBytes -= n
	c.window.pop()
}

// note enters an acknowledged entry in the short list if slot s lacks it.
func (c *writerCore) note(s int, e ledger.EntryID, p *pending) {
	sl, bit := &c.slots[s], uint16(1)<<s
	if (p.ok|p.left)&bit == 0 && !sl.member.Vacant() {
		c.short.add(sl.member, !sl.created, e)
		p.left |= bit
	}
}

// tick lets time pass: it finds bookies that do not answer, and tries failing
// ones again.
func (c *writerCore) tick(now time.Duration) {
	if c.failed != nil {
		return
	}
	for s := range c.slots {
		sl := &c.slots[s]
		if sl.member.Vacant() {
			continue
		}
		if sl.health == healthy && c.silent(now, s) {
			sl.health, sl.since = suspect, now
		}
		c.pump(now, s)
	}
}

// silent reports whether slot s let the add timeout pass: it has answered
// nothing, or everything but the entry that all others wait for.
func (c *writerCore) silent(now time.Duration, s int) bool {
	sl, bit := &c.slots[s], uint16(1)<<s
	if sl.waiting == 0 {
		return false
	}
	if now-sl.moved >= c.timing.addTimeout {
		return true
	}
	if c.lac+1 == c.window.next {
		return false
	}
	head := c.window.at(c.lac + 1)
	return head.sent&bit != 0 && head.ok&bit == 0 && now-max(c.headAt, sl.placed) >= c.timing.addTimeout
}

// needsChange reports whether the head cannot complete with the bookies there
// are: too many of them fail or keep silent (A8, with delay).
func (c *writerCore) needsChange(now time.Duration) bool {
	if !c.mayChange() || now < c.neededAt || c.lac+1 == c.window.next {
		return false
	}
	head, hopeful := c.window.at(c.lac+1), 0
	for s := range c.slots {
		sl := &c.slots[s]
		if head.ok&(1<<s) != 0 || !sl.member.Vacant() && sl.health == healthy {
			hopeful++
		}
	}
	return hopeful < c.md.Quorum.Ack
}

// wantsChange reports whether a slot has been vacant, failing or silent for so
// long that another bookie should have it, although the head can do without.
func (c *writerCore) wantsChange(now time.Duration) bool {
	if !c.mayChange() || c.closing || now < c.wantedAt {
		return false
	}
	for s := range c.slots {
		if sl := &c.slots[s]; c.unwell(s) && now-sl.since >= c.timing.refillAfter {
			return true
		}
	}
	return false
}

func (c *writerCore) mayChange() bool {
	return !c.changing && !c.sealed && c.stuck == nil && c.failed == nil
}

// unwell: vacant, or not healthy.
func (c *writerCore) unwell(s int) bool {
	return c.slots[s].member.Vacant() || c.slots[s].health != healthy
}

// errTooManyFragments makes the writer roll: its record would grow too large.
var errTooManyFragments = errors.New("ensemble: too many ensemble changes in one ledger")

// beginChange freezes acknowledgements (E1) and returns the record to be stored,
// with the unwell slots given to other bookies from lac+1 on (E2). ok is false
// when no slot can be improved: nothing is frozen then, and it is tried again
// later (E7).
func (c *writerCore) beginChange(now time.Duration, p *placer) (next ledger.Metadata, ok bool) {
	if !c.mayChange() {
		return ledger.Metadata{}, false
	}
	c.neededAt, c.wantedAt = now+neededRetry, now+c.timing.refillAfter
	ensemble := c.improved(p)
	f := ledger.Fragment{First: c.lac + 1, Ensemble: ensemble}
	if ensemble == nil || f.Live() < c.md.Quorum.Ack {
		if c.outOfRoom(now, p) {
			c.stuck = fmt.Errorf("ledger %d: its bookies take nothing more: %w", c.md.ID, p.missing(c.md.Quorum))
		}
		return ledger.Metadata{}, false
	}
	next = c.md.Clone()
	if last := next.Last(); last.First == f.First {
		*last = f
	} else if len(next.Fragments) == ledger.MaxFragments {
		c.stuck = fmt.Errorf("ledger %d: %w", c.md.ID, errTooManyFragments)
		return ledger.Metadata{}, false
	} else {
		next.Fragments = append(next.Fragments, f)
	}
	c.changing = true
	return next, true
}

// outOfRoom reports whether, for roomPatience, so many bookies have refused adds
// for being read-only, or for taking no entries as large as there may be, that no ack
// quorum is left and nobody can take their places.
// What the ledger holds can only be trimmed once it is closed, and that may be what
// fills their disks: so its writer gives it up (M28).
func (c *writerCore) outOfRoom(now time.Duration, p *placer) bool {
	takers := 0
	for s := range c.slots {
		switch sl := &c.slots[s]; {
		case sl.member.Vacant():
		case sl.health == failing && p.refuses(sl.member) && now-sl.since >= roomPatience:
		default:
			takers++
		}
	}
	return takers < c.md.Quorum.Ack && c.lac >= 0
}

// roomPatience is how long bookies may refuse adds for want of room before a ledger
// is given up for it.
const roomPatience = 5 * time.Second

// neededRetry spaces out attempts at a change for which no bookie was found.
const neededRetry = 100 * time.Millisecond

// improved returns the ensemble that is to follow the present one; nil: there is
// no better one. A bookie that fails for good, or is gone, leaves its slot vacant
// when nobody can take it and an ack quorum remains (M12); one that may come
// back keeps it.
func (c *writerCore) improved(p *placer) []ledger.Member {
	ensemble := make([]ledger.Member, len(c.slots))
	var out []ledger.Member // what leaves, none of which may come back at once (E5)
	for s := range c.slots {
		if sl := &c.slots[s]; !c.unwell(s) {
			ensemble[s] = sl.member
		} else if !sl.member.Vacant() {
			out = append(out, sl.member)
		}
	}
	p.fill(ensemble, out...)
	for s := range c.slots { // a bookie that is only slow is not replaced by everyone at once (A10)
		if m := c.slots[s].member; !ensemble[s].Vacant() && !m.Vacant() && c.slots[s].health == suspect &&
			p.mayReplaceSlow != nil && !p.mayReplaceSlow(m) {
			ensemble[s] = ledger.Member{}
		}
	}
	keep := func(ifHopeless bool) {
		for s := range c.slots {
			m := c.slots[s].member
			hopeless := c.slots[s].definite || !p.listed(m)
			if ensemble[s].Vacant() && !named(ensemble, m.Bookie) && hopeless == ifHopeless {
				ensemble[s] = m
			}
		}
	}
	keep(false)
	if f := (ledger.Fragment{Ensemble: ensemble}); f.Live() < c.md.Quorum.Ack {
		keep(true)
	}
	for s := range c.slots {
		if ensemble[s] != c.slots[s].member {
			return ensemble
		}
	}
	return nil
}

// changeStored makes the ensemble of a stored change the present one (E3): new
// bookies get every entry that is not acknowledged, and what the old ones had of
// those does not count any more (E6). md is the record as it now stands.
func (c *writerCore) changeStored(now time.Duration, md ledger.Metadata) {
	c.changing = false
	if c.failed != nil {
		return
	}
	var swapped uint16
	for s, m := range md.Last().Ensemble {
		if m != c.slots[s].member {
			swapped |= 1 << s
		}
	}
	for e := c.window.first; e < c.window.next; e++ {
		p := c.window.at(e)
		if e > c.lac {
			p.ok &^= swapped
			p.sent &^= swapped
			continue
		}
		for s := range c.slots {
			if swapped&(1<<s) != 0 {
				c.note(s, e, p)
				p.left |= 1 << s
			}
		}
	}
	c.md = md
	for s, m := range md.Last().Ensemble {
		if swapped&(1<<s) != 0 {
			c.slots[s].put(now, m, c.lac+1)
		}
	}
	c.countLive()
	c.headAt = now
	c.resume(now)
}

// changeDropped ends a change that was surely not stored. md is the record as it
// stands: others may have swapped bookies in older fragments.
func (c *writerCore) changeDropped(now time.Duration, md ledger.Metadata) {
	c.changing = false
	c.md = md
	c.resume(now)
}

// resume goes on after a freeze: something may have been waiting only for that.
func (c *writerCore) resume(now time.Duration) {
	if c.failed != nil {
		return
	}
	c.advance(now)
	c.release()
	for s := range c.slots {
		c.pump(now, s)
	}
}

// seal stops acknowledging for good. Nothing in flight is answered.
func (c *writerCore) seal() { c.closing, c.sealed = true, true }

// tail hands out the entries above lac, whose done functions become the caller's
// to call, and ends the writer with err.
func (c *writerCore) tail(err error) []Unacked {
	var tail []Unacked
	for e := c.lac + 1; e < c.window.next; e++ {
		p := c.window.at(e)
		tail = append(tail, Unacked{Body: p.body, CRC: p.crc, Done: p.done})
	}
	c.end(err)
	return tail
}

// die ends the writer: everything in flight is of unknown outcome (A7).
func (c *writerCore) die(err error) {
	if c.failed != nil {
		return
	}
	for e := c.lac + 1; e < c.window.next; e++ {
		c.acks = append(c.acks, completion{entry: e, done: c.window.at(e).done, err: err})
	}
	c.end(err)
}

func (c *writerCore) end(err error) {
	c.failed = err
	c.window = window{first: c.window.next, next: c.window.next}
	c.heldBytes, c.laggingBytes = 0, 0
	c.sends = nil
}

// drained reports that nothing is in flight.
func (c *writerCore) drained() bool { return c.lac+1 == c.window.next && !c.changing }

// copying reports that entries lack copies only because bookies that are well
// have not answered yet.
func (c *writerCore) copying() bool {
	for s := range c.slots {
		if !c.slots[s].member.Vacant() && c.slots[s].health != healthy {
			return false
		}
	}
	return c.window.len() > 0
}

// verify reports whether the closing record must ask for verification (M15).
func (c *writerCore) verify() bool {
	if !c.short.empty() || c.window.first <= c.lac {
		return true
	}
	for i, f := range c.md.Fragments {
		if f.Vacant() > 0 && f.First < c.md.End(i, c.lac+1) {
			return true
		}
	}
	return false
}

// nextTick is how long until tick has something to do; 0: nothing is held.
func (c *writerCore) nextTick(now time.Duration) time.Duration {
	if c.failed != nil || c.window.len() == 0 {
		return 0
	}
	wait := max(c.timing.addTimeout/8, time.Millisecond)
	for s := range c.slots {
		if sl := &c.slots[s]; sl.health == failing && sl.waiting == 0 {
			wait = min(wait, max(sl.retryAt-now, time.Millisecond))
		}
	}
	return wait
}
