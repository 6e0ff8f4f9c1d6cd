package broker

import (
	"context"
	"errors"

	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// routingVersion reads the version of the map that a partition belongs to; 0 for a
// topic that is not partitioned, and for a partition whose topic's creation was
// broken off: nobody has a map with it.
func (b *Broker) routingVersion(ctx context.Context, partition topicname.Name) (uint64, error) {
	if partition.Partition == topicname.Unpartitioned {
		return 0, nil
	}
	m, err := b.catalog.Map(ctx, partition.Base())
	if errors.Is(err, rpcerr.ErrNotFound) {
		return 0, nil
	}
	return m.RoutingVersion, err
}

// watchRouting tells the partitions open here when their topic's map changed, until
// ctx ends (M32).
func (b *Broker) watchRouting(ctx context.Context) {
	b.follow(ctx, b.opts.Layout.AllPartitionedTopics(), func(e meta.Event) {
		m, err := b.catalog.DecodeMap(e.KV)
		switch {
		case err != nil:
			b.unreadMap(e.Key, err)
		case m.RoutingVersion > 1: // the first one is older than whatever is open
			b.route(m)
		}
	}, b.readRoutes)
}

// unreadMap tells that a map is broken, or of a newer version. It keeps nobody from
// hearing of the others.
func (b *Broker) unreadMap(key string, err error) {
	b.log.Error("map of a partitioned topic cannot be read: batches made for its last one are taken", "key", key, "error", err)
}

// route tells the partitions of a topic that are open here, or are being opened,
// of its map.
func (b *Broker) route(m catalog.Map) {
	for _, p := range m.Partitions {
		name := m.Name(p)
		if o := b.bundleOf(name.NamespaceName(), name.Hash()); o != nil {
			o.route(name, m.RoutingVersion)
		}
	}
}

// readRoutes reads the maps of all partitions open here. An error is one of the
// metadata store.
func (b *Broker) readRoutes(ctx context.Context) error {
	maps := map[topicname.Name]bool{}
	for _, o := range b.owned() {
		for _, name := range o.partitions() {
			maps[name.Base()] = true
		}
	}
	for name := range maps {
		m, err := b.catalog.Map(ctx, name)
		if errors.Is(err, meta.ErrUnavailable) {
			return err
		}
		if errors.Is(err, rpcerr.ErrNotFound) {
			continue // it is being deleted
		}
		if err != nil {
			b.unreadMap(b.opts.Layout.PartitionedTopic(name.NamespaceName(), name.Local), err)
			continue
		}
		b.route(m)
	}
	return nil
}

// partitions of partitioned topics that are open, or are being opened.
func (o *ownedBundle) partitions() []topicname.Name {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []topicname.Name
	for name := range o.topics {
		if name.Partition != topicname.Unpartitioned {
			out = append(out, name)
		}
	}
	return out
}

// route tells one partition the version of its topic's map. One that is being
// opened is told too: it may have read its map before the change.
func (o *ownedBundle) route(name topicname.Name, version uint64) {
	o.mu.Lock()
	t := o.topics[name]
	o.mu.Unlock()
	if t != nil {
		t.route(version)
	}
}

// route raises the version of the map that batches must have been made for.
func (t *ownedTopic) route(version uint64) {
	for {
		old := t.routing.Load()
		if version <= old || t.routing.CompareAndSwap(old, version) {
			return
		}
	}
}
