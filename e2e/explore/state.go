package explore

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/magnetar-io/magnetar/bookie/admission"
	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// A key stands for a value: 128 bits of SHA-256 of its canonical encoding.
type key [16]byte

func keyOf(b []byte) key {
	sum := sha256.Sum256(b)
	return key(sum[:16])
}

// state is one state of the world. It is a value: what it points to is shared with
// other states and never changed; whoever changes a part puts another in its
// place.
type state struct {
	writer     *writer
	recoverers []*recoverer
	bookies    []*bookie
	record     *record
	net        []*message // in order of their keys
	used       used
	ghost      ghost
}

// used counts what has happened against the bounds of the Config.
type used struct {
	losses, ticks, downs, wipes, crashes, deaths, unknowns, stalls, attempts int8
}

// ghost is what no process knows, for checking alone.
type ghost struct {
	acked   ledger.EntryID // highest entry acknowledged to the writer's caller
	closed  ledger.EntryID // end of the ledger once closed; notClosed before
	deleted bool
	// gone: once every bookie confirmed the deletion, entries from here on must
	// not be acknowledged; never before that.
	gone  ledger.EntryID
	fault string // the first invariant found broken
}

const (
	notClosed ledger.EntryID = -2
	never     ledger.EntryID = 1 << 40
)

// writer is the process that writes the ledger.
type writer struct {
	machine  *ensemble.WriterMachine
	appended int
	writing  bool // a write of the record is under way
	asked    bool // it was told to close or seal
	gens     []uint32
	key      key
}

// recoverer is a process that may recover the ledger.
type recoverer struct {
	phase   phase
	machine *ensemble.RecoveryMachine // while fencing, reading, adding and closing
	key     key
}

type phase uint8

const (
	idle     phase = iota // has not begun, or may begin anew
	starting              // its write of IN_RECOVERY is under way
	working
	closing // its closing write is under way
	over    // it has its answer, or is dead
)

func (p phase) String() string {
	return [...]string{"idle", "starting", "working", "closing", "over"}[p]
}

// bookie is one bookie's storage.
type bookie struct {
	member ledger.Member
	held   admission.Held
	down   bool
	fenced int64 // ghost: highest term at which it said to be fenced
	key    key
}

// record is the ledger's record in the metadata store.
type record struct {
	md  ledger.Metadata
	rev meta.Revision
	key key
}

// step is what the writer's clock jumps by: more than every timeout.
const step = 10 * time.Second

func (s *state) now() time.Duration { return time.Duration(s.used.ticks) * step }

var timing = ensemble.MachineTiming{AddTimeout: 2 * time.Second, RefillAfter: 3 * time.Second}

var bodies, crcs = func() (bodies [][]byte, crcs []uint32) {
	for e := range 8 {
		b := fmt.Appendf(nil, "entry %d", e)
		bodies, crcs = append(bodies, b), append(crcs, crc32.Checksum(b, ledger.Castagnoli))
	}
	return bodies, crcs
}()

// lengthTo is the length of a ledger that ends at last.
func lengthTo(last ledger.EntryID) int64 {
	n := int64(0)
	for e := ledger.EntryID(0); e <= last; e++ {
		n += int64(len(bodies[e]))
	}
	return n
}

// initial is the world as the search finds it.
func (w *world) initial() *state {
	s := w.created()
	if w.Stored == 0 {
		return s
	}
	w.withWriter(s, func(wr *writer) { wr.append(0) })
	take := func(slot int) *message {
		i := slices.IndexFunc(s.net, func(m *message) bool { return m.slot == slot })
		m := s.net[i]
		s.net = slices.Delete(s.net, i, i+1)
		return m
	}
	for slot := range w.Stored {
		w.serve(s, take(slot), false)
		w.receive(s, take(slot))
	}
	return s
}

// created is the world right after the ledger was created.
func (c *Config) created() *state {
	s := &state{ghost: ghost{acked: ledger.NoEntry, closed: notClosed, gone: never}}
	ensembleOf := make([]ledger.Member, c.Quorum.Write)
	for i := range c.Quorum.Write + c.Spare {
		b := &bookie{member: ledger.Member{Bookie: string(rune('a' + i)), Incarnation: "1"}}
		if i < c.Quorum.Write-c.Vacant {
			ensembleOf[i] = b.member
		} else if i < c.Quorum.Write {
			b.down = true // it may come later
		}
		s.bookies = append(s.bookies, b.sealed())
	}
	md := ledger.Metadata{
		ID: 1, Quorum: c.Quorum, State: ledger.Open, Term: 1, LastEntry: ledger.NoEntry,
		Fragments: []ledger.Fragment{{Ensemble: ensembleOf}}, Created: time.UnixMilli(1).UTC(),
	}
	s.record = (&record{md: md, rev: 1}).sealed()
	s.writer = (&writer{machine: ensemble.NewWriterMachine(md, 1, timing), gens: make([]uint32, c.Quorum.Write)}).sealed(0)
	for range c.Recoverers {
		s.recoverers = append(s.recoverers, (&recoverer{}).sealed())
	}
	return s
}

