package discovery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// ViewOptions say what a View follows.
type ViewOptions struct {
	Store  meta.Store
	Layout layout.Layout
	// Lease is for how long current data must have been watched before anyone is
	// judged dead; 0: DefaultLease. It has to be the brokers' own.
	Lease time.Duration
	// MinStay is how long a bundle stays with its owner, and how long a newcomer
	// must have been there, before a bundle moves only to spread the load; 0: 5 s.
	MinStay time.Duration
	Log     hclog.Logger // nil: none
}

// View is what this process knows of brokers and bundle owners. It follows two
// prefixes by watch, and lists them anew when a watch fails. With the metadata
// store gone it stays at what was last known, and says since when that is old.
type View struct {
	opts ViewOptions
	log  hclog.Logger

	mu       sync.Mutex
	brokers  map[string]BrokerInfo
	bundles  map[string]BundleInfo
	feeds    [feeds]feed
	changed  chan struct{}
	snapshot *Snapshot // nil: to be made anew
	ready    chan struct{}
	// rolledBack: the store once showed less than before. Stays set.
	rolledBack bool
}

// The prefixes a View follows.
const (
	feedBrokers = iota
	feedBundles
	feeds
)

// feed is how current one prefix is.
type feed struct {
	listed   bool
	revision meta.Revision
	since    time.Time // has been current without a gap from then …
	heard    time.Time // … up to then
}

// currentGap is how long nothing may be heard of a watch before what was seen
// counts as old. Watches tell of themselves every second.
const currentGap = 3 * time.Second

const defaultMinStay = 5 * time.Second

// BrokerInfo is a live broker: one whose session's key exists.
type BrokerInfo struct {
	ID          string
	Session     string
	Address     string
	HTTPAddress string
	PID         int64
	Version     string
	Started     time.Time
	LargestBody uint64        // of an entry it may write; 0: not known
	Revision    meta.Revision // of its session's key
	Seen        time.Time     // when this process first saw this session; not to be stored
}

// BundleInfo is a bundle and the record that names its owner.
type BundleInfo struct {
	Bundle   bundle.Bundle
	Exists   bool          // it has a log record; else it was split, merged or deleted
	Owner    catalog.Owner // of no broker when it was given up, or there is no record
	Revision meta.Revision // of the owner record; 0: there is none
	// Unreadable: there is an owner record and it cannot be read, so that nothing is
	// known of the owner; Owner is of no broker.
	Unreadable bool
	Seen       time.Time // when this process first saw this broker own it; not to be stored
}

// NewView returns a view that knows nothing before Run.
func NewView(o ViewOptions) *View {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Lease == 0 {
		o.Lease = DefaultLease
	}
	if o.MinStay == 0 {
		o.MinStay = defaultMinStay
	}
	return &View{
		opts:    o,
		log:     o.Log.Named("view"),
		brokers: make(map[string]BrokerInfo),
		bundles: make(map[string]BundleInfo),
		changed: make(chan struct{}),
		ready:   make(chan struct{}),
	}
}

// Run follows the metadata store until ctx ends.
func (v *View) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { v.follow(ctx, feedBrokers, v.opts.Layout.Brokers(), v.listBrokers, v.seeBroker) })
	wg.Go(func() { v.follow(ctx, feedBundles, v.opts.Layout.Bundles(""), v.listBundles, v.seeBundle) })
	wg.Wait()
}

// Ready is closed once both prefixes were listed for the first time.
func (v *View) Ready() <-chan struct{} { return v.ready }

// Changed is closed at the next change of brokers or owners. Take it before
// Snapshot, so that no change falls between.
func (v *View) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// Snapshot returns what is known now.
func (v *View) Snapshot() *Snapshot {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.snapshot == nil {
		v.snapshot = newSnapshot(v.brokers, v.bundles)
	}
	s := *v.snapshot
	s.At, s.Lease, s.MinStay, s.RolledBack = time.Now(), v.opts.Lease, v.opts.MinStay, v.rolledBack
	s.Revision, s.BrokersRevision = v.feeds[feedBundles].revision, v.feeds[feedBrokers].revision
	s.since, s.heard = v.feeds[0].since, v.feeds[0].heard
	for _, f := range v.feeds {
		if !f.listed {
			s.since, s.heard = time.Time{}, time.Time{}
			break
		}
		if f.since.After(s.since) {
			s.since = f.since
		}
		if f.heard.Before(s.heard) {
			s.heard = f.heard
		}
	}
	return &s
}

