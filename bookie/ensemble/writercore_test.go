package ensemble

import (
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

func bookieNamed(name string) ledger.Member { return ledger.Member{Bookie: name, Incarnation: "1"} }

func bookies(names ...string) []ledger.Member {
	out := make([]ledger.Member, len(names))
	for i, n := range names {
		if n != "-" {
			out[i] = bookieNamed(n)
		}
	}
	return out
}

// bench drives one writerCore by hand.
type bench struct {
	t     *testing.T
	c     *writerCore
	now   time.Duration
	full  bool // every bookie has too many bytes on its way
	sends []send
	acks  []completion
}

func newBench(t *testing.T, ack int, names ...string) *bench {
	b := &bench{t: t}
	md := ledger.Metadata{
		ID: 1, Quorum: ledger.Quorum{Write: len(names), Ack: ack}, State: ledger.Open, Term: 1, LastEntry: ledger.NoEntry,
		Fragments: []ledger.Fragment{{Ensemble: bookies(names...)}},
	}
	b.c = newWriterCore(0, md, timing{addTimeout: 2 * time.Second, refillAfter: 5 * time.Second}, func(int) bool { return b.full })
	return b
}

func (b *bench) take() {
	b.sends, b.acks = append(b.sends, b.c.sends...), append(b.acks, b.c.acks...)
	b.c.sends, b.c.acks = nil, nil
}

// append adds entries.
func (b *bench) append(n int) {
	for range n {
		body := fmt.Appendf(nil, "entry %d", b.c.window.next)
		b.c.append(b.now, body, crc32.Checksum(body, ledger.Castagnoli), nil)
	}
	b.take()
}

// pick removes the latest send of entry e to slot s from those not answered.
func (b *bench) pick(s int, e ledger.EntryID) send {
	b.t.Helper()
	i := len(b.sends) - 1
	for i >= 0 && (b.sends[i].slot != s || b.sends[i].add.Envelope.Entry != e) {
		i--
	}
	if i < 0 {
		b.t.Fatalf("entry %d is not on its way to slot %d", e, s)
	}
	x := b.sends[i]
	b.sends = slices.Delete(b.sends, i, i+1)
	return x
}

func (b *bench) pending(s int, e ledger.EntryID) bool {
	return slices.ContainsFunc(b.sends, func(x send) bool { return x.slot == s && x.add.Envelope.Entry == e })
}

func (b *bench) answer(x send, err error) {
	b.c.answered(b.now, x.slot, x.gen, x.add.Envelope.Entry, err)
	b.take()
}

func (b *bench) ok(s int, entries ...ledger.EntryID) {
	b.t.Helper()
	for _, e := range entries {
		b.answer(b.pick(s, e), nil)
	}
}

func (b *bench) fail(s int, e ledger.EntryID, err error) {
	b.t.Helper()
	b.answer(b.pick(s, e), err)
}

func (b *bench) pass(d time.Duration) {
	b.now += d
	b.c.tick(b.now)
	b.take()
}

func (b *bench) placer(names ...string) *placer {
	p := &placer{rand: func() uint64 { return 0 }}
	for _, m := range bookies(names...) {
		p.candidates = append(p.candidates, Candidate{Member: m})
	}
	return p
}

// begin starts a change among the bookies named.
func (b *bench) begin(names ...string) (ledger.Metadata, bool) {
	next, ok := b.c.beginChange(b.now, b.placer(names...))
	b.take()
	return next, ok
}

func (b *bench) stored(md ledger.Metadata) {
	b.c.changeStored(b.now, md)
	b.take()
}

// wantAcked checks which entries were acknowledged so far.
func (b *bench) wantAcked(n int) {
	b.t.Helper()
	if len(b.acks) != n || b.c.lac != ledger.EntryID(n-1) {
		b.t.Fatalf("%d entries acknowledged, LAC %d, want %d", len(b.acks), b.c.lac, n)
	}
	for i, a := range b.acks {
		if a.entry != ledger.EntryID(i) || a.err != nil {
			b.t.Fatalf("answer %d is entry %d, %v", i, a.entry, a.err)
		}
	}
}

func (b *bench) wantEnsemble(md ledger.Metadata, first ledger.EntryID, names ...string) {
	b.t.Helper()
	want := ledger.Fragment{First: first, Ensemble: bookies(names...)}
	if !ledger.SameFragment(md.Last(), &want) {
		b.t.Fatalf("last fragment is %v, want %v", *md.Last(), want)
	}
}

var errDown = errors.New("connection refused")

// TestRuleA1_IdsAreConsecutiveAndSentToAll shows that ids count from 0 and that
// each entry goes to every slot at once, in order, many in flight.
func TestRuleA1_IdsAreConsecutiveAndSentToAll(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(5)
	next := make([]ledger.EntryID, 3)
	for _, s := range b.sends {
		if s.add.Envelope.Entry != next[s.slot] {
			t.Fatalf("slot %d is sent entry %d, want %d", s.slot, s.add.Envelope.Entry, next[s.slot])
		}
		next[s.slot]++
	}
	if !slices.Equal(next, []ledger.EntryID{5, 5, 5}) {
		t.Fatalf("sent up to %v", next)
	}
}

// TestRuleC1_SlotsOfLargeIds shows that an entry beyond 2^31 goes to the same
// slots as any other.
func TestRuleC1_SlotsOfLargeIds(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	start := ledger.EntryID(1<<31 - 2)
	b.c.window.first, b.c.window.next, b.c.lac = start, start, start-1
	b.append(4)
	for e := start; e < start+4; e++ {
		b.ok(0, e)
		b.ok(2, e)
	}
	if b.c.lac != start+3 {
		t.Fatalf("LAC %d, want %d", b.c.lac, start+3)
	}
}

// TestRuleA3_OnlyTheSlotsOwnerCounts shows that the OK of a bookie that lost its
// slot is not counted, although it stored the entry.
func TestRuleA3_OnlyTheSlotsOwnerCounts(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(1)
	late := b.pick(1, 0)
	b.fail(2, 0, errDown)
	b.c.slots[1].failed(b.now, false)
	next, _ := b.begin("a", "d", "e")
	b.stored(next)
	b.ok(0, 0)
	b.answer(late, nil)
	b.wantAcked(0)
	b.ok(1, 0)
	b.wantAcked(1)
}

// TestRuleA4_AcksInOrder shows that a complete entry waits for those before it.
func TestRuleA4_AcksInOrder(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(3)
	b.ok(0, 1, 2)
	b.ok(1, 2, 1)
	b.wantAcked(0)
	b.ok(2, 0)
	b.wantAcked(0)
	b.ok(1, 0)
	b.wantAcked(3)
}

// TestRuleA5_LaterOKsAreKept shows that an OK beyond the ack quorum still counts
// after a change takes one of the first away.
func TestRuleA5_LaterOKsAreKept(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(2)
	b.ok(0, 1)
	b.ok(1, 1)
	b.ok(2, 1) // complete without it, but entry 0 holds it up
	b.fail(0, 0, errDown)
	next, _ := b.begin("b", "c", "d")
	b.stored(next)
	b.ok(1, 0)
	b.ok(2, 0)
	b.wantAcked(2)
}

// TestRuleA6_LACNeverAhead shows that an envelope tells the LAC at the time it is
// sent, and never one at or above its own entry, also when it is sent again.
func TestRuleA6_LACNeverAhead(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(2)
	for _, s := range b.sends {
		if s.add.Envelope.LAC != ledger.NoEntry {
			t.Fatalf("entry %d tells LAC %d before anything was acknowledged", s.add.Envelope.Entry, s.add.Envelope.LAC)
		}
	}
	b.ok(0, 0, 1)
	b.fail(2, 0, errDown)
	b.ok(1, 0, 1)
	b.wantAcked(2)
	b.append(1)
	if x := b.pick(0, 2); x.add.Envelope.LAC != 1 {
		t.Fatalf("entry 2 tells LAC %d, want 1", x.add.Envelope.LAC)
	}
	b.pick(2, 1)
	b.c.answered(b.now, 2, b.c.slots[2].gen, 1, nil)
	b.pass(time.Second)
	if x := b.pick(2, 0); x.add.Envelope.LAC != ledger.NoEntry {
		t.Fatalf("entry 0, sent again, tells LAC %d", x.add.Envelope.LAC)
	}
}

// TestRuleA7_FencedIsUnknownForAll shows that one fenced answer ends the writer:
// everything in flight is answered as fenced, in order, nothing is acknowledged
// or sent afterwards.
func TestRuleA7_FencedIsUnknownForAll(t *testing.T) {
	for _, cause := range []error{ledger.ErrFenced, ledger.ErrClosed, ledger.ErrDeleted} {
		b := newBench(t, 2, "a", "b", "c")
		b.append(3)
		b.ok(0, 0)
		b.ok(1, 0)
		b.fail(2, 1, fmt.Errorf("bookie c: %w", cause))
		if len(b.acks) != 3 || b.acks[0].err != nil || !errors.Is(b.acks[1].err, cause) || !errors.Is(b.acks[2].err, cause) ||
			b.acks[1].entry != 1 || b.acks[2].entry != 2 {
			t.Fatalf("%v: answers %v", cause, b.acks)
		}
		b.ok(0, 1)
		b.ok(1, 1)
		if len(b.acks) != 3 || b.c.lac != 0 || b.c.refusal() == nil {
			t.Fatalf("%v: the writer lives on", cause)
		}
	}
}

// TestRuleA8_ChangeOnlyWhenTheHeadNeedsIt shows that one failure of three is no
// reason to change when two suffice, and that a second one is.
func TestRuleA8_ChangeOnlyWhenTheHeadNeedsIt(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(1)
	b.fail(0, 0, errDown)
	if b.c.needsChange(b.now) {
		t.Fatal("a change for one failure, two bookies suffice")
	}
	b.fail(1, 0, errDown)
	if !b.c.needsChange(b.now) {
		t.Fatal("no change although one bookie is left of two needed")
	}
	strict := newBench(t, 2, "a", "b")
	strict.append(1)
	strict.fail(1, 0, errDown)
	if !strict.c.needsChange(strict.now) {
		t.Fatal("no change although both bookies are needed")
	}
}

// TestRuleA9_ShortEntriesAreNoted shows what becomes of an acknowledged entry
// that a bookie lacks: it is sent again from the window; once its body is
// dropped, or its bookie replaced, it is on the short list, and only a confirmed
// copy takes it off.
func TestRuleA9_ShortEntriesAreNoted(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(3)
	b.ok(0, 0, 1, 2)
	b.ok(1, 0, 1, 2)
	b.fail(2, 0, errDown)
	b.wantAcked(3)
	if b.c.window.len() != 3 || !b.c.verify() {
		t.Fatalf("%d entries held, verify %v", b.c.window.len(), b.c.verify())
	}
	b.c.drop(1)
	want := []shortRun{{member: bookieNamed("c"), create: true, first: 0, last: 0}}
	if !slices.Equal(b.c.short.runs, want) {
		t.Fatalf("short list %v, want %v", b.c.short.runs, want)
	}
	b.ok(2, 1) // heals the bookie, and what was dropped stays noted
	b.fail(2, 2, errDown)
	b.pass(6 * time.Second)
	b.fail(2, 2, errDown)
	if !b.c.wantsChange(b.now) {
		t.Fatal("a bookie that fails for long is not replaced")
	}
	next, _ := b.begin("a", "b", "d")
	b.stored(next)
	want = append(want, shortRun{member: bookieNamed("c"), first: 2, last: 2})
	if !slices.Equal(b.c.short.runs, want) || b.c.window.len() != 0 {
		t.Fatalf("short list %v with %d held, want %v", b.c.short.runs, b.c.window.len(), want)
	}
	b.c.short.confirm(bookieNamed("c"), 0, 2)
	if !b.c.short.empty() || b.c.verify() {
		t.Fatal("confirmed copies are still missed")
	}
}

// A late answer confirms an entry whose body was dropped meanwhile.
func TestRuleA9_LateAnswerConfirms(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(2)
	b.ok(0, 0, 1)
	b.ok(1, 0, 1)
	b.c.drop(1 << 20)
	if len(b.c.short.runs) != 1 || b.c.short.runs[0].last != 1 || b.c.heldBytes != 0 {
		t.Fatalf("short list %v, %d bytes held", b.c.short.runs, b.c.heldBytes)
	}
	b.ok(2, 0, 1)
	if !b.c.short.empty() || b.c.verify() {
		t.Fatalf("short list %v", b.c.short.runs)
	}
}

// TestRuleA10_SlowIsNotDead shows that a bookie which does not answer for the add
// timeout is only suspect: no change while the others suffice, an answer clears
// it, and a change comes when the head cannot complete without it.
func TestRuleA10_SlowIsNotDead(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(1)
	b.ok(0, 0)
	b.ok(1, 0)
	b.pass(2 * time.Second)
	if b.c.slots[2].health != suspect || b.c.needsChange(b.now) || b.c.wantsChange(b.now) {
		t.Fatalf("health %v", b.c.slots[2].health)
	}
	b.ok(2, 0)
	if b.c.slots[2].health != healthy {
		t.Fatal("an answer does not clear the suspicion")
	}
	b.append(1)
	b.ok(0, 1)
	b.pass(time.Second)
	if b.c.needsChange(b.now) {
		t.Fatal("a change before the add timeout")
	}
	b.pass(time.Second)
	if !b.c.needsChange(b.now) {
		t.Fatal("two bookies keep silent and the head waits, yet no change")
	}
	// One that answers everything but the head is silent too.
	d := newBench(t, 2, "a", "b")
	d.append(40)
	d.ok(0, 0)
	for e := ledger.EntryID(1); e < 40; e++ {
		d.ok(0, e)
		d.ok(1, e)
		d.pass(100 * time.Millisecond)
	}
	if !d.c.needsChange(d.now) {
		t.Fatal("a bookie that never answers for the head holds it up for ever")
	}
}

// TestRuleA10_BoundOnChanges shows that one bookie is replaced for slowness only
// so often a minute, and that a failing one is not spared.
func TestRuleA10_BoundOnChanges(t *testing.T) {
	r := &bookieRef{}
	for i := range 3 {
		if !r.mayReplace(time.Second, 3) {
			t.Fatalf("replacement %d refused", i)
		}
	}
	if r.mayReplace(59*time.Second, 3) {
		t.Fatal("a fourth in the same minute")
	}
	if !r.mayReplace(62*time.Second, 3) {
		t.Fatal("none in the next minute")
	}
	b := newBench(t, 2, "a", "b")
	b.append(1)
	b.pass(2 * time.Second)
	p := b.placer("a", "b", "c", "d")
	p.mayReplaceSlow = func(ledger.Member) bool { return false }
	if _, ok := b.c.beginChange(b.now, p); ok {
		t.Fatal("a slow bookie was replaced beyond the bound")
	}
	b.fail(0, 0, errDown)
	next, ok := b.c.beginChange(b.now+neededRetry, p)
	if !ok || next.Last().Ensemble[0] == bookieNamed("a") || next.Last().Ensemble[1] != bookieNamed("b") {
		t.Fatalf("changed %v to %v", ok, next.Fragments)
	}
}

// TestRuleA12_SlowBookieGetsNoMore shows that a bookie with too many bytes on its
// way is sent one entry at a time, that entries complete without it, and that
// their bodies can be dropped.
func TestRuleA12_SlowBookieGetsNoMore(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.c.over = func(s int) bool { return s == 2 }
	b.append(10)
	if !b.pending(2, 0) || b.pending(2, 1) {
		t.Fatal("the bookie over its bound should have exactly one add on its way")
	}
	for e := ledger.EntryID(0); e < 10; e++ {
		b.ok(0, e)
		b.ok(1, e)
	}
	b.wantAcked(10)
	held := b.c.laggingBytes
	b.c.drop(held)
	if b.c.heldBytes != 0 || b.c.laggingBytes != 0 {
		t.Fatalf("%d bytes held after dropping %d", b.c.heldBytes, held)
	}
	want := []shortRun{{member: bookieNamed("c"), create: true, first: 0, last: 9}}
	if !slices.Equal(b.c.short.runs, want) {
		t.Fatalf("short list %v, want %v", b.c.short.runs, want)
	}
}

// TestRuleE1_FrozenWhileChanging shows that nothing is acknowledged and the LAC
// stands still from the start of a change to its outcome, although quorums
// complete meanwhile, and that new entries are taken and sent.
func TestRuleE1_FrozenWhileChanging(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(2)
	b.fail(0, 0, errDown)
	b.fail(2, 0, errDown)
	next, ok := b.begin("b", "d", "e")
	if !ok {
		t.Fatal("no change")
	}
	b.ok(1, 0, 1)
	b.ok(2, 1)
	b.ok(0, 1)
	for waited := time.Duration(0); !b.pending(2, 0); waited += 100 * time.Millisecond {
		if waited > time.Minute {
			t.Fatal("entry 0 is not sent again: this test shows nothing")
		}
		b.pass(100 * time.Millisecond)
	}
	b.ok(2, 0) // both entries have an ack quorum now
	b.append(1)
	if !b.pending(1, 2) {
		t.Fatal("a new entry is not sent during a change")
	}
	b.wantAcked(0)
	if _, again := b.begin("b", "f", "g"); again {
		t.Fatal("a second change beside the first")
	}
	b.stored(next)
	b.wantAcked(0)
	b.ok(0, 0, 1)
	b.wantAcked(2)
}

// TestRuleM16_FreezeUntilDecided shows the same for a change that was not
// stored: acknowledgements go on with the old ensemble once that is sure.
func TestRuleM16_FreezeUntilDecided(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(1)
	b.fail(0, 0, errDown)
	b.pass(6 * time.Second)
	if _, ok := b.begin("b", "c", "d"); !ok {
		t.Fatal("no change")
	}
	b.ok(1, 0)
	b.ok(2, 0)
	b.pass(time.Hour)
	b.wantAcked(0)
	b.c.changeDropped(b.now, b.c.md)
	b.take()
	b.wantAcked(1)
}

// TestRuleE2_KeyIsLACPlusOne shows that a change starts at LAC+1, appends a
// fragment when entries before it are acknowledged, replaces the last one when
// its key is the same, and never touches a lower key.
func TestRuleE2_KeyIsLACPlusOne(t *testing.T) {
	b := newBench(t, 2, "a", "b")
	b.append(3)
	b.ok(0, 0, 1)
	b.ok(1, 0, 1)
	b.fail(1, 2, errDown)
	next, _ := b.begin("a", "c")
	if len(next.Fragments) != 2 {
		t.Fatalf("fragments %v", next.Fragments)
	}
	b.wantEnsemble(next, 2, "a", "c")
	b.stored(next)
	b.fail(1, 2, errDown)
	b.now += neededRetry
	next, _ = b.begin("a", "d")
	if len(next.Fragments) != 2 {
		t.Fatalf("a second fragment with the same key: %v", next.Fragments)
	}
	b.wantEnsemble(next, 2, "a", "d")
	if err := ledger.CheckTransition(&b.c.md, &next); err != nil {
		t.Fatal(err)
	}
}

// TestRuleE3_MetadataFirst shows that the new bookie is sent nothing before the
// change is stored.
func TestRuleE3_MetadataFirst(t *testing.T) {
	b := newBench(t, 2, "a", "b")
	b.append(1)
	b.fail(1, 0, errDown)
	next, _ := b.begin("a", "c")
	b.append(1)
	if b.pending(1, 0) || b.c.slots[1].member != bookieNamed("b") {
		t.Fatal("the new bookie is used before the record names it")
	}
	b.stored(next)
	if !b.pending(1, 0) || !b.pending(1, 1) || b.c.slots[1].member != bookieNamed("c") {
		t.Fatal("the new bookie is not sent what is not acknowledged")
	}
}

// TestRuleE4_ConflictIsReadAgain shows what a record that moved on means to its
// writer, state by state.
func TestRuleE4_ConflictIsReadAgain(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	base := b.c.md
	base.Fragments = append(base.Clone().Fragments, ledger.Fragment{First: 5, Ensemble: bookies("a", "b", "d")})
	for _, c := range []struct {
		name   string
		change func(*ledger.Metadata)
		want   error
	}{
		{"bookies of an older fragment were swapped", func(m *ledger.Metadata) { m.Fragments[0].Ensemble[2] = bookieNamed("x") }, nil},
		{"in recovery", func(m *ledger.Metadata) { m.State, m.Term = ledger.InRecovery, 2 }, ledger.ErrFenced},
		{"closed", func(m *ledger.Metadata) { m.State = ledger.Closed }, ledger.ErrClosed},
		{"deleted", func(m *ledger.Metadata) { m.State, m.Fragments = ledger.Deleted, nil }, ledger.ErrDeleted},
		{"another touched the last fragment", func(m *ledger.Metadata) { m.Last().Ensemble[0] = bookieNamed("x") }, ledger.ErrFenced},
	} {
		m := base.Clone()
		c.change(&m)
		value, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		_, rev, err := stillOurs(&movedError{id: 1, now: meta.KV{Value: value, Revision: 9}}, &base)
		if !errors.Is(err, c.want) || c.want == nil && (err != nil || rev != 9) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, _, err := stillOurs(&movedError{id: 1}, &base); !errors.Is(err, ledger.ErrDeleted) {
		t.Errorf("no record: %v", err)
	}
}

// TestRuleE5_ReplacementIsAnother shows that a replacement is neither in the
// ensemble nor the bookie replaced, unless that came back with new storage.
func TestRuleE5_ReplacementIsAnother(t *testing.T) {
	for seed := range uint64(50) {
		b := newBench(t, 2, "a", "b", "c")
		b.append(1)
		b.fail(0, 0, errDown)
		b.fail(1, 0, errDown)
		p := b.placer("a", "b", "c", "d", "e")
		p.rand = func() uint64 { seed += 0x9e3779b97f4a7c15; return seed }
		next, ok := b.c.beginChange(0, p)
		e := next.Last().Ensemble
		if !ok || e[2] != bookieNamed("c") || e[0] == e[1] || !slices.Contains(bookies("d", "e"), e[0]) || !slices.Contains(bookies("d", "e"), e[1]) {
			t.Fatalf("replaced by %v", e)
		}
	}
	b := newBench(t, 2, "a", "b")
	b.append(1)
	b.fail(0, 0, ledger.ErrIncarnation)
	reborn := ledger.Member{Bookie: "a", Incarnation: "2"}
	next, ok := b.c.beginChange(0, &placer{rand: func() uint64 { return 0 }, candidates: []Candidate{{Member: reborn}, {Member: bookieNamed("b")}}})
	if !ok || next.Last().Ensemble[0] != reborn {
		t.Fatalf("a bookie with new storage is not taken: %v", next.Fragments)
	}
}

// TestRuleE6_OldCopiesDoNotCount shows that a stored change takes back what the
// replaced bookie had confirmed of entries not acknowledged, sends those to the
// new one, and acknowledges what only waited for the freeze.
func TestRuleE6_OldCopiesDoNotCount(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(3)
	b.ok(0, 1, 2)
	b.ok(1, 2)
	b.fail(0, 0, errDown)
	b.fail(2, 0, errDown)
	next, _ := b.begin("b", "c", "d")
	b.wantEnsemble(next, 0, "d", "b", "c")
	b.ok(1, 0)
	b.stored(next)
	if !b.pending(0, 0) || !b.pending(0, 1) || !b.pending(0, 2) {
		t.Fatal("the new bookie is not sent every entry that is not acknowledged")
	}
	b.ok(1, 1)
	b.wantAcked(0) // entry 0 has b; 1 and 2 lost their copy on a
	b.ok(0, 0)
	b.wantAcked(1)
	b.ok(0, 1, 2)
	b.wantAcked(3)
}

// TestRuleE7_ReplaceWhatCanBe shows that of two failed bookies one is replaced
// when there is one replacement; with none nothing is frozen, and it is tried
// again.
func TestRuleE7_ReplaceWhatCanBe(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(1)
	b.fail(0, 0, errDown)
	b.fail(1, 0, errDown)
	if _, ok := b.begin("a", "b", "c"); ok || b.c.changing {
		t.Fatal("a change to nobody")
	}
	if b.c.needsChange(b.now) || !b.c.needsChange(b.now+neededRetry) {
		t.Fatal("not tried again after a pause")
	}
	b.now += neededRetry
	next, ok := b.begin("a", "b", "c", "d")
	if !ok {
		t.Fatal("nothing replaced although d could help")
	}
	b.wantEnsemble(next, 0, "d", "b", "c")
}

// TestRuleM28_FullBookiesEndTheLedger shows that a writer gives its ledger up, to be
// closed and trimmed, once its bookies have refused adds for want of room for a
// while, and only then: not while an ack quorum takes adds, not for another fault,
// not while nothing in it was acknowledged.
func TestRuleM28_FullBookiesEndTheLedger(t *testing.T) {
	for _, c := range []struct {
		name  string
		full  string // bookies that say they are read-only
		err   error
		acked bool
		want  bool
	}{
		{"two of three are full", "ab", ledger.ErrReadOnly, true, true},
		{"an ack quorum is left", "a", ledger.ErrReadOnly, true, false},
		{"they fail, but have room", "", errDown, true, false},
		{"nothing is in it", "ab", ledger.ErrReadOnly, false, false},
	} {
		b := newBench(t, 2, "a", "b", "c")
		next := ledger.EntryID(0)
		if c.acked {
			b.append(1)
			b.ok(0, 0)
			b.ok(1, 0)
			b.ok(2, 0)
			next = 1
		}
		b.append(1)
		p := b.placer("a", "b", "c")
		for i, m := range []string{"a", "b"} {
			if c.err == errDown || strings.Contains(c.full, m) {
				b.fail(i, next, c.err)
			}
			p.candidates[i].ReadOnly = strings.Contains(c.full, m)
		}
		b.c.beginChange(b.now, p)
		if b.c.stuck != nil {
			t.Errorf("%s: given up at once: %v", c.name, b.c.stuck)
		}
		b.now += roomPatience
		if _, ok := b.c.beginChange(b.now, p); ok {
			t.Fatalf("%s: a change to nobody", c.name)
		}
		if got := b.c.stuck != nil; got != c.want || got && !errors.Is(b.c.refusal(), ledger.ErrNotEnoughBookies) {
			t.Errorf("%s: after %v: %v", c.name, roomPatience, b.c.stuck)
		}
	}
}

// TestRuleE11_LateFailureIsIgnored shows that a failure of a bookie that lost its
// slot is not held against the new one.
func TestRuleE11_LateFailureIsIgnored(t *testing.T) {
	b := newBench(t, 2, "a", "b")
	b.append(2)
	late := b.pick(1, 1)
	b.fail(1, 0, errDown)
	next, _ := b.begin("a", "c")
	b.stored(next)
	b.answer(late, errDown)
	if b.c.slots[1].health != healthy || b.c.needsChange(b.now+time.Hour) {
		t.Fatal("the new bookie is blamed for the old one")
	}
}

// TestRuleM12_VacantSlotsOfTheWriter shows that a bookie that fails for good and
// has no replacement leaves its slot vacant while an ack quorum remains, that the
// ledger goes on, that such entries ask for verification, that the slot is filled
// from LAC+1 on when a bookie comes, and that below the ack quorum it waits.
func TestRuleM12_VacantSlotsOfTheWriter(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(1)
	b.ok(0, 0)
	b.ok(1, 0)
	b.fail(2, 0, ledger.ErrIncarnation)
	b.pass(6 * time.Second)
	next, ok := b.begin("a", "b")
	if !ok {
		t.Fatal("the slot stays with a bookie that is gone")
	}
	b.wantEnsemble(next, 1, "a", "b", "-")
	b.stored(next)
	b.append(1)
	b.ok(0, 1)
	b.ok(1, 1)
	b.wantAcked(2)
	if b.c.window.len() != 0 || !b.c.verify() {
		t.Fatalf("%d entries wait for nobody, verify %v", b.c.window.len(), b.c.verify())
	}
	b.pass(6 * time.Second)
	b.append(1)
	if !b.c.wantsChange(b.now) {
		t.Fatal("a vacant slot is not to be filled")
	}
	next, _ = b.begin("a", "b", "d")
	b.wantEnsemble(next, 2, "a", "b", "d")
	b.stored(next)
	if !b.pending(2, 2) || b.pending(2, 1) {
		t.Fatal("the new bookie gets what is not acknowledged, and only that")
	}
	b.fail(0, 2, ledger.ErrIncarnation)
	b.fail(1, 2, ledger.ErrIncarnation)
	if _, ok := b.begin("d"); ok {
		t.Fatal("an ensemble below the ack quorum")
	}
}

// TestRuleM14_CreateUntilFirstOK shows that adds carry CREATE until the slot's
// bookie has answered one with OK, and again for each new bookie.
func TestRuleM14_CreateUntilFirstOK(t *testing.T) {
	b := newBench(t, 2, "a", "b")
	b.append(2)
	for _, s := range b.sends {
		if !s.add.Create {
			t.Fatal("a first add without CREATE")
		}
	}
	b.ok(0, 0)
	b.append(1)
	if b.pick(0, 2).add.Create || !b.pick(1, 2).add.Create {
		t.Fatal("CREATE does not end with the slot's first OK")
	}
	b.fail(1, 0, errDown)
	next, _ := b.begin("a", "c")
	b.stored(next)
	if !b.pick(1, 0).add.Create {
		t.Fatal("a new bookie is not told to create")
	}
}

// TestRuleM15_VerifyUnlessAllCopiesAreThere shows when the closing record asks
// for verification.
func TestRuleM15_VerifyUnlessAllCopiesAreThere(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	if b.c.verify() {
		t.Fatal("an empty ledger is to be verified")
	}
	b.append(1)
	b.ok(0, 0)
	b.ok(1, 0)
	if !b.c.verify() {
		t.Fatal("a copy is missing, yet no verification")
	}
	b.ok(2, 0)
	if b.c.verify() {
		t.Fatal("all copies are there, yet verification")
	}
	v := newBench(t, 2, "a", "b", "-")
	if v.c.verify() {
		t.Fatal("a vacant slot without entries")
	}
	v.append(1)
	v.ok(0, 0)
	v.ok(1, 0)
	if !v.c.verify() {
		t.Fatal("an entry was born with a copy missing, yet no verification")
	}
}

// TestRuleM17_SealReturnsTheTail shows that a sealed writer acknowledges nothing
// more, whatever still comes in, and hands out exactly what it did not
// acknowledge.
func TestRuleM17_SealReturnsTheTail(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(4)
	b.ok(0, 0, 1, 2)
	b.ok(1, 0)
	b.c.seal()
	b.ok(1, 1)
	b.ok(2, 1, 2)
	b.wantAcked(1)
	tail := b.c.tail(ledger.ErrClosed)
	if len(tail) != 3 || string(tail[0].Body) != "entry 1" || string(tail[2].Body) != "entry 3" {
		t.Fatalf("tail %v", tail)
	}
	if b.c.heldBytes != 0 || len(b.acks) != 1 {
		t.Fatal("a sealed writer goes on")
	}
}

// A bookie that fails is tried again with growing pauses, one add at a time, and
// gets everything once it answers.
func TestRetryOfAFailingBookie(t *testing.T) {
	b := newBench(t, 2, "a", "b", "c")
	b.append(3)
	for e := ledger.EntryID(0); e < 3; e++ {
		b.fail(2, e, errDown)
	}
	tries := 0
	for range 100 {
		b.pass(10 * time.Millisecond)
		if b.pending(2, 0) {
			if b.pending(2, 1) {
				t.Fatal("a failing bookie is sent more than one add")
			}
			tries++
			b.fail(2, 0, errDown)
		}
	}
	if tries < 3 || tries > 8 {
		t.Fatalf("tried %d times in a second", tries)
	}
	b.pass(time.Second)
	b.ok(2, 0)
	b.ok(2, 1, 2)
}

// The window keeps every entry at its place while it grows, empties and wraps.
func TestWindow(t *testing.T) {
	var w window
	for round := range 5 {
		for range 100 * (round + 1) {
			w.push(pending{total: int64(w.next)})
		}
		for w.len() > round {
			if w.at(w.first).total != int64(w.first) || w.at(w.next-1).total != int64(w.next-1) {
				t.Fatalf("entries %d to %d are not where they belong", w.first, w.next-1)
			}
			w.pop()
		}
	}
}

// The short list forgets nothing when it is cut down to its bound.
func TestShortListBound(t *testing.T) {
	var l shortList
	for e := range ledger.EntryID(3 * maxShortRuns) {
		l.add(bookieNamed("a"), false, 2*e)
		l.add(bookieNamed("b"), false, 3*e)
	}
	if len(l.runs) > maxShortRuns {
		t.Fatalf("%d runs", len(l.runs))
	}
	for e := range ledger.EntryID(3 * maxShortRuns) {
		covered := func(name string, e ledger.EntryID) bool {
			return slices.ContainsFunc(l.runs, func(r shortRun) bool { return r.member == bookieNamed(name) && r.first <= e && e <= r.last })
		}
		if !covered("a", 2*e) || !covered("b", 3*e) {
			t.Fatalf("entry %d is forgotten", e)
		}
	}
}
