// Package layout says where each record lies in the metadata store. All keys of
// a cluster stand under /magnetar/<cluster>/. The values are messages of
// proto/meta/v1.
//
// Keys sort so that what is read together lies together: all topics of a bundle
// are one range, and so are the links of a topic's chain.
package layout

import (
	"fmt"
	"strconv"
	"strings"
)

// Layout makes the keys of one cluster.
type Layout struct{ prefix string }

// New returns the layout of the cluster named cluster.
func New(cluster string) Layout { return Layout{prefix: "/magnetar/" + cluster + "/"} }

// Prefix of all keys of the cluster.
func (l Layout) Prefix() string { return l.prefix }

// Cluster is the key of the cluster's own record.
func (l Layout) Cluster() string { return l.prefix + "cluster" }

// IDs is the key of the counter behind ledger and topic ids.
func (l Layout) IDs() string { return l.prefix + "ids" }

// Brokers is the prefix of the live brokers.
func (l Layout) Brokers() string { return l.prefix + "brokers/" }

// Broker is the key of a live broker, tied to its session.
func (l Layout) Broker(id string) string { return l.Brokers() + id }

// Bookies is the prefix of the live bookies.
func (l Layout) Bookies() string { return l.prefix + "bookies/live/" }

// Bookie is the key of a live bookie, tied to its session.
func (l Layout) Bookie(id string) string { return l.Bookies() + id }

// BookieIdentities is the prefix of all bookies that ever registered.
func (l Layout) BookieIdentities() string { return l.prefix + "bookies/identity/" }

// BookieIdentity is the key of a bookie's lasting record.
func (l Layout) BookieIdentity(id string) string { return l.BookieIdentities() + id }

// Tenants is the prefix of the tenants.
func (l Layout) Tenants() string { return l.prefix + "tenants/" }

// Tenant is the key of a tenant.
func (l Layout) Tenant(tenant string) string { return l.Tenants() + tenant }

// Namespaces is the prefix of a tenant's namespaces; of all for tenant "".
func (l Layout) Namespaces(tenant string) string {
	if tenant == "" {
		return l.prefix + "namespaces/"
	}
	return l.prefix + "namespaces/" + tenant + "/"
}

// Namespace is the key of a namespace, given as tenant/namespace.
func (l Layout) Namespace(namespace string) string { return l.prefix + "namespaces/" + namespace }

// Topics is the prefix of a namespace's topic partitions.
func (l Layout) Topics(namespace string) string { return l.prefix + "topics/" + namespace + "/" }

// TopicRange is the range of keys of the topics whose hash lies from first to
// last, both included.
func (l Layout) TopicRange(namespace string, first, last uint32) (start, end string) {
	p := l.Topics(namespace)
	// '0' follows '/', so this ends just after the last key of hash last.
	return fmt.Sprintf("%s%08x/", p, first), fmt.Sprintf("%s%08x0", p, last)
}

// Topic is the key of a topic partition, by the hash and local name of it.
func (l Layout) Topic(namespace string, hash uint32, local string) string {
	return fmt.Sprintf("%s%08x/%s", l.Topics(namespace), hash, local)
}

// ParseTopic takes a key under Topics(namespace) apart.
func (l Layout) ParseTopic(namespace, key string) (hash uint32, local string, ok bool) {
	rest, ok := strings.CutPrefix(key, l.Topics(namespace))
	if !ok || len(rest) < 10 || rest[8] != '/' {
		return 0, "", false
	}
	h, ok := number(rest[:8], 8)
	return uint32(h), rest[9:], ok
}

// AllTopics is the prefix of the topic partitions of all namespaces.
func (l Layout) AllTopics() string { return l.prefix + "topics/" }

