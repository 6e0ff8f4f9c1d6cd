package bookie

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// TestRuleB5_ForeignDirectoryIsRefused shows that storage is opened only by the
// bookie it belongs to, and that each refusal says what, where and what next.
func TestRuleB5_ForeignDirectoryIsRefused(t *testing.T) {
	base := vfs.NewMem()
	n, err := Open(testOptions(base))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) func(*vfs.Mem, *Options) {
		return func(files *vfs.Mem, _ *Options) {
			if err := writeText(files, "/data", name, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name   string
		break_ func(*vfs.Mem, *Options)
		want   error
		words  string
	}{
		{"other cluster", func(_ *vfs.Mem, o *Options) { o.Cluster = "cluster-2" }, ErrForeign, "start it with that cluster's metadata"},
		{"other bookie", func(_ *vfs.Mem, o *Options) { o.ID = "bookie-2" }, ErrForeign, "start it with that id"},
		{"identity lost", func(files *vfs.Mem, _ *Options) { files.Remove("/data/identity") }, ErrForeign, "starts as a new incarnation"},
		{"newer", write(identityFile, identityMagic+" 2\n"), ErrNewer, "reads up to 1"},
		{"newer starts", write(startsFile, startsMagic+" 2\n"), ErrNewer, "reads up to 1"},
		{"other file", write(identityFile, "hello 1\n"), ErrForeign, "does not begin with"},
		{"field missing", write(identityFile, identityMagic+" 1\ncluster cluster-1\n"), ledger.ErrCorrupt, "a field is missing"},
		{"damaged", func(files *vfs.Mem, _ *Options) {
			f, err := files.OpenReadWrite("/data/identity")
			if err != nil {
				t.Fatal(err)
			}
			f.WriteAt([]byte("X"), 40)
			f.Close()
		}, ledger.ErrCorrupt, "checksum"},
		{"starts lost", func(files *vfs.Mem, _ *Options) { files.Remove("/data/starts") }, nil, "/data/starts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := base.Image(vfs.ImageOptions{KeepUnsynced: 1})
			o := testOptions(files)
			test.break_(files, &o)
			n, err := Open(o)
			if err == nil {
				n.Close()
				t.Fatal("opened")
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if !strings.Contains(err.Error(), test.words) || !strings.Contains(err.Error(), "/data") {
				t.Errorf("%q does not name the place and say %q", err, test.words)
			}
		})
	}
}

// TestDirectoryIsLocked shows that a directory in use is refused by name.
func TestDirectoryIsLocked(t *testing.T) {
	files := vfs.NewMem()
	openNode(t, testOptions(files))
	_, err := Open(testOptions(files))
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "/data") {
		t.Errorf("got %v, want ErrLocked with the directory", err)
	}
}

// TestRuleB4_WipedStorageIsAnotherIncarnation shows that the incarnation stays through restarts, that
// starts are counted, and that a wiped directory gets another incarnation.
func TestRuleB4_WipedStorageIsAnotherIncarnation(t *testing.T) {
	files := vfs.NewMem()
	o := testOptions(files)
	var first Identity
	for start := uint64(1); start <= 3; start++ {
		n, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if start == 1 {
			first = n.Identity()
		}
		if n.Identity() != first || n.startCounts().count != start {
			t.Errorf("start %d: %+v, counted %+v, want %+v", start, n.Identity(), n.startCounts(), first)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := files.RemoveAll("/data"); err != nil {
		t.Fatal(err)
	}
	if n := openNode(t, o); n.Identity().Incarnation == first.Incarnation {
		t.Error("wiped storage came back under the same incarnation")
	}
}

// TestFormatSurvivesCrashes shows that a format cut off at any operation leaves a
// directory that can be formatted or opened, never one that is refused.
func TestFormatSurvivesCrashes(t *testing.T) {
	for k := int64(0); ; k++ {
		disk := vfs.NewMem()
		o := testOptions(vfs.NewFaults(disk, vfs.CrashAt(disk, k)))
		o.Fatal = func(error) {}
		if n, err := Open(o); err == nil {
			n.Close()
		}
		if !disk.Crashed() {
			if k < 10 {
				t.Fatalf("a format has %d operations only", k)
			}
			return
		}
		for _, keep := range []float64{0, 0.5, 1} {
			after := testOptions(disk.Image(vfs.ImageOptions{KeepUnsynced: keep, TornSectors: true}))
			n, err := Open(after)
			if err != nil {
				t.Fatalf("crash at operation %d, keeping %v: %v", k, keep, err)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// FuzzParseText shows that no bytes of an identity file make its reader panic, and
// that what it accepts carries its checksum.
func FuzzParseText(f *testing.F) {
	files := vfs.NewMem()
	o := testOptions(files)
	o.Dir = "/"
	if _, err := openIdentity(files, "/", Identity{Cluster: "c", Bookie: "b", Incarnation: "i", ReserveBytes: 5}); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{identityFile, startsFile} {
		file, err := files.Open(filepath.Join("/", name))
		if err != nil {
			f.Fatal(err)
		}
		text := make([]byte, 500)
		n, _ := file.ReadAt(text, 0)
		f.Add(text[:n])
		file.Close()
	}
	f.Add([]byte("magnetar-bookie-identity 99\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		fields := 0
		err := parseText(text, identityMagic, func(string, string) error { fields++; return nil })
		if err != nil && !errors.Is(err, ErrForeign) && !errors.Is(err, ErrNewer) && !errors.Is(err, ledger.ErrCorrupt) {
			t.Fatalf("error %v is none of the known", err)
		}
		if err == nil && !strings.Contains(string(text), "\ncrc ") {
			t.Fatal("accepted without a checksum")
		}
	})
}

// TestGoldenIdentity shows that the files of version 1 are written as they always
// were, and that those written long ago are read.
func TestGoldenIdentity(t *testing.T) {
	files := vfs.NewMem()
	want := Identity{Cluster: "cluster-1", Bookie: "bookie-1", Incarnation: "00112233445566778899aabbccddeeff", ReserveBytes: 1 << 30}
	if _, err := openIdentity(files, "/", want); err != nil {
		t.Fatal(err)
	}
	if err := writeStarts(files, "/", starts{count: 12, registered: 11}); err != nil {
		t.Fatal(err)
	}
	old := vfs.NewMem()
	for _, name := range []string{identityFile, startsFile} {
		golden, err := os.ReadFile(filepath.Join("testdata", "v1."+name))
		if err != nil {
			t.Fatal(err)
		}
		if got := contents(t, files, "/"+name); string(got) != string(golden) {
			t.Errorf("%s is written as\n%s, was\n%s", name, got, golden)
		}
		if err := writeFile(old, "/"+name, golden); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ReadIdentity(old, "/"); err != nil || got != want {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	if got, err := readStarts(old, "/"); err != nil || got != (starts{count: 12, registered: 11}) {
		t.Errorf("read starts %+v, %v", got, err)
	}
}