// The sealed methods compute a part's key. After that the part does not change.

func (w *writer) sealed(now time.Duration) *writer {
	b := w.machine.AppendState(nil, now)
	b = append(b, byte(w.appended), bit(w.writing), bit(w.asked))
	for _, g := range w.gens {
		b = append(b, byte(g))
	}
	w.key = keyOf(b)
	return w
}

func (r *recoverer) sealed() *recoverer {
	b := []byte{byte(r.phase)}
	if r.machine != nil {
		b = r.machine.AppendState(b)
	}
	r.key = keyOf(b)
	return r
}

func (b *bookie) sealed() *bookie {
	e := append([]byte(b.member.Bookie), b.member.Incarnation...)
	e = append(e, bit(b.down), bit(b.held.Known), bit(b.held.Deleted), byte(b.held.Term), byte(b.fenced))
	for i := range b.held.Entries {
		env := &b.held.Entries[i].Envelope
		e = append(e, byte(env.Entry), byte(env.LAC))
	}
	b.key = keyOf(e)
	return b
}

func (r *record) sealed() *record {
	r.key = keyOf(ensemble.AppendRecord([]byte{byte(r.rev)}, &r.md))
	return r
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// key of the whole world.
func (s *state) key() key {
	b := make([]byte, 0, 1024)
	b = append(append(b, s.writer.key[:]...), s.record.key[:]...)
	for _, r := range s.recoverers {
		b = append(b, r.key[:]...)
	}
	for _, k := range s.bookies {
		b = append(b, k.key[:]...)
	}
	for _, m := range s.net {
		b = append(b, m.key[:]...)
	}
	u := &s.used
	for _, n := range []int8{u.losses, u.ticks, u.downs, u.wipes, u.crashes, u.deaths, u.unknowns, u.stalls, u.attempts} {
		b = append(b, byte(n))
	}
	g := &s.ghost
	b = append(b, byte(g.acked), byte(g.closed), bit(g.deleted))
	b = binary.AppendVarint(b, int64(g.gone))
	return keyOf(b)
}

// clone copies s so far that its parts can be replaced.
func (s *state) clone() *state {
	n := *s
	n.recoverers = slices.Clone(s.recoverers)
	n.bookies = slices.Clone(s.bookies)
	n.net = slices.Clone(s.net)
	return &n
}

func (s *state) put(m *message) {
	m.seal()
	i, _ := slices.BinarySearchFunc(s.net, m, func(a, b *message) int { return cmp.Or(bytes.Compare(a.key[:], b.key[:])) })
	s.net = slices.Insert(s.net, i, m)
}

// keepNet keeps the messages for which f returns one, in its place.
func (s *state) keepNet(f func(*message) *message) {
	old := s.net
	s.net = make([]*message, 0, len(old))
	for _, m := range old {
		if m = f(m); m != nil {
			if m.key == (key{}) {
				s.put(m)
			} else {
				i, _ := slices.BinarySearchFunc(s.net, m, func(a, b *message) int { return bytes.Compare(a.key[:], b.key[:]) })
				s.net = slices.Insert(s.net, i, m)
			}
		}
	}
}

// live is who can be given a slot.
func (s *state) live() []ensemble.Candidate {
	var live []ensemble.Candidate
	for _, b := range s.bookies {
		if !b.down {
			live = append(live, ensemble.Candidate{Member: b.member})
		}
	}
	return live
}

// at is the index of the bookie of that name, whatever its incarnation.
func (s *state) at(m ledger.Member) int {
	return slices.IndexFunc(s.bookies, func(b *bookie) bool { return b.member.Bookie == m.Bookie })
}

// editBookie replaces bookie i by a copy that f has changed.
func (s *state) editBookie(i int, f func(*bookie)) {
	b := *s.bookies[i]
	f(&b)
	s.bookies[i] = b.sealed()
}
