package hotlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testDir = "/hot"

// small is a log of tiny segments, so that a test sees many of them.
func small(fsys vfs.FS) Options {
	seed := uint64(7)
	return Options{
		FS: fsys, Dir: testDir, SegmentBytes: minSegmentBytes, GroupBytes: 2 * blockBytes, TailCacheBytes: 32 << 10,
		Rand:  func() uint64 { seed += 0x9e3779b97f4a7c15; return seed },
		Fatal: func(error) {},
	}
}

// entry makes a copy of an entry whose body tells which one, and which copy, it is.
func entry(id ledger.ID, e ledger.EntryID, version, size int) Record {
	body := make([]byte, max(size, 24))
	rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, id, e, version))).Read(body)
	binary.BigEndian.PutUint64(body, uint64(id))
	binary.BigEndian.PutUint64(body[8:], uint64(e))
	binary.BigEndian.PutUint64(body[16:], uint64(version))
	return Record{Kind: KindEntry, Body: body, Envelope: ledger.Envelope{
		Ledger: id, Entry: e, LAC: e - 1, TotalBytes: int64(e+1) * int64(len(body)),
		BodyBytes: uint32(len(body)), BodyCRC: crc32.Checksum(body, ledger.Castagnoli),
	}}
}

// versionOf checks that a body is what entry made for (id, e), and which copy it is.
func versionOf(t failer, id ledger.ID, e ledger.EntryID, body []byte) int {
	t.Helper()
	if len(body) < 24 {
		t.Fatalf("entry %d of ledger %d: body of %d bytes", e, id, len(body))
	}
	v := int(binary.BigEndian.Uint64(body[16:]))
	if want := entry(id, e, v, len(body)); !bytes.Equal(want.Body, body) {
		t.Fatalf("entry %d of ledger %d: not a body that was ever appended", e, id)
	}
	return v
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func fence(id ledger.ID, term int) Record {
	return Record{Kind: KindFence, Ledger: id, Data: binary.AppendUvarint(nil, uint64(term))}
}

// result of one append.
type result struct {
	place Place
	err   error
}

// appendAll appends records and waits for all answers.
func appendAll(l *Log, records ...Record) []result {
	results := make([]result, len(records))
	var wg sync.WaitGroup
	wg.Add(len(records))
	for i, r := range records {
		l.Append(r, func(p Place, err error) {
			results[i] = result{p, err}
			wg.Done()
		})
	}
	wg.Wait()
	return results
}

func mustAppend(t failer, l *Log, records ...Record) []Place {
	t.Helper()
	places := make([]Place, len(records))
	for i, r := range appendAll(l, records...) {
		if r.err != nil {
			t.Fatalf("append %d: %v", i, r.err)
		}
		places[i] = r.place
	}
	return places
}

func mustOpen(t failer, opts Options) *Log {
	t.Helper()
	l, err := Open(opts, nil)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return l
}

func mustClose(t failer, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// mustRead reads an entry and returns which copy it is.
func mustRead(t failer, l *Log, id ledger.ID, e ledger.EntryID) int {
	t.Helper()
	got, err := l.ReadEntry(id, e)
	if err != nil {
		t.Fatalf("read entry %d of ledger %d: %v", e, id, err)
	}
	return versionOf(t, id, e, got.Body)
}

// waitFor polls for what the keeper does in its own time.
func waitFor(t failer, what string, cond func() bool) {
	t.Helper()
	for range 5000 {
		if cond() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("never came: %s", what)
}

// sealed waits until all full segments have their index file, and lists them.
func sealed(t failer, l *Log) []SegmentInfo {
	t.Helper()
	var list []SegmentInfo
	waitFor(t, "sealed segments", func() bool {
		list = list[:0]
		waiting := 0
		for _, s := range l.Segments() {
			if s.Sealed {
				list = append(list, s)
			} else {
				waiting++
			}
		}
		return waiting <= 2 // the active one and the next
	})
	return list
}

// snapshot copies a folder of Mem at rest, so that a test can damage it.
func snapshot(m *vfs.Mem) *vfs.Mem { return m.Image(vfs.ImageOptions{}) }

// alter changes bytes of a file in place, durably.
func alter(t failer, fsys vfs.FS, name string, off int64, change func([]byte)) {
	t.Helper()
	f, err := fsys.OpenReadWrite(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	size, err := f.Size()
	if err != nil {
		t.Fatalf("%v", err)
	}
	b := make([]byte, size-off)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatalf("%v", err)
	}
	change(b)
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatalf("%v", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatalf("%v", err)
	}
}

func flip(b []byte) { b[0] ^= 0x40 }

// files lists the names in the log's folder with the given suffix.
func files(t *testing.T, fsys vfs.FS, suffix string) []string {
	t.Helper()
	names, err := fsys.ReadDir(testDir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, n := range names {
		if strings.HasSuffix(n, suffix) {
			list = append(list, filepath.Join(testDir, n))
		}
	}
	return list
}

func logName(segment uint32) string { return filepath.Join(testDir, fmt.Sprintf("%010d.log", segment)) }
func sidecarName(segment uint32) string {
	return filepath.Join(testDir, fmt.Sprintf("%010d.idx", segment))
}

// survivors yields the entries that Lookup finds in a sealed segment, or why one cannot
// be read, in order of (ledger, entry).
func survivors(l *Log, segment uint32, yield func(located, ledger.Entry, error) error) error {
	ids, err := l.SegmentLedgers(segment)
	for _, id := range ids {
		var list []located
		l.segments.mu.RLock()
		for r := range l.segments.index.in(segment, id) {
			for i, s := range r.slots {
				list = append(list, located{id, r.first + ledger.EntryID(i), Place{segment, s.offset, s.length}})
			}
		}
		l.segments.mu.RUnlock()
		if err := l.readAll(list, 0, yield); err != nil {
			return err
		}
	}
	return err
}
