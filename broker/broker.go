// Package broker is the node that serves topics. It keeps nothing on disk: it
// owns bundles of topic partitions, writes their messages to ledgers, and hands
// its bundles back when it stops.
//
// Ownership is a record in the metadata store. A broker that holds one opens the
// bundle's log, which shuts the owner before out, and serves its topics until it
// gives the record up or finds that somebody else took it.
package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// Options of a broker. ID, Address, Store, Layout, Catalog, View, IDs, Ledgers,
// Directory and Quorum are required; zero is the documented default elsewhere.
type Options struct {
	ID          string // unique in the cluster
	Address     string // where clients reach it, HOST:PORT
	HTTPAddress string
	Version     string

	Store     meta.Store
	Layout    layout.Layout
	Catalog   *catalog.Catalog
	View      *discovery.View
	IDs       IDs // the one that Ledgers draws from
	Ledgers   *ensemble.Client
	Directory ensemble.Directory
	Quorum    ledger.Quorum

	// SessionLease is how long others wait before they take a silent broker for
	// dead; 0: 5 s.
	SessionLease time.Duration
	// MemoryBytes bounds the entry cache, what waits to be written and what is read
	// at a time, together; 0: 256 MiB.
	MemoryBytes     int64
	MaxMessageBytes int   // 0: 5 MiB
	LedgerBytes     int64 // when a topic goes on in a new ledger; 0: 256 MiB
	// When a bundle's log goes on in a new ledger, and after how many bytes of records
	// it takes a snapshot; 0: 32 MiB and 16 MiB.
	LogRollBytes, LogPassBytes int64
	// OpenTimeout bounds one try to open a topic, CloseTimeout the orderly end of
	// one; 0: 30 s and 10 s.
	OpenTimeout  time.Duration
	CloseTimeout time.Duration

	// Probe asks another broker's address whether it lives; nil: over gRPC.
	Probe func(ctx context.Context, other discovery.BrokerInfo) discovery.Observation

	Log     hclog.Logger
	Metrics prometheus.Registerer // nil: none
	Now     func() time.Time
	Rand    func() uint64
}

// IDs draws ledger ids; idblock.Allocator is one.
type IDs interface {
	// Discard makes the next id one from a block drawn after this call.
	Discard()
}

// Validate reports every fault of the options.
func (o *Options) Validate() error {
	var errs []error
	for _, need := range []struct {
		ok   bool
		what string
	}{
		{o.ID != "", "ID"}, {o.Address != "", "Address"}, {o.Store != nil, "Store"}, {o.Catalog != nil, "Catalog"}, {o.View != nil, "View"},
		{o.IDs != nil, "IDs"}, {o.Ledgers != nil, "Ledgers"}, {o.Directory != nil, "Directory"},
	} {
		if !need.ok {
			errs = append(errs, fmt.Errorf("broker: option %s is missing", need.what))
		}
	}
	if o.MemoryBytes < 0 || o.MemoryBytes > 0 && o.MemoryBytes < minMemoryBytes {
		errs = append(errs, fmt.Errorf("broker: %d bytes of memory, want at least %d", o.MemoryBytes, int64(minMemoryBytes)))
	}
	return errors.Join(append(errs, o.Quorum.Validate())...)
}

const minMemoryBytes = 32 << 20

const defaultMessageBytes = 5 << 20

// LargestBody is the largest body of an entry in the ledgers of topics, of a broker
// whose Options.MaxMessageBytes is so much: a batch as it may be sent, with what the
// topic puts in front.
func LargestBody(maxMessageBytes int64) int64 {
	if maxMessageBytes == 0 {
		maxMessageBytes = defaultMessageBytes
	}
	return maxMessageBytes + entry.MaxHeaderBytes + entry.BrokerPartRoom
}

