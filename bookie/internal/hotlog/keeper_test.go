package hotlog

import (
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Zeros are written ahead of the log and no further than it needs; an idle log writes
// nothing; when the active segment is full the next one stands written in full.
func TestWritingAheadFollowsTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		l := mustOpen(t, small(mem))
		size := func(segment uint32) int64 {
			info, err := mem.Stat(logName(segment))
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		synctest.Wait()
		if a, n := size(1), size(2); a != 3*blockBytes || n != blockBytes {
			t.Errorf("new log: %d and %d bytes", a, n)
		}
		for e := range ledger.EntryID(14) { // a block each
			mustAppend(t, l, entry(1, e, 0, 2000))
			synctest.Wait()
			point := blockBytes * int64(e+2)
			if got, want := size(1), min(minSegmentBytes, point+minSegmentBytes/8); got != want {
				t.Errorf("log at %d: written ahead to %d, want %d", point, got, want)
			}
			if got, want := size(2), max(blockBytes, 2*point-minSegmentBytes); got != want {
				t.Errorf("log at %d: next segment written to %d, want %d", point, got, want)
			}
		}
		mustAppend(t, l, entry(1, 14, 0, 2000))
		synctest.Wait()
		if s := l.Segments(); len(s) != 3 || !s[0].Sealed || s[1].Records != 1 {
			t.Errorf("segments after the switch: %+v", s)
		}
		mustClose(t, l)
	})
}

// Spares beyond what is to be kept are removed; those kept are used, and counted.
func TestSparesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		opts := small(mem)
		opts.SpareSegments = 2
		l := mustOpen(t, opts)
		for e := range ledger.EntryID(120) {
			mustAppend(t, l, entry(1, e, 0, 3000))
		}
		synctest.Wait()
		for _, s := range l.Segments() {
			if s.Sealed {
				if err := l.Recycle(s.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		u, total := l.Usage(), int64(0)
		for _, name := range files(t, mem, "") {
			info, err := mem.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			total += info.Size()
		}
		if n := len(files(t, mem, spareSuffix)); n != 2 || u.SpareBytes < 2*minSegmentBytes || u.SpareBytes >= 3*minSegmentBytes || u.DiskBytes != total {
			t.Errorf("%d spares, usage %+v, %d bytes on disk", n, u, total)
		}
		mustClose(t, l)
		if n := len(files(t, mem, tmpSuffix)); n > 0 {
			t.Errorf("%d index files under their temporary name", n)
		}
		opts.SpareSegments = -1
		l = mustOpen(t, opts)
		synctest.Wait()
		if n := len(files(t, mem, spareSuffix)); n > 0 {
			t.Errorf("%d spares although none are to be kept", n)
		}
		mustClose(t, l)
	})
}

// A spare that was made the next segment counts as free until it is written, bit by
// bit.
func TestSpareInUseIsFreeUntilWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := small(vfs.NewMem())
		opts.SpareSegments = 2
		l := mustOpen(t, opts)
		for e := range ledger.EntryID(60) {
			mustAppend(t, l, entry(1, e, 0, 2000)) // a block each
		}
		synctest.Wait()
		for _, s := range l.Segments() {
			if s.Sealed {
				if err := l.Recycle(s.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		used := func() int64 { u := l.Usage(); return u.DiskBytes - u.SpareBytes }
		before := used()
		for e := range ledger.EntryID(60) {
			mustAppend(t, l, entry(1, 60+e, 0, 2000))
			synctest.Wait()
			now := used()
			if rise := now - before; rise > 4*blockBytes { // the block, and at a switch what segments begin with, and a sidecar
				t.Errorf("one append of a block takes %d bytes", rise)
			}
			before = now
		}
		mustClose(t, l)
	})
}

// An idle log that is opened and closed again and again leaves nothing behind.
func TestIdleRestartsTakeNoSpace(t *testing.T) {
	mem := vfs.NewMem()
	for range 10 {
		mustClose(t, mustOpen(t, small(mem)))
	}
	if n := len(files(t, mem, "")); n > 3 {
		t.Errorf("files %v", files(t, mem, ""))
	}
	l := mustOpen(t, small(mem))
	mustAppend(t, l, entry(1, 0, 0, 100))
	mustClose(t, l)
	info, err := mem.Stat(files(t, mem, logSuffix)[0])
	if err != nil || info.Size() != 3*blockBytes {
		t.Errorf("a stopped log keeps %d bytes for one entry, %v", info.Size(), err)
	}
}

// The metrics say how much was written, and of that how much was asked for.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	opts := small(vfs.NewMem())
	opts.Metrics = reg
	l := mustOpen(t, opts)
	mustAppend(t, l, entry(1, 0, 0, 100), entry(1, 1, 0, 9000))
	mustClose(t, l)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		switch {
		case m.GetCounter() != nil:
			got[f.GetName()] = m.GetCounter().GetValue()
		case m.GetGauge() != nil:
			got[f.GetName()] = m.GetGauge().GetValue()
		case m.GetHistogram() != nil:
			got[f.GetName()] = float64(m.GetHistogram().GetSampleCount())
		}
	}
	if v := got["magnetar_bookie_log_append_bytes_total"]; v != 9100+2*ledger.EnvelopeBytes {
		t.Errorf("append bytes %v", v)
	}
	if v := got["magnetar_bookie_log_written_bytes_total"]; v < 9100 || v > 9100+6*blockBytes {
		t.Errorf("written bytes %v", v)
	}
	if got["magnetar_bookie_log_sync_seconds"] != got["magnetar_bookie_log_group_bytes"] || got["magnetar_bookie_log_sync_seconds"] < 2 {
		t.Errorf("syncs %v, groups %v", got["magnetar_bookie_log_sync_seconds"], got["magnetar_bookie_log_group_bytes"])
	}
	if got["magnetar_bookie_log_queue_bytes"] != 0 {
		t.Errorf("queue of %v bytes", got["magnetar_bookie_log_queue_bytes"])
	}
	if _, err := Open(opts, nil); err == nil {
		t.Error("registered twice without an error")
	}
}

