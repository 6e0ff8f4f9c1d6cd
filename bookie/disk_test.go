package bookie

import (
	"strings"
	"sync"
	"testing"

	"github.com/magnetar-io/magnetar/internal/vfs"
)

// slowDisk is a disk whose synced writes can be held up.
type slowDisk struct {
	files   vfs.FS
	waiting chan struct{} // gets one when a write is held up

	mu   sync.Mutex
	gate chan struct{} // nil: open
}

func newSlowDisk() *slowDisk {
	d := &slowDisk{waiting: make(chan struct{}, 1000)}
	d.files = vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		if op.Kind != vfs.OpWrite || !strings.Contains(op.Name, "/hot/") {
			return nil
		}
		d.mu.Lock()
		gate := d.gate
		d.mu.Unlock()
		if gate != nil {
			d.waiting <- struct{}{}
			<-gate
		}
		return nil
	})
	return d
}

func (d *slowDisk) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate == nil {
		d.gate = make(chan struct{})
	}
}

func (d *slowDisk) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gate != nil {
		close(d.gate)
		d.gate = nil
	}
}

// TestDiskLevels shows at which free bytes what is refused, and that a level is
// left only with some room to spare.
func TestDiskLevels(t *testing.T) {
	const reserve = 800
	for _, test := range []struct {
		now  diskLevel
		free uint64
		want diskLevel
	}{
		{levelOpen, 1000, levelOpen},
		{levelOpen, 800, levelOpen},
		{levelOpen, 799, levelNoData},
		{levelOpen, 199, levelMinimum},
		{levelNoData, 899, levelNoData},
		{levelNoData, 900, levelOpen},
		{levelNoData, 199, levelMinimum},
		{levelMinimum, 0, levelMinimum},
		{levelMinimum, 299, levelMinimum},
		{levelMinimum, 300, levelNoData},
		{levelMinimum, 5000, levelOpen},
	} {
		if got := nextLevel(test.now, test.free, reserve); got != test.want {
			t.Errorf("level %d with %d free: %d, want %d", test.now, test.free, got, test.want)
		}
	}
}

// names lists a folder.
func names(t *testing.T, files vfs.FS, dir string) []string {
	t.Helper()
	list, err := files.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// contents reads a file whole.
func contents(t *testing.T, files vfs.FS, name string) []byte {
	t.Helper()
	f, err := files.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		t.Fatal(err)
	}
	return b
}

// flip alters one byte of a file.
func flip(t *testing.T, files vfs.FS, name string, offset int64) {
	t.Helper()
	f, err := files.OpenReadWrite(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		return // shorter than that
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}
