package roles

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"

	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/bookie/remote"
	"github.com/magnetar-io/magnetar/broker"
	"github.com/magnetar-io/magnetar/discovery"
	"github.com/magnetar-io/magnetar/internal/httpadmin"
)

// BrokerOptions of a Broker.
type BrokerOptions struct {
	Common
	ID              string
	Address         string // where clients reach it
	HTTPAddress     string
	MemoryBytes     int64 // for the cache and for what is on its way
	MaxMessageBytes int64
	LedgerBytes     int64
	// Of bundle logs; see broker.Options.
	LogRollBytes, LogPassBytes int64
	Quorum                     ledger.Quorum // zero: 3/2, or what the options of standalone say
	// Local gives bookies of this process, which are called rather than dialled.
	Local func(ledger.Member) (ensemble.Bookie, bool)
}

// Broker is a broker with its ledger client and its view of the cluster. It
// answers discovery's questions too.
type Broker struct {
	Broker    *broker.Broker
	discovery *Discovery
	directory *remote.Directory
	ledgers   *ensemble.Client

	cancel context.CancelFunc
	loops  sync.WaitGroup
}

// NewBroker joins the cluster and makes a broker, which owns nothing before
// Start. ctx bounds the joining only.
func NewBroker(ctx context.Context, o BrokerOptions) (*Broker, error) {
	b := &Broker{}
	d, err := NewDiscovery(ctx, DiscoveryOptions{Common: o.Common, Broker: o.ID, Session: func() string { return b.Broker.Session() }})
	if err != nil {
		return nil, err
	}
	b.discovery = d
	running, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.directory = remote.NewDirectory(remote.DirectoryOptions{
		Store: o.Store, Layout: o.layout(), Local: o.Local, Log: o.Log,
		Client: remote.Options{Dial: o.Dial, Metrics: remote.NewMetrics(o.Metrics), Log: o.Log, Rand: o.Rand},
	})
	b.loops.Go(func() { b.directory.Run(running) })
	fail := func(err error) (*Broker, error) {
		b.end()
		return nil, err
	}
	select {
	case <-b.directory.Ready():
	case <-ctx.Done():
		return fail(fmt.Errorf("list the bookies: %w", ctx.Err()))
	}
	b.ledgers, err = ensemble.New(ensemble.Options{
		Store: o.Store, Layout: o.layout(), Directory: b.directory, IDs: d.ids, BudgetBytes: o.MemoryBytes / 4,
		MaxBodyBytes: broker.LargestBody(o.MaxMessageBytes),
		Log:          o.Log, Metrics: ensemble.NewMetrics(o.Metrics), Now: o.Now, Rand: o.Rand,
	})
	if err != nil {
		return fail(err)
	}
	quorum := o.Quorum
	if quorum == (ledger.Quorum{}) {
		quorum = ledger.Quorum{Write: 3, Ack: 2}
	}
	b.Broker, err = broker.New(broker.Options{
		ID: o.ID, Address: o.Address, HTTPAddress: o.HTTPAddress, Version: o.Version,
		Store: o.Store, Layout: o.layout(), Catalog: d.catalog, View: d.view, IDs: d.ids, Ledgers: b.ledgers,
		Directory: b.directory, Probe: o.probe(), Quorum: quorum, SessionLease: o.Lease, MemoryBytes: o.MemoryBytes * 3 / 4,
		MaxMessageBytes: int(o.MaxMessageBytes), LedgerBytes: o.LedgerBytes, LogRollBytes: o.LogRollBytes, LogPassBytes: o.LogPassBytes,
		Log: o.Log, Metrics: o.Metrics, Now: o.Now, Rand: o.Rand,
	})
	if err != nil {
		return fail(err)
	}
	return b, nil
}

// probe is how this process asks another broker whether it lives.
func (o BrokerOptions) probe() func(context.Context, discovery.BrokerInfo) discovery.Observation {
	if o.Dial == nil {
		return nil
	}
	return func(ctx context.Context, other discovery.BrokerInfo) discovery.Observation {
		return discovery.ProbeAddress(ctx, other.Address, func(ctx context.Context, _, address string) (net.Conn, error) { return o.Dial(ctx, address) })
	}
}

// Register adds the broker's services, and discovery's, to a server.
func (b *Broker) Register(s grpc.ServiceRegistrar) {
	b.Broker.Register(s)
	b.discovery.Register(s)
}

// HTTPAdmin serves the administration services over HTTP, under httpadmin.Pattern.
func (b *Broker) HTTPAdmin() http.Handler {
	return httpadmin.New(httpadmin.Services{Admin: b.discovery.admin, Discovery: b.discovery.service, Topics: b.Broker.TopicAdmin()})
}

// Start registers the broker and begins to take bundles.
func (b *Broker) Start(ctx context.Context) error { return b.Broker.Start(ctx) }

// Close hands the bundles back, then ends all else. The server that serves the
// broker goes on until then, so that clients are told.
func (b *Broker) Close(ctx context.Context) error {
	err := b.Broker.Close(ctx)
	b.end()
	return err
}

// Kill ends the broker as the death of its process would.
func (b *Broker) Kill() {
	b.Broker.Kill()
	b.end()
}

func (b *Broker) end() {
	if b.ledgers != nil {
		b.ledgers.Close()
	}
	b.cancel()
	b.loops.Wait()
	b.discovery.Close()
}
