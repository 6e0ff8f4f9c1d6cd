package layout

import "testing"

// FuzzKeys shows that a key is read as something only where it is the very key of
// that: two keys never name one thing.
func FuzzKeys(f *testing.F) {
	l := New("c")
	for _, key := range []string{
		l.Topic("t/n", 0xab, "orders"), l.Topic("t/n", 0xab, "a/b"), l.PartitionedTopic("t/n", "orders"), l.ChainLink(3, 0xabc),
		l.BundleOwner("t/n/00000000-07ffffff"), l.BundleLog("t"), l.Ledger(0xabc),
		l.Ledgers() + "0000000000000ABC", l.Ledgers() + "8000000000000000", l.Topics("t/n") + "000000AB/x", l.Chain(3) + "+00000000000000a",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if hash, local, ok := l.ParseTopic("t/n", key); ok && l.Topic("t/n", hash, local) != key {
			t.Errorf("%q read as topic %08x %q", key, hash, local)
		}
		_, _, _ = l.ParseAnyTopic(key)
		if namespace, local, ok := l.ParseAnyPartitionedTopic(key); ok && l.PartitionedTopic(namespace, local) != key {
			t.Errorf("%q read as partitioned topic %q of %q", key, local, namespace)
		}
		if sequence, ok := l.ParseChainLink(3, key); ok && l.ChainLink(3, sequence) != key {
			t.Errorf("%q read as link %d", key, sequence)
		}
		if bundle, kind, ok := l.ParseBundle(key); ok && l.Bundles("")+bundle+"/"+kind != key {
			t.Errorf("%q read as %s of bundle %q", key, kind, bundle)
		}
		if id, ok := l.ParseLedger(key); ok && (id < 1 || l.Ledger(id) != key) {
			t.Errorf("%q read as ledger %d", key, id)
		}
	})
}
