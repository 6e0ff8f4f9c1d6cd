package ensemble

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// world is a ledger, its bookies, one writer and any number of recoverers, all
// driven by one random source: every message is a card in a deck from which any
// may be played next, lost, or played twice. The cores are the real ones;
// bookies and store are models that keep their promises unless a flaw is set.
type world struct {
	rng     *rand.Rand
	q       ledger.Quorum
	bookies []*modelBookie
	record  ledger.Metadata
	rev     meta.Revision
	now     time.Duration
	deck    []card
	calm    bool // nothing is lost or delayed any more

	writer   *writerCore
	writing  bool // a change or close is being written
	appended int
	acked    ledger.EntryID
	recovers []*modelRecoverer
	flaws    flaws
	trace    []string
	wrong    string // first invariant found broken
}

// flaws are promises broken on purpose, to show that the explorer would notice.
type flaws struct {
	fenceForgotten    bool // a crash forgets fences: R4
	readsDoNotFence   bool // R6
	vacantTwice       bool // recovery counts a vacant slot twice: M12
	ackWhileChanging  bool // E1
	keepOldMarks      bool // E6
	oneNegativeIsOver bool // R7
	closeBeforeAdding bool // R10
}

type card struct {
	what string
	play func()
	lose func() // nil: cannot be lost
}

type modelBookie struct {
	name    string
	up      bool
	listed  bool
	known   bool
	term    int64
	entries map[ledger.EntryID]ledger.Entry
}

func (b *modelBookie) member() ledger.Member {
	return ledger.Member{Bookie: b.name, Incarnation: "1"}
}

var errLost = errors.New("connection lost")

func (w *world) say(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) fault(format string, args ...any) {
	if w.wrong == "" {
		w.wrong = fmt.Sprintf(format, args...)
		w.say("WRONG: %s", w.wrong)
	}
}

func (w *world) put(what string, play, lose func()) {
	w.deck = append(w.deck, card{what, play, lose})
}

func (w *world) bookie(m ledger.Member) *modelBookie {
	for _, b := range w.bookies {
		if b.name == m.Bookie {
			return b
		}
	}
	panic("no bookie " + m.Bookie)
}

// call sends a request to a bookie: it may be lost, it may arrive although its
// sender was told that it failed, its answer may be lost.
func (w *world) call(what string, m ledger.Member, act func(*modelBookie) func(), lost func()) {
	b := w.bookie(m)
	request := what + " -> " + b.name
	w.put(request, func() {
		if !b.up {
			w.put(request+" refused", lost, nil)
			return
		}
		answer := act(b)
		w.put(request+" answered", answer, lost)
		if !w.calm && w.rng.IntN(20) == 0 {
			w.put(request+" arrives again", func() { act(b) }, func() {})
		}
	}, func() {
		if w.rng.IntN(2) == 0 { // given up by its sender, still on its way
			w.put(request+" arrives late", func() {
				if b.up {
					act(b)
				}
			}, func() {})
		}
		w.put(request+" lost", lost, nil)
	})
}

func (b *modelBookie) add(a ledger.Add) error {
	e := ledger.Entry{Envelope: a.Envelope, Body: a.Body}
	if err := e.Check(a.Envelope.Ledger, a.Envelope.Entry); err != nil {
		return err
	}
	switch {
	case !b.known && !a.Create:
		return ledger.ErrNoLedger
	case a.RecoveryTerm < b.term:
		return ledger.ErrFenced
	}
	b.known = true
	if old, ok := b.entries[a.Envelope.Entry]; ok && string(old.Body) != string(a.Body) {
		return ledger.ErrCorrupt
	}
	b.entries[a.Envelope.Entry] = e
	return nil
}

func (b *modelBookie) fence(term int64) (ledger.FenceReply, error) {
	b.known = true
	if term < b.term {
		return ledger.FenceReply{}, ledger.ErrFenced
	}
	b.term = term
	r := ledger.FenceReply{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}
	for e, entry := range b.entries {
		r.LastEntry, r.LAC = max(r.LastEntry, e), max(r.LAC, entry.Envelope.LAC)
	}
	return r, nil
}

