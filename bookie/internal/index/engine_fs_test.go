package index

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	magvfs "github.com/magnetar-io/magnetar/internal/vfs"
)

// TestEngineFS shows that the file system the engine sees keeps the engine's
// contract where it is wider than ours: files read and written in order, made
// when absent, reused with their old bytes, folders opened to be synced.
func TestEngineFS(t *testing.T) {
	mem := magvfs.NewMem()
	e := engineFS{fs: mem, fatal: func(err error) { t.Errorf("fatal: %v", err) }}
	must(t, e.MkdirAll("/d", 0o755))
	f, err := e.Create("/d/a", vfs.WriteCategoryUnspecified)
	must(t, err)
	for _, part := range []string{"one ", "two"} {
		n, err := f.Write([]byte(part))
		if n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	must(t, f.Preallocate(0, 1<<20))
	must(t, f.Prefetch(0, 10))
	full, err := f.SyncTo(3)
	if !full || err != nil || f.Fd() != vfs.InvalidFd {
		t.Fatal(full, err)
	}
	fi, err := f.Stat()
	if err != nil || fi.Size() != 7 || fi.Name() != "a" || fi.IsDir() || fi.Mode().IsDir() {
		t.Fatal(fi, err)
	}
	must(t, f.Close())
	must(t, e.Link("/d/a", "/d/b"))
	if err := e.Link("/d/a", "/d/b"); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	applied := false
	f, err = e.Open("/d/b", openOption(func(vfs.File) { applied = true }))
	must(t, err)
	all, err := io.ReadAll(f)
	if string(all) != "one two" || err != nil || !applied {
		t.Fatalf("%q %v %v", all, err, applied)
	}
	must(t, f.Close())
	f, err = e.ReuseForWrite("/d/b", "/d/c", vfs.WriteCategoryUnspecified)
	must(t, err)
	_, err = f.Write([]byte("ONE"))
	must(t, err)
	must(t, f.SyncData())
	must(t, f.Close())
	f, err = e.OpenReadWrite("/d/c", vfs.WriteCategoryUnspecified)
	must(t, err)
	all, err = io.ReadAll(f)
	if string(all) != "ONE two" || err != nil {
		t.Fatalf("%q %v", all, err)
	}
	must(t, f.Close())
	f, err = e.OpenReadWrite("/d/new", vfs.WriteCategoryUnspecified)
	must(t, err)
	must(t, f.Close())
	names, err := e.List("/d")
	if err != nil || !slices.Equal(names, []string{"a", "c", "new"}) {
		t.Fatal(names, err)
	}
	d, err := e.OpenDir("/d")
	must(t, err)
	must(t, d.Sync())
	if fi, err := d.Stat(); err != nil || !fi.IsDir() {
		t.Fatal(fi, err)
	}
	if _, err := d.Write(nil); !errors.Is(err, fs.ErrInvalid) {
		t.Fatal(err)
	}
	must(t, d.Close())
	if _, err := e.OpenDir("/d/a"); err == nil {
		t.Fatal("a file was opened as a folder")
	}
	if _, err := e.OpenDir("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	u, err := e.GetDiskUsage("/d")
	if err != nil || u.TotalBytes != u.AvailBytes+u.UsedBytes {
		t.Fatal(u, err)
	}
	l, err := e.Lock("/d/LOCK")
	must(t, err)
	must(t, l.Close())
	must(t, e.Remove("/d/a"))
	must(t, e.RemoveAll("/d"))
	if _, err := e.Stat("/d"); !errors.Is(err, fs.ErrNotExist) || e.Unwrap() != nil {
		t.Fatal(err)
	}
}

type openOption func(vfs.File)

func (o openOption) Apply(f vfs.File) { o(f) }
