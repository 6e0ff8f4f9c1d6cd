package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	keys  = layout.New("test")
	topic = topicname.MustParse("topic")
)

const defaultNamespace = "public/default"

func newCatalog(store meta.Store) *Catalog {
	return New(Options{Store: store, Layout: keys, NewID: idblock.New(store, keys).Next})
}

// bootstrapped returns a catalog of a new cluster.
func bootstrapped(t *testing.T) (*Catalog, *meta.Mem) {
	t.Helper()
	m := meta.NewMem()
	c := newCatalog(m)
	if _, err := c.Bootstrap(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	return c, m
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// However many processes start a cluster at once, it has one identity and one
// public/default with bundles that partition the hash space.
func TestBootstrap(t *testing.T) {
	m := meta.NewMem()
	_, err := newCatalog(m).Cluster(t.Context())
	wantErr(t, err, rpcerr.ErrNotFound)
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			cluster, err := newCatalog(m).Bootstrap(t.Context(), "test")
			if err != nil {
				t.Error(err)
			}
			ids[i] = cluster.ID
		})
	}
	wg.Wait()
	if ids = slices.Compact(ids); len(ids) != 1 || len(ids[0]) != 32 {
		t.Errorf("cluster ids %v", ids)
	}
	bundles := must[[]Bundle](t)(newCatalog(m).Bundles(t.Context(), defaultNamespace))
	var ranges []bundle.Bundle
	for _, b := range bundles {
		ranges = append(ranges, b.Bundle)
		if b.OwnerRevision != 0 || b.LogRevision == 0 {
			t.Errorf("new bundle %+v", b)
		}
	}
	if err := bundle.CheckPartition(ranges); err != nil || len(ranges) != DefaultBundles {
		t.Errorf("%d bundles: %v", len(ranges), err)
	}
}

// Tenants and namespaces are made, listed, changed and removed; what is not
// empty is not removed, and stays usable.
func TestTenantsAndNamespaces(t *testing.T) {
	c, m := bootstrapped(t)
	ctx := t.Context()
	wantErr(t, c.CreateTenant(ctx, "a/b"), topicname.ErrInvalid)
	wantErr(t, c.CreateNamespace(ctx, "x/y", Policy{}), rpcerr.ErrNotFound)
	if err := c.CreateTenant(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.CreateTenant(ctx, "x"), rpcerr.ErrExists)
	if got := must[[]string](t)(c.Tenants(ctx)); !slices.Equal(got, []string{"public", "x"}) {
		t.Errorf("tenants %v", got)
	}
	p := Policy{DefaultPartitions: 3, RetentionSeconds: 60, RetentionBytes: -1, Bundles: 4}
	if err := c.CreateNamespace(ctx, "x/y", p); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.CreateNamespace(ctx, "x/y", p), rpcerr.ErrExists)
	wantErr(t, c.CreateNamespace(ctx, "x/z", Policy{RetentionBytes: -2}), rpcerr.ErrInvalid)
	wantErr(t, c.DeleteTenant(ctx, "x"), rpcerr.ErrRefused)
	if got := must[Namespace](t)(c.Namespace(ctx, "x/y")); got.Policy != p || got.Deleting {
		t.Errorf("namespace %+v", got)
	}
	p.RetentionSeconds = -1
	if err := c.SetPolicy(ctx, "x/y", Policy{DefaultPartitions: 3, RetentionSeconds: -1, RetentionBytes: -1, Bundles: 9}); err != nil {
		t.Fatal(err)
	}
	if got := must[[]Namespace](t)(c.Namespaces(ctx, "x")); len(got) != 1 || got[0].Policy != p {
		t.Errorf("namespaces %+v", got)
	}
	name := topicname.MustParse("x/y/t")
	must[Map](t)(c.EnsureTopic(ctx, name))
	wantErr(t, c.DeleteNamespace(ctx, "x/y"), rpcerr.ErrRefused)
	for _, topic := range must[[]Topic](t)(c.MarkDeleting(ctx, name)) {
		if err := c.Remove(ctx, topic, nil); err != nil {
			t.Fatal(err)
		}
	}
	// The log of a bundle that was used goes with the namespace.
	md := ledger.Metadata{
		ID: 7, Quorum: ledger.Quorum{Write: 1, Ack: 1}, State: ledger.Closed, Term: 1, LastEntry: 0, Length: 1,
		Fragments: []ledger.Fragment{{Ensemble: []ledger.Member{{Bookie: "b", Incarnation: "i"}}}}, Class: ledger.Control,
		Parent: ledger.Parent{Bundle: "x/y/00000000-3fffffff", Role: "log"}, Created: time.UnixMilli(1),
	}
	value := must[[]byte](t)(md.Encode())
	owner := encode(metav1.BundleOwner_builder{Broker: new("a"), Session: new("s"), Epoch: new(uint64(1))}.Build())
	if _, err := m.Txn(ctx, meta.Txn{Ops: []meta.Op{
		{Key: keys.Ledger(7), Value: value},
		{Key: keys.BundleLog("x/y/00000000-3fffffff"), Value: logWith(7)},
		{Key: keys.BundleOwner("x/y/00000000-3fffffff"), Value: owner},
	}}); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteNamespace(ctx, "x/y"); err != nil {
		t.Fatal(err)
	}
	if kvs, _, _ := m.Range(ctx, keys.Bundles("x/y"), "", 0); len(kvs) != 0 {
		t.Errorf("%d keys of bundles are left", len(kvs))
	}
	tomb := must[ledger.Metadata](t)(ledger.Decode(7, must[meta.KV](t)(m.Get(ctx, keys.Ledger(7))).Value))
	if tomb.State != ledger.Deleted || len(tomb.Owed) != 1 {
		t.Errorf("ledger of the log: %+v", tomb)
	}
	if err := c.DeleteTenant(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.DeleteTenant(ctx, "x"), rpcerr.ErrNotFound)
	wantErr(t, c.DeleteNamespace(ctx, "x/y"), rpcerr.ErrNotFound)
}

