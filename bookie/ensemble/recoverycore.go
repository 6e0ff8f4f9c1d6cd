package ensemble

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// errSuperseded reports that another recoverer has a higher term.
var errSuperseded = errors.New("ensemble: another recovery took over")

// recoveryAsk is what a recovery asks of one bookie. Exactly one of its parts is
// set.
type recoveryAsk struct {
	slot   int
	member ledger.Member
	fence  bool
	read   ledger.ReadRequest // Last >= First when set
	add    *ledger.Add
	gen    uint32 // of add: the slot's generation
}

// found is an entry that recovery has read and is adding again.
type found struct {
	entry ledger.Entry
	ok    uint16 // slots of the recoverer's ensemble that have it
}

// heard is what the bookies said about an entry that is not decided yet.
type heard struct {
	absent uint16 // slots that surely lack it
	mute   uint16 // slots that cannot say
}

// recoveryCore is the state machine of one attempt to close a ledger: events in
// as method calls, what to ask of whom gathers in asks. It has no clock,
// goroutine, lock or IO.
//
// It starts with the record as its own compare-and-swap to IN_RECOVERY left it
// (R1), fences that record's last fragment (R2, R3), reads it forward with
// fencing reads (R5–R8) and adds what it finds again (R9). The ensemble it adds
// to may change; that stays in memory until the closing write.
//
// Invariants:
//   - reads go to the fragment of the record, never to the changed one;
//   - added <= decided: entries (added, decided] are being added again;
//   - an entry is decided when one bookie has it, and the end is decided when
//     entry decided+1 is surely on no ack quorum (R7).
type recoveryCore struct {
	md        ledger.Metadata
	frag      ledger.Fragment // the record's last
	readBytes int

	// fencing and reading, by slot of frag
	fenced   uint16
	unfenced uint16 // the fence failed
	dead     uint16 // a read failed: asked nothing more in this attempt
	reading  uint16 // a read is out
	cursor   []ledger.EntryID
	covered  bool
	lac      ledger.EntryID
	start    ledger.EntryID // everything up to it is acknowledged
	decided  ledger.EntryID
	ended    bool
	opinions map[ledger.EntryID]heard

	// adding, by slot of the recoverer's ensemble
	fragments []ledger.Fragment
	members   []ledger.Member
	gen       []uint32
	created   []bool
	adding    []int // adds out
	failing   uint16
	failedOut []ledger.Member // failed and replaced: not asked again in this attempt
	added     ledger.EntryID
	total     int64                     // bodies up to added, once an entry was added
	window    []found                   // entries (added, decided]
	windowLen int                       // bytes of bodies in it
	crcs      map[ledger.EntryID]uint32 // of decided entries that a slow reader may still answer for

	asks   []recoveryAsk
	failed error
}

const (
	recoveryReadEntries = 256     // in one read
	recoveryAheadBytes  = 4 << 20 // read and not yet added again
)

// newRecoveryCore starts an attempt on the record that this recoverer's
// compare-and-swap wrote.
func newRecoveryCore(md ledger.Metadata, readBytes int) *recoveryCore {
	n := md.Quorum.Write
	c := &recoveryCore{
		md: md, frag: *md.Last(), readBytes: readBytes, lac: ledger.NoEntry,
		cursor: make([]ledger.EntryID, n), opinions: make(map[ledger.EntryID]heard),
		fragments: md.Clone().Fragments, members: append([]ledger.Member(nil), md.Last().Ensemble...),
		gen: make([]uint32, n), created: make([]bool, n), adding: make([]int, n),
		crcs: make(map[ledger.EntryID]uint32),
	}
	for s, m := range c.frag.Ensemble {
		if m.Vacant() {
			c.dead |= 1 << s
			continue
		}
		c.asks = append(c.asks, recoveryAsk{slot: s, member: m, fence: true})
	}
	return c
}

// fenceAnswered takes a bookie's answer to the fence. ErrUnknown comes with a
// reply: fenced all the same.
func (c *recoveryCore) fenceAnswered(s int, reply ledger.FenceReply, err error) {
	if c.failed != nil {
		return
	}
	if err != nil && !errors.Is(err, ledger.ErrUnknown) {
		c.notFenced(s, err)
		return
	}
	c.fenced |= 1 << s
	c.lac = max(c.lac, reply.LAC)
	if !c.covered && c.md.Quorum.Covered(bits.OnesCount16(c.fenced), c.frag.Vacant()) {
		c.cover()
	}
}

