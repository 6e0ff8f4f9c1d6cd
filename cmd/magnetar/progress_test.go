package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/internal/vfs"
)

// TestProgressIsForTerminals shows that progress is one line written again and
// again, gone at the end, and that a file and the null device get none.
func TestProgressIsForTerminals(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) || isTerminal(new(bytes.Buffer)) {
		t.Error("the null device or a buffer is taken for a terminal")
	}
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		var out bytes.Buffer
		showProgress(t.Context(), &out, func() string { return "never" })()
		end := progressLines(context.Background(), &out, time.Second, func() string {
			return strings.Repeat("x", int(n.Add(1)))
		})
		time.Sleep(2500 * time.Millisecond)
		end()
		if got, want := out.String(), "\r\x1b[Kx\r\x1b[Kxx\r\x1b[K"; got != want {
			t.Errorf("progress %q, want %q", got, want)
		}
	})
}

// TestReadMeterCountsWhatIsRead shows that what is read of files is counted, however
// they were opened, and what is written is not.
func TestReadMeterCountsWhatIsRead(t *testing.T) {
	m := &readMeter{FS: vfs.NewMem()}
	f, err := m.Create("/file")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("four"), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for i, open := range []func(string) (vfs.File, error){m.Open, m.OpenReadWrite} {
		f, err := open("/file")
		if err != nil {
			t.Fatal(err)
		}
		f.ReadAt(make([]byte, 10), 0) // also what ends early counts
		f.Close()
		if got, want := m.bytes.Load(), int64(4*(i+1)); got != want {
			t.Errorf("%d bytes counted, want %d", got, want)
		}
		if _, err := open("/other"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file that is not there: %v", err)
		}
	}
}
