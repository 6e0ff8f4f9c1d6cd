package bookie

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// TestCrashAtEveryKindOfPoint cuts the power at every change of the disk in the life
// of a bookie: it is formatted, its log rolls and is recycled, survivors move to
// cold segments, which are compacted, ledgers are deleted and fenced, the node is
// restarted, after a clean stop and after a power cut. Whatever part of the unsynced
// bytes the disk keeps, the node starts again; nothing acknowledged is missing, then
// and after it has worked on, and nothing is there that was never sent.
func TestCrashAtEveryKindOfPoint(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("MAGNETAR_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("MAGNETAR_SEED=%d", seed)
	var total int64
	seen := map[string][]int64{} // the changes of each kind, in a life that nothing cuts
	synctest.Test(t, func(t *testing.T) {
		p := &power{at: -1, seen: seen}
		wholeLife(t, p)
		total = p.changes.Load()
	})
	if total < 500 {
		t.Fatalf("the life has %d changes of the disk only", total)
	}
	if rolls, recycled := len(seen["during roll"]), len(seen["during recycling"]); rolls < 3 || recycled < 1 {
		t.Fatalf("the log of the life rolls %d times and is recycled %d times, want 3 and 1 at least", rolls, recycled)
	}
	step := int64(1)
	if testing.Short() {
		step = 10
	}
	var tried tally
	t.Run("points", func(t *testing.T) {
		// Each worker takes every 16th point; as many work at once as -parallel lets.
		const workers = 16
		for w := range int64(workers) {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				for k := w * step; k < total; k += workers * step {
					t.Run(fmt.Sprint(k), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { crashAt(t, k, seed, &tried) })
					})
				}
			})
		}
	})
	if testing.Short() {
		tried.report(t)
		return
	}
	for _, kind := range lifeKinds {
		// Lives differ a little in their order: a kind with few changes may be missed.
		for i := 0; tried.kinds[kind] == 0 && i < 50*len(seen[kind]); i++ {
			k := seen[kind][i%len(seen[kind])] + int64(i/len(seen[kind])) - 25
			synctest.Test(t, func(t *testing.T) { crashAt(t, k, seed, &tried) })
		}
	}
	tried.report(t)
	if tried.points < 500 {
		t.Errorf("%d points tried, want 500 at least", tried.points)
	}
	for _, kind := range lifeKinds {
		if tried.kinds[kind] == 0 {
			t.Errorf("no crash of the kind %q", kind)
		}
	}
}

// lifeKinds are the changes of the disk that a life has to have, and at each of which
// it is cut.
var lifeKinds = []string{
	"hot log write", "hot log sync", "hot log rename", "hot log truncate", "sidecar write", "sidecar sync", "sidecar rename",
	"cold write", "cold sync", "cold rename", "cold remove", "index write", "index sync", "index rename",
	"during roll", "during recycling", "during move", "during compaction", "during tombstone", "during index flush", "during idle fence",
	"during checkpoint", "during replay", "during format", "during start", "during clean stop", "during end of compaction",
}

// crashAt lives until the power is cut at change k, and looks at what is left.
func crashAt(t *testing.T, k int64, seed uint64, tried *tally) {
	p := &power{at: k}
	said := wholeLife(t, p)
	if !p.cut.Load() {
		return // this life was shorter: it is not the same to the last write
	}
	tried.add(p.kinds)
	random := seeded(seed + uint64(k))
	disk := p.disk.Load().Image(vfs.ImageOptions{Rand: random, KeepUnsynced: float64(random()%3) / 2, TornSectors: true})
	n := openNode(t, lifeOptions(disk))
	said.check(t, n, fmt.Sprintf("cut at change %d, %v", k, p.kinds))
	if random()%4 == 0 {
		settle() // what the crash left half done is done now
		said.check(t, n, fmt.Sprintf("cut at change %d, %v, after upkeep", k, p.kinds))
	}
}

