package discovery

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/rpc"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// ProberOptions say who looks after whom.
type ProberOptions struct {
	Store        meta.Store
	Layout       layout.Layout
	View         *View
	Registration *Registration // of the broker that probes
	ID           string        // its id
	// Probe tries to reach a broker; nil: ProbeAddress over TCP without TLS.
	Probe func(ctx context.Context, b BrokerInfo) Observation
	Log   hclog.Logger // nil: none
}

// Prober looks after the brokers next to this one and ends the session of one
// that is proven gone, so that its bundles are taken over before its lease runs
// out (M6). Only proof counts, never silence; without any, the lease decides.
type Prober struct {
	opts ProberOptions
	log  hclog.Logger

	mu      sync.Mutex
	endings endings
	live    map[string]bool // when last looked
}

const (
	probeEvery   = 500 * time.Millisecond // as long as all is well
	probeAgain   = proofSpan / 2          // once a connection was refused
	probeTimeout = time.Second
	probeCount   = 2 // brokers that one looks after
)

// NewProber returns a prober that begins with Run.
func NewProber(o ProberOptions) *Prober {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Probe == nil {
		o.Probe = func(ctx context.Context, b BrokerInfo) Observation {
			return ProbeAddress(ctx, b.Address, (&net.Dialer{}).DialContext)
		}
	}
	return &Prober{opts: o, log: o.Log.Named("prober"), live: make(map[string]bool)}
}

// Run looks after brokers until ctx ends.
func (p *Prober) Run(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		var wg sync.WaitGroup
		for _, b := range p.targets(p.opts.View.Snapshot()) {
			wg.Go(func() { p.look(ctx, b) })
		}
		wg.Wait()
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// targets are the brokers to look at now.
func (p *Prober) targets(s *Snapshot) []BrokerInfo {
	p.noteLeft(s)
	var targets []BrokerInfo
	for _, id := range neighbours(s.ids, p.opts.ID, probeCount) {
		targets = append(targets, s.Brokers[id])
	}
	return targets
}

// noteLeft counts the brokers that left since the last look.
func (p *Prober) noteLeft(s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.live {
		if _, still := s.Brokers[id]; !still {
			p.endings.note(id, s.At)
		}
	}
	clear(p.live)
	for _, id := range s.ids {
		p.live[id] = true
	}
}

// look tries to reach a broker, more often once a connection was refused, until
// it is proven gone or not.
func (p *Prober) look(ctx context.Context, b BrokerInfo) {
	doubt := suspicion{session: b.Session}
	for ctx.Err() == nil {
		gone := doubt.observe(p.probe(ctx, b), time.Now())
		switch {
		case gone:
			p.end(ctx, b)
			return
		case doubt.refused == 0:
			return
		}
		select {
		case <-time.After(probeAgain):
		case <-ctx.Done():
			return
		}
	}
}

func (p *Prober) probe(ctx context.Context, b BrokerInfo) Observation {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return p.opts.Probe(ctx, b)
}

// end ends the session of a broker that is proven gone, unless this process may
// judge nobody: it has not watched for a lease yet (M5), or the store was rolled
// back (M7).
func (p *Prober) end(ctx context.Context, b BrokerInfo) {
	s := p.opts.View.Snapshot()
	now, still := s.Brokers[b.ID]
	if !still || now.Session != b.Session || s.RolledBack || s.Watched() < s.Lease {
		return
	}
	p.mu.Lock()
	allowed := p.endings.allow(b.ID, len(s.ids), s.At)
	if allowed {
		p.endings.note(b.ID, s.At)
	}
	p.mu.Unlock()
	if !allowed {
		p.log.Warn("broker is gone, but too many left of late: its lease decides", "broker", b.ID, "address", b.Address)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := endSession(ctx, p.opts.Store, p.opts.Layout, p.opts.Registration.Cond(), now)
	if err != nil && !errors.Is(err, ErrOutrun) {
		p.log.Warn("session of a broker that is gone could not be ended, its lease decides", "broker", b.ID, "error", err)
		return
	}
	p.log.Warn("broker is gone, its session is ended", "broker", b.ID, "address", b.Address, "session", b.Session)
}

// ProbeAddress connects to the address of a broker and asks which session it has.
// dial's error wraps syscall.ECONNREFUSED where a connection is refused.
func ProbeAddress(ctx context.Context, address string, dial func(ctx context.Context, network, address string) (net.Conn, error), extra ...grpc.DialOption) Observation {
	conn, err := dial(ctx, "tcp", address)
	if err != nil {
		return Observation{Refused: errors.Is(err, syscall.ECONNREFUSED)}
	}
	defer conn.Close()
	var given atomic.Bool
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if given.Swap(true) {
				return nil, errors.New("one connection is enough to ask once")
			}
			return conn, nil
		}),
	}, extra...)
	client, err := grpc.NewClient("passthrough:///"+address, rpc.DialOptions(rpc.ClientFacing, options...)...)
	if err != nil {
		return Observation{}
	}
	defer client.Close()
	r, err := discoveryv1.NewDiscoveryClient(client).Cluster(ctx, &discoveryv1.ClusterRequest{})
	if err != nil {
		return Observation{}
	}
	return Observation{Session: r.GetSession()}
}
