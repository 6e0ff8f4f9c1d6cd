package discovery

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// ServiceOptions say from what clients are answered.
type ServiceOptions struct {
	View    *View
	Catalog *catalog.Catalog
	Cluster string // its name
	// NoAutoCreate refuses to create topics on first use.
	NoAutoCreate bool
	// Broker is the broker that answers, and Session tells the session it is
	// registered under (Registration.Session), by which others know that it lives;
	// "" and nil in a discovery process.
	Broker  string
	Session func() string
}

// Service answers where topics are served. Owners are answered from the view,
// partitions from the metadata store; those it answered once also while the
// store is gone.
type Service struct {
	discoveryv1.UnimplementedDiscoveryServer
	opts ServiceOptions
	maps mapCache
	done chan struct{} // closed by Close
	once sync.Once
}

const (
	// maxTopics bounds the topics of one request.
	maxTopics = 4096
	// topicsAtOnce bounds how many of them are read at a time.
	topicsAtOnce = 16
)

// NewService returns the service.
func NewService(o ServiceOptions) *Service {
	return &Service{opts: o, maps: mapCache{limit: 100_000}, done: make(chan struct{})}
}

// Register adds the service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { discoveryv1.RegisterDiscoveryServer(r, s) }

// Close ends the watches of clients.
func (s *Service) Close() { s.once.Do(func() { close(s.done) }) }

// Topics implements Discovery.
func (s *Service) Topics(ctx context.Context, req *discoveryv1.TopicsRequest) (*discoveryv1.TopicsResponse, error) {
	names := req.GetTopics()
	if len(names) > maxTopics {
		return nil, fmt.Errorf("%d topics in one request, at most %d: %w", len(names), maxTopics, rpcerr.ErrInvalid)
	}
	maps := make([]*discoveryv1.TopicMap, len(names))
	var group errgroup.Group
	group.SetLimit(topicsAtOnce)
	for i, name := range names {
		group.Go(func() error {
			maps[i] = s.topic(ctx, name, req.GetCreate() && !s.opts.NoAutoCreate)
			return nil
		})
	}
	group.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return discoveryv1.TopicsResponse_builder{Topics: maps}.Build(), nil
}

func (s *Service) topic(ctx context.Context, name string, create bool) *discoveryv1.TopicMap {
	n, err := topicname.Parse(name)
	if err != nil {
		return notMapped(name, err)
	}
	n = n.Base()
	m, err := s.opts.Catalog.Map(ctx, n)
	if errors.Is(err, rpcerr.ErrNotFound) && create {
		m, err = s.opts.Catalog.EnsureTopic(ctx, n)
	}
	switch {
	case err == nil:
		s.maps.put(n, m)
	case errors.Is(err, rpcerr.ErrNotFound):
		s.maps.drop(n)
	case errors.Is(err, meta.ErrUnavailable):
		if cached, ok := s.maps.get(n); ok {
			m, err = cached, nil
		}
	}
	if err != nil {
		return notMapped(n.String(), err)
	}
	return mapped(m)
}

func notMapped(name string, err error) *discoveryv1.TopicMap {
	return discoveryv1.TopicMap_builder{
		Topic:     proto.String(name),
		Error:     proto.String(err.Error()),
		ErrorCode: proto.Uint32(uint32(status.Code(rpcerr.From(err)))),
	}.Build()
}

func mapped(m catalog.Map) *discoveryv1.TopicMap {
	b := discoveryv1.TopicMap_builder{
		Topic:          proto.String(m.Topic.String()),
		Found:          proto.Bool(true),
		Partitioned:    proto.Bool(m.Partitioned),
		RoutingVersion: proto.Uint64(m.RoutingVersion),
	}
	for _, p := range m.Partitions {
		b.Partitions = append(b.Partitions, discoveryv1.Partition_builder{
			Number:       proto.Int32(int32(p.Number)),
			Topic:        proto.String(m.Name(p).String()),
			KeyHashFirst: proto.Uint32(p.Keys.First),
			KeyHashLast:  proto.Uint32(p.Keys.Last),
			Sealed:       proto.Bool(p.SealedAt != ""),
		}.Build())
	}
	return b.Build()
}