// power cuts the power at one change of the disk, counted over restarts.
type power struct {
	at      int64
	changes atomic.Int64
	disk    atomic.Pointer[vfs.Mem]
	phase   atomic.Pointer[string]
	torn    atomic.Bool // cut it at the next write of the log, which is part of the life
	cut     atomic.Bool // it was cut at the change wanted
	kinds   []string    // of that change

	mu   sync.Mutex
	seen map[string][]int64 // if not nil: the changes by their kinds
}

func (p *power) during(phase string) { p.phase.Store(&phase) }

func (p *power) hook(op vfs.Op) error {
	if op.Change < 0 {
		return nil
	}
	k := p.changes.Add(1) - 1
	if p.seen != nil {
		p.mu.Lock()
		for _, kind := range kindsOf(op, *p.phase.Load()) {
			p.seen[kind] = append(p.seen[kind], k)
		}
		p.mu.Unlock()
	}
	switch {
	case k == p.at:
		p.kinds = kindsOf(op, *p.phase.Load())
		p.cut.Store(true)
	case op.Kind == vfs.OpWrite && filepath.Ext(op.Name) == ".log" && op.Len > bodyBytes && p.torn.CompareAndSwap(true, false):
	default:
		return nil
	}
	inFlight := op.Kind != vfs.OpSync && op.Kind != vfs.OpSyncDir
	return &vfs.Fault{Err: vfs.ErrCrashed, Bytes: op.Len, Done: inFlight, Then: p.disk.Load().Crash}
}

// kindsOf names a change of the disk by its file and by what the node was about.
func kindsOf(op vfs.Op, phase string) []string {
	dir, suffix := filepath.Base(filepath.Dir(op.Name)), filepath.Ext(op.Name)
	if op.Kind == vfs.OpSyncDir {
		dir, suffix = filepath.Base(op.Name), ""
	}
	var family string
	switch {
	case dir == hotFolder && (suffix == ".idx" || suffix == ".tmp"):
		family = "sidecar"
	case dir == hotFolder:
		family = "hot log"
	case dir == coldFolder:
		family = "cold"
	case dir == indexFolder:
		family = "index"
	default:
		family = "directory"
	}
	about := phase
	switch {
	case family == "hot log" && op.Kind == vfs.OpRename && strings.HasSuffix(op.NewName, ".log"):
		about = "roll"
	case family == "hot log" && op.Kind == vfs.OpRename:
		about = "recycling"
	case phase == "disposal" && family == "cold":
		about = "move"
	case phase == "disposal" && family == "index":
		about = "index flush"
	case phase == "disposal" && family == "hot log" && op.Kind == vfs.OpWrite:
		about = "checkpoint"
	case phase == "compaction" && family == "cold" && op.Kind != vfs.OpWrite:
		about = "end of compaction"
	}
	return []string{fmt.Sprintf("%s %v", family, op.Kind), "during " + about}
}

// tally counts points by kind.
type tally struct {
	mu     sync.Mutex
	points int
	kinds  map[string]int
}

func (c *tally) add(kinds []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kinds == nil {
		c.kinds = make(map[string]int)
	}
	c.points++
	for _, k := range kinds {
		c.kinds[k]++
	}
}

func (c *tally) report(t *testing.T) {
	var lines strings.Builder
	for _, k := range slices.Sorted(maps.Keys(c.kinds)) {
		fmt.Fprintf(&lines, "\n%6d %s", c.kinds[k], k)
	}
	t.Logf("%d crash points tried:%s", c.points, lines.String())
}

// lifeOptions are of a node with a log of four segments.
func lifeOptions(files vfs.FS) Options {
	o := testOptions(files)
	o.HotBytes, o.SegmentBytes = 512<<10, 128<<10
	o.Fatal = func(error) {} // it answers nothing more; the life ends by itself
	return o
}

