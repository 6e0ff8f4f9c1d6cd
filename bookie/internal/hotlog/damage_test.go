package hotlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// unclean is the disk of a log that was cut off after appending records, each in a group of
// its own.
func unclean(t *testing.T, opts Options, records ...Record) (*vfs.Mem, []Place) {
	t.Helper()
	mem := opts.FS.(*vfs.Mem)
	l := mustOpen(t, opts)
	var places []Place
	for _, r := range records {
		places = append(places, mustAppend(t, l, r)...)
	}
	disk := snapshot(mem)
	mustClose(t, l)
	return disk, places
}

func entries(n int, size int) []Record {
	var list []Record
	for e := range n {
		list = append(list, entry(1, ledger.EntryID(e), 0, size))
	}
	return list
}

// A flipped bit in the last group cannot be told from a torn write: that group is cut off.
// One in an earlier group is damage: the entry stays known and reads as corrupt, the
// entries around it are served, and the next start says the same, from the index file.
func TestRuleM29_TornOrRotten(t *testing.T) {
	for _, c := range []struct {
		name       string
		victim     int   // entry
		at         int64 // in its frame
		damages    int
		readable   int // entries that can be read
		known      int // entries in the index
		wantLedger ledger.ID
	}{
		{"body of the last", 9, 500, 0, 9, 9, 0},
		{"header of the last", 9, 5, 0, 9, 9, 0},
		{"body in the middle", 4, 500, 0, 9, 10, 0},
		{"header in the middle", 4, 5, 1, 9, 9, 0},
		{"envelope in the middle", 4, frameHeaderBytes + 9, 1, 9, 9, 1},
		{"commit frame in the middle", 4, 1080 + 5, 1, 10, 10, 0},
		{"body of the first", 0, 500, 0, 9, 10, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk, places := unclean(t, small(vfs.NewMem()), entries(10, 1000)...)
			alter(t, disk, logName(1), int64(places[c.victim].Offset)+c.at, flip)
			for range 3 {
				l := mustOpen(t, small(disk))
				readable, known := 0, 0
				for e := range ledger.EntryID(10) {
					if _, ok := l.Lookup(1, e); ok {
						known++
					}
					_, err := l.ReadEntry(1, e)
					switch {
					case err == nil:
						readable++
					case e != ledger.EntryID(c.victim) || !errors.Is(err, ledger.ErrCorrupt) && !errors.Is(err, ledger.ErrNoEntry):
						t.Errorf("entry %d: %v", e, err)
					}
				}
				d := l.Damages()
				if readable != c.readable || known != c.known || len(d) != c.damages {
					t.Errorf("%d readable, %d known, damages %v; want %+v", readable, known, d, c)
				}
				if len(d) == 1 && (d[0].Ledger != c.wantLedger || d[0].Segment != 1) {
					t.Errorf("damage %+v", d[0])
				}
				mustClose(t, l)
			}
		})
	}
}

// Of a torn group the disk may have kept any blocks, also such that begin with a whole frame:
// that is no later group, and no damage.
func TestRuleM29_LaterBlocksOfATornGroupAreNoDamage(t *testing.T) {
	mem := vfs.NewMem()
	opts := small(mem)
	opts.GroupBytes = 8 * blockBytes
	opts.NoSync = true // nothing is written ahead, so the write at blockBytes is the first group's
	blocked, release := make(chan struct{}), make(chan struct{})
	opts.FS = vfs.NewFaults(mem, func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && op.Name == logName(1) && op.Offset == blockBytes {
			close(blocked)
			<-release
		}
		return nil
	})
	l := mustOpen(t, opts)
	answered := make(chan error, 10)
	add := func(r Record) { l.Append(r, func(_ Place, err error) { answered <- err }) }
	add(entry(1, 0, 0, 100))
	<-blocked
	const whole = blockBytes - entryHeadBytes // its frame is one block
	for e := range ledger.EntryID(4) {
		add(entry(1, 1+e, 0, whole))
	}
	close(release)
	for range 5 {
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
	}
	p, _ := l.Lookup(1, 1)
	q, _ := l.Lookup(1, 2)
	if p.Offset%blockBytes != 0 || q.Offset != p.Offset+blockBytes {
		t.Fatalf("entries at %v and %v: not what this test needs", p, q)
	}
	disk := mem.Image(vfs.ImageOptions{KeepUnsynced: 1})
	mustClose(t, l)
	alter(t, disk, logName(1), int64(p.Offset), func(b []byte) { clear(b[:blockBytes]) })
	l = mustOpen(t, small(disk))
	if d := l.Damages(); len(d) > 0 {
		t.Errorf("damages %v", d)
	}
	if last, _ := l.LastEntry(1); last != 0 {
		t.Errorf("last entry %d, want 0", last)
	}
	mustClose(t, l)
}