func (o *Options) fill() {
	if o.SessionLease == 0 {
		o.SessionLease = 5 * time.Second
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 256 << 20
	}
	if o.MaxMessageBytes == 0 {
		o.MaxMessageBytes = defaultMessageBytes
	}
	if o.OpenTimeout == 0 {
		o.OpenTimeout = 30 * time.Second
	}
	if o.CloseTimeout == 0 {
		o.CloseTimeout = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Broker is a running broker. Safe for concurrent use.
type Broker struct {
	opts    Options
	log     hclog.Logger
	catalog *catalog.Catalog
	ids     IDs

	// Shared by all topics. Half of the memory is the cache's, a quarter each is
	// for what waits to be written and for what is read.
	cache   *managedledger.Cache
	budget  *chain.Budget
	reads   *semaphore.Weighted
	opening *semaphore.Weighted // topics opened in the background at a time
	looks   *rate.Limiter       // at topics that may have to be opened so

	logMetrics          *bundlelog.Metrics
	ledgerMetrics       *managedledger.Metrics
	topicMetrics        *topic.Metrics
	subscriptionMetrics *subscription.Metrics

	ownership *ownership

	ctx    context.Context // of the loops
	cancel context.CancelFunc
	loops  sync.WaitGroup

	mu      sync.Mutex
	bundles map[bundle.Bundle]*ownedBundle // open
	endings int                            // how often another broker ended this one's session
}

// backgroundOpens bounds the topics that one broker opens in the background at a
// time.
const backgroundOpens = 8

// New makes a broker. It owns nothing before Start.
func New(opts Options) (*Broker, error) {
	opts.fill()
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	b := &Broker{
		opts: opts, log: opts.Log.Named("broker").With("broker", opts.ID), catalog: opts.Catalog, ids: opts.IDs,
		budget:  chain.NewBudget(opts.MemoryBytes / 4),
		reads:   semaphore.NewWeighted(opts.MemoryBytes / 4),
		opening: semaphore.NewWeighted(backgroundOpens),
		looks:   rate.NewLimiter(unclosedRate, unclosedBurst),

		logMetrics:          bundlelog.NewMetrics(opts.Metrics),
		ledgerMetrics:       managedledger.NewMetrics(opts.Metrics),
		topicMetrics:        topic.NewMetrics(opts.Metrics),
		subscriptionMetrics: subscription.NewMetrics(opts.Metrics),

		bundles: map[bundle.Bundle]*ownedBundle{},
	}
	b.cache = managedledger.NewCache(managedledger.CacheOptions{Bytes: opts.MemoryBytes / 2, Metrics: b.ledgerMetrics})
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.ownership = newOwnership(b)
	if opts.Metrics != nil {
		opts.Metrics.MustRegister(newCollector(b))
	}
	return b, nil
}

// Register adds the broker's services to a server.
func (b *Broker) Register(s grpc.ServiceRegistrar) {
	brokerv1.RegisterMessagingServer(s, &messaging{broker: b})
	adminv1.RegisterTopicAdminServer(s, b.TopicAdmin())
	adminv1.RegisterLedgerAdminServer(s, &ledgerAdmin{ledgers: b.opts.Ledgers, directory: b.opts.Directory})
}

// TopicAdmin is the service for the topics this broker owns.
func (b *Broker) TopicAdmin() adminv1.TopicAdminServer { return &topicAdmin{broker: b} }

// Start registers the broker and begins to take bundles. It returns once the
// broker is registered and its own view shows it: who asks a broker that is ready
// which ones live is told of it.
func (b *Broker) Start(ctx context.Context) error {
	if err := b.ownership.start(ctx); err != nil {
		return err
	}
	b.loops.Go(func() { b.trimOpen(b.ctx) })
	b.loops.Go(func() { b.sweepParked(b.ctx) })
	b.loops.Go(func() { b.watchDeletions(b.ctx) })
	b.loops.Go(func() { b.watchRouting(b.ctx) })
	return b.ownership.listed(ctx)
}

// Session is the one the broker is registered under; "": none yet.
func (b *Broker) Session() string { return b.ownership.session() }

// Close hands the bundles back and ends the broker: what is in flight is
// answered, ledgers are closed, and the owner records name those that come next.
// When ctx ends first the rest is dropped as it is.
func (b *Broker) Close(ctx context.Context) error {
	err := b.ownership.stop(ctx)
	b.cancel()
	b.loops.Wait()
	return err
}

// Kill ends the broker at once, as if its process had died: nothing is handed
// back. For tests.
func (b *Broker) Kill() {
	b.ownership.kill()
	b.cancel()
	b.loops.Wait()
}

// owned returns the bundles that are open here.
func (b *Broker) owned() []*ownedBundle {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*ownedBundle, 0, len(b.bundles))
	for _, o := range b.bundles {
		out = append(out, o)
	}
	return out
}

// bundleOf returns the open bundle that a topic's hash falls in; nil: none here.
func (b *Broker) bundleOf(namespace string, hash uint32) *ownedBundle {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, o := range b.bundles {
		if o.bundle.Namespace == namespace && o.bundle.Range.Contains(hash) {
			return o
		}
	}
	return nil
}

// topic returns an open topic that this broker owns, opening it if need be.
func (b *Broker) topic(ctx context.Context, name topicname.Name) (*topic.Topic, error) {
	o := b.bundleOf(name.NamespaceName(), name.Hash())
	if o == nil {
		if err := b.ownership.wait(ctx, name); err != nil {
			return nil, err
		}
		if o = b.bundleOf(name.NamespaceName(), name.Hash()); o == nil {
			return nil, b.ownership.notOwner(name)
		}
	}
	return o.topic(ctx, name)
}

// movedTo implements topics.
func (b *Broker) movedTo(text string) string {
	name, err := topicname.Parse(text)
	if err != nil {
		return ""
	}
	var elsewhere *rpcerr.NotOwnerError
	if errors.As(b.ownership.notOwner(name), &elsewhere) && elsewhere.Owner != b.opts.ID {
		return elsewhere.Address
	}
	return ""
}

// bundle returns an open bundle; nil: it is not open here.
func (b *Broker) bundle(bd bundle.Bundle) *ownedBundle {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bundles[bd]
}

// sessionsEnded is how often another broker ended this one's session. Take it
// before Session, and pass it to admit: what was begun under a session that was
// ended meanwhile is not served.
func (b *Broker) sessionsEnded() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.endings
}