// wholeLife leads one life, until its end or the power cut, and tells what was said in
// it.
func wholeLife(t *testing.T, p *power) *said {
	s := newSaid()
	p.disk.Store(vfs.NewMem())
	for stage, opening := range []string{"format", "start", "replay"} {
		p.during(opening)
		n, err := Open(lifeOptions(vfs.NewFaults(p.disk.Load(), p.hook)))
		if err != nil {
			if !p.cut.Load() {
				t.Fatalf("%s: %v", opening, err)
			}
			return s
		}
		n.upkeep.stop() // the test does its work, where it wants it done
		s.work(n, p, ledger.EntryID(24*stage))
		if stage == 1 && !p.cut.Load() { // the second run ends by a power cut
			p.during("load")
			p.torn.Store(true)
			s.load(n, p, ledger.EntryID(24*stage+24), 2)
		}
		p.during("clean stop")
		n.Close()
		if p.cut.Load() {
			return s
		}
		if stage == 1 {
			p.disk.Store(p.disk.Load().Image(vfs.ImageOptions{Rand: seeded(7), KeepUnsynced: 0.5, TornSectors: true}))
		}
	}
	return s
}

// said is what a bookie was asked, and what of that it acknowledged.
type said struct {
	mu              sync.Mutex
	sent, stored    map[ledger.ID]ledger.EntryID // highest; those below were before
	fencing, fenced map[ledger.ID]int64          // terms
	deleting, gone  map[ledger.ID]bool
}

func newSaid() *said {
	return &said{
		sent: map[ledger.ID]ledger.EntryID{}, stored: map[ledger.ID]ledger.EntryID{},
		fencing: map[ledger.ID]int64{}, fenced: map[ledger.ID]int64{},
		deleting: map[ledger.ID]bool{}, gone: map[ledger.ID]bool{},
	}
}

// The ledgers of a life, the last one of control. Each run of the node adds 24 entries
// to those that take them; in the first run that is more than its log may hold.
const (
	lifeLedgers = 5
	bodyBytes   = 6 << 10 // of entries of data
	idleLedger  = 100     // fenced, never written
)

// work is what the node is asked in one run.
func (s *said) work(n *Node, p *power, first ledger.EntryID) {
	run := ledger.ID(first / 24)
	for i := range 4 {
		p.during("load")
		s.load(n, p, first+ledger.EntryID(6*i), 6)
		p.during("idle fence")
		if i == 1 {
			s.fence(n, idleLedger+run, 3+int64(run))
		}
		if i == 2 && run == 1 {
			s.fence(n, 2, 2)
		}
		p.during("tombstone")
		if i == 3 {
			s.delete(n, run+3)
			s.delete(n, 1000*(run+1)) // never seen
		}
		s.upkeep(n, p)
		if p.cut.Load() {
			return
		}
	}
}

// upkeep does what the node's own would, one kind of work after the other.
func (s *said) upkeep(n *Node, p *power) {
	ctx := context.Background()
	p.during("index flush")
	if n.applyDeleted(ctx) != nil || n.index.Flush() != nil {
		return
	}
	n.measure()
	for segments := n.disposable(); len(segments) > 0 && !p.cut.Load(); segments = n.disposable() {
		p.during("disposal")
		if n.dispose(ctx, segments) != nil {
			return
		}
	}
	p.during("compaction")
	for again := true; again && !p.cut.Load(); {
		var err error
		if again, err = n.compact(ctx); err != nil {
			return
		}
	}
}

// lifeEntries keeps what lifeEntry made: all lives have the same.
var lifeEntries sync.Map // of [2]int64, ledger and entry, to ledger.Add

func lifeEntry(id ledger.ID, e ledger.EntryID) ledger.Add {
	key := [2]int64{int64(id), int64(e)}
	if a, ok := lifeEntries.Load(key); ok {
		return a.(ledger.Add)
	}
	a := entryOf(id, e, bodyBytes)
	if id == lifeLedgers {
		a = entryOf(id, e, 100)
		a.Envelope.Class = ledger.Control
	}
	lifeEntries.Store(key, a)
	return a
}

// load adds count entries to each ledger that is not being deleted, in turns, and
// waits for the answers of a turn.
func (s *said) load(n *Node, p *power, first ledger.EntryID, count int) {
	for e := first; e < first+ledger.EntryID(count) && !p.cut.Load(); e++ {
		var answers sync.WaitGroup
		for id := ledger.ID(1); id <= lifeLedgers; id++ {
			if s.shut(id) {
				continue
			}
			a := lifeEntry(id, e)
			a.Create = true
			s.mu.Lock()
			s.sent[id] = e + 1
			s.mu.Unlock()
			answers.Add(1)
			n.Add(a, func(err error) {
				defer answers.Done()
				if err == nil {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.stored[id] = e + 1
				}
			})
		}
		answers.Wait()
	}
}

