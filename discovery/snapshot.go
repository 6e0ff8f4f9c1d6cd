package discovery

import (
	"slices"
	"sort"
	"time"

	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/internal/place"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// Snapshot is a View at one moment. It does not change; its maps are shared and
// not to be altered.
type Snapshot struct {
	At      time.Time             // when it was taken, by this process's clock
	Brokers map[string]BrokerInfo // live ones, by id
	Bundles map[string]BundleInfo // by name
	// Revision of the store that Bundles shows, and BrokersRevision the one that
	// Brokers does: they are watched apart.
	Revision, BrokersRevision meta.Revision
	// Lease and MinStay are the view's.
	Lease   time.Duration
	MinStay time.Duration
	// RolledBack says that the metadata store went back to an older state while
	// this process watched it: what it shows may name dead owners and free ids, so
	// nothing may be taken over (M7). It stays set until the process ends.
	RolledBack bool
	// Current since, and last heard of; zero when not all was listed yet.
	since, heard time.Time

	ids     []string                   // of Brokers, sorted
	ordered map[string][]bundle.Bundle // bundles that exist, in order, by namespace
}

func newSnapshot(brokers map[string]BrokerInfo, bundles map[string]BundleInfo) *Snapshot {
	s := &Snapshot{
		Brokers: make(map[string]BrokerInfo, len(brokers)),
		Bundles: make(map[string]BundleInfo, len(bundles)),
		ordered: make(map[string][]bundle.Bundle),
	}
	for id, b := range brokers {
		s.Brokers[id] = b
		s.ids = append(s.ids, id)
	}
	sort.Strings(s.ids)
	for name, b := range bundles {
		s.Bundles[name] = b
		if b.Exists {
			s.ordered[b.Bundle.Namespace] = append(s.ordered[b.Bundle.Namespace], b.Bundle)
		}
	}
	for _, of := range s.ordered {
		slices.SortFunc(of, bundle.Compare)
	}
	return s
}

// Watched says for how long what the snapshot shows has been kept current
// without a gap; 0 when it is old.
func (s *Snapshot) Watched() time.Duration {
	if !s.Current() {
		return 0
	}
	return s.At.Sub(s.since)
}

// Current reports whether what the snapshot shows is not old.
func (s *Snapshot) Current() bool { return s.Known() && s.At.Sub(s.heard) <= currentGap }

// Known reports whether brokers and bundles were ever listed.
func (s *Snapshot) Known() bool { return !s.heard.IsZero() }

// BundleOf returns the bundle of a namespace that holds a topic's hash; ok is
// false when there is no such namespace as far as is known.
func (s *Snapshot) BundleOf(namespace string, hash uint32) (info BundleInfo, ok bool) {
	b, ok := bundle.Find(s.ordered[namespace], hash)
	if !ok {
		return BundleInfo{}, false
	}
	return s.Bundles[b.String()], true
}

// live reports whether a broker is registered, under whatever session.
func (s *Snapshot) live(id string) bool {
	_, ok := s.Brokers[id]
	return ok
}

// OwnerOf returns the live broker that owns a bundle; ok is false when it has no
// owner, or one whose session is over.
func (s *Snapshot) OwnerOf(b BundleInfo) (owner BrokerInfo, ok bool) {
	owner, ok = s.Brokers[b.Owner.Broker]
	if !ok || owner.Session != b.Owner.Session {
		return BrokerInfo{}, false
	}
	return owner, true
}

// Successor returns the live broker, other than self, that ranks first for a
// bundle; ok is false when there is none.
func (s *Snapshot) Successor(bundle, self string) (next BrokerInfo, ok bool) {
	others := slices.DeleteFunc(slices.Clone(s.ids), func(id string) bool { return id == self })
	next, ok = s.Brokers[place.Owner(bundle, others)]
	return next, ok
}