// A topic that is created between the look whether a namespace is empty and its
// removal is either refused or keeps the namespace alive.
func TestNothingSlipsIntoARemoval(t *testing.T) {
	for at := 1; at < 80; at++ {
		c, m := bootstrapped(t)
		other := newCatalog(m.Client("other"))
		var created error
		n := 0
		m.OnCall(func(call meta.Call) meta.Fault {
			if call.Client == "" {
				if n++; n == at {
					_, created = other.CreateTopic(context.Background(), topic, 0)
				}
			}
			return meta.Fault{}
		})
		removed := c.DeleteNamespace(t.Context(), defaultNamespace)
		m.OnCall(nil)
		if n < at {
			if removed != nil || at < 5 {
				t.Fatalf("removal of %d calls: %v", n, removed)
			}
			return
		}
		_, nsErr := c.Namespace(t.Context(), defaultNamespace)
		_, topicErr := c.Map(t.Context(), topic)
		if (created == nil) != (topicErr == nil) || topicErr == nil && nsErr != nil || removed == nil && nsErr == nil {
			t.Fatalf("at call %d: created %v, removed %v, topic %v, namespace %v", at, created, removed, topicErr, nsErr)
		}
	}
	t.Fatal("the removal never ended")
}

// A topic whose namespace is closed between the look at it and the creation is
// not created: the one who closed it may have looked already.
func TestNothingIsCreatedUnderAClosedNamespace(t *testing.T) {
	for _, partitions := range []int{0, 2} {
		c, m := bootstrapped(t)
		other := newCatalog(m.Client("other"))
		key := keys.Namespace(defaultNamespace)
		closed := false
		m.OnCall(func(call meta.Call) meta.Fault {
			if call.Client == "" && call.Kind == meta.CallTxn && call.Key != keys.IDs() && !closed {
				closed = true
				ns, err := other.Namespace(context.Background(), defaultNamespace)
				if err != nil {
					t.Error(err)
				}
				ns.Deleting = true
				if _, err := other.commit(context.Background(), meta.Txn{Ops: []meta.Op{{Key: key, Value: encodeNamespace(ns)}}}); err != nil {
					t.Error(err)
				}
			}
			return meta.Fault{}
		})
		_, err := c.CreateTopic(t.Context(), topic, partitions)
		wantErr(t, err, rpcerr.ErrRefused)
		if kvs, _, _ := m.Range(t.Context(), keys.Topics(defaultNamespace), "", 0); !closed || len(kvs) != 0 {
			t.Fatalf("%d topics were created", len(kvs))
		}
	}
}

