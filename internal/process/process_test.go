package process

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/hashicorp/go-hclog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func local(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	c := &http.Client{Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestServersAnswerAndEnd shows health over gRPC and HTTP, metrics and pprof,
// and that Stop leaves nothing running though a stream is still open.
func TestServersAnswerAndEnd(t *testing.T) {
	s := New(hclog.NewNullLogger(), nil, "journal")
	g, web, debug := local(t), local(t), local(t)
	s.StartHTTP(web, debug)

	if code, _ := get(t, "http://"+web.Addr().String()+"/healthz/ready"); code != 503 {
		t.Errorf("ready before it is: %d", code)
	}
	s.HandleHTTP("/more", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	if code, _ := get(t, "http://"+web.Addr().String()+"/more"); code != http.StatusTeapot {
		t.Errorf("what was added while it served answers %d", code)
	}
	s.StartGRPC(g)
	s.Health.Set("journal", "")
	if code, body := get(t, "http://"+web.Addr().String()+"/healthz/ready"); code != 200 {
		t.Errorf("not ready: %d %s", code, body)
	}
	if _, body := get(t, "http://"+web.Addr().String()+"/metrics"); !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics lack go_goroutines: %.200s", body)
	}
	if code, _ := get(t, "http://"+debug.Addr().String()+"/debug/pprof/cmdline"); code != 200 {
		t.Errorf("pprof answers %d", code)
	}

	conn, err := grpc.NewClient("passthrough:///"+g.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	watch, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := watch.Recv(); err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("gRPC health: %v, %v", r, err)
	}

	stopping, cut := context.WithCancel(context.Background())
	cut() // the watch never ends by itself
	s.Stop(stopping)
	if _, err := watch.Recv(); err == nil {
		t.Error("the stream outlived its server")
	}
}
