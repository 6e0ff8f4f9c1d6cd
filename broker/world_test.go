package broker

import (
	"context"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/topicname"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var keys = layout.New("test")

// world is a cluster in memory: one metadata store, three bookies, and as many
// brokers as a test starts. It lives inside a synctest bubble.
type world struct {
	t       *testing.T
	store   *meta.Mem
	bookies *ensembletest.Cluster
	catalog *catalog.Catalog
	nodes   []*node
}

// node is one broker with its own connection to the store.
type node struct {
	*Broker
	w     *world
	store *meta.MemClient
	view  *discovery.View
	stop  context.CancelFunc
	wg    sync.WaitGroup
	dead  bool
}

// story runs a test in virtual time, in a cluster that is taken down after it.
func story(t *testing.T, tell func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		m := meta.NewMem()
		w := &world{t: t, store: m, bookies: ensembletest.New(3)}
		w.catalog = catalog.New(catalog.Options{Store: m, Layout: keys, NewID: idblock.New(m, keys).Next})
		if _, err := w.catalog.Bootstrap(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
		defer w.close()
		tell(t, w)
	})
}

func (w *world) close() {
	w.store.OnCall(nil)
	w.store.SetUnavailable(false)
	for _, n := range w.nodes {
		n.kill()
	}
}