// A removal that another process called off, because it found something, does not
// go on over what was created since.
func TestRemovalCalledOff(t *testing.T) {
	c, m := bootstrapped(t)
	other := newCatalog(m.Client("other"))
	key := keys.Namespace(defaultNamespace)
	called := false
	m.OnCall(func(call meta.Call) meta.Fault {
		if call.Client != "" || call.Kind != meta.CallTxn || call.Key != key || !call.Txn.Ops[0].Delete || called {
			return meta.Fault{}
		}
		called = true
		ns, err := other.Namespace(context.Background(), defaultNamespace)
		if err == nil {
			ns.Deleting = false
			_, err = other.commit(context.Background(), meta.Txn{Ops: []meta.Op{{Key: key, Value: encodeNamespace(ns)}}})
		}
		if err == nil {
			_, err = other.CreateTopic(context.Background(), topic, 0)
		}
		if err != nil {
			t.Error(err)
		}
		return meta.Fault{}
	})
	wantErr(t, c.DeleteNamespace(t.Context(), defaultNamespace), rpcerr.ErrRefused)
	if !called {
		t.Fatal("nothing was called off: this test shows nothing")
	}
	must[Namespace](t)(c.Namespace(t.Context(), defaultNamespace))
}

// A topic's map routes every key to exactly one partition, and the records of
// its partitions are found by bundle.
func TestRuleM32_MapRoutesEachKeyToOnePartition(t *testing.T) {
	c, _ := bootstrapped(t)
	ctx := t.Context()
	flat := must[Map](t)(c.EnsureTopic(ctx, topic))
	if flat.Partitioned || len(flat.Partitions) != 1 || flat.Partitions[0].Number != topicname.Unpartitioned || flat.Name(flat.Partitions[0]) != topic {
		t.Fatalf("map %+v", flat)
	}
	_, err := c.CreateTopic(ctx, topic, 4)
	wantErr(t, err, rpcerr.ErrExists)
	_, err = c.CreateTopic(ctx, topicname.MustParse("nobody/here/t"), 0)
	wantErr(t, err, rpcerr.ErrNotFound)
	_, err = c.CreateTopic(ctx, topic.WithPartition(2), 0)
	wantErr(t, err, rpcerr.ErrInvalid)
	_, err = c.CreateTopic(ctx, topic, MaxPartitions+1)
	wantErr(t, err, rpcerr.ErrInvalid)

	const partitions = 300
	many := topicname.MustParse("many")
	m := must[Map](t)(c.CreateTopic(ctx, many, partitions))
	again := must[Map](t)(c.Map(ctx, many))
	if len(again.Partitions) != partitions || again.RoutingVersion != 1 || !again.Partitioned || len(m.Partitions) != partitions {
		t.Fatalf("map of %d partitions, version %d", len(again.Partitions), again.RoutingVersion)
	}
	_, err = c.CreateTopic(ctx, many, 0)
	wantErr(t, err, rpcerr.ErrExists)
	for i, r := range bundle.Ranges(partitions) {
		for _, h := range []uint32{r.First, r.Last} {
			if got, ok := again.Route(h); !ok || got != i {
				t.Fatalf("key hash %08x goes to partition %d, %v, want %d", h, got, ok, i)
			}
		}
	}
	ids := make(map[uint64]topicname.Name)
	for _, b := range bundle.Cut(defaultNamespace, DefaultBundles) {
		for _, found := range must[[]Topic](t)(c.TopicsOf(ctx, b)) {
			if !b.Range.Contains(found.Name.Hash()) || ids[found.ID] != (topicname.Name{}) {
				t.Fatalf("topic %+v in bundle %v, id also of %v", found, b, ids[found.ID])
			}
			ids[found.ID] = found.Name
		}
	}
	if len(ids) != partitions+1 {
		t.Errorf("bundles hold %d topics", len(ids))
	}
	list := must[[]Summary](t)(c.List(ctx, defaultNamespace))
	if len(list) != 2 || list[0].Name != many || list[0].Partitions != partitions || list[1].Name != topic || list[1].Partitions != 0 {
		t.Errorf("list %+v", list)
	}
}

