package bookie

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/vfs"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

var keys = layout.New("test")

// newStore returns the metadata of cluster-1.
func newStore(t *testing.T) *meta.Mem {
	t.Helper()
	store := meta.NewMem()
	t.Cleanup(func() { store.Close() })
	putRecord(t, store, keys.Cluster(), metav1.Cluster_builder{Id: new("cluster-1")}.Build())
	return store
}

func putRecord(t *testing.T, store meta.Store, key string, m proto.Message) {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Txn(context.Background(), meta.Txn{Ops: []meta.Op{{Key: key, Value: value}}}); err != nil {
		t.Fatal(err)
	}
}

// getRecord reads a record into m and reports whether it is there.
func getRecord(t *testing.T, store meta.Store, key string, m proto.Message) bool {
	t.Helper()
	kv, err := store.Get(context.Background(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(kv.Value, m); err != nil {
		t.Fatal(err)
	}
	return kv.Exists()
}

// register runs a registration until the returned function, which gives its
// error, is called.
func register(n *Node, store meta.Store) (r *Registration, stop func() error) {
	r = NewRegistration(n, RegistrationOptions{Store: store, Layout: keys, Address: "host:1", Rack: "r1", Version: "v"})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	return r, func() error { cancel(); return <-ended }
}

// TestRegistration shows what a registered node has in the store, that it says so
// when it turns read-only, and that it takes the live record away when it stops.
func TestRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStore(t)
		n := openNode(t, testOptions(vfs.NewMem()))
		r, stop := register(n, store)
		<-r.Registered()
		var live metav1.Bookie
		if !getRecord(t, store, keys.Bookie("bookie-1"), &live) || live.GetIncarnation() != n.Identity().Incarnation ||
			live.GetAddress() != "host:1" || live.GetRack() != "r1" || live.GetReadOnly() ||
			live.GetMaxEntryBytes() != n.Describe().MaxEntryBytes || live.GetMaxEntryBytes() == 0 {
			t.Errorf("live record %v", &live)
		}
		var lasting metav1.BookieIdentity
		if !getRecord(t, store, keys.BookieIdentity("bookie-1"), &lasting) || lasting.GetStartCount() != 1 {
			t.Errorf("lasting record %v", &lasting)
		}
		if !n.storeTrusted() {
			t.Error("the store is not trusted")
		}
		synctest.Wait() // until the disk has been measured
		n.disk.update(1, 1<<40)
		synctest.Wait()
		if getRecord(t, store, keys.Bookie("bookie-1"), &live); !live.GetReadOnly() {
			t.Error("the node is read-only, its live record is not")
		}
		time.Sleep(startsEvery)
		synctest.Wait()
		if getRecord(t, store, keys.BookieIdentity("bookie-1"), &lasting); lasting.GetStartCount() != 2 {
			t.Errorf("after an hour: %v, want start count 2", &lasting)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if getRecord(t, store, keys.Bookie("bookie-1"), &live) {
			t.Error("the live record outlived the registration")
		}
	})
}

