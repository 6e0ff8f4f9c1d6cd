package roles

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/discovery"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/internal/httpadmin"
)

// DiscoveryOptions of a Discovery.
type DiscoveryOptions struct {
	Common
	// Broker and Session are those of the broker that embeds it; "" and nil: none.
	Broker  string
	Session func() string
}

// Discovery tells clients who owns what. It owns nothing itself.
type Discovery struct {
	options DiscoveryOptions
	catalog *catalog.Catalog
	ids     *idblock.Allocator
	view    *discovery.View
	service *discovery.Service
	admin   *discovery.AdminService

	cancel context.CancelFunc
	loops  sync.WaitGroup
}

// NewDiscovery joins the cluster and returns once it knows who is alive. ctx
// bounds the start only.
func NewDiscovery(ctx context.Context, o DiscoveryOptions) (*Discovery, error) {
	cat, _, ids, err := o.join(ctx)
	if err != nil {
		return nil, err
	}
	d := &Discovery{options: o, catalog: cat, ids: ids}
	d.view = discovery.NewView(discovery.ViewOptions{Store: o.Store, Layout: o.layout(), Lease: o.Lease, Log: o.Log})
	d.service = discovery.NewService(discovery.ServiceOptions{View: d.view, Catalog: cat, Cluster: o.Cluster, Broker: o.Broker, Session: o.Session})
	d.admin = discovery.NewAdminService(discovery.AdminOptions{Catalog: cat, Store: o.Store, Layout: o.layout(), View: d.view})
	running, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	d.loops.Go(func() { d.view.Run(running) })
	select {
	case <-d.view.Ready():
		return d, nil
	case <-ctx.Done():
		d.Close()
		return nil, fmt.Errorf("list brokers and bundles: %w", ctx.Err())
	}
}

// Register adds the services to a server.
func (d *Discovery) Register(s grpc.ServiceRegistrar) {
	d.service.Register(s)
	d.admin.Register(s)
}

// HTTPAdmin serves the administration services over HTTP, under httpadmin.Pattern.
func (d *Discovery) HTTPAdmin() http.Handler {
	return httpadmin.New(httpadmin.Services{Admin: d.admin, Discovery: d.service})
}

// EndWatches ends the streams of clients that watch, which would go on for ever.
func (d *Discovery) EndWatches() { d.service.Close() }

// Close ends what the discovery follows. The server that serves it is stopped
// before.
func (d *Discovery) Close() {
	d.EndWatches()
	d.cancel()
	d.loops.Wait()
}
