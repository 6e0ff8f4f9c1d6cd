package standalone

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// start runs a node in memory and returns the base of its HTTP addresses and a
// client.
func start(t *testing.T) (ctx context.Context, base string, c *client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	listeners := [2]net.Listener{local(t), local(t)}
	node, err := Start(ctx, Options{
		DataDir: "/data", GRPC: listeners[0], HTTP: listeners[1], FS: vfs.NewMem(), Store: meta.NewMem().Client("standalone"),
		MemoryBytes: 128 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err = client.Connect(ctx, node.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stopping, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Close(stopping); err != nil {
			t.Error(err)
		}
		if err := node.Close(stopping); err != nil {
			t.Error(err)
		}
	})
	return ctx, "http://" + listeners[1].Addr().String(), c
}

// TestHealthBeforeTheNodeIsReady shows that a node whose start takes long lives and
// is not ready meanwhile, and says why.
func TestHealthBeforeTheNodeIsReady(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	grpc, web := local(t), local(t)
	store := meta.NewMem()
	asked, release := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() { close(asked) })
	store.OnCall(func(meta.Call) meta.Fault {
		first()
		return meta.Fault{Until: release}
	})
	type result struct {
		node *Node
		err  error
	}
	started := make(chan result, 1)
	go func() {
		n, err := Start(ctx, Options{DataDir: "/data", GRPC: grpc, HTTP: web, FS: vfs.NewMem(), Store: store.Client("standalone"), MemoryBytes: 128 << 20})
		started <- result{n, err}
	}()
	<-asked
	base := "http://" + web.Addr().String()
	if status, body := ask(t, ctx, "GET", base+"/healthz/live", ""); status != 200 {
		t.Errorf("not live: %d %s", status, body)
	}
	if status, body := ask(t, ctx, "GET", base+"/healthz/ready", ""); status != 503 || !strings.Contains(body, `"name":"bookies","ok":false`) {
		t.Errorf("ready: %d %s", status, body)
	}
	close(release)
	r := <-started
	if r.err != nil {
		t.Fatal(r.err)
	}
	if status, body := ask(t, ctx, "GET", base+"/healthz/ready", ""); status != 200 {
		t.Errorf("not ready: %d %s", status, body)
	}
	if err := r.node.Close(ctx); err != nil {
		t.Error(err)
	}
}

func local(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ask makes an HTTP request and returns its status and body.
func ask(t *testing.T, ctx context.Context, method, url, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// publish leaves a subscription with a backlog of n messages.
func publish(t *testing.T, ctx context.Context, c *client.Client, topic string, n int) {
	t.Helper()
	if _, err := c.Subscribe(ctx, topic, "late", client.From(client.Earliest())); err != nil {
		t.Fatal(err)
	}
	p, err := c.Producer(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if _, err := p.Send(ctx, client.Message{Value: []byte("a message")}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHTTPAdmin shows a topic's life over the HTTP port of a real node: made,
// seen with its backlog, its ledger described, deleted, gone.
func TestHTTPAdmin(t *testing.T) {
	ctx, base, c := start(t)
	api := base + "/api/v1/"
	const topic = "topic/public/default/orders"
	want := func(method, path, body string, status int, has string) string {
		t.Helper()
		code, text := ask(t, ctx, method, api+path, body)
		var object map[string]any
		if err := json.Unmarshal([]byte(text), &object); err != nil || code != status || !strings.Contains(strings.ReplaceAll(text, " ", ""), has) {
			t.Fatalf("%s %s: %d %s, want %d with %s (%v)", method, path, code, text, status, has, err)
		}
		return text
	}
	want("GET", topic, "", 404, `"reason":"NOT_FOUND"`)
	want("POST", topic, `{"partitions": 0}`, 200, `"topic":"persistent://public/default/orders"`)
	publish(t, ctx, c, "orders", 3)
	want("GET", topic+"/stats", "", 200, `"msgBacklog":"3"`)
	want("GET", "topics/public/default", "", 200, "orders")
	want("GET", "namespaces/public/default", "", 200, `"namespace":"public/default"`)
	want("GET", "brokers", "", 200, `"id":"standalone"`)
	want("GET", "bookies", "", 200, `"id":"bookie-1"`)
	want("GET", "tenants", "", 200, `"public"`)
	ledgers := want("GET", "ledgers?topic=orders", "", 200, `"ledger":`)
	var list struct{ Ledgers []struct{ Ledger string } }
	if err := json.Unmarshal([]byte(ledgers), &list); err != nil || len(list.Ledgers) == 0 {
		t.Fatalf("ledgers: %v, %s", err, ledgers)
	}
	want("GET", "ledgers/"+list.Ledgers[0].Ledger, "", 200, `"writeQuorum":1`)
	want("DELETE", topic, "", 200, "{")
	want("GET", topic, "", 404, `"reason":"NOT_FOUND"`)
}

// TestMetricsPageIsComplete shows that docs/metrics.md names exactly what a node
// exposes, and that the figures of a subscription's backlog are right.
func TestMetricsPageIsComplete(t *testing.T) {
	ctx, base, c := start(t)
	publish(t, ctx, c, "orders", 3)
	code, text := ask(t, ctx, "GET", base+"/metrics", "")
	if code != 200 {
		t.Fatalf("metrics: %d %s", code, text)
	}
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	exposed := names(`(?m)^# TYPE (magnetar_\w+) `, text)
	described := names("(?m)^\\| `(magnetar_\\w+)", string(page))
	onDemand := names("(?m)^\\| `(magnetar_\\w+).* Absent until there is one\\.", string(page))
	for _, name := range exposed {
		if !slices.Contains(described, name) {
			t.Errorf("docs/metrics.md lacks %s", name)
		}
	}
	for _, name := range described {
		if !slices.Contains(exposed, name) && !slices.Contains(onDemand, name) {
			t.Errorf("docs/metrics.md has %s, which a node does not expose", name)
		}
	}
	for _, line := range []string{
		`magnetar_subscription_backlog_messages{namespace="public/default"} 3`,
		`magnetar_topics_open{namespace="public/default"} 1`,
		`magnetar_producers{namespace="public/default"} 1`,
		`magnetar_consumers{namespace="public/default"} 1`,
		`magnetar_publish_latency_seconds_count{stage="total"} 3`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("metrics lack %q", line)
		}
	}
	if regexp.MustCompile(`magnetar_subscription_lag_seconds_max\{.*\} 0\n`).MatchString(text) {
		t.Error("a subscription with a backlog has no lag")
	}
}

// names are the first groups of all matches, without repeats.
func names(pattern, text string) []string {
	var out []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	slices.Sort(out)
	return slices.Compact(out)
}
