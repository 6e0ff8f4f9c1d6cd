package discovery

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpc"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// Only three refusals in a row over 300 ms, or another session's answer, prove a
// session over. Silence, an answer without a session and the session's own
// answer clear it.
func TestRuleM6_ProofIsRefusalsNotSilence(t *testing.T) {
	const same, other = "s", "o"
	type at struct {
		ms int
		o  Observation
	}
	refused, silent := Observation{Refused: true}, Observation{}
	for _, c := range []struct {
		name  string
		seen  []at
		proof int // index of the observation that proves; -1: none does
	}{
		{"three refusals", []at{{0, refused}, {150, refused}, {300, refused}}, 2},
		{"too quick", []at{{0, refused}, {10, refused}, {20, refused}, {299, refused}, {300, refused}}, 4},
		{"only two", []at{{0, refused}, {10_000, refused}}, -1},
		{"silence between", []at{{0, refused}, {150, refused}, {200, silent}, {300, refused}, {450, refused}}, -1},
		{"its own answer between", []at{{0, refused}, {150, refused}, {200, Observation{Session: same}}, {300, refused}, {450, refused}}, -1},
		{"silence", []at{{0, silent}, {1000, silent}, {2000, silent}, {3000, silent}}, -1},
		{"alive", []at{{0, Observation{Session: same}}, {500, Observation{Session: same}}}, -1},
		{"another session", []at{{0, Observation{Session: other}}}, 0},
	} {
		s := suspicion{session: same}
		proof := -1
		for i, a := range c.seen {
			if s.observe(a.o, time.Unix(0, 0).Add(time.Duration(a.ms)*time.Millisecond)) {
				proof = i
				break
			}
		}
		if proof != c.proof {
			t.Errorf("%s: proven by observation %d, want %d", c.name, proof, c.proof)
		}
	}
}

// No broker is ended twice within ten seconds, and of many brokers at most a
// third are.
func TestRuleM6_EndingsAreCapped(t *testing.T) {
	for live, want := range map[int]int{2: 1, 3: 1, 6: 2, 30: 10} {
		var e endings
		now := time.Unix(0, 0)
		for second := range 60 {
			now = now.Add(time.Second)
			within := 0
			for i := range live {
				b := fmt.Sprint(i)
				if e.allow(b, live-len(e.left), now) {
					e.note(b, now)
					if e.allow(b, live, now) {
						t.Fatalf("broker %s may be ended twice at once", b)
					}
				}
			}
			for _, at := range e.left {
				if now.Sub(at) < endingWindow {
					within++
				}
			}
			if within > want || second == 0 && within != want {
				t.Fatalf("of %d brokers %d were ended within ten seconds, want at most %d", live, within, want)
			}
		}
	}
}

// Each broker is looked after by as many others as there are, up to two.
func TestNeighboursCoverAll(t *testing.T) {
	for n := 1; n <= 6; n++ {
		var ids []string
		for i := range n {
			ids = append(ids, fmt.Sprint(i))
		}
		watched := make(map[string]int)
		for _, self := range ids {
			for _, id := range neighbours(ids, self, probeCount) {
				if id == self {
					t.Fatal("a broker looks after itself")
				}
				watched[id]++
			}
		}
		for _, id := range ids {
			if watched[id] != min(probeCount, n-1) {
				t.Errorf("of %d brokers, %s is looked after by %d", n, id, watched[id])
			}
		}
	}
}

// The bundles of a broker whose address refuses connections are served by others
// long before its lease runs out.
func TestRuleM6_RefusedBrokerIsReplacedEarly(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		c.reach = c.truth
		c.start("a")
		b := c.start("b")
		c.start("d")
		c.settle(20 * time.Second)
		time.Sleep(time.Minute)
		c.kill(b)
		if took := c.settle(10 * time.Second); took > 1500*time.Millisecond {
			t.Errorf("the bundles were without an owner for %v", took)
		}
	})
}

// A broker that only stays silent is left to its lease.
func TestRuleM6_SilentBrokerIsLeftToItsLease(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		c.reach = func(from string, to BrokerInfo) Observation {
			o := c.truth(from, to)
			if o.Refused {
				time.Sleep(probeTimeout)
				return Observation{}
			}
			return o
		}
		c.start("a")
		b := c.start("b")
		c.settle(20 * time.Second)
		time.Sleep(time.Minute)
		c.kill(b)
		if took := c.settle(20 * time.Second); took < 3*time.Second {
			t.Errorf("taken over after %v, on no proof", took)
		}
	})
}

