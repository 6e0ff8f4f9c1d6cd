package ensemble

import (
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// ward drives one recoveryCore by hand.
type ward struct {
	t    *testing.T
	c    *recoveryCore
	asks []recoveryAsk
}

// newWard recovers a ledger with the given fragments at term 2.
func newWard(t *testing.T, ack int, fragments ...ledger.Fragment) *ward {
	md := ledger.Metadata{
		ID: 1, Quorum: ledger.Quorum{Write: len(fragments[0].Ensemble), Ack: ack}, State: ledger.InRecovery, Term: 2,
		LastEntry: ledger.NoEntry, Fragments: fragments,
	}
	w := &ward{t: t, c: newRecoveryCore(md, 1<<20)}
	w.take()
	return w
}

func plain(t *testing.T, ack int, names ...string) *ward {
	return newWard(t, ack, ledger.Fragment{Ensemble: bookies(names...)})
}

func (w *ward) take() {
	w.asks = append(w.asks, w.c.asks...)
	w.c.asks = nil
}

func (w *ward) fence(s int, lac ledger.EntryID) {
	w.c.fenceAnswered(s, ledger.FenceReply{LastEntry: lac + 1, LAC: lac}, nil)
	w.take()
}

// reading returns the read that slot s owes an answer to.
func (w *ward) reading(s int) (ledger.ReadRequest, bool) {
	i := slices.IndexFunc(w.asks, func(a recoveryAsk) bool { return a.slot == s && !a.fence && a.add == nil })
	if i < 0 {
		return ledger.ReadRequest{}, false
	}
	return w.asks[i].read, true
}

// read answers the read of slot s; x is an entry found, - one absent, ? unknown,
// ! damaged.
func (w *ward) read(s int, answer string) {
	w.t.Helper()
	i := slices.IndexFunc(w.asks, func(a recoveryAsk) bool { return a.slot == s && !a.fence && a.add == nil })
	if i < 0 {
		w.t.Fatalf("slot %d is not being read", s)
	}
	first := w.asks[i].read.First
	w.asks = slices.Delete(w.asks, i, i+1)
	reply := ledger.ReadReply{LAC: ledger.NoEntry}
	for k, ch := range answer {
		e := ledger.ReadEntry{Status: ledger.Absent}
		switch ch {
		case 'x':
			e = ledger.ReadEntry{Status: ledger.Found, Entry: whole(first + ledger.EntryID(k))}
		case '!':
			e = ledger.ReadEntry{Status: ledger.Found, Entry: whole(first + ledger.EntryID(k))}
			e.Entry.Body = []byte("something else!")
		case '?':
			e.Status = ledger.Unknown
		}
		reply.Entries = append(reply.Entries, e)
	}
	w.c.readAnswered(s, first, reply, nil)
	w.take()
}

func (w *ward) readFails(s int, err error) {
	w.t.Helper()
	r, ok := w.reading(s)
	if !ok {
		w.t.Fatalf("slot %d is not being read", s)
	}
	w.c.readAnswered(s, r.First, ledger.ReadReply{}, err)
	w.take()
}

// adds returns the entries on their way to slot s.
func (w *ward) adds(s int) []ledger.EntryID {
	var out []ledger.EntryID
	for _, a := range w.asks {
		if a.slot == s && a.add != nil {
			out = append(out, a.add.Envelope.Entry)
		}
	}
	return out
}

// added answers all adds on their way to slot s.
func (w *ward) added(s int, err error) {
	var rest []recoveryAsk
	asks := w.asks
	for _, a := range asks {
		if a.slot == s && a.add != nil {
			w.c.addAnswered(s, a.gen, a.add.Envelope.Entry, err)
		} else {
			rest = append(rest, a)
		}
	}
	w.asks = rest
	w.take()
}

func (w *ward) wantClosedAt(last ledger.EntryID) ledger.Metadata {
	w.t.Helper()
	if !w.c.done() {
		w.t.Fatalf("not done: failed %v, ended %v, decided %d, added %d", w.c.failed, w.c.ended, w.c.decided, w.c.added)
	}
	md := w.c.closed(int64(10 * (last + 1)))
	if md.State != ledger.Closed || md.LastEntry != last || md.Length != int64(10*(last+1)) || !md.Verify {
		w.t.Fatalf("closed as %+v, want last entry %d", md, last)
	}
	if err := ledger.CheckTransition(&w.c.md, &md); err != nil {
		w.t.Fatal(err)
	}
	return md
}

func (w *ward) wantFailed(err error) {
	w.t.Helper()
	if !errors.Is(w.c.failed, err) {
		w.t.Fatalf("failed with %v, want %v", w.c.failed, err)
	}
}

// whole is entry e of ledger 1, with a body of ten bytes.
func whole(e ledger.EntryID) ledger.Entry {
	body := fmt.Appendf(nil, "body %5d", e)
	return ledger.Entry{Body: body, Envelope: ledger.Envelope{
		Ledger: 1, Entry: e, LAC: max(e-3, ledger.NoEntry), TotalBytes: 10 * int64(e+1), BodyBytes: 10,
		BodyCRC: crc32.Checksum(body, ledger.Castagnoli),
	}}
}

// TestRuleR2_FenceTheLastFragment shows that exactly the bookies of the last
// fragment are fenced, first of all.
func TestRuleR2_FenceTheLastFragment(t *testing.T) {
	w := newWard(t, 2, ledger.Fragment{Ensemble: bookies("a", "b", "c")}, ledger.Fragment{First: 7, Ensemble: bookies("a", "d", "e")})
	var fenced []ledger.Member
	for _, a := range w.asks {
		if !a.fence {
			t.Fatal("something is asked before the fence")
		}
		fenced = append(fenced, a.member)
	}
	if !slices.Equal(fenced, bookies("a", "d", "e")) {
		t.Fatalf("fenced %v", fenced)
	}
}

// TestRuleR3_CoverageBeforeReading shows that reading starts when enough bookies
// are fenced that the old writer finds no ack quorum, and not before, for several
// quorums; and that too few of them end the attempt.
func TestRuleR3_CoverageBeforeReading(t *testing.T) {
	for _, c := range []struct{ write, ack, need int }{{3, 2, 2}, {3, 3, 1}, {2, 2, 1}, {2, 1, 2}, {4, 2, 3}, {1, 1, 1}} {
		names := []string{"a", "b", "c", "d"}[:c.write]
		w := plain(t, c.ack, names...)
		for s := range c.need {
			if w.c.covered {
				t.Fatalf("%d/%d: %d fenced suffice, want %d", c.write, c.ack, s, c.need)
			}
			w.fence(s, ledger.NoEntry)
		}
		if !w.c.covered {
			t.Fatalf("%d/%d: %d fenced do not suffice", c.write, c.ack, c.need)
		}
		w = plain(t, c.ack, names...)
		for s := range c.write - c.need + 1 {
			w.c.fenceAnswered(s, ledger.FenceReply{}, errDown)
		}
		w.wantFailed(ledger.ErrUnknown)
	}
}

// TestRuleM12_VacantCountsInRecovery shows that a vacant slot counts as fenced
// and as one explicit absence, and no more than that.
func TestRuleM12_VacantCountsInRecovery(t *testing.T) {
	w := plain(t, 2, "a", "-", "c")
	if len(w.asks) != 2 {
		t.Fatalf("%d asks, a vacant slot cannot be asked", len(w.asks))
	}
	w.fence(0, ledger.NoEntry)
	w.read(0, "x-")
	w.added(0, nil)
	if w.c.done() {
		t.Fatal("done with one copy")
	}
	w.added(2, nil)
	w.wantClosedAt(0)

	w = newWard(t, 2, ledger.Fragment{Ensemble: bookies("a", "-", "-", "d")})
	w.fence(0, ledger.NoEntry)
	if w.c.md.Quorum.Coverage() != 3 || !w.c.covered {
		t.Fatal("two vacant slots and one fenced do not cover 4/2")
	}
	w.readFails(0, errDown)
	w.read(3, "?")
	w.wantFailed(ledger.ErrUnknown)
}

// TestRuleR5_StartBehindTheLastFragment shows that recovery starts after the
// highest LAC heard, and never before the last fragment, whose key says that all
// before it is acknowledged.
func TestRuleR5_StartBehindTheLastFragment(t *testing.T) {
	for _, c := range []struct{ key, lac, first ledger.EntryID }{{0, -1, 0}, {7, -1, 7}, {7, 3, 7}, {7, 9, 10}} {
		fragments := []ledger.Fragment{{Ensemble: bookies("a", "b", "c")}}
		if c.key > 0 {
			fragments = append(fragments, ledger.Fragment{First: c.key, Ensemble: bookies("a", "b", "d")})
		}
		w := newWard(t, 2, fragments...)
		w.fence(0, ledger.NoEntry)
		w.fence(1, c.lac)
		r, _ := w.reading(0)
		if r.First != c.first {
			t.Errorf("key %d, LAC %d: reads from %d, want %d", c.key, c.lac, r.First, c.first)
		}
		w.read(0, "-")
		w.read(1, "-")
		w.wantClosedAt(c.first - 1)
	}
}

// TestRuleR6_RecoveryReadsFence shows that every recovery read carries the term,
// also to the bookie whose fence was not answered.
func TestRuleR6_RecoveryReadsFence(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.fence(1, ledger.NoEntry)
	for s := range 3 {
		if r, ok := w.reading(s); !ok || r.FenceTerm != 2 {
			t.Fatalf("slot %d: read %v with term %d", s, ok, r.FenceTerm)
		}
	}
}

// TestRuleR7_OnlyExplicitAbsencesCount shows for each mix of answers whether the
// entry exists, does not, or cannot be told.
func TestRuleR7_OnlyExplicitAbsencesCount(t *testing.T) {
	start := func() *ward {
		w := plain(t, 2, "a", "b", "c")
		w.fence(0, ledger.NoEntry)
		w.fence(1, ledger.NoEntry)
		return w
	}
	for _, c := range []struct {
		answers string // per slot; e is an error
		want    string // exists, absent, unknown
	}{
		{"x", "exists"}, {"--x", "absent"}, {"-x", "exists"}, {"?x", "exists"}, {"ex", "exists"}, {"!x", "exists"},
		{"--", "absent"}, {"?--", "absent"}, {"e--", "absent"}, {"!--", "absent"},
		{"-??", "unknown"}, {"-ee", "unknown"}, {"-?e", "unknown"}, {"-!!", "unknown"}, {"eee", "unknown"}, {"???", "unknown"}, {"!!-", "unknown"},
	} {
		w := start()
		for s, ch := range c.answers {
			if w.c.ended || w.c.failed != nil || w.c.decided > ledger.NoEntry {
				break
			}
			if ch == 'e' {
				w.readFails(s, errDown)
			} else {
				w.read(s, string(ch))
			}
		}
		got := "open"
		switch {
		case w.c.failed != nil:
			w.wantFailed(ledger.ErrUnknown)
			got = "unknown"
		case w.c.decided == 0:
			got = "exists"
		case w.c.ended:
			got = "absent"
		}
		if got != c.want {
			t.Errorf("answers %q: %s, want %s", c.answers, got, c.want)
		}
	}
	// NoSuchLedger is an explicit absence like any other.
	w := start()
	w.readFails(0, ledger.ErrNoLedger)
	w.readFails(1, ledger.ErrNoLedger)
	w.wantClosedAt(ledger.NoEntry)
	// With 2/2 a single absence ends the ledger: any acknowledged entry is on both.
	w = plain(t, 2, "a", "b")
	w.fence(0, ledger.NoEntry)
	w.read(0, "-")
	w.wantClosedAt(ledger.NoEntry)
}

// TestRuleR8_NegativeWithoutTheHungBookie shows that the end is known as soon as
// enough bookies lack the entry, although one never answers.
func TestRuleR8_NegativeWithoutTheHungBookie(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.fence(1, ledger.NoEntry)
	w.read(0, "xx-")
	w.read(1, "xx-")
	w.added(0, nil)
	w.added(1, nil)
	w.wantClosedAt(1)
}

// TestRuleR9_ChangesStayInMemory shows that a recoverer's ensemble change keeps
// reading from the record's fragment, sends what is not yet added to the new
// bookie from there on, and appears only in the closing record.
func TestRuleR9_ChangesStayInMemory(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.fence(1, ledger.NoEntry)
	w.read(0, "xx")
	w.added(0, nil)
	w.added(1, nil)
	w.read(0, "x")
	w.added(1, errDown)
	w.added(2, errDown)
	if !w.c.needsBookies() {
		t.Fatal("one bookie is left of two needed, yet no change")
	}
	w.c.replace((&bench{}).placer("a", "b", "c", "d", "e"))
	w.take()
	if !slices.Equal(w.adds(1), []ledger.EntryID{2}) || !slices.Equal(w.adds(2), []ledger.EntryID{2}) {
		t.Fatalf("the new bookies are sent %v and %v", w.adds(1), w.adds(2))
	}
	for _, a := range w.asks {
		if a.add == nil && !a.fence && !slices.Contains(bookies("a", "b", "c"), a.member) {
			t.Fatalf("reads from %v, which is not in the record", a.member)
		}
	}
	w.added(1, nil)
	w.added(0, nil)
	w.read(0, "-")
	w.read(1, "---")
	for _, a := range w.asks {
		if a.read.First == 3 && a.member != bookieNamed("b") {
			t.Fatalf("slot %d is read from %v", a.slot, a.member)
		}
	}
	w.read(1, "-")
	md := w.wantClosedAt(2)
	if len(md.Fragments) != 2 || md.Fragments[1].First != 2 || md.Fragments[1].Ensemble[0] != bookieNamed("a") ||
		slices.Contains(md.Fragments[1].Ensemble, bookieNamed("b")) || len(w.c.md.Fragments) != 1 {
		t.Fatalf("closing fragments %v, record %v", md.Fragments, w.c.md.Fragments)
	}
}

// With nobody to take the copies the attempt fails, and the ledger stays open.
func TestRuleR9_NoBookieForTheCopies(t *testing.T) {
	w := plain(t, 2, "a", "b")
	w.fence(0, ledger.NoEntry)
	w.read(0, "x-")
	w.added(1, errDown)
	w.c.replace((&bench{}).placer("a", "b"))
	w.wantFailed(ledger.ErrNotEnoughBookies)
}

// A bookie that failed is not asked again in the same attempt: two that are down
// would else take each other's place for ever, without a pause between.
func TestRuleR9_WhoFailedIsNotAskedAgain(t *testing.T) {
	w := plain(t, 2, "a", "b")
	w.fence(0, ledger.NoEntry)
	w.read(0, "x-")
	w.added(0, nil)
	w.added(1, errDown)
	w.c.replace((&bench{}).placer("a", "b", "c"))
	w.take()
	w.added(1, errDown) // c
	if !w.c.needsBookies() {
		t.Fatal("one bookie is left of two needed, yet no change")
	}
	w.c.replace((&bench{}).placer("a", "b", "c"))
	w.wantFailed(ledger.ErrNotEnoughBookies)
}

// TestRuleR10_CloseOnlyWhatIsCopied shows that the last entries are on an ack
// quorum before the ledger is closed at them, that copies with another envelope
// are the same entry, and that another body is damage.
func TestRuleR10_CloseOnlyWhatIsCopied(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.fence(1, ledger.NoEntry)
	w.read(2, "x")
	w.read(0, "--")
	w.read(1, "--")
	if !w.c.ended || w.c.done() {
		t.Fatal("the end is known, the only copy of the last entry was not added again yet")
	}
	w.added(2, nil)
	if w.c.done() {
		t.Fatal("done with one copy")
	}
	w.added(0, nil)
	w.wantClosedAt(0)

	w = plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.fence(1, ledger.NoEntry)
	w.read(0, "x")
	other := whole(0)
	other.Envelope.LAC = ledger.NoEntry
	r, _ := w.reading(1)
	w.c.readAnswered(1, r.First, ledger.ReadReply{Entries: []ledger.ReadEntry{{Status: ledger.Found, Entry: other}}}, nil)
	if w.c.failed != nil {
		t.Fatalf("another envelope of the same body: %v", w.c.failed)
	}
	other.Body = []byte("other body")
	other.Envelope.BodyCRC = crc32.Checksum(other.Body, ledger.Castagnoli)
	w.c.readAnswered(2, r.First, ledger.ReadReply{Entries: []ledger.ReadEntry{{Status: ledger.Found, Entry: other}}}, nil)
	w.wantFailed(ledger.ErrCorrupt)
}

// TestRuleR11_CopiesTellNoHigherLAC shows that entries are added again with the
// envelope they were found with, so no reader learns a LAC that was never
// confirmed.
func TestRuleR11_CopiesTellNoHigherLAC(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	w.fence(0, 4)
	w.fence(1, 2)
	w.read(0, "xxx")
	n := 0
	for _, a := range w.asks {
		if a.add == nil {
			continue
		}
		n++
		if want := whole(a.add.Envelope.Entry).Envelope; a.add.Envelope != want || a.add.RecoveryTerm != 2 {
			t.Fatalf("added again as %+v at term %d, found as %+v", a.add.Envelope, a.add.RecoveryTerm, want)
		}
	}
	if n != 9 {
		t.Fatalf("%d adds, want three entries on three bookies", n)
	}
}

// TestRuleM13_AHigherTermEndsTheAttempt shows that whoever hears of a higher term
// gives up, at each step.
func TestRuleM13_AHigherTermEndsTheAttempt(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	w.c.fenceAnswered(2, ledger.FenceReply{}, ledger.ErrFenced)
	w.wantFailed(errSuperseded)

	w = plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.fence(1, ledger.NoEntry)
	w.readFails(0, ledger.ErrFenced)
	w.wantFailed(errSuperseded)

	w = plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.fence(1, ledger.NoEntry)
	w.read(0, "x")
	w.added(0, ledger.ErrFenced)
	w.wantFailed(errSuperseded)
	if w.c.done() {
		t.Fatal("done all the same")
	}
}

// A bookie in limbo is fenced, and its LAC counts, although it cannot say what it
// lacks.
func TestRuleR3_LimboIsFenced(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	w.c.fenceAnswered(0, ledger.FenceReply{LastEntry: 9, LAC: 8}, ledger.ErrUnknown)
	w.fence(1, 2)
	if !w.c.covered || w.c.start != 8 {
		t.Fatalf("covered %v, starts after %d", w.c.covered, w.c.start)
	}
}

// Bookies that owe an answer for too long are given up, and the attempt goes on
// or fails by the rules.
func TestRecoveryStalls(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.c.stalled()
	w.wantFailed(ledger.ErrUnknown)

	w = plain(t, 2, "a", "b", "c")
	w.fence(0, ledger.NoEntry)
	w.fence(1, ledger.NoEntry)
	w.read(0, "x-")
	w.read(1, "x-")
	w.added(0, nil)
	w.c.stalled()
	if w.c.failed != nil || !w.c.needsBookies() {
		t.Fatalf("failed %v, needs bookies %v", w.c.failed, w.c.needsBookies())
	}
	w.c.replace((&bench{}).placer("a", "b", "c", "d"))
	w.take()
	w.added(1, nil)
	w.added(2, nil)
	w.wantClosedAt(0)
}

// TestRuleR8_AFullWindowBeyondAHoleIsReadOn shows a large entry found beyond one that
// nobody has decided yet, with nothing being added that would make room: the bookie
// that has not spoken of the hole is asked all the same.
func TestRuleR8_AFullWindowBeyondAHoleIsReadOn(t *testing.T) {
	w := plain(t, 2, "a", "b", "c")
	for s := range 3 {
		w.fence(s, ledger.NoEntry)
	}
	w.read(0, "x") // entry 0
	w.added(0, nil)
	w.added(1, nil)
	w.readFails(1, errors.New("gone"))
	w.asks = slices.DeleteFunc(w.asks, func(a recoveryAsk) bool { return a.slot == 0 && a.add == nil && !a.fence })
	body := make([]byte, recoveryAheadBytes+1)
	large := ledger.Entry{Envelope: whole(2).Envelope, Body: body}
	large.Envelope.BodyBytes, large.Envelope.BodyCRC = uint32(len(body)), crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))
	w.c.readAnswered(0, 1, ledger.ReadReply{LAC: ledger.NoEntry, Entries: []ledger.ReadEntry{
		{Status: ledger.Absent}, {Status: ledger.Found, Entry: large},
	}}, nil)
	w.take()
	if !w.c.has(2) {
		t.Fatal("the large entry was not taken")
	}
	w.read(2, "x") // entry 0 again, from a read that began before it was decided
	r, ok := w.reading(2)
	if !ok || r.First != 1 {
		t.Fatalf("nobody is asked about entry 1: %+v", r)
	}
	w.read(2, "-")
	w.wantClosedAt(0)
}
