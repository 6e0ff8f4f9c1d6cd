package discovery

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

func marshal(f testing.TB, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// FuzzView shows that whatever stands under the keys of brokers and bundles, a view
// shows of it only brokers with an id and a session, and owners that are such.
func FuzzView(f *testing.F) {
	broker := marshal(f, metav1.Broker_builder{Session: new("s"), Address: new("a:6650"), StartedAtMs: new(int64(7))}.Build())
	owner := marshal(f, metav1.BundleOwner_builder{Broker: new("a"), Session: new("s"), Epoch: new(uint64(2))}.Build())
	f.Add("a", broker, "t/n/00000000-ffffffff/owner", owner)
	f.Add("", []byte{}, "t/n/00000000-ffffffff/owner", []byte{})
	f.Add("a/b", broker[:len(broker)-1], "t/n/00000000-7fffffff/log", owner)
	f.Add("a", broker, "t/n/7fffffff-00000000/owner", owner[:3])
	f.Fuzz(func(t *testing.T, id string, record []byte, key string, owned []byte) {
		v := NewView(ViewOptions{Layout: keys})
		brokers := []meta.KV{{Key: keys.Brokers() + id, Value: record, Revision: 1}}
		bundles := []meta.KV{{Key: keys.Bundles("") + key, Value: owned, Revision: 2}, {Key: keys.BundleLog("t/n/00000000-ffffffff"), Revision: 3}}
		v.hear(feedBrokers, 3, true, func() { v.listBrokers(brokers) })
		v.hear(feedBundles, 3, true, func() { v.listBundles(bundles) })
		for range 2 {
			s := v.Snapshot()
			for id, b := range s.Brokers {
				if id == "" || b.ID != id || b.Session == "" {
					t.Fatalf("broker %q shown as %+v", id, b)
				}
			}
			for name, b := range s.Bundles {
				if b.Bundle.String() != name {
					t.Fatalf("bundle %q shown as %+v", name, b)
				}
				if by, ok := s.OwnerOf(b); ok && (by.ID != b.Owner.Broker || by.Session != b.Owner.Session) {
					t.Fatalf("%+v said to own %+v", by, b)
				}
			}
			_, _ = s.BundleOf("t/n", 5)
			_, _ = s.Successor("t/n/00000000-ffffffff", "b")
			v.hear(feedBrokers, 4, false, func() { v.seeBroker(meta.KV{Key: brokers[0].Key}) }) // it is gone
		}
	})
}

// FuzzAdmin shows that whatever the store holds of bookies, ledgers and chains is
// listed, or refused with the key it stands at.
func FuzzAdmin(f *testing.F) {
	f.Add(marshal(f, metav1.Bookie_builder{Incarnation: new("i"), Address: new("a:1"), ReadOnly: new(true)}.Build()))
	f.Add(marshal(f, metav1.ChainLink_builder{Ledger: new(int64(1)), Closed: new(true)}.Build()))
	md := ledger.Metadata{
		ID: 1, Quorum: ledger.Quorum{Write: 1, Ack: 1}, State: ledger.Open, Term: 1, LastEntry: ledger.NoEntry,
		Fragments: []ledger.Fragment{{Ensemble: []ledger.Member{{Bookie: "b", Incarnation: "i"}}}},
	}
	record, err := md.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, value []byte) {
		store := meta.NewMem()
		defer store.Close()
		var ops []meta.Op
		for _, key := range []string{keys.BookieIdentity("b"), keys.Bookie("b"), keys.Ledger(1), keys.ChainLink(3, 1)} {
			ops = append(ops, meta.Op{Key: key, Value: value})
		}
		if _, err := store.Txn(t.Context(), meta.Txn{Ops: ops}); err != nil {
			t.Fatal(err)
		}
		s := NewAdminService(AdminOptions{Store: store, Layout: keys})
		if r, err := s.ListBookies(t.Context(), nil); err == nil && len(r.GetBookies()) != 1 {
			t.Fatalf("%d bookies listed", len(r.GetBookies()))
		}
		chain, err := s.chain(t.Context(), catalog.Topic{ID: 3, Created: time.Unix(1, 0)})
		if err != nil && !errors.Is(err, ledger.ErrCorrupt) || err == nil && len(chain) != 1 {
			t.Fatalf("%v, %v", chain, err)
		}
		r, err := s.ListLedgers(t.Context(), &adminv1.ListLedgersRequest{})
		if err != nil && !errors.Is(err, ledger.ErrCorrupt) || err == nil && len(r.GetLedgers()) > 1 {
			t.Fatalf("%v, %v", r, err)
		}
	})
}
