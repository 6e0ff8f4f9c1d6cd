package layout

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is put into a key comes out again, and keys of different kinds are
// never taken for one another.
func TestKeysAreReadBack(t *testing.T) {
	name := rapid.StringMatching(`[A-Za-z0-9._=:%~+@$-]{1,20}`)
	rapid.Check(t, func(t *rapid.T) {
		l := New(name.Draw(t, "cluster"))
		namespace := name.Draw(t, "tenant") + "/" + name.Draw(t, "namespace")
		hash, local := rapid.Uint32().Draw(t, "hash"), name.Draw(t, "local")
		if h, n, ok := l.ParseTopic(namespace, l.Topic(namespace, hash, local)); !ok || h != hash || n != local {
			t.Fatalf("topic read back as %08x %q, %v", h, n, ok)
		}
		if ns, h, ok := l.ParseAnyTopic(l.Topic(namespace, hash, local)); !ok || ns != namespace || h != hash {
			t.Fatalf("topic of any namespace read back as %q %08x, %v", ns, h, ok)
		}
		if ns, n, ok := l.ParseAnyPartitionedTopic(l.PartitionedTopic(namespace, local)); !ok || ns != namespace || n != local {
			t.Fatalf("partitioned topic of any namespace read back as %q %q, %v", ns, n, ok)
		}
		topic, sequence := rapid.Uint64().Draw(t, "topic"), rapid.Uint64().Draw(t, "sequence")
		if s, ok := l.ParseChainLink(topic, l.ChainLink(topic, sequence)); !ok || s != sequence {
			t.Fatalf("chain link read back as %d, %v", s, ok)
		}
		id := rapid.Int64Min(1).Draw(t, "ledger")
		if i, ok := l.ParseLedger(l.Ledger(id)); !ok || i != id {
			t.Fatalf("ledger read back as %d, %v", i, ok)
		}
		bundle := namespace + "/00000000-07ffffff"
		for kind, key := range map[string]string{"owner": l.BundleOwner(bundle), "log": l.BundleLog(bundle)} {
			if b, k, ok := l.ParseBundle(key); !ok || b != bundle || k != kind || !strings.HasPrefix(key, l.Bundles(namespace)) {
				t.Fatalf("bundle read back as %q %q, %v", b, k, ok)
			}
		}
		for _, key := range []string{l.Cluster(), l.IDs(), l.Broker(local), l.Bookie(local), l.BookieIdentity(local), l.Tenant(local), l.PartitionedTopic(namespace, local)} {
			if _, _, ok := l.ParseTopic(namespace, key); ok {
				t.Fatalf("%s read as a topic", key)
			}
			if _, ok := l.ParseLedger(key); ok {
				t.Fatalf("%s read as a ledger", key)
			}
			if !strings.HasPrefix(key, l.Prefix()) {
				t.Fatalf("%s is outside the cluster", key)
			}
		}
	})
}

// The range of a bundle's topics holds exactly the topics whose hash lies in it,
// the last hash of all included (M3: a bundle is a key range).
func TestRuleM3_BundleIsAKeyRange(t *testing.T) {
	l := New("c")
	rapid.Check(t, func(t *rapid.T) {
		edge := rapid.OneOf(rapid.Uint32(), rapid.SampledFrom([]uint32{0, 1, 0x0fffffff, 0x10000000, math.MaxUint32 - 1, math.MaxUint32}))
		first, last := edge.Draw(t, "first"), edge.Draw(t, "last")
		first, last = min(first, last), max(first, last)
		hash := rapid.OneOf(edge, rapid.SampledFrom([]uint32{first, last, first - 1, last + 1})).Draw(t, "hash")
		key := l.Topic("t/n", hash, rapid.SampledFrom([]string{"a", "~~~", "0", "-"}).Draw(t, "local"))
		start, end := l.TopicRange("t/n", first, last)
		if got, want := start <= key && key < end, first <= hash && hash <= last; got != want {
			t.Fatalf("hash %08x in %08x to %08x: key in range %v", hash, first, last, got)
		}
	})
}