// shut tells of ledgers that take no more entries.
func (s *said) shut(id ledger.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fencing[id] > 0 || s.deleting[id]
}

func (s *said) fence(n *Node, id ledger.ID, term int64) {
	s.fencing[id] = term
	if _, err := n.Fence(context.Background(), id, term); err == nil {
		s.fenced[id] = term
	}
}

func (s *said) delete(n *Node, id ledger.ID) {
	s.deleting[id] = true
	if n.Delete(context.Background(), id) == nil {
		s.gone[id] = true
	}
}

// check compares what a node that started again holds with what was said.
func (s *said) check(t *testing.T, n *Node, when string) {
	t.Helper()
	if n.table.Limbo() {
		t.Errorf("%s: the bookie is in limbo", when)
	}
	for id, sent := range s.sent {
		if !s.deleting[id] {
			s.checkEntries(t, n, id, sent, when)
		}
	}
	for id, term := range s.fenced {
		a := entryOf(id, 500, 10)
		a.Create = true
		if err := addDespiteLoad(t, n, a); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("%s: add to fenced ledger %d: %v", when, id, err)
		}
		if a.RecoveryTerm = term - 1; a.RecoveryTerm > 0 {
			if err := add(t, n, a); !errors.Is(err, ledger.ErrFenced) {
				t.Errorf("%s: recovery add below the term of ledger %d: %v", when, id, err)
			}
		}
	}
	for id := range s.gone {
		a := entryOf(id, 0, 10)
		a.Create = true
		if err := addDespiteLoad(t, n, a); !errors.Is(err, ledger.ErrDeleted) {
			t.Errorf("%s: add to deleted ledger %d: %v", when, id, err)
		}
		if _, err := n.Info(testContext(t), id); !errors.Is(err, ledger.ErrDeleted) {
			t.Errorf("%s: info of deleted ledger %d: %v", when, id, err)
		}
	}
	ids, _, err := n.List(testContext(t), 0, 0)
	for _, id := range ids {
		if s.sent[id] == 0 && s.fencing[id] == 0 {
			t.Errorf("%s: ledger %d was never heard of", when, id)
		}
	}
	if err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

// addDespiteLoad adds to a node whose log may be over its budget: then the add is
// made as control, which the log takes all the same.
func addDespiteLoad(t *testing.T, n *Node, a ledger.Add) error {
	a.Envelope.Class = ledger.Control
	return add(t, n, a)
}

// checkEntries reads a ledger: what was stored is there, what was sent may be, in
// its order and as it was; nothing else.
func (s *said) checkEntries(t *testing.T, n *Node, id ledger.ID, sent ledger.EntryID, when string) {
	t.Helper()
	for e := ledger.EntryID(0); e <= sent; {
		reply, err := n.Read(testContext(t), ledger.ReadRequest{Ledger: id, First: e, Last: sent})
		if err != nil {
			t.Errorf("%s: read ledger %d from %d: %v", when, id, e, err)
			return
		}
		for _, got := range reply.Entries {
			switch got.Status {
			case ledger.Found:
				want := lifeEntry(id, e)
				if e >= sent || got.Entry.Envelope != want.Envelope || !bytes.Equal(got.Entry.Body, want.Body) {
					t.Errorf("%s: entry %d of ledger %d is not what was sent", when, e, id)
				}
			default:
				if e < s.stored[id] || got.Status != ledger.Absent {
					t.Errorf("%s: entry %d of ledger %d reads %v, of %d stored", when, e, id, got.Status, s.stored[id])
				}
				if next := e + 1; next < sent && statuses(t, n, ledger.ReadRequest{Ledger: id, First: next, Last: next}) != "A" {
					t.Errorf("%s: entry %d of ledger %d is there, %d before it is not", when, next, id, e)
				}
				return
			}
			e++
		}
	}
}