// TestRuleM5_LapsedSessionRegistersAgain shows that a node goes on serving when its
// session ends, and comes back under a new one by itself, also when answers of
// the store are lost on the way.
func TestRuleM5_LapsedSessionRegistersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStore(t)
		n := openNode(t, testOptions(vfs.NewMem()))
		r, stop := register(n, store)
		<-r.Registered()
		store.SetUnavailable(true)
		time.Sleep(time.Minute)
		fill(t, n, 7, 0, 0, 10)
		lost := 0
		store.OnCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallTxn && lost < 3 {
				lost++
				return meta.Fault{Lost: true}
			}
			return meta.Fault{}
		})
		store.SetUnavailable(false)
		time.Sleep(time.Minute)
		var live metav1.Bookie
		if !getRecord(t, store, keys.Bookie("bookie-1"), &live) {
			t.Error("the node did not register again")
		}
		if lost != 3 {
			t.Errorf("%d answers lost, want 3", lost)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestRuleM7_RolledBackStoreIsNoticed shows that a node tells a store that was put
// back to an earlier state: it stays registered, read-only, trusts nothing and
// does not cover the traces.
func TestRuleM7_RolledBackStoreIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStore(t)
		files := vfs.NewMem()
		var backup meta.Revision
		for range 2 {
			n, err := Open(testOptions(files))
			if err != nil {
				t.Fatal(err)
			}
			r, stop := register(n, store)
			<-r.Registered()
			synctest.Wait()
			if backup == 0 {
				backup = store.Revision()
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
		store.Rollback(backup)
		n := openNode(t, testOptions(files))
		r, stop := register(n, store)
		<-r.Registered()
		var live metav1.Bookie
		if !getRecord(t, store, keys.Bookie("bookie-1"), &live) || !live.GetReadOnly() {
			t.Errorf("live record %v, want it read-only", &live)
		}
		var lasting metav1.BookieIdentity
		if getRecord(t, store, keys.BookieIdentity("bookie-1"), &lasting); lasting.GetStartCount() != 1 {
			t.Errorf("the store's count was raised to %d: nobody will notice any more", lasting.GetStartCount())
		}
		if n.storeTrusted() {
			t.Error("a store that was rolled back is trusted")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestJudgeIdentity shows the verdict on each pair of what the node remembers and
// the store shows.
func TestJudgeIdentity(t *testing.T) {
	id := Identity{Bookie: "b", Incarnation: "new"}
	record := func(incarnation string, count uint64, past ...string) *metav1.BookieIdentity {
		return metav1.BookieIdentity_builder{Incarnation: &incarnation, StartCount: &count, PastIncarnations: past}.Build()
	}
	for _, test := range []struct {
		name  string
		local starts
		known *metav1.BookieIdentity // nil: none
		want  identityVerdict
		err   error
	}{
		{"first start", starts{1, 0}, nil, storeCurrent, nil},
		{"record gone", starts{5, 4}, nil, storeRolledBack, nil},
		{"next start", starts{5, 4}, record("new", 4), storeCurrent, nil},
		{"own answer was lost", starts{5, 4}, record("new", 5), storeCurrent, nil},
		{"start that never registered", starts{6, 4}, record("new", 4), storeCurrent, nil},
		{"store is older", starts{5, 4}, record("new", 3), storeRolledBack, nil},
		{"storage is older", starts{5, 4}, record("new", 6), 0, ErrReplaced},
		{"storage was replaced", starts{5, 4}, record("newer", 1, "old", "new"), 0, ErrReplaced},
		{"replaces other storage", starts{1, 0}, record("old", 9), storeCurrent, nil},
		{"store forgot that it did", starts{2, 1}, record("old", 9), storeRolledBack, nil},
	} {
		got, err := judgeIdentity(id, test.local, test.known != nil, test.known)
		if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) || err == nil && got != test.want {
			t.Errorf("%s: %v, %v; want %v, %v", test.name, got, err, test.want, test.err)
		}
	}
}

// TestRegistrationRefuses shows the three cases in which trying again cannot help.
func TestRegistrationRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(*testing.T, *meta.Mem, *Node)
		want    error
	}{
		{"other cluster", func(t *testing.T, s *meta.Mem, _ *Node) {
			putRecord(t, s, keys.Cluster(), metav1.Cluster_builder{Id: new("cluster-2")}.Build())
		}, ErrForeign},
		{"replaced", func(t *testing.T, s *meta.Mem, n *Node) {
			putRecord(t, s, keys.BookieIdentity("bookie-1"), metav1.BookieIdentity_builder{
				Incarnation: new("later"), PastIncarnations: []string{n.Identity().Incarnation}}.Build())
		}, ErrReplaced},
		{"taken", func(t *testing.T, s *meta.Mem, _ *Node) {
			putRecord(t, s, keys.Bookie("bookie-1"), metav1.Bookie_builder{Incarnation: new("other"), Address: new("there:1")}.Build())
		}, ErrTaken},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newStore(t)
				n := openNode(t, testOptions(vfs.NewMem()))
				test.prepare(t, store, n)
				r := NewRegistration(n, RegistrationOptions{Store: store, Layout: keys})
				if err := r.Run(testContext(t)); !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
			})
		})
	}
}