// Lookup implements Discovery.
func (s *Service) Lookup(ctx context.Context, req *discoveryv1.LookupRequest) (*discoveryv1.LookupResponse, error) {
	names := req.GetTopics()
	if len(names) > maxTopics {
		return nil, fmt.Errorf("%d topics in one request, at most %d: %w", len(names), maxTopics, rpcerr.ErrInvalid)
	}
	view := s.opts.View.Snapshot()
	if !view.Known() {
		return nil, fmt.Errorf("the brokers of the cluster are not known yet: %w", rpcerr.ErrUnavailable)
	}
	owners := make([]*discoveryv1.Owner, len(names))
	for i, name := range names {
		owner, err := s.owner(ctx, view, name)
		if err != nil {
			owner = discoveryv1.Owner_builder{
				Topic:     proto.String(name),
				Error:     proto.String(err.Error()),
				ErrorCode: proto.Uint32(uint32(status.Code(rpcerr.From(err)))),
			}.Build()
		}
		owners[i] = owner
	}
	return discoveryv1.LookupResponse_builder{Owners: owners}.Build(), nil
}

func (s *Service) owner(ctx context.Context, view *Snapshot, name string) (*discoveryv1.Owner, error) {
	n, err := topicname.Parse(name)
	if err != nil {
		return nil, err
	}
	b, ok := view.BundleOf(n.NamespaceName(), n.Hash())
	if !ok {
		// Perhaps it is so new that the view has not come to it.
		if _, err := s.opts.Catalog.Namespace(ctx, n.NamespaceName()); err != nil {
			return nil, err
		}
		return discoveryv1.Owner_builder{Topic: proto.String(n.String())}.Build(), nil
	}
	owner, _ := view.OwnerOf(b) // the zero broker: ask again
	return discoveryv1.Owner_builder{
		Topic:   proto.String(n.String()),
		Bundle:  proto.String(b.Bundle.String()),
		Broker:  proto.String(owner.ID),
		Address: proto.String(owner.Address),
	}.Build(), nil
}

// Cluster implements Discovery.
func (s *Service) Cluster(context.Context, *discoveryv1.ClusterRequest) (*discoveryv1.ClusterResponse, error) {
	view := s.opts.View.Snapshot()
	b := discoveryv1.ClusterResponse_builder{Cluster: proto.String(s.opts.Cluster), Broker: proto.String(s.opts.Broker)}
	if s.opts.Session != nil {
		b.Session = proto.String(s.opts.Session())
	}
	for _, id := range view.ids {
		b.Brokers = append(b.Brokers, brokerMessage(view.Brokers[id]))
	}
	return b.Build(), nil
}

func brokerMessage(b BrokerInfo) *discoveryv1.Broker {
	return discoveryv1.Broker_builder{
		Id:          proto.String(b.ID),
		Address:     proto.String(b.Address),
		HttpAddress: proto.String(b.HTTPAddress),
		Pid:         proto.Int64(b.PID),
		Version:     proto.String(b.Version),

		LargestEntryBytes: proto.Uint64(b.LargestBody),
	}.Build()
}

// mapCache remembers the topics answered last, for when the metadata store is
// gone (M20). When full it forgets all; it is filled again by the next answers.
type mapCache struct {
	limit int
	mu    sync.Mutex
	maps  map[topicname.Name]catalog.Map
}

func (c *mapCache) put(n topicname.Name, m catalog.Map) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.maps == nil || len(c.maps) >= c.limit {
		c.maps = make(map[topicname.Name]catalog.Map)
	}
	c.maps[n] = m
}

func (c *mapCache) get(n topicname.Name) (catalog.Map, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.maps[n]
	return m, ok
}

func (c *mapCache) drop(n topicname.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.maps, n)
}
