package coldstore

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// flip inverts the bits of one byte of a file.
func flip(t testing.TB, fsys vfs.FS, name string, off int64) {
	t.Helper()
	f, err := fsys.OpenReadWrite(name)
	must(t, err)
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	must(t, err)
	b[0] ^= 0xff
	_, err = f.WriteAt(b[:], off)
	must(t, err)
	must(t, f.Close())
}

// TestRuleM8_DamageIsNeverServedNorAbsent inverts every byte of a segment in turn
// and shows that a read gives the right entry or ErrCorrupt, nothing else.
func TestRuleM8_DamageIsNeverServedNorAbsent(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{BlockBytes: 256, CacheBytes: -1})
	list := append(entries(1, 0, 5, 50), entries(2, 3, 4, 50)...)
	n.write(t, list)
	name := fileName("/data/cold", 1)
	fi, err := disk.Stat(name)
	must(t, err)
	for off := range fi.Size() {
		flip(t, disk, name, off)
		s, err := Open(Options{FS: disk, Dir: "/data/cold", Index: n.index, CacheBytes: -1})
		if off >= 8 && off < 12 || off >= fi.Size()-32 && off < fi.Size()-28 {
			if err == nil || errors.Is(err, ledger.ErrCorrupt) {
				t.Fatalf("version from the future at %d: %v", off, err)
			}
			flip(t, disk, name, off)
			continue
		}
		must(t, err)
		bad := 0
		for _, want := range list {
			got, err := s.Read(want.Envelope.Ledger, want.Envelope.Entry)
			if errors.Is(err, ledger.ErrCorrupt) {
				bad++
			} else {
				must(t, err)
				wantSame(t, got, want)
			}
			run, err := s.ReadRun(want.Envelope.Ledger, want.Envelope.Entry, 10, 0)
			if err != nil && !errors.Is(err, ledger.ErrCorrupt) {
				t.Fatal(err)
			}
			for i, got := range run {
				wantSame(t, got, entry(want.Envelope.Ledger, want.Envelope.Entry+ledger.EntryID(i), 50))
			}
		}
		if bad == 0 {
			t.Errorf("byte %d inverted: nobody noticed", off)
		}
		if s.Segments()[0].Damaged != true {
			t.Errorf("byte %d inverted: segment not marked", off)
		}
		must(t, s.Close())
		flip(t, disk, name, off)
	}
	n.wantEntries(t, list)
	must(t, n.close())
}

// TestRuleM8_MisdirectedFile shows that a sound segment in the place of another is
// recognised, although all its checksums are right.
func TestRuleM8_MisdirectedFile(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{})
	defer n.close()
	n.write(t, entries(1, 0, 5, 50))
	n.write(t, entries(1, 6, 11, 50))
	must(t, disk.Rename(fileName("/data/cold", 2), fileName("/data/cold", 1)))
	for e := range ledger.EntryID(12) { // 2 is missing now
		if _, err := n.Read(1, e); !errors.Is(err, ledger.ErrCorrupt) {
			t.Fatalf("entry %d: %v", e, err)
		}
	}
	n.wantAbsent(t, 1, 12)
}

// TestRunEndsBeforeDamage shows that a run gives what is sound before a damaged
// block, and that only a call that starts in it fails.
func TestRunEndsBeforeDamage(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{BlockBytes: 512, CacheBytes: -1})
	defer n.close()
	n.write(t, entries(1, 0, 19, 100))
	f, err := OpenFile(disk, fileName("/data/cold", 1))
	must(t, err)
	third := f.table.blocks[2]
	must(t, f.Close())
	flip(t, disk, fileName("/data/cold", 1), int64(third.offset)+100)
	first, after := ledger.EntryID(third.skip), ledger.EntryID(third.skip+third.count)
	run, err := n.ReadRun(1, 0, 19, 0)
	must(t, err)
	if len(run) != int(first) {
		t.Fatalf("%d entries before the damage at %d", len(run), first)
	}
	if run, err := n.ReadRun(1, first, 19, 0); !errors.Is(err, ledger.ErrCorrupt) || run != nil {
		t.Fatalf("run from the damage: %v", err)
	}
	n.wantEntries(t, entries(1, after, 19, 100))
}

