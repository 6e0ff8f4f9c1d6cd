package e2e

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/e2e/cluster"
)

// TestKillCluster kills processes of a cluster with SIGKILL under load, and
// starts each again only once publishes begun after its death were acknowledged
// on every partition: first an owner of some, then a bookie, then any process at
// random. Nothing acknowledged is lost, nothing comes at two places or again
// after its acknowledgement was answered, and the exclusive subscription keeps
// the order.
func TestKillCluster(t *testing.T) {
	kills := max(2, times("MAGNETAR_KILLS", 3))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(kills)*20*time.Second)
	defer cancel()
	shape := cluster.Default
	shape.ExtraArgs = []string{"--memory", "128MiB"}
	shape.BrokerArgs = []string{"--ledger-bytes", "1MiB"}
	cl := startCluster(ctx, t, shape)
	// Enough partitions for both brokers to own some, once both have been there for a while.
	create := exec.CommandContext(ctx, buildBinary(t), "topic", "create", loadTopic, "--partitions", "8", "--server", cl.Server)
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("create the topic: %v\n%s", err, out)
	}
	l := startLoad(ctx, t, connect(ctx, t, cl.Server))
	ownersHit, bookiesHit := 0, 0
	for round := range kills {
		<-time.After(time.Duration(500+random.IntN(1000)) * time.Millisecond)
		owned := owners(ctx, t, cl.Server, l.partitions)
		var victim string
		switch round {
		case 0:
			victim = owned[l.partitions[random.IntN(len(l.partitions))]]
		case 1:
			victim = []string{"bookie-1", "bookie-2", "bookie-3"}[random.IntN(3)]
		default:
			victim = cl.Names[random.IntN(len(cl.Names))]
		}
		flying := l.awaitFlying(ctx)
		kill(t, cl, victim)
		killed, era := time.Now(), l.era.Add(1)
		eventually(ctx, t, 30*time.Second, "publishes are acknowledged on every partition while "+victim+" is down", func() bool { return l.progressed(era) })
		took := time.Since(killed)
		lost := 0
		for _, owner := range owned {
			if owner == victim {
				lost++
			}
		}
		if lost > 0 {
			ownersHit++
			for partition, owner := range owners(ctx, t, cl.Server, l.partitions) {
				if owner == victim {
					t.Errorf("%s is down and owns %s", victim, partition)
				}
			}
		}
		if strings.HasPrefix(victim, "bookie-") {
			bookiesHit++
		}
		t.Logf("round %d: killed %s, owner of %d partitions, with %d publishes in flight; all partitions go on after %s",
			round, victim, lost, flying, took.Round(time.Millisecond))
		restart(ctx, t, cl, victim)
		l.reopen()
	}
	l.finish(ctx, cl.Server)
	if ownersHit == 0 || bookiesHit == 0 {
		t.Errorf("hit %d owners of the topic and %d bookies, want some of each", ownersHit, bookiesHit)
	}
}
