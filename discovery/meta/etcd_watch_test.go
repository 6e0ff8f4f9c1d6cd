package meta

import (
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// What a stream repeats after it was opened anew is not given twice; progress of
// a server that lags behind is none; a batch is complete up to its last event,
// not up to where the store stands.
func TestEtcdBatches(t *testing.T) {
	events := func(revisions ...int64) (out []*clientv3.Event) {
		for _, r := range revisions {
			out = append(out, &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: r, CreateRevision: 1}})
		}
		return out
	}
	for _, c := range []struct {
		name   string
		header int64
		events []*clientv3.Event
		want   Revision // 0: nothing is given
		given  int
	}{
		{"new", 20, events(11, 12), 12, 2},
		{"partly seen", 20, events(9, 10, 11), 11, 1},
		{"all seen", 20, events(9, 10), 0, 0},
		{"progress", 15, nil, 15, 0},
		{"no progress yet", 10, nil, 10, 0},
		{"server lags behind", 9, nil, 0, 0},
	} {
		w := &etcdWatcher{at: 10}
		b, ok := w.batch(clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: c.header}, Events: c.events})
		if ok != (c.want != 0) || ok && (b.Revision != c.want || len(b.Events) != c.given) {
			t.Errorf("%s: %+v, %v", c.name, b, ok)
		}
	}
}
