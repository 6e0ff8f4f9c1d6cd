package bookie

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTime bounds every wait of a test.
const testTime = 20 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	t.Cleanup(cancel)
	return ctx
}

// testOptions are of a small node: 1 MiB segments, an 8 MiB log.
func testOptions(files vfs.FS) Options {
	return Options{
		FS: files, Dir: "/data", ID: "bookie-1", Cluster: "cluster-1",
		MemoryBytes: 16 << 20, HotBytes: 8 << 20, SegmentBytes: 1 << 20, ReserveBytes: 2 << 20,
		Rand: seeded(1),
	}
}

// seeded returns a source of chance that many goroutines may use.
func seeded(seed uint64) func() uint64 {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0))
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return random.Uint64()
	}
}

// openNode opens a node that is closed with the test.
func openNode(t testing.TB, o Options) *Node {
	t.Helper()
	if o.Fatal == nil {
		o.Fatal = func(err error) {
			if !errors.Is(err, vfs.ErrCrashed) {
				t.Errorf("the node gave up: %v", err)
			}
		}
	}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil && !errors.Is(err, vfs.ErrCrashed) {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

// crash closes what it can of a node whose disk is gone, and returns what the disk
// holds.
func crash(t testing.TB, n *Node, disk *vfs.Mem, image vfs.ImageOptions) *vfs.Mem {
	t.Helper()
	disk.Crash()
	n.Close()
	return disk.Image(image)
}

func bodyOf(id ledger.ID, e ledger.EntryID, size int) []byte {
	b := []byte(fmt.Sprintf("entry %d of ledger %d ", e, id))
	for len(b) < size {
		b = append(b, b...)
	}
	return b[:max(size, 20)]
}

func entryOf(id ledger.ID, e ledger.EntryID, size int) ledger.Add {
	body := bodyOf(id, e, size)
	return ledger.Add{
		Envelope: ledger.Envelope{
			Ledger: id, Entry: e, LAC: e - 1, TotalBytes: int64(e+1) * int64(len(body)),
			BodyBytes: uint32(len(body)), BodyCRC: crc32.Checksum(body, ledger.Castagnoli),
		},
		Body: body,
	}
}

// adder is what can be added to: a node, or one far away.
type adder interface {
	Add(a ledger.Add, done func(error))
}

// add stores one entry and waits.
func add(t testing.TB, b adder, a ledger.Add) error {
	t.Helper()
	result := make(chan error, 1)
	b.Add(a, func(err error) { result <- err })
	select {
	case err := <-result:
		return err
	case <-time.After(testTime):
		t.Fatal("an add was not answered")
		return nil
	}
}

// fill stores entries first to last, each of size bytes, creating the ledger. One
// that is refused because the node is busy is sent again.
func fill(t testing.TB, b adder, id ledger.ID, first, last ledger.EntryID, size int) {
	t.Helper()
	var wait sync.WaitGroup
	for e := first; e <= last; e++ {
		a := entryOf(id, e, size)
		a.Create = true
		wait.Go(func() {
			for {
				err := add(t, b, a)
				if errors.Is(err, ledger.ErrTooBusy) {
					time.Sleep(5 * time.Millisecond)
					continue
				}
				if err != nil {
					t.Errorf("add entry %d of ledger %d: %v", a.Envelope.Entry, id, err)
				}
				return
			}
		})
	}
	wait.Wait()
}

// statuses reads a run and gives the answers as letters: F, A, U.
func statuses(t testing.TB, n *Node, r ledger.ReadRequest) string {
	t.Helper()
	reply, err := n.Read(testContext(t), r)
	if err != nil {
		t.Fatalf("read %+v: %v", r, err)
	}
	letters := make([]byte, len(reply.Entries))
	for i, e := range reply.Entries {
		letters[i] = "FAU"[e.Status]
		if e.Status == ledger.Found {
			if err := e.Entry.Check(r.Ledger, r.First+ledger.EntryID(i)); err != nil && r.HeadBytes == 0 {
				t.Error(err)
			}
		}
	}
	return string(letters)
}
