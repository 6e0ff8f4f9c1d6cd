package coldstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entry makes entry e of ledger id with a body of n bytes that no other entry has.
func entry(id ledger.ID, e ledger.EntryID, n int) ledger.Entry {
	body := make([]byte, n)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(id))
	binary.LittleEndian.PutUint64(seed[8:], uint64(e))
	rand.NewChaCha8(seed).Read(body)
	return ledger.Entry{Body: body, Envelope: ledger.Envelope{Ledger: id, Entry: e, LAC: e - 1, TotalBytes: int64(n),
		BodyBytes: uint32(n), BodyCRC: crc32.Checksum(body, ledger.Castagnoli)}}
}

// entries makes first to last of a ledger.
func entries(id ledger.ID, first, last ledger.EntryID, n int) []ledger.Entry {
	var list []ledger.Entry
	for e := first; e <= last; e++ {
		list = append(list, entry(id, e, n))
	}
	return list
}

func sequence(lists ...[]ledger.Entry) Entries {
	return func(yield func(ledger.Entry, error) bool) {
		for _, list := range lists {
			for _, e := range list {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// node is a store with its index on one disk.
type node struct {
	*Store
	index *index.Index
}

// small makes many segments and blocks of few entries.
var small = Options{SegmentBytes: 4096, BlockBytes: 512}

// openNode opens index and store on a disk; opts lacks what they have in common.
func openNode(fsys vfs.FS, opts Options) (*node, error) {
	if opts.Fatal == nil {
		opts.Fatal = func(err error) { panic(err) }
	}
	x, err := index.Open(index.Options{FS: fsys, Dir: "/data/index", Fatal: opts.Fatal})
	if err != nil {
		return nil, err
	}
	opts.FS, opts.Dir, opts.Index = fsys, "/data/cold", x
	s, err := Open(opts)
	if err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return &node{Store: s, index: x}, nil
}

func open(t testing.TB, fsys vfs.FS, opts Options) *node {
	t.Helper()
	n, err := openNode(fsys, opts)
	must(t, err)
	return n
}

func (n *node) close() error { return errors.Join(n.Store.Close(), n.index.Close()) }

func (n *node) write(t testing.TB, lists ...[]ledger.Entry) Written {
	t.Helper()
	w, err := n.Write(context.Background(), 0, sequence(lists...))
	must(t, err)
	return w
}

func (n *node) delete(t testing.TB, ids ...ledger.ID) {
	t.Helper()
	var b index.Batch
	for _, id := range ids {
		b.Delete(id)
	}
	must(t, n.index.Apply(&b))
}

// wantEntries fails unless the store gives exactly these entries, singly and in runs.
func (n *node) wantEntries(t testing.TB, list []ledger.Entry) {
	t.Helper()
	for _, want := range list {
		got, err := n.Read(want.Envelope.Ledger, want.Envelope.Entry)
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, got, want)
	}
	for i := 0; i < len(list); {
		first := list[i].Envelope
		run, err := n.ReadRun(first.Ledger, first.Entry, first.Entry+1000, 0)
		must(t, err)
		if len(run) == 0 {
			t.Fatal("empty run without an error")
		}
		for _, got := range run {
			if i == len(list) {
				return // list was a part of what is there
			}
			wantSame(t, got, list[i])
			i++
		}
	}
}

func wantSame(t testing.TB, got, want ledger.Entry) {
	t.Helper()
	if got.Envelope != want.Envelope || !bytes.Equal(got.Body, want.Body) {
		t.Fatalf("got %+v, want %+v", got.Envelope, want.Envelope)
	}
}

func (n *node) wantAbsent(t testing.TB, id ledger.ID, e ledger.EntryID) {
	t.Helper()
	if _, err := n.Read(id, e); !errors.Is(err, ledger.ErrNoEntry) {
		t.Fatalf("entry %d of ledger %d: %v, want absent", e, id, err)
	}
	if run, err := n.ReadRun(id, e, e+10, 0); !errors.Is(err, ledger.ErrNoEntry) || run != nil {
		t.Fatalf("run from entry %d of ledger %d: %v", e, id, err)
	}
}