// newWorld creates the ledger on bookies that are all up.
func newWorld(seed uint64, q ledger.Quorum, spare int, f flaws) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 7)), q: q, acked: ledger.NoEntry, flaws: f}
	for i := range q.Write + spare {
		w.bookies = append(w.bookies, &modelBookie{
			name: string(rune('a' + i)), up: true, listed: true, entries: make(map[ledger.EntryID]ledger.Entry),
		})
	}
	if spare == 0 && q.Write > q.Ack && w.rng.IntN(2) == 0 {
		w.bookies[0].listed = false // born with a vacant slot
	}
	ensemble := make([]ledger.Member, q.Write)
	w.placer().fill(ensemble)
	w.record = ledger.Metadata{
		ID: 1, Quorum: q, State: ledger.Open, Term: 1, LastEntry: ledger.NoEntry,
		Fragments: []ledger.Fragment{{Ensemble: ensemble}}, Created: time.UnixMilli(1).UTC(),
	}
	w.rev = 1
	w.writer = newWriterCore(0, w.record.Clone(), timing{addTimeout: 2 * time.Second, refillAfter: 3 * time.Second},
		func(int) bool { return !w.calm && w.rng.IntN(8) == 0 })
	return w
}

func (w *world) placer() *placer {
	p := &placer{rand: w.rng.Uint64}
	for _, b := range w.bookies {
		if b.listed {
			p.candidates = append(p.candidates, Candidate{Member: b.member()})
		}
	}
	return p
}

// cas is a write of the record: it takes effect when it is played, at most once;
// its answer may be lost, and then the record is read again.
func (w *world) cas(what string, rev meta.Revision, next ledger.Metadata, decided func(meta.Revision, error)) {
	var answer func()
	write := func() {
		if w.rev == rev {
			if err := ledger.CheckTransition(&w.record, &next); err != nil {
				w.fault("%s: %v", what, err)
			}
			w.record = next.Clone()
			w.rev++
			w.checkRecord()
			mine := w.rev
			answer = func() { decided(mine, nil) }
			w.say("  record is now %v at %d, term %d, %v", w.record.State, w.record.LastEntry, w.record.Term, w.record.Fragments)
			return
		}
		value, _ := w.record.Encode()
		kv := meta.KV{Value: value, Revision: w.rev}
		answer = func() { decided(0, &movedError{id: 1, now: kv}) }
	}
	w.put(what, func() {
		write()
		w.put(what+" answered", func() { answer() }, nil)
	}, func() { decided(0, meta.ErrUnavailable) })
}

// checkRecord checks what must hold of a closed ledger.
func (w *world) checkRecord() {
	if w.record.State != ledger.Closed {
		return
	}
	if w.record.LastEntry < w.acked {
		w.fault("closed at %d, entry %d was acknowledged", w.record.LastEntry, w.acked)
	}
	total := int64(0)
	for e := ledger.EntryID(0); e <= w.record.LastEntry; e++ {
		copies := 0
		for _, m := range w.record.Fragments[w.record.FragmentOf(e)].Ensemble {
			if m.Vacant() {
				continue
			}
			if entry, ok := w.bookie(m).entries[e]; ok {
				copies++
				if string(entry.Body) != string(bodyOf(e)) {
					w.fault("entry %d holds %q", e, entry.Body)
				}
			}
		}
		if copies < w.q.Ack {
			w.fault("closed at %d, entry %d has %d copies on the bookies named", w.record.LastEntry, e, copies)
		}
		total += int64(len(bodyOf(e)))
	}
	if w.record.Length != total {
		w.fault("closed with length %d, want %d", w.record.Length, total)
	}
}

func bodyOf(e ledger.EntryID) []byte { return fmt.Appendf(nil, "entry %d", e) }

// pumpWriter takes what the writer's core asks for.
func (w *world) pumpWriter() {
	c := w.writer
	for _, a := range c.acks {
		if a.err != nil {
			continue
		}
		if a.entry != w.acked+1 {
			w.fault("entry %d acknowledged after %d", a.entry, w.acked)
		}
		w.acked = a.entry
		w.say("  acknowledged %d", a.entry)
		if w.record.State == ledger.Closed && a.entry > w.record.LastEntry {
			w.fault("entry %d acknowledged, the ledger is closed at %d", a.entry, w.record.LastEntry)
		}
	}
	c.acks = nil
	for _, s := range c.sends {
		env := s.add.Envelope
		if env.LAC > w.acked {
			w.fault("entry %d was sent with LAC %d, acknowledged is %d", env.Entry, env.LAC, w.acked)
		}
		w.call(fmt.Sprintf("add %d", env.Entry), c.slots[s.slot].member, func(b *modelBookie) func() {
			err := b.add(s.add)
			return func() { c.answered(w.now, s.slot, s.gen, env.Entry, err) }
		}, func() { c.answered(w.now, s.slot, s.gen, env.Entry, errLost) })
	}
	c.sends = nil
	if !w.writing && (c.needsChange(w.now) || c.wantsChange(w.now)) {
		w.change()
	}
}

