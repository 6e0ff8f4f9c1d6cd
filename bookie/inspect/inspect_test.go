package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options(disk *vfs.Mem) bookie.Options {
	return bookie.Options{FS: disk, Dir: "/data", ID: "bookie-1", Cluster: "cluster-1", MemoryBytes: 16 << 20,
		HotBytes: 4 << 20, SegmentBytes: 1 << 20, ReserveBytes: 1 << 20, Fatal: func(error) {}}
}

// used returns the disk of a bookie that has stored, moved, fenced and deleted.
func used(t *testing.T) *vfs.Mem {
	disk := vfs.NewMem()
	synctest.Test(t, func(t *testing.T) {
		n, err := bookie.Open(options(disk))
		if err != nil {
			t.Fatal(err)
		}
		for e := ledger.EntryID(0); e < 150; e++ {
			body := bytes.Repeat([]byte{byte(e), 'x'}, 30<<10)
			a := ledger.Add{Create: true, Body: body, Envelope: ledger.Envelope{Ledger: ledger.ID(1 + e%2), Entry: e / 2, LAC: e/2 - 1,
				TotalBytes: int64(e/2+1) * int64(len(body)), BodyBytes: uint32(len(body)), BodyCRC: crc32.Checksum(body, ledger.Castagnoli)}}
			for {
				result := make(chan error)
				n.Add(a, func(err error) { go func() { result <- err }() })
				if err = <-result; !errors.Is(err, ledger.ErrTooBusy) {
					break
				}
				time.Sleep(time.Second)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if _, err := n.Fence(context.Background(), 9, 2); err != nil {
			t.Fatal(err)
		}
		if err := n.Delete(context.Background(), 10); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	})
	return disk
}

// TestWholeDirectory shows what is counted of a directory in which all is well, and
// that inspecting it leaves it as it was.
func TestWholeDirectory(t *testing.T) {
	disk := used(t)
	for range 2 {
		r, err := Dir(disk, "/data")
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Problems) != 0 {
			t.Errorf("problems where there are none: %v", r.Problems)
		}
		if len(r.Notices) != 0 {
			t.Errorf("notices where all is well: %v", r.Notices)
		}
		entries, fences, tombstones := 0, 0, 0
		for _, s := range r.Hot {
			entries, fences, tombstones = entries+s.Entries, fences+s.Fences, tombstones+s.Tombstones
		}
		for _, s := range r.Cold {
			entries += s.Entries
		}
		if entries != 150 || fences != 1 || tombstones != 1 || len(r.Cold) == 0 || r.Index.Extents == 0 || r.Bookie != "bookie-1" {
			t.Errorf("%d entries, %d fences, %d tombstones: %+v", entries, fences, tombstones, r)
		}
	}
	n, err := bookie.Open(options(disk))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Dir(disk, "/data"); !errors.Is(err, bookie.ErrLocked) {
		t.Errorf("inspecting the directory of a running bookie: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := disk.MkdirAll("/elsewhere"); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]error{"/elsewhere": bookie.ErrForeign, "/data/identity": bookie.ErrForeign, "/nowhere": fs.ErrNotExist} {
		if _, err := Dir(disk, dir); !errors.Is(err, want) {
			t.Errorf("inspecting %s: %v, want %v", dir, err, want)
		}
	}
}

// TestEveryFileIsChecked alters one byte in the middle of what each file holds and
// shows that the report names the file.
func TestEveryFileIsChecked(t *testing.T) {
	disk := used(t)
	whole, err := Dir(disk, "/data")
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]bool{} // hot segments in which something stands; others hold what a former life left
	for _, s := range whole.Hot {
		written[fmt.Sprintf("%010d.log", s.Segment)] = s.Entries+s.Fences+s.Tombstones > 0
	}
	checked := map[string]int{}
	for _, folder := range []string{"/data", "/data/hot", "/data/cold", "/data/index"} {
		names, err := disk.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			kind := path.Ext(name)
			if name == "identity" || name == "starts" {
				kind = name
			}
			switch kind {
			case "identity", "starts", ".log", ".idx", ".cold", ".sst":
			default:
				continue // lock, spares, and files of the engine that hold no records
			}
			if kind == ".log" && !written[name] {
				continue
			}
			damaged := disk.Image(vfs.ImageOptions{KeepUnsynced: 1})
			flip(t, damaged, folder+"/"+name)
			checked[kind]++
			r, err := Dir(damaged, "/data")
			if err != nil {
				if kind != "identity" {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			want := strings.TrimPrefix(folder+"/"+name, "/data/")
			if kind == ".sst" {
				want = "index"
			}
			if !strings.Contains(fmt.Sprint(r.Problems), "{"+want+" ") {
				t.Errorf("damage in %s is reported as %v", want, r.Problems)
			}
		}
	}
	for _, kind := range []string{"identity", "starts", ".log", ".idx", ".cold", ".sst"} {
		if checked[kind] == 0 {
			t.Errorf("no %s file was tried", kind)
		}
	}
}

// TestWhatACrashLeaves shows what is said of a log that ends without its mark: nothing
// when zeros follow, a notice when it cannot be told whether a last group was torn or
// rotted, and a problem when a group before the last is damaged.
func TestWhatACrashLeaves(t *testing.T) {
	disk := vfs.NewMem()
	n, err := bookie.Open(options(disk))
	if err != nil {
		t.Fatal(err)
	}
	for term := range int64(4) { // each a group of its own
		if _, err := n.Fence(t.Context(), 9, term+1); err != nil {
			t.Fatal(err)
		}
	}
	disk.Crash()
	n.Close()
	disk = disk.Image(vfs.ImageOptions{})
	whole, err := Dir(disk, "/data")
	if err != nil {
		t.Fatal(err)
	}
	if len(whole.Problems)+len(whole.Notices) != 0 || whole.Hot[0].Fences != 4 || whole.Hot[0].Ended {
		t.Fatalf("problems %v, notices %v of %+v", whole.Problems, whole.Notices, whole.Hot[0])
	}
	const log = "hot/0000000001.log"
	used := whole.Hot[0].UsedBytes
	for _, c := range []struct {
		name              string
		at                int64
		bytes             int
		fences            int
		problems, notices string
	}{
		{"a body of the last group", used - 4096 + 33, 1, 3, "", "cut short"},
		{"all of the last group", used - 4096, 4096, 3, "", "former use"},
		{"bytes behind the last group", used + 5000, 10, 4, "", "former use"},
		{"a body of the first group", 4096 + 33, 1, 3, "are lost", ""},
		{"all of the second group", 2 * 4096, 4096, 3, "are lost", ""},
	} {
		damaged := disk.Image(vfs.ImageOptions{})
		invert(t, damaged, "/data/"+log, c.at, c.bytes)
		r, err := Dir(damaged, "/data")
		if err != nil {
			t.Fatal(err)
		}
		for what, got := range map[string][]Problem{c.problems: r.Problems, c.notices: r.Notices} {
			if what == "" && len(got) > 0 || what != "" && (len(got) != 1 || got[0].File != log || !strings.Contains(got[0].What, what)) {
				t.Errorf("%s: %q, want %q of %s", c.name, got, what, log)
			}
		}
		if r.Hot[0].Fences != c.fences {
			t.Errorf("%s: %d fences, want %d", c.name, r.Hot[0].Fences, c.fences)
		}
	}
}

// flip alters a byte of a file: in its first record, which stands behind a block of
// header in segments of the log, else in the middle.
func flip(t *testing.T, disk *vfs.Mem, name string) {
	t.Helper()
	f, err := disk.OpenReadWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	at /= 2
	if strings.HasSuffix(name, ".log") {
		at = 4096 + 50
	}
	invert(t, disk, name, at, 1)
}

// invert alters n bytes of a file, which may end before them.
func invert(t *testing.T, disk *vfs.Mem, name string, at int64, n int) {
	t.Helper()
	f, err := disk.OpenReadWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x55
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
