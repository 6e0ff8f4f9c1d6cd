package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/cluster"
	"github.com/magnetar-io/magnetar/internal/rpc"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// scratch is a folder for all tests of the package; TestMain removes it.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "magnetar-e2e-"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := os.RemoveAll(scratch); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}))
}

// build builds magnetar, without the race detector: the processes under test run
// as fast as those of a user.
var build = sync.OnceValues(func() (string, error) {
	file := filepath.Join(scratch, "magnetar")
	cmd := exec.Command("go", "build", "-o", file, "../cmd/magnetar")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return file, nil
})

// buildBinary returns a magnetar to run.
func buildBinary(t *testing.T) string {
	t.Helper()
	file, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// times is how often a test does what it is about: the number in the environment
// variable, or few.
func times(variable string, few int) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil && n > 0 {
		return n
	}
	return few
}

// startCluster starts a cluster that ends with the test, which logs the end of
// every log when it failed.
func startCluster(ctx context.Context, t *testing.T, shape cluster.Shape) *cluster.Cluster {
	t.Helper()
	cl, err := cluster.New(t.TempDir(), buildBinary(t), shape)
	if err != nil {
		t.Fatal(err)
	}
	start(ctx, t, cl, 40)
	return cl
}

// startStandalone starts a node that ends with the test, which logs the end of its
// log when it failed.
func startStandalone(ctx context.Context, t *testing.T, args ...string) *cluster.Cluster {
	t.Helper()
	node, err := cluster.NewStandalone(t.TempDir(), buildBinary(t), append([]string{"--log-level", "warn"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	start(ctx, t, node, 60)
	return node
}

// start starts all processes of a cluster, until the test ends.
func start(ctx context.Context, t *testing.T, cl *cluster.Cluster, logged int) {
	t.Helper()
	t.Cleanup(func() {
		for _, name := range cl.Names {
			_ = cl.Signal(name, syscall.SIGKILL) // gone already is as good
			if t.Failed() {
				t.Logf("log of %s:\n%s", name, cl.LogTail(name, logged))
			}
		}
	})
	if err := cl.StartAll(ctx); err != nil {
		t.Fatal(err)
	}
}

// connect connects a client that is closed with the test.
func connect(ctx context.Context, t *testing.T, server string) *client.Client {
	t.Helper()
	c, err := client.Connect(ctx, server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := c.Close(closing); err != nil {
			t.Errorf("close a client: %v", err)
		}
	})
	return c
}

// restart starts a process again and waits until it is ready.
func restart(ctx context.Context, t *testing.T, cl *cluster.Cluster, name string) {
	t.Helper()
	if err := cl.Start(name); err != nil {
		t.Fatal(err)
	}
	if err := cl.WaitReady(ctx, name); err != nil {
		t.Fatal(err)
	}
}

// kill kills a process with SIGKILL; it is gone when kill returns.
func kill(t *testing.T, cl *cluster.Cluster, name string) {
	t.Helper()
	if err := cl.Signal(name, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until what holds, every millisecond.
func eventually(ctx context.Context, t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); {
		if time.Now().After(deadline) || ctx.Err() != nil {
			t.Fatalf("not in %s: %s", within, what)
		}
		<-time.After(time.Millisecond)
	}
}

// owners asks discovery who owns each of the partitions, by long name, until all
// have an owner.
func owners(ctx context.Context, t *testing.T, server string, partitions []string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		owned, err := lookup(ctx, server, partitions)
		if err == nil {
			return owned
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("who owns %v: %v", partitions, err)
		}
	}
}

// readOnly counts the bookies that are read-only.
func readOnly(ctx context.Context, t *testing.T, server string) int {
	t.Helper()
	conn, err := dial(server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, err := adminv1.NewAdminClient(conn).ListBookies(ctx, &adminv1.ListBookiesRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, b := range r.GetBookies() {
		if b.GetState() == "readonly" {
			n++
		}
	}
	return n
}

func dial(server string) (*grpc.ClientConn, error) {
	return grpc.NewClient(server, rpc.DialOptions(rpc.ClientFacing, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}

func lookup(ctx context.Context, server string, partitions []string) (map[string]string, error) {
	conn, err := dial(server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r, err := discoveryv1.NewDiscoveryClient(conn).Lookup(ctx, discoveryv1.LookupRequest_builder{Topics: partitions}.Build(), grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	owned := map[string]string{}
	for _, o := range r.GetOwners() {
		if o.GetBroker() == "" {
			return nil, errors.New(o.GetTopic() + " has no owner just now")
		}
		owned[o.GetTopic()] = o.GetBroker()
	}
	return owned, nil
}
