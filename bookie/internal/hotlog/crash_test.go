package hotlog

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// model is what a correct log would hold.
type model struct {
	appended map[key]int  // the newest copy handed to Append
	acked    map[key]int  // the newest copy answered
	moved    map[key]bool // was in a segment that Recycle was called for
	fences   []int        // acknowledged terms, in order
	lastTerm int
}

type key struct {
	id ledger.ID
	e  ledger.EntryID
}

func newModel() *model {
	return &model{appended: map[key]int{}, acked: map[key]int{}, moved: map[key]bool{}}
}

// run appends bursts to l and recycles now and then, until it is through or the log fails.
func (m *model) run(l *Log, rng *rand.Rand, bursts int) {
	for b := range bursts {
		var records []Record
		var keys []key
		for range 1 + rng.IntN(8) {
			id := ledger.ID(1 + rng.IntN(3))
			k := key{id, ledger.EntryID(rng.IntN(60))}
			if rng.IntN(4) > 0 { // mostly in order, sometimes again or out of order
				k.e = m.next(id)
			}
			v := m.appended[k] + 1
			m.appended[k] = v
			records, keys = append(records, entry(k.id, k.e, v, 24+rng.IntN(5000))), append(keys, k)
		}
		m.lastTerm++
		records = append(records, fence(1, m.lastTerm))
		results := appendAll(l, records...)
		for i, k := range keys {
			if results[i].err == nil {
				m.acked[k] = records[i].versionForTest()
				delete(m.moved, k)
			}
		}
		if results[len(keys)].err == nil {
			m.fences = append(m.fences, m.lastTerm)
		}
		if b%6 == 5 && !m.recycle(l) {
			return
		}
	}
}

// next is the entry a writer in order would append.
func (m *model) next(id ledger.ID) ledger.EntryID {
	e := ledger.EntryID(0)
	for m.appended[key{id, e}] > 0 {
		e++
	}
	return e
}

func (r *Record) versionForTest() int { return int(r.Body[23]) | int(r.Body[22])<<8 }

// recycle moves the survivors of the oldest sealed segment away.
func (m *model) recycle(l *Log) bool {
	for _, s := range l.Segments() {
		if !s.Sealed {
			continue
		}
		err := survivors(l, s.ID, func(at located, _ ledger.Entry, err error) error {
			m.moved[key{at.id, at.entry}] = true
			return err
		})
		if err != nil {
			return false
		}
		return l.Recycle(s.ID) == nil
	}
	return true
}

