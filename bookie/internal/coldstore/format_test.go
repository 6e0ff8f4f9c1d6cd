package coldstore

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

var update = flag.Bool("update", false, "write the golden file of the current format version")

const golden = "testdata/segment-v1.cold"

func goldenEntries() [][]ledger.Entry {
	return [][]ledger.Entry{entries(1, 0, 5, 60), entries(1, 8, 8, 0), entries(1<<40, 1<<33, 1<<33+2, 300)}
}

// TestGoldenSegment shows that this build writes version 1 byte for byte as
// released, and reads it.
func TestGoldenSegment(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{BlockBytes: 300})
	_, err := n.Write(context.Background(), 5, sequence(goldenEntries()...))
	must(t, err)
	must(t, n.close())
	written := contents(t, disk, fileName("/data/cold", 1))
	if *update {
		must(t, os.WriteFile(golden, written, 0o644))
	}
	released, err := os.ReadFile(golden)
	must(t, err)
	if !bytes.Equal(written, released) {
		t.Error("the bytes written differ from the released format")
	}
	f, err := OpenFile(vfs.OS(), golden)
	must(t, err)
	defer f.Close()
	if f.ID() != 1 || f.Segment().Lifetime != 5 {
		t.Errorf("segment %+v", f.Segment())
	}
	var got, want []ledger.Entry
	for e, err := range f.Entries() {
		must(t, err)
		got = append(got, e)
	}
	for _, list := range goldenEntries() {
		want = append(want, list...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if x := f.Extents(); len(x) != 3 || x[1] != (index.Extent{Ledger: 1, First: 8, Last: 8, Segment: 1,
		Offset: x[0].Offset + x[0].Length, Length: blockHeaderBytes + ledger.EnvelopeBytes, Count: 1}) {
		t.Errorf("extents %+v", x)
	}
}

func contents(t testing.TB, fsys vfs.FS, name string) []byte {
	t.Helper()
	f, err := fsys.Open(name)
	must(t, err)
	defer f.Close()
	size, err := f.Size()
	must(t, err)
	b := make([]byte, size)
	must(t, pread(f, b, 0))
	return b
}

// TestEntriesGoOnAfterDamage shows that reading a whole file tells of a damaged
// block and gives what follows it.
func TestEntriesGoOnAfterDamage(t *testing.T) {
	disk := vfs.NewMem()
	n := open(t, disk, Options{BlockBytes: 300})
	n.write(t, goldenEntries()...)
	must(t, n.close())
	flip(t, disk, fileName("/data/cold", 1), headerBytes+50)
	f, err := OpenFile(disk, fileName("/data/cold", 1))
	must(t, err)
	defer f.Close()
	good, bad := 0, 0
	for _, err := range f.Entries() {
		if errors.Is(err, ledger.ErrCorrupt) {
			bad++
		} else {
			must(t, err)
			good++
		}
	}
	if bad != 1 || good != 8 { // the first block holds two entries
		t.Errorf("%d errors, %d entries", bad, good)
	}
}

// FuzzFooter shows that no footer makes the decoder panic or allocate beyond its
// length, and that one that is taken comes out the same when written again.
func FuzzFooter(f *testing.F) {
	b, err := os.ReadFile(golden)
	must(f, err)
	t, err := decodeTrailer(b[len(b)-trailerBytes:])
	must(f, err)
	footer := b[len(b)-trailerBytes-int(t.footerBytes) : len(b)-trailerBytes]
	f.Add(footer, int64(len(b)-headerBytes-trailerBytes-len(footer)))
	f.Add(footer[:footerHeadBytes], int64(0))
	f.Fuzz(func(t *testing.T, footer []byte, dataBytes int64) {
		table, err := decodeTable(footer, dataBytes)
		if err != nil {
			if !errors.Is(err, ledger.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(table.encode(), footer) {
			t.Fatal("footer changed")
		}
		for i := range table.runs {
			r := &table.runs[i]
			if found, ok := table.runAt(r.offset); !ok || found != r {
				t.Fatal("run not found")
			}
			for _, e := range []ledger.EntryID{r.first, r.last()} {
				k := table.blocks[table.blockOf(r, e)]
				if n := uint32(e - r.first); n < k.skip || n-k.skip >= k.count {
					t.Fatal("wrong block")
				}
			}
		}
	})
}

// FuzzSegment shows that no file makes the reader panic, and that it yields no
// entry that does not match its checksums.
func FuzzSegment(f *testing.F) {
	b, err := os.ReadFile(golden)
	must(f, err)
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(b[:headerBytes])
	f.Fuzz(func(t *testing.T, b []byte) {
		disk := vfs.NewMem()
		w, err := disk.Create("x")
		must(t, err)
		_, err = w.WriteAt(b, 0)
		must(t, err)
		must(t, w.Close())
		file, err := OpenFile(disk, "x")
		if err != nil {
			return
		}
		defer file.Close()
		for e, err := range file.Entries() {
			if err == nil {
				must(t, e.Check(e.Envelope.Ledger, e.Envelope.Entry))
			}
		}
	})
}

// FuzzBlock shows that no block makes the decoder panic, whatever the footer says
// of it, and that entries are given for their ids only.
func FuzzBlock(f *testing.F) {
	b, err := os.ReadFile(golden)
	must(f, err)
	f.Add(b[headerBytes+blockHeaderBytes:], int64(1), int64(0), uint8(5))
	f.Fuzz(func(t *testing.T, b []byte, id, first int64, more uint8) {
		next := ledger.EntryID(first)
		err := eachEntry(b, ledger.ID(id), next, next+ledger.EntryID(more), func(e ledger.Entry, err error) error {
			if err == nil && (e.Envelope.Ledger != ledger.ID(id) || e.Envelope.Entry != next) {
				t.Fatal("another entry")
			}
			next++
			return nil
		})
		must(t, err)
	})
}
