package httpadmin

import (
	"context"
	"fmt"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/magnetar-io/magnetar/internal/rpcerr"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// routes by their pattern.
func (s Services) routes() map[string]http.Handler {
	const (
		tenant    = Pattern + "tenants/{tenant}"
		namespace = Pattern + "namespaces/{tenant}/{namespace}"
		topic     = Pattern + "topic/{tenant}/{namespace}/{topic}"
	)
	return map[string]http.Handler{
		"GET " + Pattern + "cluster": route(s.Discovery.Cluster, nothing[discoveryv1.ClusterRequest]),
		"GET " + Pattern + "brokers": route(s.brokers, nothing[discoveryv1.ClusterRequest]),
		"GET " + Pattern + "bookies": route(s.Admin.ListBookies, nothing[adminv1.ListBookiesRequest]),
		"GET " + Pattern + "tenants": route(s.Admin.ListTenants, nothing[adminv1.ListTenantsRequest]),
		"POST " + tenant: route(s.Admin.CreateTenant, func(r *http.Request) (*adminv1.CreateTenantRequest, error) {
			return adminv1.CreateTenantRequest_builder{Tenant: new(r.PathValue("tenant"))}.Build(), nil
		}),
		"DELETE " + tenant: route(s.Admin.DeleteTenant, func(r *http.Request) (*adminv1.DeleteTenantRequest, error) {
			return adminv1.DeleteTenantRequest_builder{Tenant: new(r.PathValue("tenant"))}.Build(), nil
		}),
		"GET " + Pattern + "namespaces": route(s.Admin.ListNamespaces, func(r *http.Request) (*adminv1.ListNamespacesRequest, error) {
			return adminv1.ListNamespacesRequest_builder{Tenant: new(r.URL.Query().Get("tenant"))}.Build(), nil
		}),
		"GET " + namespace: route(s.Admin.DescribeNamespace, func(r *http.Request) (*adminv1.DescribeNamespaceRequest, error) {
			return adminv1.DescribeNamespaceRequest_builder{Namespace: new(namespaceOf(r))}.Build(), nil
		}),
		"POST " + namespace: route(s.Admin.CreateNamespace, func(r *http.Request) (*adminv1.CreateNamespaceRequest, error) {
			policy := &adminv1.NamespacePolicy{}
			err := body(r, policy)
			return adminv1.CreateNamespaceRequest_builder{Namespace: new(namespaceOf(r)), Policy: policy}.Build(), err
		}),
		"DELETE " + namespace: route(s.Admin.DeleteNamespace, func(r *http.Request) (*adminv1.DeleteNamespaceRequest, error) {
			return adminv1.DeleteNamespaceRequest_builder{Namespace: new(namespaceOf(r))}.Build(), nil
		}),
		"GET " + Pattern + "bundles": route(s.Admin.ListBundles, func(r *http.Request) (*adminv1.ListBundlesRequest, error) {
			return adminv1.ListBundlesRequest_builder{Namespace: new(r.URL.Query().Get("namespace"))}.Build(), nil
		}),
		"GET " + Pattern + "topics/{tenant}/{namespace}": route(s.Admin.ListTopics, func(r *http.Request) (*adminv1.ListTopicsRequest, error) {
			return adminv1.ListTopicsRequest_builder{Namespace: new(namespaceOf(r))}.Build(), nil
		}),
		"GET " + topic: route(s.topic, func(r *http.Request) (*discoveryv1.TopicsRequest, error) {
			return discoveryv1.TopicsRequest_builder{Topics: []string{topicOf(r)}}.Build(), nil
		}),
		"POST " + topic: route(s.Admin.CreateTopic, func(r *http.Request) (*adminv1.CreateTopicRequest, error) {
			req := &adminv1.CreateTopicRequest{}
			err := body(r, req)
			req.SetTopic(topicOf(r))
			return req, err
		}),
		"DELETE " + topic: route(s.Admin.DeleteTopic, func(r *http.Request) (*adminv1.DeleteTopicRequest, error) {
			return adminv1.DeleteTopicRequest_builder{Topic: new(topicOf(r))}.Build(), nil
		}),
		"GET " + topic + "/stats": route(s.topicStats, func(r *http.Request) (*adminv1.TopicStatsRequest, error) {
			return adminv1.TopicStatsRequest_builder{Topic: new(topicOf(r))}.Build(), nil
		}),
		"GET " + Pattern + "ledgers": route(s.Admin.ListLedgers, listLedgers),
		"GET " + Pattern + "ledgers/{id}": route(s.Admin.DescribeLedger, func(r *http.Request) (*adminv1.DescribeLedgerRequest, error) {
			id, err := number("ledger", r.PathValue("id"), 64)
			return adminv1.DescribeLedgerRequest_builder{Ledger: &id}.Build(), err
		}),
	}
}

// nothing makes the request of a method that is asked for nothing in particular.
func nothing[Req any](*http.Request) (*Req, error) { return new(Req), nil }

func namespaceOf(r *http.Request) string {
	return r.PathValue("tenant") + "/" + r.PathValue("namespace")
}

func topicOf(r *http.Request) string {
	return "persistent://" + namespaceOf(r) + "/" + r.PathValue("topic")
}

func listLedgers(r *http.Request) (*adminv1.ListLedgersRequest, error) {
	q := r.URL.Query()
	after, err := number("after", q.Get("after"), 64)
	if err != nil {
		return nil, err
	}
	limit, err := number("limit", q.Get("limit"), 32)
	return adminv1.ListLedgersRequest_builder{Topic: new(q.Get("topic")), After: &after, Limit: new(uint32(limit))}.Build(), err
}

// brokers is what the cluster answers, without who answers.
func (s Services) brokers(ctx context.Context, req *discoveryv1.ClusterRequest) (*discoveryv1.ClusterResponse, error) {
	c, err := s.Discovery.Cluster(ctx, req)
	if err != nil {
		return nil, err
	}
	return discoveryv1.ClusterResponse_builder{Brokers: c.GetBrokers()}.Build(), nil
}

// topic is the map of one topic.
func (s Services) topic(ctx context.Context, req *discoveryv1.TopicsRequest) (*discoveryv1.TopicMap, error) {
	resp, err := s.Discovery.Topics(ctx, req)
	if err != nil {
		return nil, err
	}
	if len(resp.GetTopics()) != 1 {
		return nil, fmt.Errorf("%d answers for one topic", len(resp.GetTopics()))
	}
	m := resp.GetTopics()[0]
	switch {
	case m.GetError() != "":
		return nil, rpcerr.To(status.Error(codes.Code(m.GetErrorCode()), m.GetError()))
	case !m.GetFound():
		return nil, fmt.Errorf("topic %s: %w", req.GetTopics()[0], rpcerr.ErrNotFound)
	}
	return m, nil
}

// topicStats are those of a partition; its owner alone knows them.
func (s Services) topicStats(ctx context.Context, req *adminv1.TopicStatsRequest) (*adminv1.TopicStatsResponse, error) {
	if s.Topics == nil {
		return nil, fmt.Errorf("statistics of %s: this process owns no topics; ask the broker that owns it: %w", req.GetTopic(), rpcerr.ErrUnsupported)
	}
	return s.Topics.TopicStats(ctx, req)
}