func (w *world) change() {
	c := w.writer
	next, ok := c.beginChange(w.now, w.placer())
	if !ok {
		return
	}
	if w.flaws.ackWhileChanging {
		c.changing = false
	}
	w.writing = true
	rev := w.writerRev()
	w.cas(fmt.Sprintf("change at %d to %v", next.Last().First, next.Last().Ensemble), rev, next, func(_ meta.Revision, err error) {
		w.writing = false
		var moved *movedError
		switch {
		case err == nil:
			if w.flaws.keepOldMarks {
				marks := make(map[ledger.EntryID]uint16)
				for e := c.lac + 1; e < c.window.next; e++ {
					marks[e] = c.window.at(e).ok
				}
				defer func() {
					for e := c.lac + 1; e < c.window.next; e++ {
						c.window.at(e).ok |= marks[e]
					}
					c.advance(w.now)
				}()
			}
			c.changeStored(w.now, next)
		case errors.As(err, &moved):
			md, _, err := stillOurs(moved, &c.md)
			if err != nil {
				c.die(err)
				return
			}
			c.changeDropped(w.now, md)
		default:
			c.changeDropped(w.now, c.md)
		}
	})
}

// writerRev is the revision at which the writer knows the record: while it is
// OPEN, nobody but the writer changes it here.
func (w *world) writerRev() meta.Revision {
	if w.record.State == ledger.Open {
		return w.rev
	}
	return 0
}

// closeWriter closes the ledger if the writer may: it has drained, or it seals.
func (w *world) closeWriter(seal bool) {
	c := w.writer
	if seal {
		c.seal()
	}
	if w.writing || c.failed != nil || !c.sealed && !c.drained() {
		return
	}
	c.closing = true
	w.writing = true
	next := c.md.Clone()
	next.State, next.LastEntry, next.Length, next.Verify = ledger.Closed, c.lac, c.lacTotal, c.verify()
	w.cas(fmt.Sprintf("close at %d", c.lac), w.writerRev(), next, func(_ meta.Revision, err error) {
		w.writing = false
		var moved *movedError
		switch {
		case err == nil:
			c.tail(ledger.ErrClosed)
		case errors.As(err, &moved):
			c.die(ledger.ErrFenced)
		}
	})
}

// modelRecoverer is one process that recovers the ledger.
type modelRecoverer struct {
	w    *world
	name string
	core *recoveryCore
	rev  meta.Revision
	busy bool // the record is being written
	gone bool // crashed, or done
}

// begin is R1.
func (r *modelRecoverer) begin() {
	w := r.w
	r.core = nil
	if w.record.State == ledger.Closed {
		r.gone = true
		return
	}
	next := w.record.Clone()
	next.State, next.Term = ledger.InRecovery, next.Term+1
	r.busy = true
	w.cas(r.name+" begins recovery", w.rev, next, func(rev meta.Revision, err error) {
		r.busy = false
		if err == nil && !r.gone {
			r.rev, r.core = rev, newRecoveryCore(next, 1<<20)
			if w.flaws.vacantTwice {
				r.core.frag.Ensemble = append(r.core.frag.Ensemble[:len(r.core.frag.Ensemble):len(r.core.frag.Ensemble)], make([]ledger.Member, r.core.frag.Vacant())...)
				for s := len(next.Last().Ensemble); s < len(r.core.frag.Ensemble); s++ {
					r.core.dead |= 1 << s
					r.core.cursor = append(r.core.cursor, 0)
				}
			}
		}
	})
}

// step does what the recoverer's core asks for.
func (r *modelRecoverer) step() {
	w := r.w
	if r.gone || r.busy {
		return
	}
	if r.core == nil || r.core.failed != nil {
		if r.core != nil {
			w.say("  %s failed: %v", r.name, r.core.failed)
		}
		r.begin()
		return
	}
	c := r.core
	for c.needsBookies() {
		c.replace(w.placer())
	}
	for _, a := range c.asks {
		r.ask(c, a)
	}
	c.asks = nil
	if c.done() || w.flaws.closeBeforeAdding && c.failed == nil && c.ended {
		r.finish()
	}
}

