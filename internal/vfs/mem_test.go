package vfs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func seeded(seed uint64) func() uint64 { return rand.New(rand.NewPCG(seed, 1)).Uint64 }

func exists(fsys FS, name string) bool {
	_, err := fsys.Stat(name)
	return err == nil
}

// TestCrashEndsEverything shows that after the power cut every call fails, and
// that the image is usable, without the lock.
func TestCrashEndsEverything(t *testing.T) {
	m := NewMem()
	f, err := m.Create("a")
	must(t, err)
	must(t, f.Sync())
	must(t, m.SyncDir("/"))
	_, err = m.Lock("LOCK")
	must(t, err)
	m.Crash()
	_, readErr := f.ReadAt(make([]byte, 1), 0)
	_, openErr := m.Open("a")
	_, usageErr := m.Usage("/")
	for _, err := range []error{readErr, openErr, usageErr, f.Sync(), f.Close(), m.Remove("a"), m.SyncDir("/"), m.MkdirAll("d"),
		second(f.WriteAt([]byte("x"), 0))} {
		if !errors.Is(err, ErrCrashed) {
			t.Fatalf("after the crash: %v", err)
		}
	}
	disk := m.Image(ImageOptions{})
	l, err := disk.Lock("LOCK")
	must(t, err)
	must(t, l.Close())
	if get(t, disk, "a") != "" {
		t.Fatal("file grew")
	}
}

// TestImageHoldsSyncedBytesOnly shows what survives when nothing unsynced does:
// bytes up to the last sync, names up to the last SyncDir, writes through a
// synced file at once.
func TestImageHoldsSyncedBytesOnly(t *testing.T) {
	m := NewMem()
	put(t, m, "unsynced-name", "x")
	must(t, m.MkdirAll("d"))
	must(t, m.SyncDir("/"))
	f, err := m.Create("d/f")
	must(t, err)
	_, err = f.WriteAt([]byte("first"), 0)
	must(t, err)
	must(t, f.Sync())
	must(t, m.SyncDir("d"))
	_, err = f.WriteAt([]byte("SECOND"), 0)
	must(t, err)
	must(t, f.Truncate(2))
	must(t, m.Rename("d/f", "d/g"))
	put(t, m, "late", "x")

	disk := m.Image(ImageOptions{})
	if got := get(t, disk, "d/f"); got != "first" {
		t.Fatalf("synced bytes: %q", got)
	}
	if exists(disk, "d/g") || exists(disk, "late") {
		t.Fatal("a name survived that no SyncDir covered")
	}
	if got := get(t, disk, "unsynced-name"); got != "" {
		t.Fatalf("unsynced bytes survived: %q", got)
	}
	if got := get(t, m, "d/g"); got != "SE" {
		t.Fatalf("taking an image changed the source: %q", got)
	}

	s, err := m.OpenSynced("d/g", false)
	must(t, err)
	_, err = s.WriteAt([]byte("abc"), 0)
	must(t, err)
	if got := get(t, m.Image(ImageOptions{}), "d/f"); got != "abc" {
		t.Fatalf("synced write: %q", got)
	}
	all := m.Image(ImageOptions{KeepUnsynced: 1})
	if got := get(t, all, "d/g"); got != "abc" || exists(all, "d/f") || get(t, all, "late") != "x" {
		t.Fatal("with all kept, the image is not what the process saw")
	}
}

// TestFolderNeedsItsOwnSync shows that a synced file is lost when the name of its
// folder was not made durable, and that MkdirAllSync makes it so.
func TestFolderNeedsItsOwnSync(t *testing.T) {
	for _, synced := range []bool{false, true} {
		m := NewMem()
		if synced {
			must(t, MkdirAllSync(m, "a/b"))
		} else {
			must(t, m.MkdirAll("a/b"))
		}
		put(t, m, "a/b/f", "x")
		must(t, m.SyncDir("a/b"))
		if got := exists(m.Image(ImageOptions{}), "a/b/f"); got != synced {
			t.Fatalf("parents synced %v, file there %v", synced, got)
		}
	}
}