// start starts a broker and waits until it owns its part.
func (w *world) start(id string, change ...func(*Options)) *node {
	w.t.Helper()
	level := hclog.Off
	if testing.Verbose() {
		level = hclog.Debug
	}
	log := hclog.New(&hclog.LoggerOptions{Level: level, Output: os.Stderr})
	n := &node{w: w, store: w.store.Client(id)}
	n.view = discovery.NewView(discovery.ViewOptions{Store: n.store, Layout: keys, Log: log.Named(id)})
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	n.wg.Go(func() { n.view.Run(ctx) })
	ids := idblock.New(n.store, keys)
	o := Options{
		ID: id, Address: id + ":6650", Store: n.store, Layout: keys, View: n.view, IDs: ids, Directory: w.bookies,
		Catalog: catalog.New(catalog.Options{Store: n.store, Layout: keys, NewID: ids.Next}),
		Ledgers: w.bookies.Client(w.t, ensemble.Options{Store: n.store, Layout: keys, IDs: ids, Session: func() string { return id }, MaxBodyBytes: LargestBody(0)}),
		Quorum:  ledger.Quorum{Write: 3, Ack: 2},
		Probe: func(_ context.Context, other discovery.BrokerInfo) discovery.Observation {
			return discovery.Observation{Session: other.Session}
		},
		MemoryBytes: minMemoryBytes, Log: log, Rand: func() uint64 { return 0 },
	}
	for _, f := range change {
		f(&o)
	}
	b, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	n.Broker = b
	w.nodes = append(w.nodes, n)
	if err := b.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// kill ends a broker as the death of its process would.
func (n *node) kill() {
	if n.dead {
		return
	}
	n.dead = true
	n.store.Close()
	n.Broker.Kill()
	n.stop()
	n.wg.Wait()
}

// close stops a broker in order.
func (n *node) close() {
	n.w.t.Helper()
	n.dead = true
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Broker.Close(ctx); err != nil {
		n.w.t.Error(err)
	}
	n.stop()
	n.wg.Wait()
}

// onCall puts a hook on the calls of the store.
func (w *world) onCall(hook func(meta.Call) meta.Fault) { w.store.OnCall(hook) }

// until waits for something that must come to be.
func (w *world) until(what string, atMost time.Duration, holds func() bool) {
	w.t.Helper()
	for start := time.Now(); !holds(); time.Sleep(time.Millisecond) {
		if time.Since(start) > atMost {
			w.t.Fatalf("%s: not within %v", what, atMost)
		}
	}
}

// topic makes a topic that is not partitioned.
func (w *world) topic(local string) topicname.Name {
	w.t.Helper()
	name := topicname.MustParse(local)
	if _, err := w.catalog.CreateTopic(w.t.Context(), name, 0); err != nil {
		w.t.Fatal(err)
	}
	return name
}

// bundleOf is the bundle that a topic falls in.
func (w *world) bundleOf(name topicname.Name) bundle.Bundle {
	w.t.Helper()
	for _, b := range w.bundles() {
		if b.Namespace == name.NamespaceName() && b.Range.Contains(name.Hash()) {
			return b.Bundle
		}
	}
	w.t.Fatalf("no bundle of %s", name)
	return bundle.Bundle{}
}

// bundles lists those of all namespaces.
func (w *world) bundles() []catalog.Bundle {
	w.t.Helper()
	all, err := w.catalog.Bundles(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// owner reads an owner record.
func (w *world) owner(bd bundle.Bundle) (catalog.Owner, meta.Revision) {
	w.t.Helper()
	kv, err := w.store.Get(context.Background(), keys.BundleOwner(bd.String()))
	if err != nil {
		w.t.Fatal(err)
	}
	if !kv.Exists() {
		return catalog.Owner{}, 0
	}
	owner, err := catalog.DecodeOwner(kv)
	if err != nil {
		w.t.Fatal(err)
	}
	return owner, kv.Revision
}

// open waits until a bundle is open at a broker, and returns it.
func (n *node) open(bd bundle.Bundle) *ownedBundle {
	n.w.t.Helper()
	var o *ownedBundle
	n.w.until("bundle "+bd.String()+" opens at "+n.opts.ID, time.Minute, func() bool {
		o = n.bundle(bd)
		return o != nil
	})
	return o
}

// openAgain opens a bundle a second time and ends the first one, with the loop that
// opens bundles held off until the test lets go: then the second one is in the
// state between having been opened and being served.
func (n *node) openAgain(bd bundle.Bundle) (again *ownedBundle, letGo func()) {
	n.w.t.Helper()
	o := n.open(bd)
	synctest.Wait() // the loop is done with it
	moving := func(to bool) {
		n.ownership.mu.Lock()
		defer n.ownership.mu.Unlock()
		n.ownership.moving[bd] = to
	}
	moving(true)
	again, err := n.openBundle(n.w.t.Context(), bd, o.holding())
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.take(bd)
	o.abandon(errMoved)
	return again, func() {
		moving(false)
		n.ownership.nudge()
	}
}

// batch is one message of a producer, with room for the broker's part.
func batch(producer string, sequence, routing uint64) topic.Batch {
	md := entryv1.MessageMetadata_builder{
		ProducerName: &producer, SequenceId: &sequence, HighestSequenceId: &sequence,
		PublishTime: new(uint64(1)), NumMessagesInBatch: new(int32(1)),
	}.Build()
	if sequence > 0 {
		md.SetPreviousSequenceId(sequence - 1)
	}
	if routing > 0 {
		md.SetRoutingVersion(routing)
	}
	return topic.Batch{Buffer: entry.AppendProducerPart(make([]byte, entry.BrokerPartRoom), md, []byte("payload"))}
}

// sink notes what a producer is told.
type sink struct {
	mu       sync.Mutex
	producer *topic.Producer
	receipts int
	refused  []error
	closed   error
}

func (s *sink) Opened(p *topic.Producer, _ uint64, _ bool) { s.note(func() { s.producer = p }) }
func (s *sink) Receipt(topic.Receipt)                      { s.note(func() { s.receipts++ }) }
func (s *sink) Refused(r topic.Refusal)                    { s.note(func() { s.refused = append(s.refused, r.Err) }) }
func (s *sink) Closed(err error)                           { s.note(func() { s.closed = err }) }
func (s *sink) Hold(bool, string)                          {}

func (s *sink) note(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// publish opens a producer at a broker and publishes so many messages.
func (n *node) publish(name topicname.Name, producer string, messages int) *sink {
	n.w.t.Helper()
	t, err := n.Broker.topic(n.w.t.Context(), name)
	if err != nil {
		n.w.t.Fatal(err)
	}
	s := &sink{}
	if _, err := t.OpenProducer(producer, 0, false, s); err != nil {
		n.w.t.Fatal(err)
	}
	for i := range messages {
		s.producer.Publish(batch(producer, uint64(i), 0))
	}
	n.w.until("receipts", time.Minute, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.receipts == messages
	})
	return s
}
