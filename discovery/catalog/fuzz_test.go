package catalog

import (
	"errors"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// FuzzRecords shows that no value in the metadata store makes the reader of a
// record do anything but refuse it as corrupt, or use it without a panic.
func FuzzRecords(f *testing.F) {
	name, err := topicname.Parse("t/n/orders")
	if err != nil {
		f.Fatal(err)
	}
	c := &Catalog{layout: layout.New("magnetar")}
	f.Add(encodeMap(Map{Topic: name, Created: time.Unix(1, 0), Partitions: []Partition{
		{Number: 0, Keys: bundle.Range{Last: 1 << 31}}, {Number: 1, Keys: bundle.Range{First: 1<<31 + 1, Last: 1<<32 - 1}},
	}}))
	f.Add(encodeTopic(Topic{Name: name, ID: 9, Created: time.Unix(1, 0), Epoch: 2}))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, value []byte) {
		kv := meta.KV{Key: "k", Value: value, Revision: 1}
		check := func(err error) bool {
			if err != nil && !errors.Is(err, ledger.ErrCorrupt) {
				t.Fatal(err)
			}
			return err == nil
		}
		if m, err := decodeMap(name, kv); check(err) {
			m.Route(7)
			if _, err := decodeMap(name, meta.KV{Value: encodeMap(m)}); err != nil {
				t.Fatal(err)
			}
			for _, p := range m.Partitions {
				_ = m.Name(p).String()
			}
		}
		_, err := c.decodeNamespace(kv)
		check(err)
		_, err = c.decodeTopic(name, kv)
		check(err)
		_, err = DecodeOwner(kv)
		check(err)
		_, err = decodeLog(kv)
		check(err)
		check(decode(kv, new(metav1.Cluster)))
		check(decode(kv, new(metav1.Tenant)))
	})
}
