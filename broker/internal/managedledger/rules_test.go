package managedledger

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/discovery/meta"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// ledgerRecords returns what the store has of ledgers that are not deleted.
func (w *world) ledgerRecords() map[ledger.ID]*metav1.Ledger {
	w.t.Helper()
	kvs, _, err := w.store.Range(w.t.Context(), w.layout.Ledgers(), "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	records := map[ledger.ID]*metav1.Ledger{}
	for _, kv := range kvs {
		id, _ := w.layout.ParseLedger(kv.Key)
		md := new(metav1.Ledger)
		if err := proto.Unmarshal(kv.Value, md); err != nil {
			w.t.Fatal(err)
		}
		if md.GetState() != metav1.LedgerState_LEDGER_STATE_DELETED {
			records[ledger.ID(id)] = md
		}
	}
	return records
}

// inChain tells whether the store's chain has a ledger.
func (w *world) inChain(id ledger.ID) (bool, error) {
	kvs, _, err := w.store.Range(w.t.Context(), w.layout.Chain(testTopic), "", 0)
	for _, kv := range kvs {
		l, decodeErr := decodeLink(1, kv.Value)
		if decodeErr != nil {
			return false, decodeErr
		}
		if l.ledger == id {
			return true, nil
		}
	}
	return false, err
}

// TestRuleL1_RecoverThenListThenWrite shows that a new owner has closed every ledger of
// the one before when it opens, and that no entry is sent to a bookie before the
// ledger it belongs to stands in the chain.
func TestRuleL1_RecoverThenListThenWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var sent atomic.Int32
		for i := range 3 {
			w.bookies.At(i).OnAdd(func(a ledger.Add) ensembletest.AddFault {
				sent.Add(1)
				if listed, err := w.inChain(a.Envelope.Ledger); err != nil || !listed {
					t.Errorf("entry %d of ledger %d is sent before the ledger is listed, %v", a.Envelope.Entry, a.Envelope.Ledger, err)
				}
				return ensembletest.AddFault{}
			})
		}
		a := w.owner("a", Roll{MaxEntries: 5}).open()
		a.publishMany(12)
		settle()
		a.publishMany(1)
		a.store.Cut(true)
		settle()
		a.m.Abandon()

		b := w.owner("b", Roll{MaxEntries: 5}).open()
		for id, md := range w.ledgerRecords() {
			if md.GetState() != metav1.LedgerState_LEDGER_STATE_CLOSED {
				t.Errorf("ledger %d is %v once the next owner has opened", id, md.GetState())
			}
		}
		before := sent.Load()
		b.publishMany(3)
		settle()
		if sent.Load() == before {
			t.Error("nothing was sent")
		}
		b.readAll()
		w.checkStore()
		b.m.Abandon()
	})
}

// TestRuleL2_RollWithoutAGap shows that a roll, also from slow bookies to fast ones,
// leaves no gap and answers nothing out of order: what went to the next ledger waits for
// what is under way in the one before.
func TestRuleL2_RollWithoutAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range 3 {
			w.bookies.At(i).OnAdd(func(a ledger.Add) ensembletest.AddFault {
				if a.Envelope.Ledger%2 == 1 {
					return ensembletest.AddFault{Delay: 40 * time.Millisecond}
				}
				return ensembletest.AddFault{}
			})
		}
		a := w.owner("a", Roll{MaxEntries: 10}).open()
		for range 120 {
			a.publishMany(1)
			time.Sleep(time.Millisecond)
			answeredInOrder(t, a)
		}
		settle()
		answeredInOrder(t, a)
		if good, all := a.answered(); good != 120 || all != 120 {
			t.Errorf("%d of %d answers are good, of 120", good, all)
		}
		if n := len(w.ledgerRecords()); n < 6 {
			t.Errorf("120 entries in %d ledgers of about 10", n)
		}
		if got := a.readAll(); len(got) != 120 {
			t.Errorf("%d entries are read, of 120", len(got))
		}
		w.checkStore()
		a.m.Abandon()
	})
}

