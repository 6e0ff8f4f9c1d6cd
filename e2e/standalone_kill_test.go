package e2e

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/e2e/cluster"
)

// TestKillStandalone kills a standalone node with SIGKILL again and again under
// load: nothing acknowledged is lost, nothing comes at two places or again after
// its acknowledgement was answered, and the exclusive subscription gets every
// producer's messages in order.
func TestKillStandalone(t *testing.T) {
	kills := times("MAGNETAR_KILLS", 3)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(kills)*20*time.Second)
	defer cancel()
	node := startStandalone(ctx, t, "--ledger-bytes", "4MiB", "--memory", "256MiB")
	l := startLoad(ctx, t, connect(ctx, t, node.Server))
	for round := range kills {
		<-time.After(time.Duration(1000+random.IntN(1000)) * time.Millisecond)
		flying := l.awaitFlying(ctx)
		kill(t, node, cluster.StandaloneName)
		killed, era := time.Now(), l.era.Add(1)
		restart(ctx, t, node, cluster.StandaloneName)
		eventually(ctx, t, 30*time.Second, "publishes are acknowledged again", func() bool { return l.progressed(era) })
		t.Logf("round %d: killed with %d publishes in flight, publishing again after %s", round, flying, time.Since(killed).Round(time.Millisecond))
		l.reopen()
	}
	l.finish(ctx, node.Server)
}