// The commit frame covers the group: frames that check out by themselves are not taken without it.
func TestGroupIsTakenWholeOrNotAtAll(t *testing.T) {
	mem := vfs.NewMem()
	disk, places := unclean(t, small(mem), entry(1, 0, 0, 100), entry(1, 1, 0, 100))
	alter(t, disk, logName(1), int64(places[1].Offset)+int64(align8(int(places[1].Length)))+40, flip)
	l := mustOpen(t, small(disk))
	if last, _ := l.LastEntry(1); last != 0 || len(l.Damages()) > 0 {
		t.Errorf("last entry %d, damages %v", last, l.Damages())
	}
	mustClose(t, l)
}

// After damage and after a torn tail the log goes on in a new segment, and no written block is
// ever written again.
func TestRuleM29_NoBlockIsWrittenTwice(t *testing.T) {
	mem := vfs.NewMem()
	written := map[string]map[int64]bool{} // blocks with something else than zeros
	fsys := &spy{FS: mem, onWrite: func(name string, p []byte, off int64) {
		if filepath.Ext(name) != ".log" {
			return
		}
		if written[name] == nil {
			written[name] = map[int64]bool{}
		}
		for i := 0; i < len(p); i += blockBytes {
			block := off + int64(i)
			if written[name][block] && block >= blockBytes {
				t.Errorf("block %d of %s is written twice", block, name)
			}
			written[name][block] = written[name][block] || !bytes.Equal(p[i:i+blockBytes], make([]byte, blockBytes))
		}
	}}
	for run := range 4 {
		opts := small(fsys)
		l := mustOpen(t, opts)
		for e := range ledger.EntryID(20) {
			mustAppend(t, l, entry(ledger.ID(run+1), e, 0, 1500))
		}
		mustClose(t, l)
	}
}

// spy shows the writes of synced files, one at a time.
type spy struct {
	vfs.FS
	mu      sync.Mutex
	onWrite func(string, []byte, int64)
}

type spyFile struct {
	vfs.File
	name string
	spy  *spy
}

func (s *spy) OpenSynced(name string, direct bool) (vfs.File, error) {
	f, err := s.FS.OpenSynced(name, direct)
	if err != nil {
		return nil, err
	}
	return &spyFile{f, name, s}, nil
}

func (f *spyFile) WriteAt(p []byte, off int64) (int, error) {
	f.spy.mu.Lock()
	f.spy.onWrite(f.name, p, off)
	f.spy.mu.Unlock()
	return f.File.WriteAt(p, off)
}

// A payload that is itself a piece of a log, of the right segment and sequence, is not
// taken for frames, not even where a torn or rotten group leaves it in the open.
func TestPayloadCannotPassForFrames(t *testing.T) {
	forged := entry(66, 0, 0, 100)
	var pieces []byte
	for len(pieces) < 5*blockBytes {
		g := group{segment: 1, seed: 0, sequence: 1000, offset: int64(len(pieces)), limit: blockBytes, mem: vfs.AlignedBuffer(blockBytes)}
		g.add(&forged, nil, &pool{})
		pieces = append(pieces, g.finish()...)
	}
	for shift := range 3 {
		body := append(make([]byte, blockBytes-entryHeadBytes-8*(shift-1)), pieces...)
		r := entry(1, 0, 0, 24)
		r.Body = body
		r.Envelope.BodyBytes, r.Envelope.TotalBytes, r.Envelope.BodyCRC = uint32(len(body)), 1<<20, checksum(0, body)
		disk, places := unclean(t, small(vfs.NewMem()), r)
		alter(t, disk, logName(1), int64(places[0].Offset), flip)
		l := mustOpen(t, small(disk))
		if _, ok := l.Lookup(66, 0); ok || len(l.Damages()) > 0 {
			t.Errorf("a payload was replayed: %v, %v", ok, l.Damages())
		}
		mustClose(t, l)
	}
}

// The end of a full segment is known by its end group. If that is gone, and what stood before
// it, while later segments were written, the tail is damage and not the end.
func TestLostTailOfAFullSegmentIsDamage(t *testing.T) {
	disk, places := unclean(t, small(vfs.NewMem()), entries(40, 3000)...)
	lastOfFirst := 0
	for i, p := range places {
		if p.Segment == 1 {
			lastOfFirst = i
		}
	}
	if err := removeIfThere(disk, sidecarName(1)); err != nil {
		t.Fatal(err)
	}
	alter(t, disk, logName(1), int64(places[lastOfFirst].Offset), func(b []byte) { clear(b) })
	for range 2 {
		l := mustOpen(t, small(disk))
		if d := l.Damages(); len(d) != 1 || d[0].Segment != 1 || d[0].Offset != places[lastOfFirst].Offset || d[0].Ledger != 0 {
			t.Errorf("damages %v", d)
		}
		for e := range ledger.EntryID(40) {
			if int(e) != lastOfFirst {
				mustRead(t, l, 1, e)
			}
		}
		mustClose(t, l)
	}
}