func (r *modelRecoverer) ask(c *recoveryCore, a recoveryAsk) {
	w := r.w
	switch {
	case a.fence:
		w.call(r.name+" fence", a.member, func(b *modelBookie) func() {
			reply, err := b.fence(c.md.Term)
			return func() { c.fenceAnswered(a.slot, reply, err) }
		}, func() { c.fenceAnswered(a.slot, ledger.FenceReply{}, errLost) })
	case a.add != nil:
		e := a.add.Envelope.Entry
		w.call(fmt.Sprintf("%s adds %d again", r.name, e), a.member, func(b *modelBookie) func() {
			err := b.add(*a.add)
			return func() { c.addAnswered(a.slot, a.gen, e, err) }
		}, func() { c.addAnswered(a.slot, a.gen, e, errLost) })
	default:
		w.call(fmt.Sprintf("%s reads from %d", r.name, a.read.First), a.member, func(b *modelBookie) func() {
			if !w.flaws.readsDoNotFence {
				if _, err := b.fence(a.read.FenceTerm); err != nil {
					return func() { c.readAnswered(a.slot, a.read.First, ledger.ReadReply{}, err) }
				}
			}
			var reply ledger.ReadReply
			for e := a.read.First; e < a.read.First+1+ledger.EntryID(w.rng.IntN(4)); e++ {
				if entry, ok := b.entries[e]; ok {
					reply.Entries = append(reply.Entries, ledger.ReadEntry{Status: ledger.Found, Entry: entry})
				} else {
					reply.Entries = append(reply.Entries, ledger.ReadEntry{Status: ledger.Absent})
				}
			}
			return func() {
				c.readAnswered(a.slot, a.read.First, reply, nil)
				if w.flaws.oneNegativeIsOver && c.failed == nil && !c.ended && c.opinions[c.decided+1].absent != 0 && !c.has(c.decided+1) {
					c.ended = true
					c.window = c.window[:c.decided-c.added]
				}
			}
		}, func() { c.readAnswered(a.slot, a.read.First, ledger.ReadReply{}, errLost) })
	}
}

func (r *modelRecoverer) finish() {
	w, c := r.w, r.core
	length := int64(0)
	last := c.added
	if w.flaws.closeBeforeAdding {
		last = c.decided
	}
	for e := ledger.EntryID(0); e <= last; e++ {
		length += int64(len(bodyOf(e)))
	}
	next := c.closed(length)
	if w.flaws.closeBeforeAdding {
		next.LastEntry, next.Length = last, length
	}
	r.busy = true
	w.cas(fmt.Sprintf("%s closes at %d", r.name, next.LastEntry), r.rev, next, func(_ meta.Revision, err error) {
		r.busy = false
		if err == nil {
			r.gone = true
		} else {
			c.fail(err)
		}
	})
}

// step does one random thing.
func (w *world) step() {
	switch n := w.rng.IntN(100); {
	case n < 14 && w.appended < 12 && w.writer.refusal() == nil:
		b := bodyOf(w.writer.window.next)
		e := w.writer.append(w.now, b, crc32.Checksum(b, ledger.Castagnoli), nil)
		w.appended++
		w.say("append %d", e)
	case n < 17:
		b := w.bookies[w.rng.IntN(len(w.bookies))]
		b.up = !b.up
		if !b.up && w.flaws.fenceForgotten {
			b.term = 0
		}
		w.say("%s up: %v", b.name, b.up)
	case n < 19:
		b := w.bookies[w.rng.IntN(len(w.bookies))]
		b.listed = !b.listed
		w.say("%s listed: %v", b.name, b.listed)
	case n < 24:
		w.now += time.Duration(w.rng.IntN(3000)) * time.Millisecond
		w.writer.tick(w.now)
	case n < 26 && w.writer.laggingBytes > 0:
		w.writer.drop(1 + w.rng.Int64N(30))
	case n == 26 && len(w.recovers) < 3 && w.rng.IntN(3) == 0:
		r := &modelRecoverer{w: w, name: fmt.Sprintf("recoverer %d", len(w.recovers)+1)}
		w.recovers = append(w.recovers, r)
		w.say("%s starts", r.name)
	case n == 27 && len(w.recovers) > 0 && w.rng.IntN(4) == 0:
		r := w.recovers[w.rng.IntN(len(w.recovers))]
		r.gone = true
		w.say("%s is gone", r.name)
	case n == 28 && w.rng.IntN(8) == 0:
		w.say("the writer closes")
		w.closeWriter(w.rng.IntN(2) == 0)
	default:
		w.playCard()
	}
	w.pumpWriter()
	for _, r := range w.recovers {
		r.step()
	}
}

// playCard plays or loses one card of the deck.
func (w *world) playCard() {
	if len(w.deck) == 0 {
		return
	}
	i := w.rng.IntN(len(w.deck))
	if w.calm {
		i = 0
	}
	c := w.deck[i]
	w.deck = append(w.deck[:i], w.deck[i+1:]...)
	if !w.calm && c.lose != nil && w.rng.IntN(12) == 0 {
		w.say("lost: %s", c.what)
		c.lose()
		return
	}
	w.say("%s", c.what)
	c.play()
}