// check opens what a disk holds: all that was answered is there in its newest copy, unless it was
// moved away; what else is there was appended; nothing is called damaged.
func (m *model) check(t failer, mem *vfs.Mem, noDamage bool) *Log {
	t.Helper()
	term := 0
	l, err := Open(small(mem), func(r Record, p Place) error {
		switch r.Kind {
		case KindEntry:
			if m.appended[key{r.Ledger, r.Entry}] == 0 {
				t.Fatalf("entry %d of ledger %d was never appended", r.Entry, r.Ledger)
			}
		case KindFence:
			got := int(r.Data[0])
			if len(r.Data) > 1 {
				got = got&127 | int(r.Data[1])<<7
			}
			if got <= term || got > m.lastTerm {
				t.Fatalf("fence term %d after %d, last appended %d", got, term, m.lastTerm)
			}
			term = got
		default:
			t.Fatalf("replayed a %v", r.Kind)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("open after the crash: %v", err)
	}
	if n := len(m.fences); n > 0 && term < m.fences[n-1] && len(m.moved) == 0 {
		t.Fatalf("fence of term %d was answered, replay ends with %d", m.fences[n-1], term)
	}
	if d := l.Damages(); noDamage && len(d) > 0 {
		t.Fatalf("a crash was taken for damage: %+v", d)
	}
	for k, v := range m.acked {
		if _, ok := l.Lookup(k.id, k.e); !ok && m.moved[k] {
			continue
		}
		if got := mustRead(t, l, k.id, k.e); got < v && !m.moved[k] || got > m.appended[k] {
			t.Fatalf("entry %d of ledger %d: copy %d, but copy %d was answered and %d appended", k.e, k.id, got, v, m.appended[k])
		}
	}
	for _, id := range l.Ledgers() {
		for _, r := range l.Ranges(id) {
			for e := r.First; e <= r.Last; e++ {
				if got := mustRead(t, l, id, e); got > m.appended[key{id, e}] {
					t.Fatalf("entry %d of ledger %d: copy %d was never appended", e, id, got)
				}
			}
		}
	}
	return l
}

// Crash at every change of the disk, over appends, several new segments and recycling; the
// disk keeps exactly what was synced, or a random part of the rest besides, with
// torn sectors. Whatever it keeps, nothing answered is lost and nothing is invented; and
// the log that recovered from it passes the same test again after a second crash.
func TestCrashAtEveryChange(t *testing.T) {
	const bursts = 36
	points := int64(0)
	for k := int64(0); ; k++ {
		seed := uint64(k)*7919 + 1
		rng := rand.New(rand.NewPCG(seed, 1))
		mem := vfs.NewMem()
		m := newModel()
		l, err := Open(small(vfs.NewFaults(mem, vfs.CrashAt(mem, k))), nil)
		if err == nil {
			m.run(l, rng, bursts)
			if err := l.Close(); err != nil && !errors.Is(err, vfs.ErrCrashed) {
				t.Fatalf("crash point %d: %v", k, err)
			}
		}
		for i, image := range []vfs.ImageOptions{
			{},
			{Rand: rng.Uint64, KeepUnsynced: 0.5},
			{Rand: rng.Uint64, KeepUnsynced: 0.8, TornSectors: true},
			{KeepUnsynced: 1},
		} {
			if i != int(k%4) && k%16 != 0 {
				continue // each point with one image, some with all
			}
			disk := mem.Image(image)
			second := m.clone()
			l := second.check(t, disk, true)
			second.run(l, rng, 4)
			if k%2 == 0 {
				mustClose(t, l)
			} else {
				disk.Crash()
				_ = l.Close()
			}
			mustClose(t, second.check(t, disk.Image(image), true))
		}
		points = k
		if !mem.Crashed() {
			break
		}
	}
	if points < 80 {
		t.Errorf("only %d crash points: the workload is too small to show anything", points)
	}
	t.Logf("%d crash points", points)
}

func (m *model) clone() *model {
	c := newModel()
	for k, v := range m.appended {
		c.appended[k] = v
	}
	for k, v := range m.acked {
		c.acked[k] = v
	}
	for k, v := range m.moved {
		c.moved[k] = v
	}
	c.fences, c.lastTerm = append(c.fences, m.fences...), m.lastTerm
	return c
}

// A recycled file still has the frames of its former life behind the new ones. They are not
// replayed, neither after a clean stop nor after a crash, and its number is not used again.
func TestRecycledFramesAreNotReplayed(t *testing.T) {
	mem := vfs.NewMem()
	l := mustOpen(t, small(mem))
	for e := range ledger.EntryID(60) {
		mustAppend(t, l, entry(1, e, 0, 3000))
	}
	numbers := map[uint32]bool{}
	for _, s := range sealed(t, l) {
		numbers[s.ID] = true
		if err := l.Recycle(s.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Read(Place{s.ID, blockBytes, 100}); !errors.Is(err, ErrRecycled) {
			t.Errorf("read in a recycled segment: %v", err)
		}
		if err := l.Recycle(s.ID); !errors.Is(err, ErrRecycled) {
			t.Errorf("recycled twice: %v", err)
		}
	}
	if len(numbers) < 2 {
		t.Fatalf("only segments %v were sealed", numbers)
	}
	for e := range ledger.EntryID(30) { // into the recycled files
		mustAppend(t, l, entry(2, e, 0, 3000))
	}
	if len(sealed(t, l)) == 0 {
		t.Fatal("no recycled file was filled")
	}
	if spares := len(files(t, mem, spareSuffix)); spares >= len(numbers) {
		t.Errorf("%d spares of %d are left: recycled ones are not used", spares, len(numbers))
	}
	mustAppend(t, l, entry(3, 0, 0, 10))
	crashed := snapshot(mem)
	mustClose(t, l)
	for _, disk := range []*vfs.Mem{mem, crashed} {
		// The index files go, so that all is read from the segments.
		for _, name := range files(t, disk, ".idx") {
			if err := disk.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(small(disk), func(r Record, p Place) error {
			if numbers[p.Segment] {
				t.Errorf("segment number %d is used again", p.Segment)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if d := l.Damages(); len(d) > 0 {
			t.Errorf("damages %v", d)
		}
		for e := range ledger.EntryID(30) {
			mustRead(t, l, 2, e)
		}
		// What was in the last, unsealed segment of the first life is still there.
		for _, r := range l.Ranges(1) {
			if r.First < 40 {
				t.Errorf("entries %v of a recycled segment came back", r)
			}
		}
		mustClose(t, l)
	}
}

// With NoSync a crash of the machine loses what was answered: the flag does what it says, and
// the other tests would notice a log that does not sync.
func TestNoSyncDoesNotSync(t *testing.T) {
	mem := vfs.NewMem()
	syncs := 0
	opts := small(vfs.NewFaults(mem, func(op vfs.Op) error {
		if op.Kind == vfs.OpSync || op.Kind == vfs.OpSyncDir || op.Kind == vfs.OpOpenSynced {
			syncs++
		}
		return nil
	}))
	opts.NoSync = true
	l := mustOpen(t, opts)
	for e := range ledger.EntryID(100) {
		mustAppend(t, l, entry(1, e, 0, 2000))
	}
	lost := snapshot(mem)
	mustClose(t, l)
	if syncs > 0 {
		t.Errorf("%d syncs", syncs)
	}
	if _, err := lost.ReadDir(testDir); err == nil {
		t.Error("the log survived a crash without a sync")
	}
	l = mustOpen(t, opts) // a mere restart loses nothing
	for e := range ledger.EntryID(100) {
		mustRead(t, l, 1, e)
	}
	mustClose(t, l)
}
