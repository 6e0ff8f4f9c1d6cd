package metaserver_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/metatest"
	"github.com/magnetar-io/magnetar/discovery/metaserver"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// The store of a server in this process, which no connection leads to, keeps
// the contract as far as no connection is troubled.
func TestInProcessContract(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	server := start(t, metaserver.Options{Dir: filepath.Join(dir, "data"), ClientAddress: "unix:" + filepath.Join(dir, "etcd")})
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{server.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	runContract(t, metatest.Harness{
		Compact: func(t *testing.T) { compact(t, admin) },
		Expire:  func(t *testing.T, session string) { expire(t, admin, session) },
		TTL:     time.Second,
		Open: func(t *testing.T) metatest.Client {
			s := server.Store()
			t.Cleanup(func() { s.Close() })
			return metatest.Client{Store: s}
		},
	})
}

// A server that nobody can reach from outside starts in time for the budget of
// a standalone node, and what it stored is there when it starts again.
func TestStartsFastAndKeepsItsData(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		begin := time.Now()
		server, err := metaserver.Start(metaserver.Options{Dir: dir, WALSegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := server.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		s := server.Store()
		kvs, _, err := s.Range(ctx, "/", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		ready := time.Since(begin)
		t.Logf("start %d: first answer after %v", i, ready)
		if ready > 2*time.Second {
			t.Errorf("start %d took %v", i, ready)
		}
		if len(kvs) != i {
			t.Errorf("start %d: %d keys", i, len(kvs))
		}
		if _, err := s.Txn(ctx, meta.Txn{Ops: []meta.Op{{Key: fmt.Sprintf("/%d", i)}}}); err != nil {
			t.Fatal(err)
		}
		if server.Endpoint() != "" {
			t.Errorf("endpoint %q", server.Endpoint())
		}
		s.Close()
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
}

// A data directory in use, a place where none can be, and a taken address are
// refused at once, each naming what is wrong.
func TestStartRefuses(t *testing.T) {
	dir := t.TempDir()
	start(t, metaserver.Options{Dir: dir})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		name  string
		o     metaserver.Options
		is    error
		names string
	}{
		{"in use", metaserver.Options{Dir: dir}, vfs.ErrLocked, dir},
		{"a file", metaserver.Options{Dir: file}, metaserver.ErrDataDir, file},
		{"taken", metaserver.Options{Dir: t.TempDir(), ClientAddress: l.Addr().String()}, nil, l.Addr().String()},
		{"no folder", metaserver.Options{}, nil, "data directory"},
		{"name for an address", metaserver.Options{Dir: t.TempDir(), ClientAddress: "example.org:1"}, nil, "example.org"},
		{"long socket", metaserver.Options{Dir: t.TempDir(), ClientAddress: "unix:/" + strings.Repeat("x", 200)}, nil, "socket path"},
		{"not a peer", metaserver.Options{Dir: t.TempDir(), Name: "c", ClientAddress: "127.0.0.1:1", PeerAddress: "127.0.0.1:2", Peers: map[string]string{"a": "x"}}, nil, "among the peers"},
	} {
		s, err := metaserver.Start(c.o)
		if err == nil {
			s.Close()
			t.Errorf("%s: started", c.name)
			continue
		}
		if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Three servers form a cluster, which goes on without one of them and answers
// nothing without two.
func TestCluster(t *testing.T) {
	t.Parallel()
	peers := make(map[string]string)
	options := make(map[string]metaserver.Options)
	for _, name := range []string{"a", "b", "c"} {
		peers[name] = freeAddress(t)
	}
	var endpoints []string
	for name, peer := range peers {
		address := freeAddress(t)
		endpoints = append(endpoints, address)
		options[name] = metaserver.Options{
			Dir: t.TempDir(), Name: name, ClientAddress: address, PeerAddress: peer, Peers: peers,
			NoFsync: true, WALSegmentBytes: 1 << 20,
		}
	}
	servers := make(map[string]*metaserver.Server)
	for name, o := range options {
		s, err := metaserver.Start(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		servers[name] = s
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, s := range servers {
		if err := s.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	s, err := meta.DialEtcd(ctx, meta.EtcdOptions{Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	txn := meta.Txn{Ops: []meta.Op{{Key: "/k"}}}
	servers["a"].Close()
	for {
		if _, err := s.Txn(ctx, txn); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatalf("with two of three: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	servers["b"].Close()
	one, cancelOne := context.WithTimeout(ctx, 2*time.Second)
	defer cancelOne()
	if _, err := s.Txn(one, txn); !errors.Is(err, meta.ErrUncertain) && !errors.Is(err, meta.ErrUnavailable) {
		t.Fatalf("with one of three: %v", err)
	}
	if _, err := s.Get(one, "/k"); !errors.Is(err, meta.ErrUnavailable) {
		t.Fatalf("with one of three: %v", err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A store that is full refuses puts as such, and still answers and deletes.
func TestNoSpace(t *testing.T) {
	s := start(t, metaserver.Options{Dir: t.TempDir(), QuotaBytes: 1 << 20}).Store()
	defer s.Close()
	big := make([]byte, 256<<10)
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, err = s.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: fmt.Sprintf("/%d", i), Value: big}}})
	}
	if !errors.Is(err, meta.ErrNoSpace) {
		t.Fatalf("put into a full store: %v", err)
	}
	if kv, err := s.Get(t.Context(), "/0"); err != nil || !kv.Exists() {
		t.Fatalf("read from a full store: %v", err)
	}
	if r, err := s.Txn(t.Context(), meta.Txn{Ops: []meta.Op{{Key: "/0", Delete: true}}}); err != nil || !r.Done {
		t.Fatalf("delete from a full store: %v", err)
	}
}

// A store that is not there is reported with its address when the caller's time
// is over.
func TestDialNobody(t *testing.T) {
	address := freeAddress(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := meta.DialEtcd(ctx, meta.EtcdOptions{Endpoints: []string{address}})
	if !errors.Is(err, meta.ErrUnavailable) || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("dial: %v", err)
	}
}
