package discovery

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/topicname"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// AdminOptions say from what operators are answered.
type AdminOptions struct {
	Catalog *catalog.Catalog
	Store   meta.Store
	Layout  layout.Layout
	View    *View
}

// AdminService answers what the metadata store knows. It never asks a broker or
// a bookie: what only the owner of a topic knows, and what bookies hold, are
// other services.
type AdminService struct {
	adminv1.UnimplementedAdminServer
	opts    AdminOptions
	catalog *catalog.Catalog
}

// NewAdminService returns the service.
func NewAdminService(o AdminOptions) *AdminService { return &AdminService{opts: o, catalog: o.Catalog} }

// Register adds the service to a server.
func (s *AdminService) Register(r grpc.ServiceRegistrar) { adminv1.RegisterAdminServer(r, s) }

// CreateTenant implements Admin.
func (s *AdminService) CreateTenant(ctx context.Context, r *adminv1.CreateTenantRequest) (*adminv1.CreateTenantResponse, error) {
	return &adminv1.CreateTenantResponse{}, s.catalog.CreateTenant(ctx, r.GetTenant())
}

// ListTenants implements Admin.
func (s *AdminService) ListTenants(ctx context.Context, _ *adminv1.ListTenantsRequest) (*adminv1.ListTenantsResponse, error) {
	tenants, err := s.catalog.Tenants(ctx)
	return adminv1.ListTenantsResponse_builder{Tenants: tenants}.Build(), err
}

// DeleteTenant implements Admin.
func (s *AdminService) DeleteTenant(ctx context.Context, r *adminv1.DeleteTenantRequest) (*adminv1.DeleteTenantResponse, error) {
	return &adminv1.DeleteTenantResponse{}, s.catalog.DeleteTenant(ctx, r.GetTenant())
}

// CreateNamespace implements Admin.
func (s *AdminService) CreateNamespace(ctx context.Context, r *adminv1.CreateNamespaceRequest) (*adminv1.CreateNamespaceResponse, error) {
	p := r.GetPolicy()
	return &adminv1.CreateNamespaceResponse{}, s.catalog.CreateNamespace(ctx, r.GetNamespace(), catalog.Policy{
		DefaultPartitions: int(p.GetDefaultPartitions()),
		RetentionSeconds:  p.GetRetentionSeconds(),
		RetentionBytes:    p.GetRetentionBytes(),
		Bundles:           int(p.GetBundles()),
	})
}

// ListNamespaces implements Admin.
func (s *AdminService) ListNamespaces(ctx context.Context, r *adminv1.ListNamespacesRequest) (*adminv1.ListNamespacesResponse, error) {
	if t := r.GetTenant(); t != "" {
		if err := topicname.ValidateTenant(t); err != nil {
			return nil, err
		}
	}
	namespaces, err := s.catalog.Namespaces(ctx, r.GetTenant())
	if err != nil {
		return nil, err
	}
	names := make([]string, len(namespaces))
	for i, n := range namespaces {
		names[i] = n.Name
	}
	return adminv1.ListNamespacesResponse_builder{Namespaces: names}.Build(), nil
}

// DescribeNamespace implements Admin.
func (s *AdminService) DescribeNamespace(ctx context.Context, r *adminv1.DescribeNamespaceRequest) (*adminv1.DescribeNamespaceResponse, error) {
	n, err := s.catalog.Namespace(ctx, r.GetNamespace())
	if err != nil {
		return nil, err
	}
	topics, err := s.catalog.List(ctx, n.Name)
	if err != nil {
		return nil, err
	}
	return adminv1.DescribeNamespaceResponse_builder{
		Namespace: proto.String(n.Name),
		Policy: adminv1.NamespacePolicy_builder{
			DefaultPartitions: proto.Uint32(uint32(n.Policy.DefaultPartitions)),
			RetentionSeconds:  proto.Int64(n.Policy.RetentionSeconds),
			RetentionBytes:    proto.Int64(n.Policy.RetentionBytes),
			Bundles:           proto.Uint32(uint32(n.Policy.Bundles)),
		}.Build(),
		CreatedAtMs: proto.Int64(n.Created.UnixMilli()),
		Topics:      proto.Uint64(uint64(len(topics))),
	}.Build(), nil
}

// DeleteNamespace implements Admin.
func (s *AdminService) DeleteNamespace(ctx context.Context, r *adminv1.DeleteNamespaceRequest) (*adminv1.DeleteNamespaceResponse, error) {
	return &adminv1.DeleteNamespaceResponse{}, s.catalog.DeleteNamespace(ctx, r.GetNamespace())
}

// CreateTopic implements Admin.
func (s *AdminService) CreateTopic(ctx context.Context, r *adminv1.CreateTopicRequest) (*adminv1.CreateTopicResponse, error) {
	n, err := topicname.Parse(r.GetTopic())
	if err != nil {
		return nil, err
	}
	partitions := int(r.GetPartitions())
	if _, err := s.catalog.CreateTopic(ctx, n, partitions); err != nil {
		return nil, err
	}
	return adminv1.CreateTopicResponse_builder{Topic: proto.String(n.String())}.Build(), nil
}

