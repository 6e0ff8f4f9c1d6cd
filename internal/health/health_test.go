package health

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// TestReadyOnceAllHold shows that HTTP and gRPC agree: ready only while every
// condition holds, and the reason is told.
func TestReadyOnceAllHold(t *testing.T) {
	s := New("metadata", "journal")
	h := s.Handler(prometheus.NewRegistry())
	check := func(ready bool, want string) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/healthz/ready", nil))
		body, _ := io.ReadAll(w.Body)
		if (w.Code == 200) != ready || !strings.Contains(string(body), want) {
			t.Fatalf("got %d %s, want ready=%v and %q", w.Code, body, ready, want)
		}
		r, err := s.GRPC().Check(context.Background(), &healthpb.HealthCheckRequest{})
		if err != nil || (r.GetStatus() == healthpb.HealthCheckResponse_SERVING) != ready {
			t.Fatalf("gRPC says %v, %v; HTTP says ready=%v", r.GetStatus(), err, ready)
		}
	}
	check(false, "starting")
	if got := status(h, "/more"); got != 503 {
		t.Errorf("what may be served later answers %d", got)
	}
	s.Set("metadata", "")
	check(false, `"name":"journal","ok":false`)
	s.Set("journal", "")
	check(true, `"ready":true`)
	if got := status(h, "/more"); got != 404 {
		t.Errorf("what is not served answers %d", got)
	}
	s.Tolerate("metadata", "no answer")
	check(true, `"name":"metadata","ok":false,"reason":"no answer","tolerated":true`)
	s.Tolerate("metadata", "")
	check(true, `{"name":"metadata","ok":true}`)
	s.Set("journal", "disk is full")
	check(false, "disk is full")

	if got := status(h, "/healthz/live"); got != 200 {
		t.Fatalf("not live: %d", got)
	}
}

func status(h http.Handler, path string) int {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code
}