// TestImageKeepsARandomPart shows that with a probability sectors, sizes and
// names survive independently, that torn sectors occur only when asked for, and
// that a rename never leaves both names or none.
func TestImageKeepsARandomPart(t *testing.T) {
	m := NewMem()
	const sectors = 16
	put(t, m, "f", strings.Repeat("o", sectors*SectorBytes))
	put(t, m, "old", "x")
	f, err := m.OpenReadWrite("f")
	must(t, err)
	must(t, f.Sync())
	must(t, m.SyncDir("/"))
	_, err = f.WriteAt([]byte(strings.Repeat("n", sectors*SectorBytes)), 0)
	must(t, err)
	must(t, m.Rename("old", "new"))
	put(t, m, "grown", strings.Repeat("g", 4*SectorBytes))
	m.Crash()

	for _, torn := range []bool{false, true} {
		seen := make(map[string]int)
		for seed := range uint64(200) {
			disk := m.Image(ImageOptions{Rand: seeded(seed), KeepUnsynced: 0.5, TornSectors: torn})
			data := get(t, disk, "f")
			for s := range sectors {
				switch part := data[s*SectorBytes : (s+1)*SectorBytes]; strings.Count(part, "n") {
				case 0:
					seen["old sector"]++
				case SectorBytes:
					seen["new sector"]++
				default:
					seen["torn sector"]++
				}
			}
			if exists(disk, "old") == exists(disk, "new") {
				t.Fatal("rename was torn apart")
			}
			seen[fmt.Sprint("renamed ", exists(disk, "new"))]++
			if exists(disk, "grown") {
				seen[fmt.Sprint("grown ", len(get(t, disk, "grown"))/SectorBytes)]++
			}
			again := m.Image(ImageOptions{Rand: seeded(seed), KeepUnsynced: 0.5, TornSectors: torn})
			if get(t, again, "f") != data {
				t.Fatal("the same seed gave another image")
			}
		}
		for _, want := range []string{"old sector", "new sector", "renamed true", "renamed false", "grown 0", "grown 2", "grown 4"} {
			if seen[want] == 0 {
				t.Errorf("never seen: %s (%v)", want, seen)
			}
		}
		if (seen["torn sector"] > 0) != torn {
			t.Errorf("torn %v, torn sectors seen %d", torn, seen["torn sector"])
		}
	}
}

// TestOrderedNames shows that in order, a name survives only with all that were
// made before it, in whatever folder; without order, some do alone.
func TestOrderedNames(t *testing.T) {
	m := NewMem()
	must(t, MkdirAllSync(m, "a"))
	must(t, MkdirAllSync(m, "b"))
	names := []string{"a/1", "b/2", "3", "a/4", "b/5"}
	for _, name := range names {
		put(t, m, name, "")
	}
	for _, ordered := range []bool{true, false} {
		counts := make(map[int]bool)
		holes := false
		for seed := range uint64(100) {
			disk := m.Image(ImageOptions{Rand: seeded(seed), KeepUnsynced: 0.5, OrderedNames: ordered})
			n, ended := 0, false
			for _, name := range names {
				if exists(disk, name) {
					n++
					holes = holes || ended
				} else {
					ended = true
				}
			}
			counts[n] = true
		}
		if holes == ordered || len(counts) != len(names)+1 {
			t.Errorf("ordered %v: holes %v, survivors %v", ordered, holes, counts)
		}
	}
	if all := m.Image(ImageOptions{KeepUnsynced: 1, OrderedNames: true}); !exists(all, "b/5") {
		t.Error("not all kept")
	}
	if none := m.Image(ImageOptions{OrderedNames: true}); exists(none, "a/1") {
		t.Error("kept")
	}
}

// TestRenameBetweenFoldersIsWhole shows that a rename across folders becomes
// durable in both with the sync of one, in whatever order.
func TestRenameBetweenFoldersIsWhole(t *testing.T) {
	m := NewMem()
	must(t, m.MkdirAll("a"))
	must(t, m.MkdirAll("b"))
	must(t, m.SyncDir("/"))
	put(t, m, "a/x", "")
	must(t, m.SyncDir("a"))
	put(t, m, "b/x", "")
	must(t, m.Rename("a/x", "b/x"))
	for seed := range uint64(50) {
		disk := m.Image(ImageOptions{Rand: seeded(seed), KeepUnsynced: 0.5})
		if !exists(disk, "a/x") && !exists(disk, "b/x") {
			t.Fatal("file lost between two folders")
		}
	}
	must(t, m.SyncDir("a"))
	must(t, m.SyncDir("b"))
	disk := m.Image(ImageOptions{})
	if exists(disk, "a/x") || !exists(disk, "b/x") {
		t.Fatal("rename not durable")
	}
}

// TestDiskFull shows that writes beyond the capacity fail without effect, and
// that removal and truncation give the space back, of an open file once closed.
func TestDiskFull(t *testing.T) {
	m := NewMem()
	m.SetCapacity(1000)
	put(t, m, "a", strings.Repeat("a", 600))
	f, err := m.Create("b")
	must(t, err)
	if _, err := f.WriteAt(make([]byte, 401), 0); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("write beyond the disk: %v", err)
	}
	if n, err := f.Size(); n != 0 || err != nil {
		t.Fatalf("failed write left %d bytes, %v", n, err)
	}
	a, err := m.Open("a")
	must(t, err)
	must(t, m.Remove("a"))
	if _, err := f.WriteAt(make([]byte, 401), 0); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("an open file's space was given away: %v", err)
	}
	must(t, a.Close())
	_, err = f.WriteAt(make([]byte, 1000), 0)
	must(t, err)
	must(t, f.Truncate(10))
	if u, _ := m.Usage("/"); u.FreeBytes != 990 || u.TotalBytes != 1000 {
		t.Fatalf("usage %+v", u)
	}
	put(t, m, "c", strings.Repeat("c", 90))
	must(t, m.Rename("c", "b"))
	must(t, f.Close())
	if u, _ := m.Usage("/"); u.FreeBytes != 910 {
		t.Fatalf("after renaming over: %+v", u)
	}
}