// tombstone is the record of a deleted ledger that some bookies still owe.
func tombstone(deletedAt time.Time, owed ...ledger.Member) *metav1.Ledger {
	b := metav1.Ledger_builder{State: metav1.LedgerState_LEDGER_STATE_DELETED.Enum(), DeletedAtMs: new(deletedAt.UnixMilli())}
	for _, m := range owed {
		b.Owed = append(b.Owed, metav1.Member_builder{Bookie: new(m.Bookie), Incarnation: new(m.Incarnation)}.Build())
	}
	return b.Build()
}

// collecting runs a registered node with its collector.
func collecting(t *testing.T, test func(*testing.T, *meta.Mem, *Node, *Collector)) {
	synctest.Test(t, func(t *testing.T) {
		store := newStore(t)
		n := openNode(t, testOptions(vfs.NewMem()))
		for id := ledger.ID(1); id <= 9; id++ {
			fill(t, n, id, 0, 1, 50)
		}
		r, stop := register(n, store)
		<-r.Registered()
		c := NewCollector(n, CollectorOptions{Store: store, Layout: keys})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { c.Run(ctx); close(ended) }()
		test(t, store, n, c)
		cancel()
		<-ended
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// held lists the ledgers a node has, as a set.
func held(t *testing.T, n *Node) map[ledger.ID]bool {
	t.Helper()
	ids, _, err := n.List(context.Background(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	set := make(map[ledger.ID]bool)
	for _, id := range ids {
		set[id] = true
	}
	return set
}

// TestCollectorDeletesOnlyTombstones shows that a ledger goes after the grace time
// and only if its record is a tombstone that owes this bookie: not because no
// listing shows it, not because another bookie is owed, not while it lives.
func TestCollectorDeletesOnlyTombstones(t *testing.T) {
	collecting(t, func(t *testing.T, store *meta.Mem, n *Node, _ *Collector) {
		me, other := n.Member(), ledger.Member{Bookie: "bookie-2", Incarnation: "x"}
		born := time.Now()
		putRecord(t, store, keys.Ledger(1), tombstone(born, me))
		putRecord(t, store, keys.Ledger(2), tombstone(born, other, me))
		putRecord(t, store, keys.Ledger(3), tombstone(born, other))
		closed := tombstone(born, me)
		closed.SetState(metav1.LedgerState_LEDGER_STATE_CLOSED)
		putRecord(t, store, keys.Ledger(4), closed)
		putRecord(t, store, keys.Ledger(5), tombstone(born, ledger.Member{Bookie: me.Bookie, Incarnation: "unheard of"}))
		putRecord(t, store, keys.Ledger(12345), tombstone(born, me)) // never here
		time.Sleep(29 * time.Second)
		if got := held(t, n); len(got) != 9 {
			t.Errorf("within the grace time: %v", got)
		}
		time.Sleep(3 * time.Second)
		if got := held(t, n); len(got) != 7 || got[1] || got[2] {
			t.Errorf("after the grace time: %v, want all but 1 and 2", got)
		}
		a := entryOf(12345, 0, 10)
		a.Create = true
		if err := add(t, n, a); !errors.Is(err, ledger.ErrDeleted) {
			t.Errorf("zombie's add to a ledger deleted before it was seen: %v", err)
		}
		var record metav1.Ledger
		if getRecord(t, store, keys.Ledger(1), &record) || getRecord(t, store, keys.Ledger(12345), &record) {
			t.Error("a record that owes nobody is still there")
		}
		if !getRecord(t, store, keys.Ledger(2), &record) || len(record.GetOwed()) != 1 || record.GetOwed()[0].GetBookie() != "bookie-2" {
			t.Errorf("record 2 is %v, want it to owe bookie-2", &record)
		}
	})
}

// TestCollectorWaitsForTheStore shows that nothing is deleted on the word of a store
// that is of another cluster, was rolled back, or says another thing when asked
// a second time.
func TestCollectorWaitsForTheStore(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(*testing.T, *meta.Mem, *Node)
	}{
		{"other cluster", func(t *testing.T, s *meta.Mem, _ *Node) {
			putRecord(t, s, keys.Cluster(), metav1.Cluster_builder{Id: new("cluster-2")}.Build())
		}},
		{"rolled back", func(t *testing.T, s *meta.Mem, n *Node) {
			putRecord(t, s, keys.BookieIdentity("bookie-1"), metav1.BookieIdentity_builder{
				Incarnation: new(n.Identity().Incarnation), StartCount: new(uint64(0))}.Build())
		}},
		{"second read differs", func(t *testing.T, s *meta.Mem, n *Node) {
			record := tombstone(time.Now(), n.Member())
			record.SetState(metav1.LedgerState_LEDGER_STATE_OPEN)
			s.OnCall(func(c meta.Call) meta.Fault {
				if c.Kind == meta.CallGet && c.Key == keys.Ledger(1) {
					putRecord(t, s, keys.Ledger(1), record)
				}
				return meta.Fault{}
			})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			collecting(t, func(t *testing.T, store *meta.Mem, n *Node, _ *Collector) {
				putRecord(t, store, keys.Ledger(1), tombstone(time.Now(), n.Member()))
				test.prepare(t, store, n)
				time.Sleep(2 * time.Minute)
				if got := held(t, n); len(got) != 9 {
					t.Errorf("deleted: %v are left", got)
				}
			})
		})
	}
}

// TestCollectorOutlivesTheStore shows that tombstones written while a watch was cut
// off or compacted away are found, that lost answers are repeated, and that one
// run deletes no more than its cap.
func TestCollectorOutlivesTheStore(t *testing.T) {
	collecting(t, func(t *testing.T, store *meta.Mem, n *Node, c *Collector) {
		time.Sleep(time.Second)
		c.opts.PerRun = 2
		store.SetUnavailable(true)
		time.Sleep(10 * time.Second)
		store.SetUnavailable(false)
		for id := int64(1); id <= 5; id++ {
			putRecord(t, store, keys.Ledger(id), tombstone(time.Now().Add(-time.Hour), n.Member()))
		}
		store.Compact()
		lost := false
		store.OnCall(func(call meta.Call) meta.Fault {
			if call.Kind == meta.CallTxn && !lost && len(call.Txn.Ops) == 1 && call.Txn.Ops[0].Key == keys.Ledger(1) {
				lost = true
				return meta.Fault{Lost: true}
			}
			return meta.Fault{}
		})
		most := 0
		for before := 9; before > 4; {
			time.Sleep(c.opts.Every)
			synctest.Wait()
			now := len(held(t, n))
			most, before = max(most, before-now), now
		}
		if most > 2 || !lost {
			t.Errorf("up to %d ledgers deleted in a run, want at most 2; an answer lost: %v", most, lost)
		}
		var record metav1.Ledger
		time.Sleep(time.Minute)
		for id := int64(1); id <= 5; id++ {
			if getRecord(t, store, keys.Ledger(id), &record) {
				t.Errorf("record %d was not confirmed", id)
			}
		}
	})
}

// TestCollectorAnswersForEarlierIncarnations shows that what wiped storage owed is
// confirmed by the one that took its place.
func TestCollectorAnswersForEarlierIncarnations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStore(t)
		putRecord(t, store, keys.BookieIdentity("bookie-1"), metav1.BookieIdentity_builder{Incarnation: new("wiped"), StartCount: new(uint64(4))}.Build())
		putRecord(t, store, keys.Ledger(1), tombstone(time.Now(), ledger.Member{Bookie: "bookie-1", Incarnation: "wiped"}))
		n := openNode(t, testOptions(vfs.NewMem()))
		r, stop := register(n, store)
		<-r.Registered()
		ctx, cancel := context.WithTimeout(context.Background(), 11*time.Minute)
		defer cancel()
		NewCollector(n, CollectorOptions{Store: store, Layout: keys}).Run(ctx)
		var record metav1.Ledger
		if getRecord(t, store, keys.Ledger(1), &record) {
			t.Errorf("still owed: %v", &record)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
