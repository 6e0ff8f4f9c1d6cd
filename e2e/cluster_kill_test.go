package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/e2e/cluster"
	"github.com/magnetar-io/magnetar/e2e/history"
)

// TestKillCluster kills processes of a cluster at random with SIGKILL, each kind
// in turn, and starts them again, under load: nothing acknowledged is lost,
// nothing comes at two places, and the exclusive subscription keeps the order.
func TestKillCluster(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	shape := cluster.Default
	shape.ExtraArgs = []string{"--memory", "128MiB"}
	binary := buildBinary(t)
	cl, err := cluster.New(t.TempDir(), binary, shape)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(rounds(t))*20*time.Second)
	defer cancel()
	t.Cleanup(func() {
		for _, name := range cl.Names {
			_ = cl.Signal(name, syscall.SIGKILL) // gone already is as good
			if t.Failed() {
				t.Logf("log of %s:\n%s", name, cl.LogTail(name, 40))
			}
		}
	})
	if err := cl.StartAll(ctx); err != nil {
		t.Fatal(err)
	}
	// Partitions lie on both brokers, so that whichever is killed owned some.
	create := exec.CommandContext(ctx, binary, "topic", "create", loadTopic, "--partitions", "8", "--server", cl.Server)
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("create the topic: %v\n%s", err, out)
	}
	c, err := client.Connect(ctx, cl.Server)
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
	kinds := [][]string{{"broker-1", "broker-2"}, {"bookie-1", "bookie-2", "bookie-3"}, {"discovery", "metadata"}}
	for round := range rounds(t) {
		<-time.After(time.Duration(1000+random.IntN(1000)) * time.Millisecond)
		for deadline := time.Now().Add(20 * time.Second); l.inFlight.Load() < 100; {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: never 100 publishes in flight", round)
			}
			<-time.After(100 * time.Microsecond)
		}
		flying := l.inFlight.Load()
		kind := kinds[round%len(kinds)]
		name := kind[random.IntN(len(kind))]
		if err := cl.Signal(name, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: killed %s with %d publishes in flight", round, name, flying)
		if err := cl.Start(name); err != nil {
			t.Fatal(err)
		}
		if err := cl.WaitReady(ctx, name); err != nil {
			t.Fatal(err)
		}
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