// cover begins to read: no old writer can assemble an ack quorum any more (R3).
func (c *recoveryCore) cover() {
	c.covered = true
	c.start = max(c.lac, c.frag.First-1) // R5
	c.decided, c.added = c.start, c.start
	for s := range c.cursor {
		c.cursor[s] = c.start + 1
	}
	c.readOn()
}

// readOn asks every slot that has not yet spoken about the first undecided
// entry, fencing it in the same breath (R6).
func (c *recoveryCore) readOn() {
	if !c.covered || c.ended || c.failed != nil {
		return
	}
	// Adds that are under way free room and come back here. Where there are none,
	// what fills the window lies beyond a hole, and only reading on decides that.
	if c.windowLen > recoveryAheadBytes && c.added < c.decided {
		return
	}
	for s, m := range c.frag.Ensemble {
		bit := uint16(1) << s
		c.cursor[s] = max(c.cursor[s], c.decided+1)
		if (c.dead|c.reading)&bit != 0 || c.cursor[s] > c.decided+1 {
			continue
		}
		c.reading |= bit
		c.asks = append(c.asks, recoveryAsk{slot: s, member: m, read: ledger.ReadRequest{
			Ledger: c.md.ID, First: c.cursor[s], Last: c.cursor[s] + recoveryReadEntries - 1,
			MaxBytes: c.readBytes, FenceTerm: c.md.Term,
		}})
	}
}

// readAnswered takes a bookie's answer to a read that began at first.
func (c *recoveryCore) readAnswered(s int, first ledger.EntryID, reply ledger.ReadReply, err error) {
	c.reading &^= 1 << s
	if c.failed != nil || c.ended {
		return
	}
	switch {
	case errors.Is(err, ledger.ErrNoLedger), errors.Is(err, ledger.ErrNoEntry):
		// Surely not there, and fenced by the read itself.
		reply = ledger.ReadReply{Entries: []ledger.ReadEntry{{Status: ledger.Absent}}, LAC: ledger.NoEntry}
	case err != nil:
		c.notRead(s, err)
		return
	case len(reply.Entries) == 0:
		c.notRead(s, fmt.Errorf("an answer without entries: %w", ledger.ErrUnknown))
		return
	}
	for i := range reply.Entries {
		c.opinion(s, first+ledger.EntryID(i), &reply.Entries[i])
		if c.failed != nil {
			return
		}
	}
	c.cursor[s] = max(c.cursor[s], first+ledger.EntryID(len(reply.Entries)))
	c.decide()
}

// opinion notes what slot s says of entry e. Damage, like any error, is never a
// negative (R7).
func (c *recoveryCore) opinion(s int, e ledger.EntryID, r *ledger.ReadEntry) {
	bit := uint16(1) << s
	o := c.opinions[e]
	switch {
	case r.Status == ledger.Found && r.Entry.Check(c.md.ID, e) == nil:
		c.take(e, r.Entry)
		return
	case r.Status == ledger.Absent:
		o.absent |= bit
	default:
		o.mute |= bit
	}
	if e > c.decided {
		c.opinions[e] = o
	}
}

// take keeps a found entry. Bodies are compared, not envelopes: copies of one
// entry may have been sent with different LACs (R10).
func (c *recoveryCore) take(e ledger.EntryID, entry ledger.Entry) {
	if crc, ok := c.crcs[e]; ok {
		if crc != entry.Envelope.BodyCRC {
			c.fail(fmt.Errorf("entry %d of ledger %d has two bodies: %w", e, c.md.ID, ledger.ErrCorrupt))
		}
		return
	}
	if e <= c.decided {
		return
	}
	c.crcs[e] = entry.Envelope.BodyCRC
	c.place(e, entry)
}