// ParseAnyTopic takes a key under AllTopics apart.
func (l Layout) ParseAnyTopic(key string) (namespace string, hash uint32, ok bool) {
	rest, ok := strings.CutPrefix(key, l.AllTopics())
	parts := strings.SplitN(rest, "/", 4)
	if !ok || len(parts) != 4 {
		return "", 0, false
	}
	h, ok := number(parts[2], 8)
	return parts[0] + "/" + parts[1], uint32(h), ok
}

// AllPartitionedTopics is the prefix of the partitioned topics of all namespaces.
func (l Layout) AllPartitionedTopics() string { return l.prefix + "partitioned/" }

// ParseAnyPartitionedTopic takes a key under AllPartitionedTopics apart.
func (l Layout) ParseAnyPartitionedTopic(key string) (namespace, local string, ok bool) {
	rest, ok := strings.CutPrefix(key, l.AllPartitionedTopics())
	parts := strings.SplitN(rest, "/", 3)
	if !ok || len(parts) != 3 {
		return "", "", false
	}
	return parts[0] + "/" + parts[1], parts[2], true
}

// PartitionedTopics is the prefix of a namespace's partitioned topics.
func (l Layout) PartitionedTopics(namespace string) string {
	return l.AllPartitionedTopics() + namespace + "/"
}

// PartitionedTopic is the key of a partitioned topic.
func (l Layout) PartitionedTopic(namespace, local string) string {
	return l.PartitionedTopics(namespace) + local
}

// Chain is the prefix of a topic's ledgers.
func (l Layout) Chain(topic uint64) string { return fmt.Sprintf("%schains/%016x/", l.prefix, topic) }

// ChainLink is the key of one ledger in a topic's chain.
func (l Layout) ChainLink(topic uint64, sequence uint64) string {
	return fmt.Sprintf("%s%016x", l.Chain(topic), sequence)
}

// ParseChainLink returns the sequence of a key under Chain(topic).
func (l Layout) ParseChainLink(topic uint64, key string) (uint64, bool) {
	rest, ok := strings.CutPrefix(key, l.Chain(topic))
	if !ok {
		return 0, false
	}
	return number(rest, 16)
}

// Bundles is the prefix of the bundle records of a namespace; of all for "".
func (l Layout) Bundles(namespace string) string {
	if namespace == "" {
		return l.prefix + "bundles/"
	}
	return l.prefix + "bundles/" + namespace + "/"
}

// BundleOwner is the key that names a bundle's owner; bundle is
// tenant/namespace/first-last with the hash range in hex.
func (l Layout) BundleOwner(bundle string) string { return l.prefix + "bundles/" + bundle + "/owner" }

// BundleLog is the key that lists the ledgers of a bundle's log.
func (l Layout) BundleLog(bundle string) string { return l.prefix + "bundles/" + bundle + "/log" }

// ParseBundle takes a key under Bundles("") apart; kind is "owner" or "log".
func (l Layout) ParseBundle(key string) (bundle, kind string, ok bool) {
	rest, ok := strings.CutPrefix(key, l.Bundles(""))
	if !ok {
		return "", "", false
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 {
		return "", "", false
	}
	return rest[:i], rest[i+1:], true
}

// Ledgers is the prefix of all ledgers.
func (l Layout) Ledgers() string { return l.prefix + "ledgers/" }

// Ledger is the key of a ledger's record.
func (l Layout) Ledger(id int64) string { return fmt.Sprintf("%s%016x", l.Ledgers(), uint64(id)) }

// ParseLedger returns the id of a key under Ledgers.
func (l Layout) ParseLedger(key string) (int64, bool) {
	rest, ok := strings.CutPrefix(key, l.Ledgers())
	n, whole := number(rest, 16)
	return int64(n), ok && whole && int64(n) > 0
}

// number reads so many lower-case hex digits, the only way this package writes a
// number: a key in other letters would name the same thing twice.
func number(text string, digits int) (uint64, bool) {
	n, err := strconv.ParseUint(text, 16, 64)
	return n, err == nil && len(text) == digits && text == strings.ToLower(text)
}