// TestIndexIsBuiltAgain shows that when the index is lost it is built again from
// the footers, a newer copy of an entry before an older one, without the ledgers
// that have a tombstone; and that a segment of which nothing is left goes.
func TestIndexIsBuiltAgain(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, small)
	n.write(t, entries(1, 0, 9, 100), entries(2, 0, 9, 100))
	newer := entry(1, 4, 100)
	newer.Envelope.LAC = 1
	n.write(t, []ledger.Entry{newer})
	n.write(t, entries(3, 0, 9, 100))
	must(t, n.close())

	must(t, index.Destroy(disk, "/data/index"))
	x, err := index.Open(index.Options{FS: disk, Dir: "/data/index"})
	must(t, err)
	var b index.Batch
	b.Delete(3)
	must(t, x.Apply(&b))
	s, err := Open(Options{FS: disk, Dir: "/data/cold", Index: x})
	must(t, err)
	n = &node{Store: s, index: x}
	got, err := n.Read(1, 4)
	must(t, err)
	wantSame(t, got, newer)
	n.wantEntries(t, entries(1, 5, 9, 100))
	n.wantEntries(t, entries(2, 0, 9, 100))
	n.wantAbsent(t, 3, 0)
	names, err := disk.ReadDir("/data/cold")
	must(t, err)
	for _, i := range n.Segments() {
		if i.LiveExtents == 0 {
			t.Errorf("dead segment %+v was entered", i)
		}
	}
	if len(names) != len(n.Segments()) {
		t.Errorf("files %v, segments %+v", names, n.Segments())
	}
	must(t, n.close())
	n = open(t, disk, small) // what was entered is durable
	n.wantEntries(t, entries(2, 0, 9, 100))
	must(t, n.close())
}

// TestUnreadableSegment shows that a file the index does not know and that cannot
// be read is told, left in place, and its number not used again.
func TestUnreadableSegment(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{})
	n.write(t, entries(1, 0, 9, 100))
	must(t, n.close())
	must(t, index.Destroy(disk, "/data/index"))
	flip(t, disk, fileName("/data/cold", 1), 20)
	n = open(t, disk, Options{})
	defer n.close()
	if u := n.Unreadable(); len(u) != 1 || u[0] != fileName("/data/cold", 1) {
		t.Fatalf("unreadable %v", u)
	}
	n.write(t, entries(2, 0, 9, 100))
	if _, err := disk.Stat(fileName("/data/cold", 1)); err != nil {
		t.Fatal(err)
	}
	n.wantEntries(t, entries(2, 0, 9, 100))
}

// badSector is a disk that does not give [start, end) of a file.
func badSector(disk vfs.FS, file string, start, end int64) vfs.FS {
	return vfs.NewFaults(disk, func(op vfs.Op) error {
		if op.Kind == vfs.OpRead && op.Name == file && op.Offset < end && start < op.Offset+int64(op.Len) {
			return syscall.EIO
		}
		return nil
	})
}

// TestBadSectorIsUnknown shows that what the disk does not give is unknown, neither
// absent nor damaged, and that it takes nothing with it beyond its block.
func TestBadSectorIsUnknown(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{BlockBytes: 512})
	list := entries(1, 0, 19, 100)
	n.write(t, list)
	must(t, n.close())
	name := fileName("/data/cold", 1)
	f, err := OpenFile(disk, name)
	must(t, err)
	third := f.table.blocks[2]
	must(t, f.Close())
	n = open(t, badSector(disk, name, int64(third.offset)+100, int64(third.offset)+200), Options{BlockBytes: 512, CacheBytes: -1})
	defer n.close()
	first, after := ledger.EntryID(third.skip), ledger.EntryID(third.skip+third.count)
	for e := first; e < after; e++ {
		if _, err := n.Read(1, e); !errors.Is(err, ledger.ErrUnknown) {
			t.Errorf("entry %d in the bad sector: %v", e, err)
		}
		if run, err := n.ReadRun(1, e, 19, 0); !errors.Is(err, ledger.ErrUnknown) || run != nil {
			t.Errorf("run from entry %d in the bad sector: %v", e, err)
		}
	}
	run, err := n.ReadRun(1, 0, 19, 0)
	must(t, err)
	if len(run) != int(first) {
		t.Errorf("%d entries before the bad sector, which begins at %d", len(run), first)
	}
	n.wantEntries(t, list[after:])
	must(t, n.Scrub(context.Background(), 1, func(_ ledger.ID, r ledger.EntryRange, err error) {
		if want := (ledger.EntryRange{First: first, Last: after - 1}); r != want || !errors.Is(err, ledger.ErrUnknown) {
			t.Errorf("scrub: entries %d to %d: %v; want %+v", r.First, r.Last, err, want)
		}
	}))
}