// ListTopics implements Admin.
func (s *AdminService) ListTopics(ctx context.Context, r *adminv1.ListTopicsRequest) (*adminv1.ListTopicsResponse, error) {
	topics, err := s.catalog.List(ctx, r.GetNamespace())
	if err != nil {
		return nil, err
	}
	b := adminv1.ListTopicsResponse_builder{}
	for _, t := range topics {
		if t.Deleting {
			continue
		}
		b.Topics = append(b.Topics, adminv1.TopicSummary_builder{
			Topic:       proto.String(t.Name.String()),
			Partitions:  proto.Uint32(uint32(t.Partitions)),
			CreatedAtMs: proto.Int64(t.Created.UnixMilli()),
		}.Build())
	}
	return b.Build(), nil
}

// DeleteTopic implements Admin. It answers once the topic is no longer found; its
// owners take the rest of it away.
func (s *AdminService) DeleteTopic(ctx context.Context, r *adminv1.DeleteTopicRequest) (*adminv1.DeleteTopicResponse, error) {
	n, err := topicname.Parse(r.GetTopic())
	if err != nil {
		return nil, err
	}
	_, err = s.catalog.MarkDeleting(ctx, n)
	return &adminv1.DeleteTopicResponse{}, err
}

// ListBundles implements Admin.
func (s *AdminService) ListBundles(ctx context.Context, r *adminv1.ListBundlesRequest) (*adminv1.ListBundlesResponse, error) {
	if ns := r.GetNamespace(); ns != "" {
		if _, err := s.catalog.Namespace(ctx, ns); err != nil {
			return nil, err
		}
	}
	bundles, err := s.catalog.Bundles(ctx, r.GetNamespace())
	if err != nil {
		return nil, err
	}
	view := s.opts.View.Snapshot()
	b := adminv1.ListBundlesResponse_builder{}
	for _, of := range bundles {
		owner, _ := view.OwnerOf(BundleInfo{Bundle: of.Bundle, Owner: of.Owner, Revision: of.OwnerRevision})
		b.Bundles = append(b.Bundles, adminv1.BundleSummary_builder{
			Bundle: proto.String(of.String()), Broker: proto.String(owner.ID), Epoch: proto.Uint64(of.Owner.Epoch),
		}.Build())
	}
	return b.Build(), nil
}

// ListBookies implements Admin: all that ever registered, and how they stand.
func (s *AdminService) ListBookies(ctx context.Context, _ *adminv1.ListBookiesRequest) (*adminv1.ListBookiesResponse, error) {
	bookies := make(map[string]*adminv1.BookieSummary)
	identities, _, err := s.opts.Store.Range(ctx, s.opts.Layout.BookieIdentities(), "", 0)
	if err != nil {
		return nil, fmt.Errorf("list bookies: %w", err)
	}
	for _, kv := range identities {
		var r metav1.BookieIdentity
		if err := proto.Unmarshal(kv.Value, &r); err != nil {
			return nil, fmt.Errorf("record at %s: %w", kv.Key, err)
		}
		id := strings.TrimPrefix(kv.Key, s.opts.Layout.BookieIdentities())
		bookies[id] = adminv1.BookieSummary_builder{
			Id: proto.String(id), Incarnation: proto.String(r.GetIncarnation()), State: proto.String("down"),
		}.Build()
	}
	live, _, err := s.opts.Store.Range(ctx, s.opts.Layout.Bookies(), "", 0)
	if err != nil {
		return nil, fmt.Errorf("list bookies: %w", err)
	}
	for _, kv := range live {
		var r metav1.Bookie
		if err := proto.Unmarshal(kv.Value, &r); err != nil {
			return nil, fmt.Errorf("record at %s: %w", kv.Key, err)
		}
		id := strings.TrimPrefix(kv.Key, s.opts.Layout.Bookies())
		state := "writable"
		if r.GetReadOnly() {
			state = "readonly"
		}
		bookies[id] = adminv1.BookieSummary_builder{
			Id: proto.String(id), Incarnation: proto.String(r.GetIncarnation()), Address: proto.String(r.GetAddress()),
			Rack: proto.String(r.GetRack()), State: proto.String(state), Pid: proto.Int64(r.GetPid()),
			DiskFreeBytes: proto.Uint64(r.GetDiskFreeBytes()), DiskTotalBytes: proto.Uint64(r.GetDiskTotalBytes()),
			MaxEntryBytes: proto.Uint64(r.GetMaxEntryBytes()),
		}.Build()
	}
	b := adminv1.ListBookiesResponse_builder{}
	for _, bookie := range bookies {
		b.Bookies = append(b.Bookies, bookie)
	}
	slices.SortFunc(b.Bookies, func(x, y *adminv1.BookieSummary) int { return strings.Compare(x.GetId(), y.GetId()) })
	return b.Build(), nil
}
