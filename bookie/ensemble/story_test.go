package ensemble_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

var (
	threeTwo = ledger.Quorum{Write: 3, Ack: 2}
	keys     = layout.New("test")
)

// stage is one test's cluster, store and client, inside a synctest bubble.
type stage struct {
	t       *testing.T
	cluster *ensembletest.Cluster
	store   *meta.Mem
	client  *ensemble.Client
}

// play runs a test on n bookies in virtual time.
func play(t *testing.T, n int, f func(*testing.T, *stage)) { playWith(t, n, ensemble.Options{}, f) }

func playWith(t *testing.T, n int, opts ensemble.Options, f func(*testing.T, *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &stage{t: t, cluster: ensembletest.New(n), store: meta.NewMem()}
		opts.Store = s.store
		s.client = s.cluster.Client(t, opts)
		f(t, s)
	})
}

// another is a client of another process, of the same store and bookies.
func (s *stage) another() *ensemble.Client {
	return s.cluster.Client(s.t, ensemble.Options{Store: s.store.Client("another")})
}

func (s *stage) create(q ledger.Quorum) *ensemble.Writer {
	s.t.Helper()
	w, err := s.client.Create(s.ctx(time.Minute), ensemble.CreateRequest{Quorum: q})
	if err != nil {
		s.t.Fatal(err)
	}
	return w
}

// ctx ends after d of virtual time.
func (s *stage) ctx(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), d)
	s.t.Cleanup(cancel)
	return ctx
}

func body(e ledger.EntryID) []byte { return fmt.Appendf(nil, "body of entry %d", e) }

func sum(b []byte) uint32 { return crc32.Checksum(b, ledger.Castagnoli) }

// outcomes keeps what the application was told, in order.
type outcomes struct {
	mu      sync.Mutex
	entries []ledger.EntryID
	errs    []error
}

func (o *outcomes) done(e ledger.EntryID, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.entries = append(o.entries, e)
	o.errs = append(o.errs, err)
}

// acked counts the entries acknowledged.
func (o *outcomes) acked() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, err := range o.errs {
		if err == nil {
			n++
		}
	}
	return n
}

// failed counts those answered with want.
func (o *outcomes) failed(want error) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, err := range o.errs {
		if errors.Is(err, want) {
			n++
		}
	}
	return n
}

// appendSome appends n entries and returns where their outcomes gather.
func (s *stage) appendSome(w *ensemble.Writer, n int, o *outcomes) *outcomes {
	s.t.Helper()
	if o == nil {
		o = &outcomes{}
	}
	for range n {
		b := body(w.Next())
		if _, err := w.Append(b, sum(b), o.done); err != nil {
			s.t.Fatalf("append: %v", err)
		}
	}
	return o
}

// after lets d pass and everything settle.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *stage) wantAcked(o *outcomes, n int) {
	s.t.Helper()
	synctest.Wait()
	if got := o.acked(); got != n {
		s.t.Fatalf("%d entries acknowledged, want %d (%v)", got, n, o.errs)
	}
	for i, e := range o.entries {
		if e != o.entries[0]+ledger.EntryID(i) {
			s.t.Fatalf("answers out of order: %v", o.entries)
		}
	}
}

// record is the ledger's record as stored.
func (s *stage) record(id ledger.ID) ledger.Metadata {
	s.t.Helper()
	md, _, err := s.client.Metadata(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return md
}

// wantReadable reads the whole closed ledger and checks that it ends at last and
// holds what was appended.
func (s *stage) wantReadable(id ledger.ID, last ledger.EntryID) {
	s.t.Helper()
	r, err := s.another().Open(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	if md := r.Metadata(); md.State != ledger.Closed || md.LastEntry != last {
		s.t.Fatalf("ledger %d is %v at %d, want CLOSED at %d", id, md.State, md.LastEntry, last)
	}
	total := int64(0)
	for e := ledger.EntryID(0); e <= last; {
		entries, err := r.Read(s.ctx(time.Minute), e, last, 0, 0)
		if err != nil {
			s.t.Fatalf("entry %d: %v", e, err)
		}
		for _, got := range entries {
			total += int64(len(got.Body))
			if !bytes.Equal(got.Body, body(e)) || got.Envelope.TotalBytes != total {
				s.t.Fatalf("entry %d: %q with %d bytes before, want %q with %d", e, got.Body, got.Envelope.TotalBytes, body(e), total)
			}
			e++
		}
	}
	if md := r.Metadata(); md.Length != total {
		s.t.Fatalf("length %d, want %d", md.Length, total)
	}
	if _, err := r.Read(s.t.Context(), last+1, last+1, 0, 0); !errors.Is(err, ledger.ErrBeyondLAC) {
		s.t.Fatalf("reading past the end: %v", err)
	}
}

// A ledger is written by many goroutines, closed and read back: the plain way.
func TestWriteCloseRead(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		o := s.appendSome(w, 100, nil)
		s.wantAcked(o, 100)
		if w.LAC() != 99 || w.Next() != 100 {
			t.Fatalf("LAC %d, next %d", w.LAC(), w.Next())
		}
		md, err := w.Close(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if md.Verify {
			t.Fatal("all copies are there, yet the ledger is to be verified")
		}
		s.wantReadable(w.ID(), 99)
		for e := ledger.EntryID(0); e < 100; e++ {
			if n := s.cluster.Copies(md.Last().Ensemble, w.ID(), e); n != 3 {
				t.Fatalf("entry %d has %d copies", e, n)
			}
		}
		if _, err := w.Append(nil, 0, nil); !errors.Is(err, ledger.ErrClosed) {
			t.Fatalf("append after close: %v", err)
		}
	})
}

// A writer that goes away leaves a ledger that another process recovers.
func TestRecoverAfterWriterDies(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 50, nil), 50)
		w.Abandon()
		md, err := s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if md.Term != 2 || !md.Verify {
			t.Fatalf("term %d, verify %v", md.Term, md.Verify)
		}
		s.wantReadable(w.ID(), 49)
	})
}
