package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
)

// each runs a test against every file system, in an empty folder.
func each(t *testing.T, test func(t *testing.T, fsys FS, dir string)) {
	t.Run("os", func(t *testing.T) { test(t, OS(), t.TempDir()) })
	t.Run("mem", func(t *testing.T) { test(t, NewMem(), "/") })
	t.Run("faults", func(t *testing.T) { test(t, NewFaults(NewMem(), nil), "/") })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, fsys FS, name string, data string) {
	t.Helper()
	f, err := fsys.Create(name)
	must(t, err)
	_, err = f.WriteAt([]byte(data), 0)
	must(t, err)
	must(t, f.Close())
}

func get(t *testing.T, fsys FS, name string) string {
	t.Helper()
	f, err := fsys.Open(name)
	must(t, err)
	defer f.Close()
	n, err := f.Size()
	must(t, err)
	b := make([]byte, n)
	_, err = f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return string(b)
}

// TestFilesHoldWhatWasWritten shows reads, writes with holes, sizes and
// truncation, and that the rights of a handle are kept to.
func TestFilesHoldWhatWasWritten(t *testing.T) {
	each(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "a")
		f, err := fsys.Create(name)
		must(t, err)
		_, err = f.WriteAt([]byte("tail"), 6)
		must(t, err)
		_, err = f.WriteAt([]byte("he"), 0)
		must(t, err)
		must(t, f.Sync())
		if got := get(t, fsys, name); got != "he\x00\x00\x00\x00tail" {
			t.Fatalf("got %q", got)
		}
		b := make([]byte, 8)
		if n, err := f.ReadAt(b, 6); n != 4 || !errors.Is(err, io.EOF) {
			t.Fatalf("short read: %d, %v", n, err)
		}
		if n, err := f.ReadAt(b, 100); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read beyond the end: %d, %v", n, err)
		}
		must(t, f.Truncate(1))
		must(t, f.Truncate(3))
		if got := get(t, fsys, name); got != "h\x00\x00" {
			t.Fatalf("after truncate: %q", got)
		}
		must(t, f.Close())
		if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
			t.Fatalf("second close: %v", err)
		}
		r, err := fsys.Open(name)
		must(t, err)
		if _, err := r.WriteAt([]byte("x"), 0); err == nil {
			t.Fatal("wrote through a file opened for reading")
		}
		must(t, r.Close())
		w, err := fsys.OpenReadWrite(name)
		must(t, err)
		_, err = w.WriteAt([]byte("H"), 0)
		must(t, err)
		must(t, w.Close())
		if got := get(t, fsys, name); got != "H\x00\x00" {
			t.Fatalf("after rewrite: %q", got)
		}
	})
}

// TestNames shows creation, renaming over, linking, removal and listing, and the
// errors callers decide by.
func TestNames(t *testing.T) {
	each(t, func(t *testing.T, fsys FS, dir string) {
		at := func(s string) string { return filepath.Join(dir, s) }
		for _, open := range []func(string) (File, error){fsys.Open, fsys.OpenReadWrite,
			func(n string) (File, error) { return fsys.OpenSynced(n, true) }} {
			if _, err := open(at("none")); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("open of an absent file: %v", err)
			}
		}
		must(t, MkdirAllSync(fsys, at("d/e")))
		must(t, fsys.MkdirAll(at("d/e")))
		put(t, fsys, at("d/x"), "x")
		put(t, fsys, at("d/y"), "y")
		must(t, fsys.Rename(at("d/x"), at("d/y")))
		if got := get(t, fsys, at("d/y")); got != "x" {
			t.Fatalf("renamed over: %q", got)
		}
		must(t, fsys.Link(at("d/y"), at("d/z")))
		if err := fsys.Link(at("d/y"), at("d/z")); !errors.Is(err, fs.ErrExist) {
			t.Fatalf("link over: %v", err)
		}
		put(t, fsys, at("d/y"), "new") // a new file; the linked one stays
		if got := get(t, fsys, at("d/z")); got != "x" {
			t.Fatalf("linked file changed: %q", got)
		}
		names, err := fsys.ReadDir(at("d"))
		must(t, err)
		if !slices.Equal(names, []string{"e", "y", "z"}) {
			t.Fatalf("listing: %q", names)
		}
		fi, err := fsys.Stat(at("d"))
		must(t, err)
		if !fi.IsDir() {
			t.Fatal("folder is none")
		}
		fi, err = fsys.Stat(at("d/y"))
		must(t, err)
		if fi.Size() != 3 || fi.IsDir() || fi.Name() != "y" {
			t.Fatalf("stat: %v", fi)
		}
		must(t, fsys.SyncDir(at("d")))
		if err := fsys.Remove(at("d")); err == nil {
			t.Fatal("removed a folder that was not empty")
		}
		must(t, fsys.Remove(at("d/y")))
		if err := fsys.Remove(at("d/y")); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("second removal: %v", err)
		}
		must(t, fsys.RemoveAll(at("d")))
		must(t, fsys.RemoveAll(at("d")))
		if _, err := fsys.ReadDir(at("d")); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("listing of a removed folder: %v", err)
		}
	})
}