// place keeps a found entry in the window, which may have holes beyond decided.
func (c *recoveryCore) place(e ledger.EntryID, entry ledger.Entry) {
	i := int(e - c.added - 1)
	for len(c.window) <= i {
		c.window = append(c.window, found{})
	}
	c.window[i].entry = entry
	c.windowLen += len(entry.Body)
}

// has reports whether entry e, above added, was found.
func (c *recoveryCore) has(e ledger.EntryID) bool {
	i := int(e - c.added - 1)
	return i < len(c.window) && c.window[i].entry.Envelope.Ledger != 0
}

// decide settles entries in order: one that exists is added again, one that is
// surely on no ack quorum ends the ledger, as soon as that is sure (R8).
func (c *recoveryCore) decide() {
	for c.failed == nil && !c.ended {
		e := c.decided + 1
		if c.has(e) {
			c.decided = e
			delete(c.opinions, e)
			c.sendAll(e)
			continue
		}
		o := c.opinions[e]
		if c.md.Quorum.Covered(bits.OnesCount16(o.absent), c.frag.Vacant()) {
			c.ended = true
			c.window = c.window[:min(len(c.window), int(c.decided-c.added))]
			break
		}
		// Who may still speak about e?
		open := 0
		for s := range c.frag.Ensemble {
			if bit := uint16(1) << s; (c.dead|o.absent|o.mute)&bit == 0 {
				open++
			}
		}
		if open == 0 {
			c.fail(fmt.Errorf("entry %d of ledger %d: %d bookies lack it, which does not prove that it was never acknowledged: %w",
				e, c.md.ID, bits.OnesCount16(o.absent)+c.frag.Vacant(), ledger.ErrUnknown))
		}
		break
	}
	c.readOn()
}

// notFenced notes that the fence of slot s failed. A recovery read may fence it
// yet, but that does not count for coverage.
func (c *recoveryCore) notFenced(s int, err error) {
	if c.over(err) {
		return
	}
	c.unfenced |= 1 << s
	possible := 0
	for s, m := range c.frag.Ensemble {
		if !m.Vacant() && c.unfenced&(1<<s) == 0 {
			possible++
		}
	}
	if !c.covered && !c.md.Quorum.Covered(possible, c.frag.Vacant()) {
		c.fail(fmt.Errorf("ledger %d: too few of its bookies can be fenced: %w (%w)", c.md.ID, ledger.ErrUnknown, err))
	}
}

// notRead notes that slot s failed a read: it says nothing more in this attempt.
func (c *recoveryCore) notRead(s int, err error) {
	if c.over(err) {
		return
	}
	c.dead |= 1 << s
	c.decide()
}

// over fails the attempt if err means that nobody can finish it at this term.
func (c *recoveryCore) over(err error) bool {
	switch {
	case errors.Is(err, ledger.ErrFenced), errors.Is(err, ledger.ErrClosed):
		c.fail(fmt.Errorf("ledger %d at term %d: %w (%w)", c.md.ID, c.md.Term, errSuperseded, err))
	case errors.Is(err, ledger.ErrDeleted):
		c.fail(fmt.Errorf("recover ledger %d: %w", c.md.ID, err))
	default:
		return false
	}
	return true
}

// sendAll adds entry e again to every bookie of the recoverer's ensemble.
func (c *recoveryCore) sendAll(e ledger.EntryID) {
	for s := range c.members {
		c.send(s, e)
	}
}

func (c *recoveryCore) send(s int, e ledger.EntryID) {
	bit := uint16(1) << s
	if c.members[s].Vacant() || c.failing&bit != 0 {
		return
	}
	w := &c.window[e-c.added-1]
	c.adding[s]++
	c.asks = append(c.asks, recoveryAsk{slot: s, member: c.members[s], gen: c.gen[s], add: &ledger.Add{
		Envelope: w.entry.Envelope, Body: w.entry.Body, Create: !c.created[s], RecoveryTerm: c.md.Term,
	}})
}

// addAnswered takes a bookie's answer to an entry that was added again.
func (c *recoveryCore) addAnswered(s int, gen uint32, e ledger.EntryID, err error) {
	if c.failed != nil || c.gen[s] != gen {
		return
	}
	c.adding[s]--
	switch {
	case err == nil:
		c.created[s] = true
		if e <= c.added {
			return
		}
		c.window[e-c.added-1].ok |= 1 << s
		c.advance()
	case c.over(err):
	default:
		c.failing |= 1 << s
	}
}

