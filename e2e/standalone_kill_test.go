package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/history"
)

// rounds is how often a process is killed: MAGNETAR_KILLS, or 3.
func rounds(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("MAGNETAR_KILLS")); err == nil && n > 0 {
		return n
	}
	return 3
}

// buildBinary builds magnetar for the test.
func buildBinary(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "magnetar")
	cmd := exec.Command("go", "build", "-o", file, "../cmd/magnetar")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return file
}

// freePort returns a port that nobody listens on just now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// node is a standalone process that can be killed and started again.
type node struct {
	t       *testing.T
	command []string
	address string
	ready   string
	log     string
	cmd     *exec.Cmd
}

func newNode(t *testing.T) *node {
	dir := t.TempDir()
	grpc, web := freePort(t), freePort(t)
	n := &node{
		t: t, address: "127.0.0.1:" + grpc, ready: "http://127.0.0.1:" + web + "/healthz/ready", log: filepath.Join(dir, "log"),
		command: []string{buildBinary(t), "standalone", "--data-dir", filepath.Join(dir, "data"), "--grpc-port", grpc, "--http-port", web,
			"--log-level", "warn", "--ledger-bytes", "4MiB", "--memory", "256MiB"},
	}
	n.start()
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			text, _ := os.ReadFile(n.log)
			t.Logf("log of the node:\n%s", text[max(0, len(text)-8000):])
		}
	})
	return n
}

func (n *node) start() {
	n.t.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(n.command[0], n.command[1:]...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	web := &http.Client{Timeout: time.Second}
	defer web.CloseIdleConnections()
	for deadline := time.Now().Add(30 * time.Second); ; {
		resp, err := web.Get(n.ready)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the node is not ready after 30s: %v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func (n *node) kill() {
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait() // killed: it ends with an error
}

// load is three named producers and two subscriptions on one topic, with their
// history.
type load struct {
	t        *testing.T
	log      *history.Log
	inFlight atomic.Int64
	sent     atomic.Int64
	wg       sync.WaitGroup
}

const loadTopic, payloadBytes = "kills", 200

// produce publishes until stop is closed, then waits for every answer.
func (l *load) produce(ctx context.Context, c *client.Client, name string, stop <-chan struct{}) {
	p, err := c.Producer(ctx, loadTopic, client.WithName(name))
	if err != nil {
		l.t.Errorf("producer %s: %v", name, err)
		return
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for number := 0; ; {
		select {
		case <-stop:
			if err := p.Close(ctx); err != nil {
				l.t.Errorf("close producer %s: %v", name, err)
			}
			return
		case <-tick.C:
		}
		for range 20 {
			m := history.Message{Producer: name, Number: number}
			number++
			l.inFlight.Add(1)
			l.sent.Add(1)
			p.Publish(ctx, client.Message{Value: m.Payload(payloadBytes)}, func(id client.MessageID, err error) {
				l.inFlight.Add(-1)
				switch {
				case err == nil && id.Known():
					l.log.Published(m, history.OK, id.String())
				case err == nil:
					l.log.Published(m, history.OK, "")
				case errors.Is(err, client.ErrUnknownOutcome):
					l.log.Published(m, history.Unknown, "")
				default:
					l.log.Published(m, history.Failed, "")
				}
			})
		}
	}
}

// consume receives and acknowledges until everything acknowledged to producers
// has come.
func (l *load) consume(ctx context.Context, c *client.Client, subscription string, kind client.Type, done <-chan struct{}) {
	s, err := c.Subscribe(ctx, loadTopic, subscription, client.OfType(kind), client.From(client.Earliest()))
	if err != nil {
		l.t.Errorf("subscribe %s: %v", subscription, err)
		return
	}
	defer func() {
		if err := s.Close(ctx); err != nil && ctx.Err() == nil {
			l.t.Errorf("close %s: %v", subscription, err)
		}
	}()
	for {
		receive, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		m, err := s.Receive(receive)
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			select {
			case <-done:
				if l.log.Missing(subscription) == 0 {
					return
				}
			default:
			}
			continue
		}
		named, err := history.Parse(m.Value)
		if err != nil {
			l.t.Error(err)
			return
		}
		l.log.Delivered(subscription, named, int(m.ID.Partition), m.ID.String())
		m.AckAsync()
	}
}

// TestKillStandalone kills a standalone node with SIGKILL again and again under
// load: nothing acknowledged is lost, nothing comes at two places, and the
// exclusive subscription gets every producer's messages in order.
func TestKillStandalone(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(rounds(t))*20*time.Second)
	defer cancel()
	c, err := client.Connect(ctx, n.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(ctx))

	l := &load{t: t, log: history.New()}
	stop, done := make(chan struct{}), make(chan struct{})
	var producers sync.WaitGroup
	for i := range 3 {
		producers.Go(func() { l.produce(ctx, c, fmt.Sprintf("p%d", i), stop) })
	}
	l.wg.Go(func() { l.consume(ctx, c, "ordered", client.Exclusive, done) })
	l.wg.Go(func() { l.consume(ctx, c, "shared", client.Shared, done) })

	start := time.Now()
	for round := range rounds(t) {
		<-time.After(time.Duration(1000+random.IntN(1000)) * time.Millisecond)
		// The kill has to hit publishes on their way: wait for a moment that has them.
		for deadline := time.Now().Add(10 * time.Second); l.inFlight.Load() < 100; {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: never 100 publishes in flight", round)
			}
			<-time.After(100 * time.Microsecond)
		}
		flying := l.inFlight.Load()
		n.kill()
		t.Logf("round %d: killed with %d publishes in flight", round, flying)
		n.start()
	}
	<-time.After(time.Second)
	t.Logf("%d messages in %s", l.sent.Load(), time.Since(start).Round(time.Millisecond))
	close(stop)
	producers.Wait()
	close(done)
	l.wg.Wait()
	v := l.log.Check([]string{"ordered", "shared"}, []string{"ordered"})
	t.Log(v)
	if v.Bad() || v.OK == 0 {
		t.Errorf("history is bad: %v", v)
	}
}