// TestSyncedFile shows that direct writes must be aligned on every file system,
// that reads need not be, and that both ways of opening give the same bytes.
func TestSyncedFile(t *testing.T) {
	each(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "log")
		put(t, fsys, name, string(make([]byte, 4*Alignment)))
		f, err := fsys.OpenSynced(name, true)
		must(t, err)
		b := AlignedBuffer(2 * Alignment)
		for i := range b {
			b[i] = byte(i / 7)
		}
		_, err = f.WriteAt(b, Alignment)
		must(t, err)
		got := make([]byte, 1000)
		_, err = f.ReadAt(got, Alignment+3)
		must(t, err)
		if !bytes.Equal(got, b[3:1003]) {
			t.Fatal("read does not see the direct write")
		}
		big := AlignedBuffer(3 * Alignment)
		for what, err := range map[string]error{
			"offset": second(f.WriteAt(b, 512)),
			"length": second(f.WriteAt(b[:512], 0)),
			"memory": second(f.WriteAt(big[512:512+Alignment], 0)),
		} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("misaligned %s: %v", what, err)
			}
		}
		must(t, f.Close())
		f, err = fsys.OpenSynced(name, false)
		must(t, err)
		_, err = f.WriteAt([]byte("odd"), 5)
		must(t, err)
		must(t, f.Close())
		if all := get(t, fsys, name); all[5:8] != "odd" || all[Alignment:3*Alignment] != string(b) {
			t.Fatal("file differs from what was written")
		}
	})
}

func second(_ int, err error) error { return err }

// TestLock shows that a lock is held until it is closed, also against the same process.
func TestLock(t *testing.T) {
	each(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "LOCK")
		l, err := fsys.Lock(name)
		must(t, err)
		if _, err := fsys.Lock(name); !errors.Is(err, ErrLocked) {
			t.Fatalf("second lock: %v", err)
		}
		must(t, l.Close())
		l, err = fsys.Lock(name)
		must(t, err)
		must(t, l.Close())
	})
}

// TestUsage shows that the disk has a size and no more free than that.
func TestUsage(t *testing.T) {
	each(t, func(t *testing.T, fsys FS, dir string) {
		u, err := fsys.Usage(dir)
		must(t, err)
		if u.TotalBytes == 0 || u.FreeBytes > u.TotalBytes {
			t.Fatalf("usage %+v", u)
		}
	})
}

// TestAlignedBuffer shows that a buffer has the length, no spare room and an aligned address.
func TestAlignedBuffer(t *testing.T) {
	for _, n := range []int{0, 1, Alignment, 3*Alignment + 5} {
		b := AlignedBuffer(n)
		if len(b) != n || cap(b) != n {
			t.Fatalf("n %d: len %d cap %d", n, len(b), cap(b))
		}
		if err := checkAligned("", b[:n/Alignment*Alignment], 0); err != nil {
			t.Fatal(err)
		}
	}
}
