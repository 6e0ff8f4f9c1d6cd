package broker

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/discovery"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// A broker takes its bundles, serves, and hands them to another one, which goes
// on where it stopped.
func TestBundlesAreTakenAndHandedOver(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		bd := w.bundleOf(name)
		a.open(bd)
		a.publish(name, "p", 10)
		b := w.start("b")
		a.close()
		b.open(bd)
		b.publish(name, "q", 10)
		tp, err := b.topic(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if n := tp.Stats(t.Context()).Ledger.Messages; n != 20 {
			t.Errorf("%d messages, want 20", n)
		}
	})
}

// A bundle that was lost while it was being opened is not served: nobody would
// ever drop it.
func TestBundleLostWhileItOpensIsNotServed(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		bd := w.bundleOf(w.topic("orders"))
		again, letGo := a.openAgain(bd)
		again.lost(errors.New("the log was fenced"))
		if a.admit(again, 0) {
			t.Error("a bundle that was lost is admitted")
		}
		synctest.Wait()
		if a.bundle(bd) == again {
			t.Error("a bundle that was lost is served")
		}
		letGo()
		w.until("the bundle is opened anew", 10*time.Second, func() bool { return a.bundle(bd) != nil })
	})
}

// writesOwner reports whether a call is a transaction on an owner record.
func writesOwner(c meta.Call, key string) bool {
	return c.Kind == meta.CallTxn && len(c.Txn.Ops) > 0 && c.Txn.Ops[0].Key == key
}

// give writes an owner record behind the brokers' backs.
func (w *world) give(key string, from meta.Revision, owner catalog.Owner) meta.Revision {
	w.t.Helper()
	name := strings.TrimSuffix(strings.TrimPrefix(key, keys.Bundles("")), "/owner")
	for _, b := range w.bundles() {
		if b.Bundle.String() == name {
			rev, err := discovery.WriteOwner(w.t.Context(), w.store, keys, meta.Cond{Key: keys.Cluster(), AnyRevision: true}, b.Bundle, from, owner)
			if err != nil {
				w.t.Fatal(err)
			}
			return rev
		}
	}
	w.t.Fatalf("no bundle at %s", key)
	return 0
}

// A broker whose view is behind is not started before that shows it: a person who
// asks a node that is ready for its brokers gets one.
func TestStartWaitsUntilTheViewShowsTheBroker(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		var released atomic.Bool
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallDeliver && c.Key == keys.Brokers() {
				return meta.Fault{Until: release}
			}
			return meta.Fault{}
		})
		time.AfterFunc(time.Second, func() { released.Store(true); close(release) })
		a := w.start("a", func(o *Options) { <-o.View.Ready() }) // it has listed the brokers, and there was none
		if now := a.view.Snapshot().Brokers; !released.Load() || now["a"].Session != a.Session() {
			t.Errorf("started as session %s while its view has the brokers %v", a.Session(), now)
		}
	})
}

// A broker whose view is behind, so that it tries what must fail, does not try
// again before the view or its session changes, and not in a loop without rest.
func TestOwnershipRestsWhileItsViewIsBehind(t *testing.T) {
	const most = 1000 // the namespace has 32 bundles
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		bd := w.bundleOf(w.topic("orders"))
		a.open(bd)
		first := a.Session()
		var behind atomic.Bool
		var writes atomic.Int64
		w.onCall(func(c meta.Call) meta.Fault {
			switch {
			case c.Kind == meta.CallDeliver && behind.Load():
				return meta.Fault{Delay: 3 * time.Second}
			case writesOwner(c, keys.BundleOwner(bd.String())) && behind.CompareAndSwap(false, true):
				w.store.Expire(a.Session()) // the second one, before the bundle is renewed under it
			}
			if c.Kind == meta.CallTxn && strings.HasSuffix(c.Key, "/owner") && writes.Add(1) > most {
				return meta.Fault{Delay: time.Second} // else time would stand still
			}
			return meta.Fault{}
		})
		w.store.Expire(first)
		w.until("the bundle is claimed under a third session", time.Minute, func() bool {
			owner, _ := w.owner(bd)
			return behind.Load() && owner.Session != first && owner.Session == a.Session()
		})
		if n := writes.Load(); n > most {
			t.Errorf("more than %d attempts to write owner records", most)
		}
	})
}

// A bundle that is being opened when another broker ends this one's session is
// not served when it is open.
func TestRuleM6_NothingOpensUnderAnEndedSession(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		bd := w.bundleOf(w.topic("orders"))
		held, release := make(chan struct{}), make(chan struct{})
		var hold atomic.Bool
		hold.Store(true)
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Client == "a" && c.Kind == meta.CallGet && c.Key == keys.BundleLog(bd.String()) && hold.CompareAndSwap(true, false) {
				close(held)
				return meta.Fault{Until: release}
			}
			return meta.Fault{}
		})
		a := w.start("a")
		<-held
		if _, err := w.store.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: keys.Broker("a"), Delete: true}}}); err != nil {
			t.Fatal(err)
		}
		w.until("the end is noticed", 5*time.Second, func() bool { return a.Session() == "" })
		close(release)
		time.Sleep(time.Second)
		if a.Session() != "" || len(a.owned()) != 0 {
			t.Errorf("%d bundles are served under session %q", len(a.owned()), a.Session())
		}
		a.open(bd) // under the next session
	})
}