func removeIfThere(fsys vfs.FS, name string) error {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// A corrupt index file is made again from the segment; a segment without header but with index
// file is served; one that has lost both is damage as a whole.
func TestLostHeaderAndIndexFile(t *testing.T) {
	mem := vfs.NewMem()
	l := mustOpen(t, small(mem))
	mustAppend(t, l, append(entries(40, 3000), fence(1, 1))...)
	mustClose(t, l)
	spoil := func(b []byte) { clear(b[:min(len(b), blockBytes)]) }

	alter(t, mem, sidecarName(1), 50, flip)
	l = mustOpen(t, small(mem))
	for e := range ledger.EntryID(40) {
		mustRead(t, l, 1, e)
	}
	mustClose(t, l)
	if _, _, _, err := (&folder{fs: mem, dir: testDir}).readSidecar(1); err != nil {
		t.Errorf("the index file was not made again: %v", err)
	}

	alter(t, mem, logName(1), 0, func(b []byte) { clear(b[:100]) }) // one copy of the header is enough
	disk := snapshot(mem)
	if err := disk.Remove(sidecarName(1)); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, small(disk))
	mustRead(t, l, 1, 0)
	mustClose(t, l)

	alter(t, mem, logName(1), 0, spoil)
	l = mustOpen(t, small(mem))
	mustRead(t, l, 1, 0)
	if d := l.Damages(); len(d) > 0 {
		t.Errorf("damages %v", d)
	}
	mustClose(t, l)

	alter(t, mem, sidecarName(1), 50, flip)
	l = mustOpen(t, small(mem))
	if d := l.Damages(); len(d) != 1 || d[0].Segment != 1 || d[0].Offset != 0 || d[0].Ledger != 0 {
		t.Errorf("damages %v", d)
	}
	if _, ok := l.Lookup(1, 0); ok {
		t.Error("an entry out of a segment without a header")
	}
	mustRead(t, l, 1, 39)
	mustClose(t, l)
}

// Files of a newer build are named as such, and Open does not touch them.
func TestNewerVersion(t *testing.T) {
	mem := vfs.NewMem()
	l := mustOpen(t, small(mem))
	mustAppend(t, l, entry(1, 0, 0, 100))
	mustClose(t, l)
	segment, index := snapshot(mem), snapshot(mem)
	alter(t, segment, logName(1), 0, func(b []byte) {
		for _, h := range [][]byte{b, b[headerCopyOffset:]} {
			binary.LittleEndian.PutUint32(h[8:], 3)
			binary.LittleEndian.PutUint32(h[20:], checksum(0, h[:20]))
		}
	})
	alter(t, index, sidecarName(1), 0, func(b []byte) {
		binary.LittleEndian.PutUint32(b[8:], 3)
		binary.LittleEndian.PutUint32(b[len(b)-4:], checksum(0, b[:len(b)-4]))
	})
	for _, disk := range []*vfs.Mem{segment, index} {
		_, err := Open(small(disk), nil)
		if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 3, this build reads up to 1") {
			t.Errorf("newer file: %v", err)
		}
	}
}

// Damage on disk in a running log is found by reading, and told apart from absence, entry by
// entry.
func TestRotWhileRunning(t *testing.T) {
	mem := vfs.NewMem()
	opts := small(mem)
	opts.TailCacheBytes = -1
	l := mustOpen(t, opts)
	places := mustAppend(t, l, entries(40, 3000)...)
	s := sealed(t, l)[0]
	alter(t, mem, logName(s.ID), int64(places[2].Offset)+300, flip)
	if _, err := l.ReadEntry(1, 2); !errors.Is(err, ledger.ErrCorrupt) {
		t.Errorf("rotten entry: %v", err)
	}
	if run, err := l.ReadRun(1, 0, 10, 1<<20, 0, nil); err != nil || len(run) != 2 {
		t.Errorf("run up to the rotten entry: %d, %v", len(run), err)
	}
	good, bad := 0, 0
	err := survivors(l, s.ID, func(at located, e ledger.Entry, err error) error {
		switch {
		case err == nil:
			versionOf(t, at.id, at.entry, e.Body)
			good++
		case errors.Is(err, ledger.ErrCorrupt) && at.id == 1 && at.entry == 2:
			bad++
		default:
			t.Errorf("entry %d of ledger %d: %v", at.entry, at.id, err)
		}
		return nil
	})
	if err != nil || bad != 1 || int64(good+bad) != s.LiveEntries {
		t.Errorf("survivors: %d and %d damaged of %d, %v", good, bad, s.LiveEntries, err)
	}
	mustClose(t, l)
}