// The tail serves what was written last, no more than its budget, and a buffer is used
// again only when no reader copies out of it.
func TestTailBudget(t *testing.T) {
	opts := small(vfs.NewMem())
	l := mustOpen(t, opts)
	places := mustAppend(t, l, entries(60, 3000)...)
	if u := l.Usage(); u.CacheBytes == 0 || u.CacheBytes > opts.TailCacheBytes {
		t.Errorf("tail of %d bytes, budget %d", u.CacheBytes, opts.TailCacheBytes)
	}
	if _, ok := l.tail.copyOut(places[59], int(places[59].Length)); !ok {
		t.Error("the last entry is not in memory")
	}
	if _, ok := l.tail.copyOut(places[0], int(places[0].Length)); ok {
		t.Error("the first entry is still in memory")
	}
	mustClose(t, l)

	p := &pool{}
	tl := tail{pool: p, budget: minBufferBytes}
	a := p.get(100)
	tl.add(1, blockBytes, 100, a)
	tl.groups[0].refs++ // a reader copies
	g := tl.groups[0]
	tl.add(1, 2*blockBytes, 100, p.get(100))
	if b := p.get(100); &b[0] == &a[0] {
		t.Error("a buffer was given away under its reader")
	}
	g.refs--
}

// Log works on a real disk, direct and buffered, with the default sizes.
func TestOnDisk(t *testing.T) {
	for _, noSync := range []bool{false, true} {
		opts := Options{FS: vfs.OS(), Dir: filepath.Join(t.TempDir(), "a", "hot"), NoSync: noSync, SegmentBytes: 8 << 20}
		l := mustOpen(t, opts)
		var wg sync.WaitGroup
		for e := range ledger.EntryID(100) {
			wg.Add(1)
			l.Append(entry(1, e, 0, 150_000), func(_ Place, err error) {
				if err != nil {
					t.Error(err)
				}
				wg.Done()
			})
			if e%50 == 49 {
				wg.Wait()
			}
		}
		for e := range ledger.EntryID(100) {
			mustRead(t, l, 1, e)
		}
		list := sealed(t, l)
		mustClose(t, l)
		l = mustOpen(t, opts)
		for e := range ledger.EntryID(100) {
			mustRead(t, l, 1, e)
		}
		if err := l.Recycle(list[0].ID); err != nil {
			t.Error(err)
		}
		mustAppend(t, l, entry(2, 0, 0, 5<<20))
		mustRead(t, l, 2, 0)
		mustClose(t, l)
	}
}

// TestRollEndsASegmentEarly shows that a segment can be ended and recycled long before
// it is full, that one without records is not, and that a restart, with or without a
// clean stop, finds what was appended on both sides of it.
func TestRollEndsASegmentEarly(t *testing.T) {
	disk := vfs.NewMem()
	l := mustOpen(t, small(disk))
	if l.Roll() {
		t.Error("an empty segment was ended")
	}
	first := mustAppend(t, l, entry(1, 0, 0, 100), fence(2, 3))[0].Segment
	waitFor(t, "the next segment", l.Roll)
	if l.Roll() {
		t.Error("a segment was ended before anything was in it")
	}
	if s := sealedNow(t, l, 1); s.ID != first || s.Records != 2 {
		t.Errorf("sealed: %+v, want segment %d with 2 records", s, first)
	}
	if p := mustAppend(t, l, entry(1, 1, 0, 100))[0]; p.Segment != first+1 {
		t.Errorf("the next entry is in segment %d, want %d", p.Segment, first+1)
	}
	waitFor(t, "the segment after it", l.Roll)
	sealedNow(t, l, 2)
	image := snapshot(disk)
	if err := l.Recycle(first); err != nil {
		t.Error(err)
	}
	mustClose(t, l)
	for name, files := range map[string]*vfs.Mem{"clean stop": snapshot(disk), "power cut": image} {
		l := mustOpen(t, small(files))
		if len(l.Damages()) > 0 {
			t.Errorf("%s: damages %+v", name, l.Damages())
		}
		mustRead(t, l, 1, 1)
		if name == "power cut" {
			mustRead(t, l, 1, 0)
		}
		mustClose(t, l)
	}
}

// sealedNow waits until so many segments are sealed and returns the last of them.
func sealedNow(t *testing.T, l *Log, n int) (last SegmentInfo) {
	t.Helper()
	waitFor(t, "sealed segments", func() bool {
		count := 0
		for _, s := range l.Segments() {
			if s.Sealed {
				count, last = count+1, s
			}
		}
		return count == n
	})
	return last
}