// advance moves added over what has an ack quorum, in order.
func (c *recoveryCore) advance() {
	n := 0
	for n < int(c.decided-c.added) && bits.OnesCount16(c.window[n].ok) >= c.md.Quorum.Ack {
		c.total = c.window[n].entry.Envelope.TotalBytes
		c.windowLen -= len(c.window[n].entry.Body)
		delete(c.crcs, c.added+1+ledger.EntryID(n))
		n++
	}
	if n == 0 {
		return
	}
	clear(c.window[:n])
	c.window = c.window[n:]
	c.added += ledger.EntryID(n)
	c.readOn()
}

// needsBookies reports that an entry cannot get its ack quorum of copies from
// the ensemble as it is.
func (c *recoveryCore) needsBookies() bool {
	if c.failed != nil || !c.covered || c.added == c.decided {
		return false
	}
	able := 0
	for s, m := range c.members {
		if bit := uint16(1) << s; c.window[0].ok&bit != 0 || !m.Vacant() && c.failing&bit == 0 {
			able++
		}
	}
	return able < c.md.Quorum.Ack
}

// replace gives the failing and vacant slots to other bookies from entry added+1
// on, in memory only (R9), and sends them what they lack. It fails when too few
// are to be had.
func (c *recoveryCore) replace(p *placer) {
	next := append([]ledger.Member(nil), c.members...)
	for s, m := range next {
		if c.failing&(1<<s) != 0 {
			c.failedOut = append(c.failedOut, m)
			next[s] = ledger.Member{}
		}
	}
	p.fill(next, c.failedOut...)
	f := ledger.Fragment{First: c.added + 1, Ensemble: next}
	if f.Live() < c.md.Quorum.Ack {
		c.fail(fmt.Errorf("recover ledger %d: %w", c.md.ID, p.missing(c.md.Quorum)))
		return
	}
	if last := &c.fragments[len(c.fragments)-1]; last.First == f.First {
		*last = f
	} else {
		c.fragments = append(c.fragments, f)
	}
	for s, m := range next {
		if m == c.members[s] {
			continue
		}
		c.members[s], c.created[s], c.adding[s] = m, false, 0
		c.gen[s]++
		c.failing &^= 1 << s
		for e := c.added + 1; e <= c.decided; e++ {
			c.window[e-c.added-1].ok &^= 1 << s
			c.send(s, e)
		}
	}
}

// largestBody is that of the entries a bookie that joins now is sent first.
func (c *recoveryCore) largestBody() int64 {
	largest := 0
	for i := range c.window {
		largest = max(largest, len(c.window[i].entry.Body))
	}
	return int64(largest)
}

// stalled gives up on every bookie that owes an answer: none came for the add
// timeout.
func (c *recoveryCore) stalled() {
	for s := range c.members {
		if c.adding[s] > 0 {
			c.failing |= 1 << s
		}
	}
	late := fmt.Errorf("no answer in time: %w", ledger.ErrUnknown)
	for s, m := range c.frag.Ensemble {
		bit := uint16(1) << s
		if !m.Vacant() && (c.fenced|c.unfenced)&bit == 0 {
			c.notFenced(s, late)
		}
		if c.reading&bit != 0 && !c.ended {
			c.notRead(s, late)
		}
	}
}

func (c *recoveryCore) fail(err error) {
	if c.failed == nil {
		c.failed = err
	}
}

// done reports that the end is known and all entries up to it are added again.
func (c *recoveryCore) done() bool {
	return c.failed == nil && c.ended && c.added == c.decided
}

// closed returns the closing record. length counts when no entry was added again
// (R12). Nobody knows which entries have all their copies, so they are to be
// verified (M15).
func (c *recoveryCore) closed(length int64) ledger.Metadata {
	md := c.md.Clone()
	md.State, md.LastEntry, md.Length, md.Verify = ledger.Closed, c.added, length, true
	if c.added > c.start {
		md.Length = c.total
	}
	md.Fragments = c.fragments
	return md
}
