package metaserver

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Options of a Server. Zero, but for Dir, is a member on its own that only this
// process can reach.
type Options struct {
	// Dir holds the data; made when absent, locked while in use.
	Dir string
	// ClientAddress is where other processes reach it: IP:port or unix:path; "":
	// nowhere, only Store.
	ClientAddress string
	// AdvertiseAddress is how clients are told to reach it; "": ClientAddress.
	AdvertiseAddress string

	// Name of this member; "": "local". With Peers it must be one of them.
	Name string
	// PeerAddress is where the other members reach this one, IP:port.
	PeerAddress string
	// Peers are the members of a cluster, name to host:port. Empty: this one alone,
	// with ticks of 10 ms, right only where nothing but a process stands between
	// the member and itself. Else etcd's stock timing.
	Peers map[string]string
	// Join says that the cluster runs already and this member is new to it.
	Join bool
	// ClusterToken tells clusters apart that use the same addresses by mistake;
	// "": "magnetar".
	ClusterToken string

	// NoFsync turns all fsync off: a power cut loses data.
	NoFsync bool
	// WALSegmentBytes is what each log file is made of in advance; 0: 8 MiB alone,
	// 64 MB in a cluster. One size for all servers of a process: the first decides.
	WALSegmentBytes int64
	// QuotaBytes is the size at which writes are refused; 0: 4 GiB.
	QuotaBytes int64
	// CompactEvery is how much history is kept for watches; 0: 10 minutes.
	CompactEvery time.Duration

	Log hclog.Logger // nil: none
}

// Validate reports every fault of the options.
func (o Options) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf("metaserver: "+format, args...)) }
	if o.Dir == "" {
		fault("no data directory given")
	}
	if o.ClientAddress != "" {
		if _, err := clientURL(o.ClientAddress); err != nil {
			errs = append(errs, err)
		}
	}
	if len(o.Peers) > 0 {
		if o.Peers[o.Name] == "" {
			fault("this member, %q, is not among the peers", o.Name)
		}
		if o.ClientAddress == "" {
			fault("a member of a cluster needs a client address")
		}
		if _, err := clientURL(o.PeerAddress); err != nil {
			errs = append(errs, fmt.Errorf("peer address: %w", err))
		}
	} else if o.PeerAddress != "" || o.Join {
		fault("a peer address or join without peers")
	}
	if o.WALSegmentBytes < 0 || o.QuotaBytes < 0 || o.CompactEvery < 0 {
		fault("negative size or duration")
	}
	return errors.Join(errs...)
}

func (o Options) walSegmentBytes() int64 {
	switch {
	case o.WALSegmentBytes > 0:
		return o.WALSegmentBytes
	case len(o.Peers) > 0:
		return 64e6
	}
	return 8 << 20
}

// config returns etcd's form of valid options, and the bridge its log runs over.
func (o Options) config(log hclog.Logger) (*embed.Config, *bridge) {
	cfg := embed.NewConfig()
	cfg.Dir = o.Dir
	cfg.Name = orElse(o.Name, "local")
	cfg.InitialClusterToken = orElse(o.ClusterToken, "magnetar")
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = "10m"
	if o.CompactEvery > 0 {
		cfg.AutoCompactionRetention = o.CompactEvery.String()
	}
	cfg.QuotaBackendBytes = 4 << 30
	if o.QuotaBytes > 0 {
		cfg.QuotaBackendBytes = o.QuotaBytes
	}
	cfg.UnsafeNoFsync = o.NoFsync
	cfg.EnableGRPCGateway = false
	quiet := newBridge(log.Named("etcd"))
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(quiet))

	cfg.ListenClientUrls, cfg.ListenPeerUrls = nil, nil
	nowhere := url.URL{Scheme: "unix", Host: "nowhere:0"}
	cfg.AdvertiseClientUrls, cfg.AdvertisePeerUrls = []url.URL{nowhere}, []url.URL{nowhere}
	if o.ClientAddress != "" {
		u, _ := clientURL(o.ClientAddress)
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{u}, []url.URL{u}
	}
	if o.AdvertiseAddress != "" {
		cfg.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: o.AdvertiseAddress}}
	}
	if len(o.Peers) == 0 {
		cfg.TickMs, cfg.ElectionMs = uint(localTick.Milliseconds()), uint(localElection.Milliseconds())
		cfg.InitialCluster = cfg.Name + "=" + nowhere.String()
		return cfg, quiet
	}
	u, _ := clientURL(o.PeerAddress)
	cfg.ListenPeerUrls = []url.URL{u}
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: o.Peers[o.Name]}}
	var members []string
	for name, address := range o.Peers {
		members = append(members, name+"=http://"+address)
	}
	sort.Strings(members)
	cfg.InitialCluster = strings.Join(slices.Compact(members), ",")
	if o.Join {
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}
	return cfg, quiet
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
