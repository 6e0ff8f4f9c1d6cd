package ensemble_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// TestSmallBookiesGetNoLargeEntries tells of a client that may append 1,000 bytes.
// It makes no ledger on bookies that take less, says which and why, and says so at
// once to whom asks before appending; control ledgers it makes all the same. A
// ledger whose bookies come back with smaller segments is given up, so that what
// it holds can be closed. With larger segments everything goes on by itself.
func TestSmallBookiesGetNoLargeEntries(t *testing.T) {
	playWith(t, 3, ensemble.Options{MaxBodyBytes: 1000}, func(t *testing.T, s *stage) {
		s.cluster.At(0).SetMaxBody(999)
		w := s.create(threeTwo)
		if md := w.Metadata(); md.Last().Vacant() != 1 || md.Last().Slot("bookie-1") >= 0 {
			t.Errorf("ensemble %v, want all but bookie-1", md.Last().Ensemble)
		}
		if err := s.client.TooSmall(ledger.Data, threeTwo); err != nil {
			t.Errorf("with an ack quorum that takes all: %v", err)
		}
		large := make([]byte, 1000)
		o := s.appendSome(w, 1, nil)
		if _, err := w.Append(large, sum(large), o.done); err != nil {
			t.Fatal(err)
		}
		s.wantAcked(o, 2)

		s.cluster.At(1).SetMaxBody(999)
		if _, err := w.Append(large, sum(large), o.done); err != nil {
			t.Fatal(err)
		}
		after(10 * time.Second)
		why := "1 of 3 bookies writable, the ack quorum is 2; bookie-1, bookie-2 take entries of at most 999 bytes, there may be some of 1000"
		wantWhy := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, ledger.ErrNotEnoughBookies) || !strings.Contains(err.Error(), why) {
				t.Errorf("%s: %v, want %q", what, err, why)
			}
		}
		wantWhy("the writer of the ledger", w.Err())
		wantWhy("TooSmall", s.client.TooSmall(ledger.Data, threeTwo))
		_, err := s.client.Create(s.ctx(5*time.Second), ensemble.CreateRequest{Quorum: threeTwo})
		wantWhy("a new ledger", err)
		if s.client.OutOfRoom(ledger.Data, threeTwo) {
			t.Error("small segments are taken for full disks")
		}
		md, tail, err := w.Seal(s.ctx(time.Minute))
		if err != nil || md.LastEntry != 1 || len(tail) != 1 {
			t.Fatalf("sealed at %d, %d to be sent again, %v", md.LastEntry, len(tail), err)
		}
		control, err := s.client.Create(s.ctx(5*time.Second), ensemble.CreateRequest{Quorum: threeTwo, Class: ledger.Control})
		if err != nil {
			t.Fatal(err)
		}
		s.wantAcked(s.appendSome(control, 1, nil), 1)

		for i := range 2 {
			s.cluster.At(i).SetMaxBody(2000)
		}
		again := s.create(threeTwo)
		o = &outcomes{}
		if _, err := again.Append(tail[0].Body, tail[0].CRC, o.done); err != nil {
			t.Fatal(err)
		}
		s.wantAcked(o, 1)
	})
}

// TestRecoveryAsksForWhatThereIs shows that recovery takes a bookie for a
// replacement that holds what the ledger has, though its client may append more.
func TestRecoveryAsksForWhatThereIs(t *testing.T) {
	playWith(t, 3, ensemble.Options{MaxBodyBytes: 1000}, func(t *testing.T, s *stage) {
		s.cluster.At(2).Kill()
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 3, nil), 3)
		w.Abandon()
		s.cluster.At(2).Restart()
		for i := range 3 {
			s.cluster.At(i).SetMaxBody(100)
		}
		s.cluster.At(1).OnAdd(func(ledger.Add) ensembletest.AddFault { return ensembletest.AddFault{Err: ensembletest.ErrDown} })
		if _, err := s.client.Recover(s.ctx(time.Minute), w.ID(), nil); err != nil {
			t.Fatal(err)
		}
		s.wantReadable(w.ID(), 2)
	})
}
