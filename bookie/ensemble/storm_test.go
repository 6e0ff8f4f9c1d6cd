package ensemble_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// TestStorm runs the whole client, loops and all, over bookies that are killed,
// cut off, frozen and slow, and a store that loses answers: five bookies, one of
// them unwell at a time, a writer that appends all along, and now and then
// another process that takes the ledger over. Every acknowledged entry is in the
// closed ledger, byte for byte; the seed says how it went.
func TestStorm(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			play(t, 5, func(t *testing.T, s *stage) { storm(t, s, rand.New(rand.NewPCG(seed, 3))) })
		})
	}
}

func storm(t *testing.T, s *stage, rng *rand.Rand) {
	var mu sync.Mutex
	chance := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
	s.store.OnCall(func(c meta.Call) meta.Fault {
		if c.Kind == meta.CallTxn {
			return meta.Fault{Lost: chance(4) == 0, Delay: time.Duration(chance(20)) * time.Millisecond}
		}
		return meta.Fault{}
	})
	for i := range 5 {
		s.cluster.At(i).OnAdd(func(ledger.Add) ensembletest.AddFault {
			switch chance(60) {
			case 0:
				return ensembletest.AddFault{Err: errors.New("answer lost"), Store: true}
			case 1:
				return ensembletest.AddFault{Err: ledger.ErrTooBusy}
			case 2:
				return ensembletest.AddFault{Delay: time.Duration(chance(30)) * time.Millisecond}
			}
			return ensembletest.AddFault{}
		})
	}
	for range 4 {
		w := s.create(threeTwo)
		o := &outcomes{}
		rounds := 20 + chance(40)
		for range rounds {
			for range 1 + chance(20) {
				b := body(w.Next())
				if _, err := w.Append(b, sum(b), o.done); err != nil {
					t.Fatalf("append: %v", err)
				}
			}
			b := s.cluster.At(chance(5))
			trouble := chance(4)
			switch trouble {
			case 0:
				b.Kill()
			case 1:
				b.Cut(true)
			case 2:
				b.Freeze()
			case 3:
				b.SetLatency(time.Duration(chance(100)) * time.Millisecond)
			}
			time.Sleep(time.Duration(chance(3000)) * time.Millisecond)
			b.Cut(false)
			b.Thaw()
			b.SetLatency(0)
			b.Restart()
		}
		var err error
		if chance(2) == 0 {
			_, err = w.Close(s.ctx(time.Minute))
		} else {
			_, err = s.another().Recover(s.ctx(time.Minute), w.ID(), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.Abandon()
		synctest.Wait()
		md := s.record(w.ID())
		if acked := o.acked(); acked == 0 || ledger.EntryID(acked-1) > md.LastEntry {
			t.Fatalf("%d entries acknowledged, closed at %d", acked, md.LastEntry)
		}
		s.wantReadable(w.ID(), md.LastEntry)
	}
}

// TestManyGoroutines shows the writer under real concurrency: many goroutines
// append while bookies answer at once, some from within Add, and every entry is
// answered once, in order.
func TestManyGoroutines(t *testing.T) {
	cluster := ensembletest.New(4)
	client := cluster.Client(t, ensemble.Options{Directory: &eager{Cluster: cluster}})
	w, err := client.Create(t.Context(), ensemble.CreateRequest{Quorum: threeTwo})
	if err != nil {
		t.Fatal(err)
	}
	const each = 500
	var next atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		var lock sync.Mutex // held over Append, and taken by done
		wg.Go(func() {
			for i := range each {
				b := fmt.Appendf(nil, "goroutine %d entry %d", g, i)
				lock.Lock()
				_, err := w.Append(b, sum(b), func(e ledger.EntryID, err error) {
					lock.Lock() // would never return if done were called from within Append
					defer lock.Unlock()
					if err != nil || !next.CompareAndSwap(int64(e), int64(e)+1) {
						t.Errorf("entry %d answered out of order: %v", e, err)
					}
				})
				lock.Unlock()
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	md, err := w.Close(t.Context())
	if err != nil || md.LastEntry != 8*each-1 || next.Load() != 8*each {
		t.Fatalf("closed at %d with %d answered: %v", md.LastEntry, next.Load(), err)
	}
}

// eager is a directory whose bookies answer from within Add.
type eager struct{ *ensembletest.Cluster }

func (d *eager) Bookie(m ledger.Member) (ensemble.Bookie, error) {
	b, err := d.Cluster.Bookie(m)
	return &eagerBookie{b}, err
}

type eagerBookie struct{ ensemble.Bookie }

func (b *eagerBookie) Add(a ledger.Add, done func(error)) {
	answer := make(chan error, 1)
	b.Bookie.Add(a, func(err error) { answer <- err })
	done(<-answer)
}

// TestCloseAnswersFromElsewhere shows that the end of a client answers nothing from
// within its own call, nor an append that comes meanwhile: callbacks that do not return
// hold up neither.
func TestCloseAnswersFromElsewhere(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		for i := range 3 {
			s.cluster.At(i).Freeze()
		}
		gate := make(chan struct{})
		var called atomic.Int64
		done := func(_ ledger.EntryID, err error) {
			if !errors.Is(err, ledger.ErrStopping) {
				t.Errorf("answered with %v", err)
			}
			called.Add(1)
			<-gate
		}
		writers := make([]*ensemble.Writer, 10)
		b := body(0)
		for i := range writers {
			writers[i] = s.create(threeTwo)
			if _, err := writers[i].Append(b, sum(b), done); err != nil {
				t.Fatal(err)
			}
		}
		closed := make(chan struct{})
		go func() {
			s.client.Close()
			close(closed)
		}()
		synctest.Wait()
		if n := called.Load(); n != int64(len(writers)) {
			t.Errorf("%d of %d writers were abandoned while callbacks run", n, len(writers))
		}
		for _, w := range writers {
			if _, err := w.Append(b, sum(b), done); !errors.Is(err, ledger.ErrStopping) {
				t.Errorf("append to a closing client: %v", err)
			}
		}
		if _, err := s.client.Create(s.ctx(time.Minute), ensemble.CreateRequest{Quorum: threeTwo}); !errors.Is(err, ledger.ErrStopping) {
			t.Errorf("create on a closing client: %v", err)
		}
		select {
		case <-closed:
			t.Error("the client is closed while callbacks run")
		default:
		}
		close(gate)
		<-closed
	})
}

// Abandon answers everything in flight with ErrStopping, closing the client
// abandons its writers, and what comes afterwards is refused.
func TestAbandon(t *testing.T) {
	play(t, 3, func(t *testing.T, s *stage) {
		w, v := s.create(threeTwo), s.create(threeTwo)
		for i := range 3 {
			s.cluster.At(i).Freeze()
		}
		o, p := s.appendSome(w, 5, nil), s.appendSome(v, 3, nil)
		w.Abandon()
		synctest.Wait()
		if o.failed(ledger.ErrStopping) != 5 {
			t.Fatalf("answers %v", o.errs)
		}
		select {
		case <-w.Failed():
		default:
			t.Fatal("Failed is not closed")
		}
		s.client.Close()
		if p.failed(ledger.ErrStopping) != 3 {
			t.Fatalf("answers %v", p.errs)
		}
		if _, err := v.Append(nil, 0, nil); !errors.Is(err, ledger.ErrStopping) {
			t.Fatalf("append: %v", err)
		}
		if _, err := s.client.Create(s.ctx(time.Second), ensemble.CreateRequest{Quorum: threeTwo}); !errors.Is(err, ledger.ErrStopping) {
			t.Fatalf("create: %v", err)
		}
		for i := range 3 {
			s.cluster.At(i).Thaw()
		}
	})
}

// Every fault of the options is named at once.
func TestOptionsFaults(t *testing.T) {
	_, err := ensemble.New(ensemble.Options{BudgetBytes: -1, AddTimeout: -1})
	for _, want := range []string{"Store", "Layout", "Directory", "IDs", "BudgetBytes", "AddTimeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not named in %v", want, err)
		}
	}
}

// An entry too large to be stored is refused before it takes an id.
func TestTooLarge(t *testing.T) {
	play(t, 1, func(t *testing.T, s *stage) {
		w := s.create(ledger.Quorum{Write: 1, Ack: 1})
		if _, err := w.Append(make([]byte, ledger.MaxBodyBytes+1), 0, nil); !errors.Is(err, ledger.ErrTooLarge) || w.Next() != 0 {
			t.Fatalf("append: %v, next %d", err, w.Next())
		}
		o := s.appendSome(w, 1, nil)
		if _, err := w.Append(nil, 0, o.done); err != nil {
			t.Fatal(err)
		}
		s.wantAcked(o, 2)
	})
}