// admit puts a bundle among those that are open, unless it was lost while it was
// being opened, or a session was ended since endings was taken. It says which; one
// that was not admitted is for the caller to abandon. What the last owner left
// undone is looked for only now: a topic marked for deletion from here on finds the
// bundle open.
func (b *Broker) admit(o *ownedBundle, endings int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o.gone || b.endings != endings {
		return false
	}
	b.bundles[o.bundle] = o
	o.inBackground(o.openUnclosed)
	return true
}

// take takes a bundle out of those that are open, for the caller to close; nil:
// it is not open here.
func (b *Broker) take(bd bundle.Bundle) *ownedBundle {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.bundles[bd]
	if o != nil {
		o.gone = true
		delete(b.bundles, bd)
	}
	return o
}

// takeAll is take for all bundles, after another broker has ended the session;
// those that are being opened are not admitted any more.
func (b *Broker) takeAll() []*ownedBundle {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endings++
	var all []*ownedBundle
	for bd, o := range b.bundles {
		o.gone = true
		all = append(all, o)
		delete(b.bundles, bd)
	}
	return all
}

// drop ends a bundle that cannot go on. It may be called from any of the bundle's
// goroutines, and returns at once. If the owner record still names this broker,
// the bundle is opened again.
func (b *Broker) drop(o *ownedBundle, reason error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o.gone {
		return
	}
	o.gone = true
	if b.bundles[o.bundle] != o {
		return // it is being opened, and will not be admitted
	}
	delete(b.bundles, o.bundle)
	b.loops.Go(func() {
		o.abandon(reason)
		b.ownership.nudge()
	})
}

// messaging serves the streams of producers and consumers.
type messaging struct {
	brokerv1.UnimplementedMessagingServer
	broker *Broker
}

// Produce implements Messaging.
func (m *messaging) Produce(s brokerv1.Messaging_ProduceServer) error {
	return produce(s, m.broker, m.broker.log.Named("produce"))
}

// Consume implements Messaging.
func (m *messaging) Consume(s brokerv1.Messaging_ConsumeServer) error {
	return consume(s, m.broker, m.broker.log.Named("consume"))
}
