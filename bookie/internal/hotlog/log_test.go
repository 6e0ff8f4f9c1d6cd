package hotlog

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// What was appended is read back, by place, by entry and as a run, from memory and from
// disk, before and after a restart; and a restart replays it in order with all
// that stands in the envelopes.
func TestAppendReadReopen(t *testing.T) {
	mem := vfs.NewMem()
	l := mustOpen(t, small(mem))
	var records []Record
	for e := range ledger.EntryID(60) {
		records = append(records, entry(1, e, 0, 1000+int(e)*37), entry(2, e, 0, 30))
		if e%20 == 0 {
			records = append(records, fence(ledger.ID(3), int(e)), Record{Kind: KindTombstone, Data: []byte("gone")},
				Record{Kind: KindLedger, Ledger: 9, Data: bytes.Repeat([]byte{byte(e)}, 5000)})
		}
	}
	places := mustAppend(t, l, records...)

	check := func(l *Log) {
		t.Helper()
		for i, r := range records {
			if r.Kind != KindEntry {
				continue
			}
			e := r.Envelope
			if p, ok := l.Lookup(e.Ledger, e.Entry); !ok || p != places[i] {
				t.Fatalf("entry %d of ledger %d is at %v, %v; want %v", e.Entry, e.Ledger, p, ok, places[i])
			}
			got, err := l.Read(places[i])
			if err != nil || got.Envelope != e || !bytes.Equal(got.Body, r.Body) {
				t.Fatalf("read %v: %+v, %v", places[i], got.Envelope, err)
			}
		}
		for _, id := range []ledger.ID{1, 2} {
			if last, ok := l.LastEntry(id); !ok || last != 59 {
				t.Errorf("last entry of ledger %d is %d, %v", id, last, ok)
			}
			run, err := l.ReadRun(id, 5, 100, 1<<30, 0, nil)
			if err != nil || len(run) != 55 {
				t.Fatalf("run of ledger %d: %d entries, %v", id, len(run), err)
			}
			for i, e := range run {
				versionOf(t, id, ledger.EntryID(5+i), e.Body)
			}
		}
		if _, err := l.ReadEntry(1, 60); !errors.Is(err, ledger.ErrNoEntry) {
			t.Errorf("entry that is not there: %v", err)
		}
		if got := l.Ledgers(); !slices.Equal(got, []ledger.ID{1, 2}) {
			t.Errorf("ledgers %v", got)
		}
	}
	check(l)
	mustClose(t, l)

	for range 2 { // the second time all segments are older than the run before
		var replayed []Record
		var at []Place
		l, err := Open(small(mem), func(r Record, p Place) error {
			replayed, at = append(replayed, r), append(at, p)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := make([]Record, len(records))
		for i, r := range records {
			want[i] = r
			want[i].Body = nil
			if r.Kind == KindEntry {
				want[i].Ledger, want[i].Entry = r.Envelope.Ledger, r.Envelope.Entry
			}
		}
		if d := cmp.Diff(want, replayed); d != "" {
			t.Fatalf("replay (-want +got):\n%s", d)
		}
		if d := cmp.Diff(places, at); d != "" {
			t.Fatalf("places in replay (-want +got):\n%s", d)
		}
		check(l)
		mustClose(t, l)
	}
}

// ReadRun stops at its limits, gives at least one entry, and gives heads when asked.
func TestReadRunLimits(t *testing.T) {
	opts := small(vfs.NewMem())
	opts.TailCacheBytes = -1
	l := mustOpen(t, opts)
	defer mustClose(t, l)
	var rs []Record
	for e := range ledger.EntryID(10) {
		rs = append(rs, entry(1, e, 0, 1000), entry(2, e, 0, 900))
	}
	mustAppend(t, l, rs...)
	mustAppend(t, l, entry(1, 11, 0, 1000)) // 10 is missing
	for _, c := range []struct {
		first, last     ledger.EntryID
		max, head, want int
	}{
		{0, 9, 1 << 20, 0, 10}, {0, 9, 3500, 0, 3}, {0, 9, 0, 0, 1}, {3, 3, 1 << 20, 0, 1}, {8, 20, 1 << 20, 0, 2},
		{11, 11, 1, 0, 1}, {0, 9, 250, 100, 2}, {0, 9, 1 << 20, 100, 10}, {0, 9, 1 << 20, 5000, 10},
	} {
		run, err := l.ReadRun(1, c.first, c.last, c.max, c.head, nil)
		if err != nil || len(run) != c.want {
			t.Errorf("%+v: %d entries, %v", c, len(run), err)
		}
		for i, e := range run {
			want := entry(1, c.first+ledger.EntryID(i), 0, 1000)
			if n := min(1000, max(c.head, 0)); c.head > 0 {
				want.Body = want.Body[:n]
			}
			if e.Envelope != want.Envelope || !bytes.Equal(e.Body, want.Body) {
				t.Errorf("%+v: entry %d is wrong", c, i)
			}
		}
	}
	if _, err := l.ReadRun(1, 10, 11, 1, 0, nil); !errors.Is(err, ledger.ErrNoEntry) {
		t.Errorf("run from a gap: %v", err)
	}
}

// Groups fill while one is written, are at most GroupBytes, and never is more than one
// write under way; an entry larger than a group is a group of its own.
func TestRuleM29_OneGroupInFlight(t *testing.T) {
	var mu sync.Mutex
	var sizes []int
	inFlight, blocked, release := 0, make(chan struct{}), make(chan struct{})
	fsys := vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		if op.Kind != vfs.OpWrite || op.Name != logName(1) || op.Offset < blockBytes {
			return nil
		}
		mu.Lock()
		if inFlight++; inFlight > 1 {
			t.Error("two groups in flight")
		}
		sizes = append(sizes, op.Len)
		first := len(sizes) == 1
		mu.Unlock()
		if first {
			close(blocked)
			<-release
		}
		mu.Lock()
		inFlight--
		mu.Unlock()
		return nil
	})
	opts := small(fsys)
	opts.SegmentBytes, opts.GroupBytes = 1<<20, 64<<10
	opts.NoSync = true // the same path, but nothing is written ahead, so each write is a group
	l := mustOpen(t, opts)
	var wg sync.WaitGroup
	add := func(r Record) {
		wg.Add(1)
		l.Append(r, func(_ Place, err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
	}
	add(entry(1, 0, 0, 100))
	<-blocked
	for e := range ledger.EntryID(100) {
		add(entry(1, 1+e, 0, 1900))
	}
	add(entry(2, 0, 0, 200<<10))
	add(entry(1, 101, 0, 5000))
	close(release)
	wg.Wait()
	mustClose(t, l)
	// The first; 100 entries of 1980 bytes, 33 to a group of 64 KiB; the large one; the
	// last; the end.
	want := []int{4 << 10, 64 << 10, 64 << 10, 64 << 10, 4 << 10, 204 << 10, 8 << 10, 4 << 10}
	if !slices.Equal(sizes, want) {
		t.Errorf("groups of %v, want %v", sizes, want)
	}
}

// Beyond QueueBytes an append is refused at once, and taken again when the queue has drained.
// One record of any size is taken by an empty queue.
func TestQueueBound(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	blocked := make(chan struct{})
	fsys := vfs.NewFaults(vfs.NewMem(), func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && op.Name == logName(1) && op.Offset == blockBytes {
			once.Do(func() { close(blocked) })
			<-release
		}
		return nil
	})
	opts := small(fsys)
	opts.QueueBytes, opts.NoSync = 10_000, true // NoSync: the keeper writes nothing there
	l := mustOpen(t, opts)
	var wg sync.WaitGroup
	wg.Add(1)
	l.Append(entry(1, 0, 0, 20_000), func(_ Place, err error) {
		if err != nil {
			t.Error(err)
		}
		wg.Done()
	})
	<-blocked
	var refused error
	l.Append(entry(1, 1, 0, 100), func(_ Place, err error) { refused = err })
	if !errors.Is(refused, ledger.ErrTooBusy) {
		t.Errorf("over the bound: %v", refused)
	}
	if q := l.Usage().QueueBytes; q < 20_000 {
		t.Errorf("queue of %d bytes", q)
	}
	close(release)
	wg.Wait()
	mustAppend(t, l, entry(1, 1, 0, 100))
	if q := l.Usage().QueueBytes; q != 0 {
		t.Errorf("queue of %d bytes when all is answered", q)
	}
	mustClose(t, l)
}

// Malformed and oversized records are refused, and do no harm to the others.
func TestRefusals(t *testing.T) {
	l := mustOpen(t, small(vfs.NewMem()))
	bad := entry(1, 0, 0, 100)
	bad.Envelope.BodyBytes++
	outOfRange := entry(1, 0, 0, 100)
	outOfRange.Envelope.LAC = 7
	largest := int(largestPayload(minSegmentBytes)) - ledger.EnvelopeBytes
	got := appendAll(l, bad, outOfRange, Record{Kind: KindEnd}, Record{Kind: kindCommit}, Record{Kind: 255},
		Record{Kind: KindFence, Ledger: -1}, entry(1, 0, 0, largest+1), entry(1, 0, 0, largest), entry(1, 1, 0, largest), entry(1, 2, 0, 10))
	for i, r := range got {
		if (r.err == nil) != (i >= 7) {
			t.Errorf("record %d: %v", i, r.err)
		}
	}
	if !errors.Is(got[6].err, ledger.ErrTooLarge) {
		t.Errorf("too large: %v", got[6].err)
	}
	for e := range ledger.EntryID(3) {
		mustRead(t, l, 1, e)
	}
	mustClose(t, l)
	if r := appendAll(l, entry(1, 3, 0, 10)); !errors.Is(r[0].err, ledger.ErrStopping) {
		t.Errorf("append after close: %v", r[0].err)
	}
	if _, err := l.ReadEntry(1, 0); !errors.Is(err, ledger.ErrStopping) {
		t.Errorf("read after close: %v", err)
	}
	mustClose(t, l)
}

// Answers come in the order of the appends, across groups and segments, whoever appends.
func TestAnswersInOrder(t *testing.T) {
	l := mustOpen(t, small(vfs.NewMem()))
	var last Place
	var wg sync.WaitGroup
	next := 0
	for i := range 300 {
		wg.Add(1)
		l.Append(entry(1, ledger.EntryID(i), 0, 10+i*7%1500), func(p Place, err error) {
			defer wg.Done()
			if err != nil || i != next {
				t.Errorf("answer for %d where %d was due: %v", i, next, err)
			}
			if p.Segment < last.Segment || p.Segment == last.Segment && p.Offset <= last.Offset {
				t.Errorf("place %v after %v", p, last)
			}
			next, last = i+1, p
		})
	}
	wg.Wait()
	mustClose(t, l)
}

// The newest copy of an entry counts, wherever the older one is, also after a restart,
// and the older one no longer counts as live.
func TestNewestCopyWins(t *testing.T) {
	mem := vfs.NewMem()
	l := mustOpen(t, small(mem))
	for v := range 3 {
		for e := range ledger.EntryID(40) {
			if v == 0 || e%7 == 3 || v == 2 && e == 4 {
				mustAppend(t, l, entry(1, e, v, 1500))
			}
		}
	}
	check := func(l *Log) {
		t.Helper()
		for e := range ledger.EntryID(40) {
			want := 0
			if e%7 == 3 || e == 4 {
				want = 2
			}
			if v := mustRead(t, l, 1, e); v != want {
				t.Errorf("entry %d: copy %d, want %d", e, v, want)
			}
		}
		if got := l.Ranges(1); !slices.Equal(got, []ledger.EntryRange{{First: 0, Last: 39}}) {
			t.Errorf("ranges %v", got)
		}
		var live int64
		for _, s := range l.Segments() {
			live += s.LiveEntries
		}
		if live != 40 {
			t.Errorf("%d live entries", live)
		}
	}
	check(l)
	mustClose(t, l)
	l = mustOpen(t, small(mem))
	check(l)
	mustClose(t, l)
}

// Readers run beside the writer, the tail cache and recycling, and see each
// entry whole or are told that it moved.
func TestConcurrentReaders(t *testing.T) {
	l := mustOpen(t, small(vfs.NewMem()))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for r := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for e := ledger.EntryID(r); ; e = (e*31 + 7) % 400 {
				select {
				case <-stop:
					return
				default:
				}
				run, err := l.ReadRun(1, e, e+5, 1<<20, 0, nil)
				if err != nil && !errors.Is(err, ledger.ErrNoEntry) && !errors.Is(err, ErrRecycled) {
					t.Error(err)
					return
				}
				for i := range run {
					versionOf(t, 1, e+ledger.EntryID(i), run[i].Body)
				}
			}
		}()
	}
	for e := range ledger.EntryID(400) {
		mustAppend(t, l, entry(1, e, 0, 700))
		if e%50 == 49 {
			for _, s := range sealed(t, l) {
				if err := l.Recycle(s.ID); err != nil {
					t.Error(err)
				}
			}
		}
	}
	close(stop)
	wg.Wait()
	mustClose(t, l)
}

// Every fault of the options is reported at once.
func TestOptionsValidate(t *testing.T) {
	err := Options{SegmentBytes: 5, GroupBytes: 3, QueueBytes: -1, MaxDiskBytes: -1}.Validate()
	for _, want := range []string{"FS", "Dir", "SegmentBytes", "GroupBytes", "QueueBytes", "MaxDiskBytes"} {
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%s is not reported: %v", want, err)
		}
	}
	if err := small(vfs.NewMem()).Validate(); err != nil {
		t.Error(err)
	}
}