// follow keeps one prefix current: list it, watch from there, and again when the
// watch is over.
func (v *View) follow(ctx context.Context, f int, prefix string, list func([]meta.KV), see func(meta.KV)) {
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, maxPause) {
		kvs, at, err := v.opts.Store.Range(ctx, prefix, "", 0)
		if err == nil {
			pause = firstPause
			v.hear(f, at, true, func() { list(kvs) })
			err = v.watch(ctx, f, prefix, at, see)
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, meta.ErrCompacted) {
			v.log.Warn("view of the cluster is old, listing it anew", "prefix", prefix, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

func (v *View) watch(ctx context.Context, f int, prefix string, from meta.Revision, see func(meta.KV)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w := v.opts.Store.Watch(ctx, prefix, from)
	for {
		b, err := w.Next()
		if err != nil {
			return err
		}
		if len(b.Events) == 0 {
			v.hear(f, b.Revision, false, nil)
			continue
		}
		v.hear(f, b.Revision, false, func() {
			for _, e := range b.Events {
				see(e.KV)
			}
		})
	}
}

// hear takes over what a feed brought. After a gap, or a list, what is known has
// been current only from now on.
func (v *View) hear(f int, at meta.Revision, anew bool, change func()) {
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	feed := &v.feeds[f]
	if anew && at < feed.revision && !v.rolledBack {
		v.rolledBack = true
		v.log.Error("the metadata store shows an older state than before: it was rolled back. This broker takes no bundles over until it is restarted",
			"seen", feed.revision, "shown", at)
	}
	if anew || now.Sub(feed.heard) > currentGap {
		feed.since = now
	}
	feed.heard, feed.revision = now, at
	if change != nil {
		change()
		v.snapshot = nil
		close(v.changed)
		v.changed = make(chan struct{})
	}
	if anew && !feed.listed {
		feed.listed = true
		if v.feeds[feedBrokers].listed && v.feeds[feedBundles].listed {
			close(v.ready)
		}
	}
}

// listBrokers takes over a list of all brokers. Called with the lock held.
func (v *View) listBrokers(kvs []meta.KV) {
	old := v.brokers
	v.brokers = make(map[string]BrokerInfo, len(kvs))
	for _, kv := range kvs {
		id := strings.TrimPrefix(kv.Key, v.opts.Layout.Brokers())
		if b, known := old[id]; known {
			v.brokers[id] = b
		}
		v.seeBroker(kv)
	}
}

// seeBroker takes over one broker's record. Called with the lock held.
func (v *View) seeBroker(kv meta.KV) {
	id := strings.TrimPrefix(kv.Key, v.opts.Layout.Brokers())
	if !kv.Exists() {
		delete(v.brokers, id)
		return
	}
	b, err := decodeBroker(id, kv)
	if err != nil {
		v.log.Error("record of a broker cannot be read", "broker", id, "error", err)
		delete(v.brokers, id)
		return
	}
	b.Seen = time.Now()
	if known, ok := v.brokers[id]; ok && known.Session == b.Session {
		b.Seen = known.Seen
	}
	v.brokers[id] = b
}

// decodeBroker reads a broker's record. One without an id or a session is none: to
// have neither is how an owner record says that there is no owner.
func decodeBroker(id string, kv meta.KV) (BrokerInfo, error) {
	var r metav1.Broker
	if err := proto.Unmarshal(kv.Value, &r); err != nil {
		return BrokerInfo{}, fmt.Errorf("record at %s: %v: %w", kv.Key, err, ledger.ErrCorrupt)
	}
	if id == "" || r.GetSession() == "" {
		return BrokerInfo{}, fmt.Errorf("record at %s: broker %q of session %q: %w", kv.Key, id, r.GetSession(), ledger.ErrCorrupt)
	}
	return BrokerInfo{
		ID: id, Session: r.GetSession(), Address: r.GetAddress(), HTTPAddress: r.GetHttpAddress(),
		PID: r.GetPid(), Version: r.GetVersion(), Started: time.UnixMilli(r.GetStartedAtMs()), Revision: kv.Revision,
		LargestBody: r.GetLargestEntryBytes(),
	}, nil
}

// listBundles takes over a list of all bundles. Called with the lock held.
func (v *View) listBundles(kvs []meta.KV) {
	old := v.bundles
	v.bundles = make(map[string]BundleInfo, len(old))
	for _, kv := range kvs {
		v.seeBundle(kv)
	}
	for name, b := range v.bundles {
		if was, known := old[name]; known && was.Owner.Broker == b.Owner.Broker {
			b.Seen = was.Seen
			v.bundles[name] = b
		}
	}
}

// seeBundle takes over one record of a bundle. Called with the lock held.
func (v *View) seeBundle(kv meta.KV) {
	name, kind, ok := v.opts.Layout.ParseBundle(kv.Key)
	id, err := bundle.Parse(name)
	if !ok || err != nil {
		v.log.Error("key among the bundles is none of a bundle", "key", kv.Key)
		return
	}
	b := v.bundles[name]
	b.Bundle = id
	switch kind {
	case "log":
		b.Exists = kv.Exists()
	case "owner":
		was := b.Owner.Broker
		b.Revision, b.Owner, b.Unreadable = kv.Revision, catalog.Owner{}, false
		if kv.Exists() {
			if b.Owner, err = catalog.DecodeOwner(kv); err != nil {
				b.Unreadable = true
				v.log.Error("owner record cannot be read: nobody takes the bundle over before the record is restored or deleted in the metadata store",
					"bundle", name, "key", kv.Key, "error", err)
			}
		}
		if b.Owner.Broker != was {
			b.Seen = time.Now()
		}
	}
	if !b.Exists && b.Revision == 0 {
		delete(v.bundles, name)
		return
	}
	v.bundles[name] = b
}