// While the record of a renewed session is being written, nobody takes it for
// another owner's.
func TestRuleM5_RenewalIsNotTakenForAnotherOwner(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		bd := w.bundleOf(w.topic("orders"))
		o := a.open(bd)
		written := make(chan struct{})
		var delayed atomic.Bool
		w.onCall(func(c meta.Call) meta.Fault {
			if writesOwner(c, keys.BundleOwner(bd.String())) && delayed.CompareAndSwap(false, true) {
				time.AfterFunc(time.Millisecond, func() { close(written) })
				return meta.Fault{AnswerDelay: time.Second}
			}
			return meta.Fault{}
		})
		w.store.Expire(a.Session())
		<-written
		o.checkOwned(errors.New("a bookie says fenced"))
		time.Sleep(5 * time.Second)
		if a.bundle(bd) != o {
			t.Error("the bundle was dropped")
		}
		if _, rev := w.owner(bd); o.holding().revision() != rev {
			t.Errorf("the bundle goes by revision %d, the record is at %d", o.holding().revision(), rev)
		}
	})
}

// A renewal whose answer is lost, and cannot be read again, is known by its
// epoch when the view shows it.
func TestRuleM5_RenewalOfUnknownOutcomeIsKnownAgain(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		bd := w.bundleOf(w.topic("orders"))
		o := a.open(bd)
		var lost atomic.Int32
		w.onCall(func(c meta.Call) meta.Fault {
			switch {
			case writesOwner(c, keys.BundleOwner(bd.String())) && lost.CompareAndSwap(0, 1):
				return meta.Fault{Lost: true}
			case c.Kind == meta.CallGet && c.Key == keys.BundleOwner(bd.String()) && lost.CompareAndSwap(1, 2):
				return meta.Fault{Err: meta.ErrUnavailable}
			}
			return meta.Fault{}
		})
		w.store.Expire(a.Session())
		time.Sleep(10 * time.Second)
		if _, rev := w.owner(bd); lost.Load() != 2 || a.bundle(bd) != o || o.holding().revision() != rev {
			t.Errorf("lost %d, the same bundle: %v, revision %d, the record is at %d", lost.Load(), a.bundle(bd) == o, o.holding().revision(), rev)
		}
	})
}

// A bundle that was another broker's and came back, all while the view was
// behind, is opened anew: the other one's messages are in its ledgers.
func TestRuleM1_BundleThatCameBackIsOpenedAnew(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		bd := w.bundleOf(w.topic("orders"))
		o := a.open(bd)
		release := make(chan struct{})
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Client == "a" && c.Kind == meta.CallDeliver {
				return meta.Fault{Until: release}
			}
			return meta.Fault{}
		})
		was, rev := w.owner(bd)
		rev = w.give(keys.BundleOwner(bd.String()), rev, catalog.Owner{Broker: "x", Session: "x", Epoch: was.Epoch + 1})
		w.give(keys.BundleOwner(bd.String()), rev, catalog.Owner{Broker: "a", Session: was.Session, Epoch: was.Epoch + 2})
		close(release)
		w.until("the bundle is opened anew", 10*time.Second, func() bool { b := a.bundle(bd); return b != nil && b != o })
		if _, rev := w.owner(bd); a.bundle(bd).holding().revision() != rev {
			t.Error("the bundle goes by an old record")
		}
	})
}

// A bundle that was deleted is dropped by its owner.
func TestDeletedBundleIsDropped(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		if err := w.catalog.CreateNamespace(t.Context(), "public/passing", catalog.Policy{Bundles: 4}); err != nil {
			t.Fatal(err)
		}
		w.until("the bundles are open", 10*time.Second, func() bool { return len(a.owned()) == catalog.DefaultBundles+4 })
		if err := w.catalog.DeleteNamespace(t.Context(), "public/passing"); err != nil {
			t.Fatal(err)
		}
		w.until("the bundles are dropped", 10*time.Second, func() bool { return len(a.owned()) == catalog.DefaultBundles })
	})
}

// A session that lapsed and is not renewed yet ends nothing: topics go on, and a
// ledger that has to be made meanwhile is made once the session is renewed.
func TestRuleM5_RollsWaitForTheRenewedSession(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a", func(o *Options) { o.LedgerBytes = 200 })
		name := w.topic("orders")
		o := a.open(w.bundleOf(name))
		s := a.publish(name, "p", 10)
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Client == "a" && c.Kind == meta.CallSession {
				return meta.Fault{Err: meta.ErrUnavailable}
			}
			return meta.Fault{}
		})
		w.store.Expire(a.Session())
		for i := range 50 {
			s.producer.Publish(batch("p", uint64(10+i), 0))
			time.Sleep(100 * time.Millisecond)
		}
		w.onCall(nil)
		w.until("receipts", time.Minute, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.receipts == 60 || s.closed != nil
		})
		if s.closed != nil || len(s.refused) > 0 || a.bundle(o.bundle) != o {
			t.Errorf("closed: %v, refused: %v, the same bundle: %v", s.closed, s.refused, a.bundle(o.bundle) == o)
		}
	})
}