// answeredInOrder checks that no publish is answered before one that came earlier.
func answeredInOrder(t *testing.T, o *owner) {
	t.Helper()
	o.w.mu.Lock()
	defer o.w.mu.Unlock()
	waits := -1
	for i, err := range o.results {
		switch {
		case err != nil && waits < 0:
			waits = i
		case err == nil && waits >= 0:
			t.Fatalf("publish %d is answered, %d is not", i, waits)
		}
	}
}

// TestRuleL3_LedgerNobodyWritesIsDropped shows that a creation that took place while its
// writer heard nothing, and had to give it up, leaves no ledger behind: the stray is
// taken out of the chain and deleted.
func TestRuleL3_LedgerNobodyWritesIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", Roll{MaxEntries: 6})
		var mu sync.Mutex
		var back time.Time // when the store, which is lost with the first creation, is back
		w.store.OnCall(func(c meta.Call) meta.Fault {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case c.Client != "a":
			case back.IsZero() && c.Kind == meta.CallTxn && len(c.Txn.Ops) > 1:
				back = time.Now().Add(20 * time.Second)
				return meta.Fault{Lost: true}
			case time.Now().Before(back):
				return meta.Fault{Err: meta.ErrUnavailable}
			}
			return meta.Fault{}
		})
		a.open()
		for range 20 {
			a.publishMany(1)
			time.Sleep(time.Millisecond)
		}
		settle()
		if good, all := a.answered(); back.IsZero() || good != 20 || all != 20 {
			t.Fatalf("the store was lost at %v; %d of %d answers are good, of 20", back, good, all)
		}
		if err := a.m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for id, md := range w.ledgerRecords() {
			if md.GetState() != metav1.LedgerState_LEDGER_STATE_CLOSED || md.GetLastEntry() < 0 {
				t.Errorf("ledger %d stays, %v, last entry %d", id, md.GetState(), md.GetLastEntry())
			}
		}
		w.checkStore()
	})
}

// TestRuleL4_OutOfTheChainAndDeletedAreOne shows that no transaction takes a ledger out
// of the chain without making its record a tombstone, nor the other way round.
func TestRuleL4_OutOfTheChainAndDeletedAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var trimmed atomic.Int32
		w.store.OnCall(func(c meta.Call) meta.Fault {
			out, tombstones := 0, 0
			if c.Kind == meta.CallTxn {
				for _, op := range c.Txn.Ops {
					var md metav1.Ledger
					_, isLedger := w.layout.ParseLedger(op.Key)
					switch {
					case strings.HasPrefix(op.Key, w.layout.Chain(testTopic)) && op.Delete:
						out++
					case isLedger && proto.Unmarshal(op.Value, &md) == nil && md.GetState() == metav1.LedgerState_LEDGER_STATE_DELETED:
						tombstones++
					}
				}
			}
			if out != tombstones {
				t.Errorf("one transaction takes %d ledgers out of the chain and deletes %d", out, tombstones)
			}
			trimmed.Add(int32(out))
			return meta.Fault{}
		})
		a := w.owner("a", Roll{MaxEntries: 5}).open()
		for round := range 3 {
			for range 20 {
				a.publishMany(1)
				time.Sleep(time.Millisecond)
			}
			settle()
			// The newest ledger stays: its link is needed for what comes (M18).
			if _, err := a.m.Trim(t.Context(), position.Position{Ledger: a.m.LastConfirmed().Ledger}, Retention{}); err != nil {
				t.Fatal(fmt.Errorf("round %d: %w", round, err))
			}
			settle()
			w.checkStore()
		}
		if trimmed.Load() < 6 {
			t.Errorf("%d ledgers were trimmed", trimmed.Load())
		}
		a.m.Abandon()
	})
}
