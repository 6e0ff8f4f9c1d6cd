package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

func mustName(t *testing.T, s string) topicname.Name {
	t.Helper()
	n, err := topicname.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// desk is both services over a real gRPC connection in memory, with one broker,
// "a", that owns every bundle.
type desk struct {
	store     *meta.Mem
	catalog   *catalog.Catalog
	view      *View
	service   *Service
	broker    *Registration
	discovery discoveryv1.DiscoveryClient
	admin     adminv1.AdminClient
}

func openDesk(t *testing.T, noAutoCreate bool) *desk {
	t.Helper()
	d := &desk{store: meta.NewMem()}
	d.catalog = catalog.New(catalog.Options{Store: d.store, Layout: keys, NewID: idblock.New(d.store, keys).Next})
	if _, err := d.catalog.Bootstrap(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	d.view = NewView(ViewOptions{Store: d.store, Layout: keys})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { d.view.Run(ctx) })
	var err error
	d.broker, err = Register(t.Context(), RegisterOptions{Store: d.store, Layout: keys, ID: "a", Address: "a:6650", HTTPAddress: "a:8080", Version: "v", LargestEntryBytes: 6000})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bundle.Cut("public/default", catalog.DefaultBundles) {
		d.own(t, b, 0, "a", d.broker.Session())
	}
	d.service = NewService(ServiceOptions{View: d.view, Catalog: d.catalog, Cluster: "test", NoAutoCreate: noAutoCreate, Broker: "a", Session: d.broker.Session})
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer(append(rpc.ServerOptions(rpc.Limits{}), rpcerr.ServerOptions()...)...)
	d.service.Register(server)
	NewAdminService(AdminOptions{Catalog: d.catalog, Store: d.store, Layout: keys, View: d.view}).Register(server)
	wg.Go(func() { server.Serve(l) })
	options := append(rpcerr.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	conn, err := grpc.NewClient("passthrough:///desk", rpc.DialOptions(rpc.ClientFacing, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	d.discovery, d.admin = discoveryv1.NewDiscoveryClient(conn), adminv1.NewAdminClient(conn)
	t.Cleanup(func() {
		conn.Close()
		d.service.Close()
		server.Stop()
		d.broker.Abandon()
		stop()
		wg.Wait()
	})
	d.await(t, "all owners are seen", func(s *Snapshot) bool {
		owned := 0
		for _, b := range s.Bundles {
			if _, ok := s.OwnerOf(b); ok {
				owned++
			}
		}
		return owned == catalog.DefaultBundles
	})
	return d
}

func (d *desk) own(t *testing.T, b bundle.Bundle, from meta.Revision, broker, session string) meta.Revision {
	t.Helper()
	rev, err := WriteOwner(t.Context(), d.store, keys, d.broker.Cond(), b, from, catalog.Owner{Broker: broker, Session: session, Epoch: 1 + uint64(from)})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func (d *desk) await(t *testing.T, what string, holds func(*Snapshot) bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		changed := d.view.Changed()
		if holds(d.view.Snapshot()) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: never", what)
		}
	}
}

func (d *desk) topics(t *testing.T, create bool, names ...string) []*discoveryv1.TopicMap {
	t.Helper()
	r, err := d.discovery.Topics(t.Context(), discoveryv1.TopicsRequest_builder{Topics: names, Create: &create}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetTopics()) != len(names) {
		t.Fatalf("%d answers to %d questions", len(r.GetTopics()), len(names))
	}
	return r.GetTopics()
}

// Many topics are answered at once, in the order asked, each with its own map or
// its own reason; they are created where that is asked for.
func TestTopicsAreAnsweredInBatches(t *testing.T) {
	d := openDesk(t, false)
	if _, err := d.catalog.CreateTopic(t.Context(), mustName(t, "parts"), 3); err != nil {
		t.Fatal(err)
	}
	got := d.topics(t, false, "parts", "flat", "a/b/c", "not ok", "persistent://public/default/parts-partition-1")
	if m := got[0]; !m.GetFound() || !m.GetPartitioned() || len(m.GetPartitions()) != 3 || m.GetRoutingVersion() != 1 ||
		m.GetTopic() != "persistent://public/default/parts" || m.GetPartitions()[2].GetTopic() != "persistent://public/default/parts-partition-2" {
		t.Errorf("partitioned topic: %v", m)
	}
	for i, code := range map[int]codes.Code{1: codes.NotFound, 2: codes.NotFound, 3: codes.InvalidArgument} {
		if m := got[i]; m.GetFound() || codes.Code(m.GetErrorCode()) != code || m.GetError() == "" {
			t.Errorf("answer %d: %v, want %v", i, m, code)
		}
	}
	if m := got[4]; !m.GetFound() || m.GetTopic() != "persistent://public/default/parts" {
		t.Errorf("asked by partition: %v", m)
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("new-%d", i))
	}
	for i, m := range d.topics(t, true, many...) {
		if !m.GetFound() || m.GetPartitioned() || len(m.GetPartitions()) != 1 || m.GetPartitions()[0].GetNumber() != -1 || m.GetTopic() != "persistent://public/default/"+many[i] {
			t.Errorf("created topic: %v", m)
		}
	}
	if err := d.catalog.SetPolicy(t.Context(), "public/default", catalog.Policy{DefaultPartitions: 2}); err != nil {
		t.Fatal(err)
	}
	if m := d.topics(t, true, "by-policy")[0]; len(m.GetPartitions()) != 2 {
		t.Errorf("topic of a namespace with 2 default partitions: %v", m)
	}
	_, err := d.discovery.Topics(t.Context(), discoveryv1.TopicsRequest_builder{Topics: make([]string, maxTopics+1)}.Build())
	if !errors.Is(err, rpcerr.ErrInvalid) {
		t.Errorf("too many topics: %v", err)
	}
}

// A cluster that forbids it creates no topic on first use.
func TestNoAutoCreate(t *testing.T) {
	d := openDesk(t, true)
	if m := d.topics(t, true, "t")[0]; m.GetFound() || codes.Code(m.GetErrorCode()) != codes.NotFound {
		t.Errorf("created all the same: %v", m)
	}
}

// A lookup names the live owner of each topic's bundle; where there is none just
// now it says so without an error, and the client asks again.
func TestLookup(t *testing.T) {
	d := openDesk(t, false)
	lookup := func(names ...string) []*discoveryv1.Owner {
		r, err := d.discovery.Lookup(t.Context(), discoveryv1.LookupRequest_builder{Topics: names}.Build())
		if err != nil {
			t.Fatal(err)
		}
		return r.GetOwners()
	}
	name := mustName(t, "t")
	got := lookup("t", "a/b/c", "//")
	if o := got[0]; o.GetBroker() != "a" || o.GetAddress() != "a:6650" || o.GetTopic() != name.String() || o.GetError() != "" {
		t.Errorf("owned topic: %v", o)
	}
	if codes.Code(got[1].GetErrorCode()) != codes.NotFound || codes.Code(got[2].GetErrorCode()) != codes.InvalidArgument {
		t.Errorf("no such namespace, no name: %v", got[1:])
	}
	info, _ := d.view.Snapshot().BundleOf("public/default", name.Hash())
	rev := d.own(t, info.Bundle, info.Revision, "gone", "its session")
	d.await(t, "the new owner", func(s *Snapshot) bool { return s.Bundles[info.Bundle.String()].Revision == rev })
	if o := lookup("t")[0]; o.GetBroker() != "" || o.GetError() != "" || o.GetBundle() != info.Bundle.String() {
		t.Errorf("owner without a session: %v", o)
	}
	if err := d.catalog.CreateNamespace(t.Context(), "public/new", catalog.Policy{}); err != nil {
		t.Fatal(err)
	}
	if o := lookup("public/new/t")[0]; o.GetBroker() != "" || o.GetError() != "" {
		t.Errorf("new namespace: %v", o)
	}
}

// With the metadata store gone topics that were asked for before and owners are
// answered as they were; what would have to be created or read is unavailable,
// with the reason.
func TestRuleM20_CachedLookupsWithoutTheStore(t *testing.T) {
	d := openDesk(t, false)
	before := d.topics(t, true, "known")[0]
	d.store.SetUnavailable(true)
	defer d.store.SetUnavailable(false)
	got := d.topics(t, true, "known", "unknown")
	if !proto.Equal(got[0], before) {
		t.Errorf("known topic: %v, before: %v", got[0], before)
	}
	if codes.Code(got[1].GetErrorCode()) != codes.Unavailable || got[1].GetError() == "" {
		t.Errorf("unknown topic: %v", got[1])
	}
	r, err := d.discovery.Lookup(t.Context(), discoveryv1.LookupRequest_builder{Topics: []string{"known"}}.Build())
	if err != nil || r.GetOwners()[0].GetBroker() != "a" {
		t.Errorf("owner: %v, %v", r, err)
	}
	_, err = d.admin.CreateTenant(t.Context(), adminv1.CreateTenantRequest_builder{Tenant: proto.String("x")}.Build())
	if !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("creation: %v", err)
	}
}

// A watch begins with all there is, then tells what changes and no more; when
// the process stops it ends as unavailable.
func TestWatch(t *testing.T) {
	d := openDesk(t, false)
	w, err := d.discovery.Watch(t.Context(), &discoveryv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	full, err := w.Recv()
	if err != nil || !full.GetFull() || len(full.GetBundles()) != catalog.DefaultBundles || len(full.GetBrokers()) != 1 || full.GetBrokers()[0].GetAddress() != "a:6650" {
		t.Fatalf("first: %v, %v", full, err)
	}
	for _, b := range full.GetBundles() {
		if b.GetBroker() != "a" || b.GetAddress() != "a:6650" || b.GetEpoch() == 0 {
			t.Errorf("bundle: %v", b)
		}
	}
	other, err := Register(t.Context(), RegisterOptions{Store: d.store, Layout: keys, ID: "b", Address: "b:6650"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(holds func(*discoveryv1.WatchResponse) bool) {
		t.Helper()
		r, err := w.Recv()
		if err != nil || r.GetFull() || !holds(r) {
			t.Fatalf("change: %v, %v", r, err)
		}
	}
	next(func(r *discoveryv1.WatchResponse) bool {
		return len(r.GetBrokers()) == 1 && r.GetBrokers()[0].GetId() == "b" && len(r.GetBundles()) == 0
	})
	moved := bundle.Cut("public/default", catalog.DefaultBundles)[5]
	d.own(t, moved, d.view.Snapshot().Bundles[moved.String()].Revision, "b", other.Session())
	next(func(r *discoveryv1.WatchResponse) bool {
		return len(r.GetBundles()) == 1 && r.GetBundles()[0].GetBundle() == moved.String() && r.GetBundles()[0].GetAddress() == "b:6650"
	})
	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	next(func(r *discoveryv1.WatchResponse) bool {
		return len(r.GetGoneBrokers()) == 1 && len(r.GetBundles()) == 1 && r.GetBundles()[0].GetBroker() == ""
	})
	d.service.Close()
	if _, err := w.Recv(); !errors.Is(err, rpcerr.ErrUnavailable) {
		t.Errorf("end of the watch: %v", err)
	}
}

// The cluster names its brokers, and which broker under which session answers.
func TestCluster(t *testing.T) {
	d := openDesk(t, false)
	r, err := d.discovery.Cluster(t.Context(), &discoveryv1.ClusterRequest{})
	if err != nil || r.GetCluster() != "test" || r.GetBroker() != "a" || r.GetSession() != d.broker.Session() || len(r.GetBrokers()) != 1 || r.GetBrokers()[0].GetPid() == 0 ||
		r.GetBrokers()[0].GetLargestEntryBytes() != 6000 {
		t.Fatalf("cluster: %v, %v", r, err)
	}
}

// Tenants, namespaces and topics are made, listed and taken away by operators;
// errors arrive as what they are.
func TestAdmin(t *testing.T) {
	d := openDesk(t, false)
	ctx, a := t.Context(), d.admin
	namespace, tenant, topic := proto.String("x/y"), proto.String("x"), proto.String("x/y/t")
	steps := []struct {
		name string
		do   func() error
		want error
	}{
		{"tenant", func() error {
			_, err := a.CreateTenant(ctx, adminv1.CreateTenantRequest_builder{Tenant: tenant}.Build())
			return err
		}, nil},
		{"namespace", func() error {
			_, err := a.CreateNamespace(ctx, adminv1.CreateNamespaceRequest_builder{Namespace: namespace, Policy: adminv1.NamespacePolicy_builder{RetentionBytes: proto.Int64(-1), Bundles: proto.Uint32(2)}.Build()}.Build())
			return err
		}, nil},
		{"namespace again", func() error {
			_, err := a.CreateNamespace(ctx, adminv1.CreateNamespaceRequest_builder{Namespace: namespace}.Build())
			return err
		}, rpcerr.ErrExists},
		{"topic", func() error {
			_, err := a.CreateTopic(ctx, adminv1.CreateTopicRequest_builder{Topic: topic, Partitions: proto.Uint32(5)}.Build())
			return err
		}, nil},
		{"too many partitions", func() error {
			_, err := a.CreateTopic(ctx, adminv1.CreateTopicRequest_builder{Topic: proto.String("z"), Partitions: proto.Uint32(1<<32 - 1)}.Build())
			return err
		}, rpcerr.ErrInvalid},
		{"namespace in use", func() error {
			_, err := a.DeleteNamespace(ctx, adminv1.DeleteNamespaceRequest_builder{Namespace: namespace}.Build())
			return err
		}, rpcerr.ErrRefused},
		{"delete topic", func() error {
			_, err := a.DeleteTopic(ctx, adminv1.DeleteTopicRequest_builder{Topic: topic}.Build())
			return err
		}, nil},
		{"delete no topic", func() error {
			_, err := a.DeleteTopic(ctx, adminv1.DeleteTopicRequest_builder{Topic: proto.String("none")}.Build())
			return err
		}, rpcerr.ErrNotFound},
	}
	for i, s := range steps {
		if err := s.do(); !errors.Is(err, s.want) {
			t.Fatalf("%s: %v, want %v", s.name, err, s.want)
		}
		if i != 5 {
			continue
		}
		n, err := a.DescribeNamespace(ctx, adminv1.DescribeNamespaceRequest_builder{Namespace: namespace}.Build())
		if err != nil || n.GetTopics() != 1 || n.GetPolicy().GetRetentionBytes() != -1 || n.GetPolicy().GetBundles() != 2 {
			t.Errorf("namespace: %v, %v", n, err)
		}
		l, err := a.ListTopics(ctx, adminv1.ListTopicsRequest_builder{Namespace: namespace}.Build())
		if err != nil || len(l.GetTopics()) != 1 || l.GetTopics()[0].GetPartitions() != 5 || l.GetTopics()[0].GetTopic() != "persistent://x/y/t" {
			t.Errorf("topics: %v, %v", l, err)
		}
	}
	if l, err := a.ListTopics(ctx, adminv1.ListTopicsRequest_builder{Namespace: namespace}.Build()); err != nil || len(l.GetTopics()) != 0 {
		t.Errorf("a topic being deleted is listed: %v, %v", l, err)
	}
	if l, err := a.ListTenants(ctx, &adminv1.ListTenantsRequest{}); err != nil || len(l.GetTenants()) != 2 {
		t.Errorf("tenants: %v, %v", l, err)
	}
	if l, err := a.ListNamespaces(ctx, adminv1.ListNamespacesRequest_builder{Tenant: tenant}.Build()); err != nil || len(l.GetNamespaces()) != 1 {
		t.Errorf("namespaces: %v, %v", l, err)
	}
	l, err := a.ListBundles(ctx, adminv1.ListBundlesRequest_builder{Namespace: proto.String("public/default")}.Build())
	if err != nil || len(l.GetBundles()) != catalog.DefaultBundles || l.GetBundles()[0].GetBroker() != "a" || l.GetBundles()[0].GetEpoch() == 0 {
		t.Errorf("bundles: %v, %v", l, err)
	}
}

// Ledgers are listed in order and in pages, of all or of one topic, without
// those that were deleted; each can be described.
func TestAdminLedgers(t *testing.T) {
	d := openDesk(t, false)
	ctx := t.Context()
	m, err := d.catalog.EnsureTopic(ctx, mustName(t, "t"))
	if err != nil {
		t.Fatal(err)
	}
	record, err := d.catalog.Topic(ctx, m.Topic)
	if err != nil {
		t.Fatal(err)
	}
	member := []ledger.Member{{Bookie: "b1", Incarnation: "i"}, {}}
	for id := ledger.ID(1); id <= 25; id++ {
		md := ledger.Metadata{
			ID: id, Quorum: ledger.Quorum{Write: 2, Ack: 1}, State: ledger.Open, Term: 1, LastEntry: ledger.NoEntry,
			Fragments: []ledger.Fragment{{Ensemble: member}}, Parent: ledger.Parent{Topic: record.ID, Role: "data"}, Created: time.UnixMilli(5),
		}
		if id%5 == 0 {
			md.State, md.Fragments, md.Owed, md.DeletedAt = ledger.Deleted, nil, member[:1], time.UnixMilli(6)
		}
		value, err := md.Encode()
		if err != nil {
			t.Fatal(err)
		}
		ops := []meta.Op{{Key: keys.Ledger(int64(id)), Value: value}}
		if id%2 == 0 {
			link, err := proto.Marshal(metav1.ChainLink_builder{Ledger: proto.Int64(int64(id))}.Build())
			if err != nil {
				t.Fatal(err)
			}
			ops = append(ops, meta.Op{Key: keys.ChainLink(record.ID, uint64(id)), Value: link})
		}
		if _, err := d.store.Txn(ctx, meta.Txn{Ops: ops}); err != nil {
			t.Fatal(err)
		}
	}
	for topic, want := range map[string]int{"": 20, "t": 10} {
		var got []int64
		for more := true; more; {
			after := int64(0)
			if len(got) > 0 {
				after = got[len(got)-1]
			}
			r, err := d.admin.ListLedgers(ctx, adminv1.ListLedgersRequest_builder{Topic: &topic, After: &after, Limit: proto.Uint32(3)}.Build())
			if err != nil || len(r.GetLedgers()) == 0 || len(r.GetLedgers()) > 3 {
				t.Fatalf("ledgers of %q after %d: %v, %v", topic, after, r, err)
			}
			for _, l := range r.GetLedgers() {
				if l.GetLedger() <= after || l.GetLedger()%5 == 0 || l.GetState() != "OPEN" || len(l.GetFragments()) != 1 || l.GetParent() != fmt.Sprintf("topic %d data", record.ID) {
					t.Fatalf("ledger %v after %d", l, after)
				}
				after = l.GetLedger()
				got = append(got, after)
			}
			more = r.GetMore()
		}
		if len(got) != want {
			t.Errorf("ledgers of %q: %v", topic, got)
		}
	}
	r, err := d.admin.DescribeLedger(ctx, adminv1.DescribeLedgerRequest_builder{Ledger: proto.Int64(5)}.Build())
	if err != nil || r.GetLedger().GetState() != "DELETED" {
		t.Errorf("deleted ledger: %v, %v", r, err)
	}
	_, err = d.admin.DescribeLedger(ctx, adminv1.DescribeLedgerRequest_builder{Ledger: proto.Int64(99)}.Build())
	if !errors.Is(err, ledger.ErrNoLedger) {
		t.Errorf("no such ledger: %v", err)
	}
	_, err = d.admin.DescribeLedger(ctx, &adminv1.DescribeLedgerRequest{})
	if !errors.Is(err, rpcerr.ErrInvalid) {
		t.Errorf("ledger 0: %v", err)
	}
}

// Bookies are listed whether they live or not.
func TestAdminBookies(t *testing.T) {
	d := openDesk(t, false)
	put := func(key string, m proto.Message) {
		value, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.store.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: key, Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"b1", "b2", "b3"} {
		put(keys.BookieIdentity(id), metav1.BookieIdentity_builder{Incarnation: proto.String("i")}.Build())
	}
	put(keys.Bookie("b1"), metav1.Bookie_builder{Address: proto.String("b1:1"), Incarnation: proto.String("i")}.Build())
	put(keys.Bookie("b3"), metav1.Bookie_builder{ReadOnly: proto.Bool(true), Incarnation: proto.String("i"), MaxEntryBytes: proto.Uint64(4096)}.Build())
	r, err := d.admin.ListBookies(t.Context(), &adminv1.ListBookiesRequest{})
	if err != nil || len(r.GetBookies()) != 3 {
		t.Fatalf("bookies: %v, %v", r, err)
	}
	for i, want := range []string{"writable", "down", "readonly"} {
		if b := r.GetBookies()[i]; b.GetState() != want || b.GetIncarnation() != "i" {
			t.Errorf("bookie %v, want %s", b, want)
		}
	}
	if got := r.GetBookies()[2].GetMaxEntryBytes(); got != 4096 {
		t.Errorf("largest entry of the last bookie: %d bytes", got)
	}
}