// settle mends everything and lets the ledger come to its end: whoever still
// can closes it.
func (w *world) settle() {
	w.calm = true
	for _, b := range w.bookies {
		b.up, b.listed = true, true
	}
	w.say("all is well again")
	// Of several recoverers one goes on: without a clock, two would take over from
	// each other for ever.
	for i, r := range w.recovers {
		r.gone = r.gone || i > 0
	}
	for range 5000 {
		if w.record.State == ledger.Closed && len(w.deck) == 0 {
			return
		}
		if len(w.deck) == 0 {
			w.now += 500 * time.Millisecond
			w.writer.tick(w.now)
		}
		w.playCard()
		w.pumpWriter()
		open := false
		for _, r := range w.recovers {
			r.step()
			open = open || !r.gone
		}
		if len(w.deck) > 0 {
			continue
		}
		switch {
		case w.record.State == ledger.Closed, open:
		case w.writer.failed == nil && w.record.State == ledger.Open:
			w.closeWriter(false)
		default:
			w.recovers = append(w.recovers, &modelRecoverer{w: w, name: fmt.Sprintf("recoverer %d", len(w.recovers)+1)})
		}
	}
	w.fault("all is well, yet the ledger never closed: %v, writer failed %v, head %d of %d", w.record.State, w.writer.failed, w.writer.lac+1, w.writer.window.next)
}

// run plays one world to its end and returns what went wrong.
func run(seed uint64, q ledger.Quorum, spare, steps int, f flaws) *world {
	w := newWorld(seed, q, spare, f)
	for range steps {
		if w.step(); w.wrong != "" {
			return w
		}
	}
	w.settle()
	return w
}

var exploredShapes = []struct {
	q     ledger.Quorum
	spare int
}{
	{ledger.Quorum{Write: 3, Ack: 2}, 1},
	{ledger.Quorum{Write: 3, Ack: 2}, 0},
	{ledger.Quorum{Write: 3, Ack: 3}, 1},
	{ledger.Quorum{Write: 2, Ack: 2}, 1},
	{ledger.Quorum{Write: 2, Ack: 1}, 1},
	{ledger.Quorum{Write: 1, Ack: 1}, 1},
	{ledger.Quorum{Write: 4, Ack: 2}, 1},
}

// TestExplore plays thousands of random schedules of one writer and up to three
// recoverers over lost, late and doubled messages, crashes, vacant slots and
// ensemble changes. In every one: what was acknowledged is in the closed ledger,
// on an ack quorum of the bookies it names, in order; nothing is acknowledged
// beyond its end; no LAC runs ahead; and once all is well the ledger closes.
func TestExplore(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 30
	}
	closed, changed, recovered := 0, 0, 0
	for _, shape := range exploredShapes {
		for seed := range seeds {
			w := run(uint64(seed), shape.q, shape.spare, 150+seed%300, flaws{})
			if w.wrong != "" {
				t.Fatalf("seed %d, %v with %d spare: %s\n%s", seed, shape.q, shape.spare, w.wrong, strings.Join(w.trace, "\n"))
			}
			closed++
			if len(w.record.Fragments) > 1 {
				changed++
			}
			if w.record.Term > 1 {
				recovered++
			}
		}
	}
	t.Logf("%d ledgers closed, %d with ensemble changes, %d recovered", closed, changed, recovered)
	if changed < closed/10 || recovered < closed/10 {
		t.Fatalf("the schedules hardly meet changes (%d) or recoveries (%d) in %d ledgers", changed, recovered, closed)
	}
}

// TestExploreNotices breaks one promise at a time and shows that the explorer
// finds a schedule on which that loses data: the rules are needed, and TestExplore
// can fail.
func TestExploreNotices(t *testing.T) {
	for name, f := range map[string]flaws{
		"R4: a crash forgets the fence":                  {fenceForgotten: true},
		"R6: recovery reads do not fence":                {readsDoNotFence: true},
		"R7: one negative ends the ledger":               {oneNegativeIsOver: true},
		"R10: closed before the last entries are copied": {closeBeforeAdding: true},
		"E1: acknowledged while the ensemble changes":    {ackWhileChanging: true},
		"E6: copies on the replaced bookie still count":  {keepOldMarks: true},
		"M12: a vacant slot counts twice":                {vacantTwice: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(20_000) {
				shape := exploredShapes[seed%4]
				if w := run(seed, shape.q, shape.spare, 150+int(seed%300), f); w.wrong != "" && !strings.Contains(w.wrong, "never closed") {
					t.Logf("seed %d, %v: %s", seed, shape.q, w.wrong)
					return
				}
			}
			t.Fatal("no schedule found that breaks an invariant")
		})
	}
}
