package vfs

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errInjected = errors.New("injected")

// TestFaultsInject shows a failed sync, a write of which a part happens, and a
// rename that happens but is reported failed.
func TestFaultsInject(t *testing.T) {
	m := NewMem()
	var faults = map[Kind]error{
		OpSync:   errInjected,
		OpWrite:  &Fault{Err: ErrNoSpace, Bytes: 3},
		OpRename: &Fault{Err: errInjected, Done: true},
	}
	fsys := NewFaults(m, func(op Op) error { return faults[op.Kind] })
	f, err := fsys.Create("f")
	must(t, err)
	if n, err := f.WriteAt([]byte("abcdef"), 0); n != 3 || !errors.Is(err, ErrNoSpace) {
		t.Fatalf("partial write: %d, %v", n, err)
	}
	if err := f.Sync(); !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "sync f") {
		t.Fatalf("sync: %v", err)
	}
	if err := fsys.Rename("f", "g"); !errors.Is(err, errInjected) {
		t.Fatalf("rename: %v", err)
	}
	if got := get(t, m, "g"); got != "abc" {
		t.Fatalf("file holds %q", got)
	}
	if got := get(t, m.Image(ImageOptions{KeepUnsynced: 1}), "g"); got != "abc" {
		t.Fatalf("disk holds %q", got)
	}
	must(t, m.SyncDir("/"))
	if got := get(t, m.Image(ImageOptions{}), "g"); got != "" {
		t.Fatalf("failed sync made %q durable", got)
	}
}

// TestFaultsSlow shows that a hook may hold one operation while others go on.
func TestFaultsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := NewFaults(NewMem(), func(op Op) error {
			if op.Kind == OpSync {
				time.Sleep(time.Second)
			}
			return nil
		})
		f, err := fsys.Create("f")
		must(t, err)
		start := time.Now()
		done := make(chan error, 1)
		go func() { done <- f.Sync() }()
		synctest.Wait()
		put(t, fsys, "g", "x")
		if time.Since(start) != 0 {
			t.Fatal("a write waited for the sync of another file")
		}
		must(t, <-done)
		if time.Since(start) != time.Second {
			t.Fatalf("sync took %v", time.Since(start))
		}
	})
}

// replaceFile is the procedure under test below: it replaces the file "f" so
// that a power cut at any moment leaves the old or the new content.
func replaceFile(fsys FS, data string) error {
	f, err := fsys.Create("f.tmp")
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte(data), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := fsys.Rename("f.tmp", "f"); err != nil {
		return err
	}
	return fsys.SyncDir("/")
}

// TestCrashAtEveryChange shows the way storage is tested here, and that it finds
// out: a right procedure survives a crash at each change, one without its sync does not.
func TestCrashAtEveryChange(t *testing.T) {
	oldData, newData := strings.Repeat("o", 3*SectorBytes), strings.Repeat("n", 5*SectorBytes)
	for _, skipSync := range []bool{false, true} {
		bad, points := 0, int64(0)
		for ; ; points++ {
			m := NewMem()
			must(t, replaceFile(m, oldData))
			var fsys FS = NewFaults(m, CrashAt(m, points))
			if skipSync {
				fsys = unsyncing{fsys}
			}
			err := replaceFile(fsys, newData)
			for seed := range uint64(40) {
				disk := m.Image(ImageOptions{Rand: seeded(seed), KeepUnsynced: 0.5, TornSectors: true})
				switch got := get(t, disk, "f"); {
				case got == newData:
				case got == oldData && err != nil:
				default:
					bad++
				}
			}
			if !m.Crashed() {
				must(t, err)
				break
			}
			if !errors.Is(err, ErrCrashed) {
				t.Fatalf("crash at %d: %v", points, err)
			}
		}
		if points < 4 {
			t.Fatalf("only %d crash points", points)
		}
		if (bad > 0) != skipSync {
			t.Fatalf("sync left out %v: %d bad images", skipSync, bad)
		}
	}
}

// unsyncing is a file system whose files forget to sync.
type unsyncing struct{ FS }

func (u unsyncing) Create(name string) (File, error) {
	f, err := u.FS.Create(name)
	return unsyncingFile{f}, err
}

type unsyncingFile struct{ File }

func (unsyncingFile) Sync() error { return nil }

// TestCrashTearsASyncedWrite shows that a write through a synced file that the
// power cut interrupts survives whole, in part or not at all.
func TestCrashTearsASyncedWrite(t *testing.T) {
	seen := make(map[string]bool)
	for seed := range uint64(60) {
		m := NewMem()
		put(t, m, "f", strings.Repeat("o", 2*Alignment))
		g, err := m.OpenReadWrite("f")
		must(t, err)
		must(t, g.Sync())
		must(t, m.SyncDir("/"))
		f, err := NewFaults(m, CrashAt(m, 0)).OpenSynced("f", true)
		must(t, err)
		b := AlignedBuffer(Alignment)
		copy(b, strings.Repeat("n", Alignment))
		if _, err := f.WriteAt(b, Alignment); !errors.Is(err, ErrCrashed) {
			t.Fatal(err)
		}
		disk := m.Image(ImageOptions{Rand: seeded(seed), KeepUnsynced: float64(seed%3) / 2})
		switch n := strings.Count(get(t, disk, "f"), "n"); n {
		case 0:
			seen["none"] = true
		case Alignment:
			seen["whole"] = true
		default:
			seen["part"] = true
		}
	}
	if len(seen) != 3 {
		t.Fatalf("seen %v", seen)
	}
}