// A topic that is deleted and made again has another, higher id, so that
// nothing of the dead one is taken for its own. In between the name is refused.
func TestRuleM3_TopicIDIsNeverUsedAgain(t *testing.T) {
	for _, partitions := range []int{0, 3, 200} {
		t.Run(fmt.Sprint(partitions), func(t *testing.T) {
			c, m := bootstrapped(t)
			ctx := t.Context()
			highest := uint64(0)
			for range 3 {
				must[Map](t)(c.CreateTopic(ctx, topic, partitions))
				next := highest
				left := must[[]Topic](t)(c.MarkDeleting(ctx, topic))
				if len(left) != max(1, partitions) {
					t.Fatalf("%d partitions are left", len(left))
				}
				_, err := c.Map(ctx, topic)
				wantErr(t, err, rpcerr.ErrNotFound)
				_, err = c.CreateTopic(ctx, topic, partitions)
				wantErr(t, err, rpcerr.ErrRefused)
				for _, d := range left {
					if d.ID <= highest || !d.Deleting {
						t.Fatalf("%+v has an id not above %d", d, highest)
					}
					next = max(next, d.ID)
					if err := c.Remove(ctx, d, []meta.Cond{{Key: keys.Cluster(), AnyRevision: true}}); err != nil {
						t.Fatal(err)
					}
				}
				highest = next
				if kvs, _, _ := m.Range(ctx, keys.Topics(defaultNamespace), "", 0); len(kvs) != 0 {
					t.Fatalf("%d records are left", len(kvs))
				}
				if kvs, _, _ := m.Range(ctx, keys.PartitionedTopics(defaultNamespace), "", 0); len(kvs) != 0 {
					t.Fatalf("%d records of partitioned topics are left", len(kvs))
				}
			}
		})
	}
}

// The record of a topic stays until its deletion was begun, its chain is empty
// and the owner is still the owner; the record of a new topic of the same name
// is not taken for it.
func TestRuleM3_RecordGoesLast(t *testing.T) {
	c, m := bootstrapped(t)
	ctx := t.Context()
	must[Map](t)(c.EnsureTopic(ctx, topic))
	alive := must[Topic](t)(c.Topic(ctx, topic))
	wantErr(t, c.Remove(ctx, alive, nil), rpcerr.ErrRefused)
	dying := must[[]Topic](t)(c.MarkDeleting(ctx, topic))[0]
	link := meta.Op{Key: keys.ChainLink(dying.ID, 1)}
	if _, err := m.Txn(ctx, meta.Txn{Ops: []meta.Op{link}}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.Remove(ctx, dying, nil), rpcerr.ErrRefused)
	link.Delete = true
	if _, err := m.Txn(ctx, meta.Txn{Ops: []meta.Op{link}}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, c.Remove(ctx, dying, []meta.Cond{{Key: keys.Cluster()}}), rpcerr.ErrRefused)
	if err := c.Remove(ctx, dying, nil); err != nil {
		t.Fatal(err)
	}
	must[Map](t)(c.EnsureTopic(ctx, topic))
	if err := c.Remove(ctx, dying, nil); err != nil {
		t.Fatalf("second removal: %v", err)
	}
	must[Map](t)(c.Map(ctx, topic))
	_, err := c.MarkDeleting(ctx, topicname.MustParse("nothing"))
	wantErr(t, err, rpcerr.ErrNotFound)
	_, err = c.MarkDeleting(ctx, topicname.MustParse("nothing").WithPartition(1))
	wantErr(t, err, rpcerr.ErrNotFound)
	must[Map](t)(c.CreateTopic(ctx, topicname.MustParse("p"), 2))
	_, err = c.MarkDeleting(ctx, topicname.MustParse("p").WithPartition(1))
	wantErr(t, err, rpcerr.ErrRefused)
}