// When two of three brokers die at once one is ended early; the other is left to
// its lease.
func TestRuleM6_MassDeathIsLeftToLeases(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		c.reach = c.truth
		a, b, d := c.start("a"), c.start("b"), c.start("d")
		c.settle(20 * time.Second)
		time.Sleep(time.Minute)
		c.kill(b)
		c.kill(d)
		time.Sleep(2 * time.Second)
		if left := len(a.view.Snapshot().Brokers); left != 2 {
			t.Errorf("%d brokers are listed after two seconds, want the dead one that is left to its lease and the living", left)
		}
		if took := c.settle(20 * time.Second); took < time.Second {
			t.Errorf("all was taken over after %v", took)
		}
	})
}

// Two healthy brokers each of whom sees the other refuse connections do not end
// each other for ever: those who come back stay away longer each time, and every
// bundle is served most of the time.
func TestRuleM6_OneWayCutDoesNotFlap(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		c.reach = func(from string, to BrokerInfo) Observation { return Observation{Refused: true} }
		a, b := c.start("a"), c.start("b")
		time.Sleep(10 * time.Minute)
		if n := a.endings() + b.endings(); n < 1 || n > 10 {
			t.Errorf("%d sessions were ended in ten minutes", n)
		}
		served := 0
		for range 600 {
			time.Sleep(time.Second)
			served += len(a.owns()) + len(b.owns())
		}
		if share := float64(served) / (600 * 32); share < 0.97 {
			t.Errorf("only %.0f%% of the bundles were served over ten minutes", 100*share)
		}
	})
}

// A broker that watches the cluster for less than a lease ends nobody.
func TestRuleM5_NewcomerEndsNobody(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.settle(time.Second)
		c.reach = func(string, BrokerInfo) Observation { return Observation{Refused: true} }
		c.start("b")
		time.Sleep(DefaultLease - 100*time.Millisecond)
		if a.endings() != 0 {
			t.Error("a newcomer ended a session")
		}
		time.Sleep(time.Minute)
		if a.endings() == 0 {
			t.Error("nobody ever ended it: this test shows nothing")
		}
	})
}

// Of a store that was rolled back nobody's session is ended.
func TestRuleM7_RolledBackStoreEndsNobody(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		refuse := false
		var mu sync.Mutex
		c.reach = func(from string, to BrokerInfo) Observation {
			mu.Lock()
			defer mu.Unlock()
			if refuse {
				return Observation{Refused: true}
			}
			return c.truth(from, to)
		}
		a, b := c.start("a"), c.start("b")
		c.settle(20 * time.Second)
		time.Sleep(time.Minute)
		old := c.store.Revision()
		for range 3 {
			if _, err := c.store.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: keys.Tenant("x")}}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		c.store.Rollback(old)
		time.Sleep(5 * time.Second)
		mu.Lock()
		refuse = true
		mu.Unlock()
		time.Sleep(time.Minute)
		if n := a.endings() + b.endings(); n != 0 {
			t.Errorf("%d sessions were ended", n)
		}
		if !a.view.Snapshot().RolledBack || !b.view.Snapshot().RolledBack {
			t.Error("the rollback was not noticed: this test shows nothing")
		}
	})
}

// What a probe sees of real addresses: refused, silent, somebody else, and the
// session that is registered there.
func TestProbeAddress(t *testing.T) {
	var dialer net.Dialer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	probe := func(address string, timeout time.Duration) Observation {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return ProbeAddress(ctx, address, dialer.DialContext)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if got := probe(silent.Addr().String(), 100*time.Millisecond); got != (Observation{}) {
		t.Errorf("silent address: %+v", got)
	}
	silent.Close()
	if got := probe(silent.Addr().String(), time.Second); got != (Observation{Refused: true}) {
		t.Errorf("closed address: %+v", got)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(rpc.ServerOptions(rpc.Limits{})...)
	discoveryv1.RegisterDiscoveryServer(server, sessionServer{session: "here"})
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	defer wg.Wait()
	defer server.Stop()
	if got := probe(l.Addr().String(), time.Second); got != (Observation{Session: "here"}) {
		t.Errorf("broker's address: %+v", got)
	}
}

type sessionServer struct {
	discoveryv1.UnimplementedDiscoveryServer
	session string
}

func (s sessionServer) Cluster(context.Context, *discoveryv1.ClusterRequest) (*discoveryv1.ClusterResponse, error) {
	return discoveryv1.ClusterResponse_builder{Session: &s.session}.Build(), nil
}
