package httpadmin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/magnetar-io/magnetar/internal/rpcerr"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// fake holds topics by their long name and counts what changed.
type fake struct {
	adminv1.UnimplementedAdminServer
	discoveryv1.UnimplementedDiscoveryServer
	topics  map[string]uint32
	changes int
}

func (f *fake) CreateTopic(_ context.Context, r *adminv1.CreateTopicRequest) (*adminv1.CreateTopicResponse, error) {
	if _, ok := f.topics[r.GetTopic()]; ok {
		return nil, fmt.Errorf("topic %s: %w", r.GetTopic(), rpcerr.ErrExists)
	}
	f.topics[r.GetTopic()] = r.GetPartitions()
	f.changes++
	return adminv1.CreateTopicResponse_builder{Topic: new(r.GetTopic())}.Build(), nil
}

func (f *fake) DeleteTopic(_ context.Context, r *adminv1.DeleteTopicRequest) (*adminv1.DeleteTopicResponse, error) {
	delete(f.topics, r.GetTopic())
	f.changes++
	return &adminv1.DeleteTopicResponse{}, nil
}

func (f *fake) ListTopics(context.Context, *adminv1.ListTopicsRequest) (*adminv1.ListTopicsResponse, error) {
	return nil, fmt.Errorf("catalog: %w", rpcerr.ErrUnavailable)
}

func (f *fake) ListLedgers(_ context.Context, r *adminv1.ListLedgersRequest) (*adminv1.ListLedgersResponse, error) {
	return adminv1.ListLedgersResponse_builder{Ledgers: []*adminv1.LedgerSummary{
		adminv1.LedgerSummary_builder{Ledger: new(r.GetAfter() + 1), WriteQuorum: new(uint32(3)), Parent: new(r.GetTopic())}.Build(),
	}}.Build(), nil
}

func (f *fake) Topics(_ context.Context, r *discoveryv1.TopicsRequest) (*discoveryv1.TopicsResponse, error) {
	if r.GetCreate() {
		f.changes++
	}
	_, found := f.topics[r.GetTopics()[0]]
	return discoveryv1.TopicsResponse_builder{Topics: []*discoveryv1.TopicMap{
		discoveryv1.TopicMap_builder{Topic: new(r.GetTopics()[0]), Found: &found, RoutingVersion: new(uint64(4))}.Build(),
	}}.Build(), nil
}

// call asks the handler and decodes its answer, which must be a JSON object.
func call(t *testing.T, h http.Handler, r *http.Request) (int, map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var out map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("%s %s: not JSON: %v: %s", r.Method, r.URL, err, w.Body)
	}
	return w.Code, out
}

// TestRoutesAndErrors shows a topic's life over HTTP, that names are lowerCamel,
// and that every error is an object with a status that fits its code.
func TestRoutesAndErrors(t *testing.T) {
	f := &fake{topics: map[string]uint32{}}
	h := New(Services{Admin: f, Discovery: f})
	const orders = "/api/v1/topic/public/default/orders"
	for _, c := range []struct {
		method, path, body string
		status             int
		key, want          string
	}{
		{"GET", orders, "", 404, "reason", "NOT_FOUND"},
		{"POST", orders, `{"partitions": 4}`, 200, "topic", "persistent://public/default/orders"},
		{"POST", orders, "", 409, "code", "AlreadyExists"},
		{"GET", orders, "", 200, "routingVersion", "4"},
		{"POST", "/api/v1/topic/public/default/x", `{"partition": 4}`, 400, "reason", "INVALID"},
		{"POST", "/api/v1/topic/public/default/x", `{"topic": "` + strings.Repeat("x", maxBodyBytes) + `"}`, 413, "reason", "BODY_TOO_LARGE"},
		{"POST", "/api/v1/topic/public/default/x", `{"topic": "persistent://public/default/other"}`, 200, "topic", "persistent://public/default/x"},
		{"GET", orders + "/stats", "", 501, "code", "Unimplemented"},
		{"GET", "/api/v1/topics/public/default", "", 503, "reason", "UNAVAILABLE"},
		{"GET", "/api/v1/ledgers/seven", "", 400, "code", "InvalidArgument"},
		{"GET", "/api/v1/ledgers?limit=-1", "", 400, "code", "InvalidArgument"},
		{"GET", "/api/v1/bookies", "", 501, "code", "Unimplemented"},
		{"PUT", orders, "", 405, "reason", "METHOD"},
		{"GET", "/api/v1/nonsense", "", 404, "reason", "NO_ROUTE"},
	} {
		status, out := call(t, h, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if status != c.status || out[c.key] != c.want {
			t.Errorf("%s %s %.40s: %d %v, want %d with %s %q", c.method, c.path, c.body, status, out, c.status, c.key, c.want)
		}
	}
	if f.topics["persistent://public/default/orders"] != 4 {
		t.Errorf("partitions asked for did not arrive: %v", f.topics)
	}
	_, out := call(t, h, httptest.NewRequest("GET", "/api/v1/ledgers?topic=t&after=6", nil))
	first := out["ledgers"].([]any)[0].(map[string]any)
	if first["ledger"] != "7" || first["writeQuorum"] != 3.0 || first["parent"] != "t" {
		t.Errorf("ledgers: %v", out)
	}
}

// TestNothingChangesByAccident shows that GET changes nothing even with a body,
// and that another site's page cannot make a browser change anything.
func TestNothingChangesByAccident(t *testing.T) {
	f := &fake{topics: map[string]uint32{}}
	h := New(Services{Admin: f, Discovery: f})
	const path = "/api/v1/topic/public/default/orders"
	call(t, h, httptest.NewRequest("GET", path, strings.NewReader(`{"create": true, "partitions": 1}`)))
	for _, method := range []string{"POST", "DELETE"} {
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		if status, out := call(t, h, r); status != 403 || out["reason"] != "CROSS_ORIGIN" {
			t.Errorf("%s from another site: %d %v", method, status, out)
		}
	}
	if f.changes != 0 {
		t.Errorf("%d changes", f.changes)
	}
}
