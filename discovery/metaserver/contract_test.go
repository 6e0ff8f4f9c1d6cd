package metaserver_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/metatest"
	"github.com/magnetar-io/magnetar/discovery/metaserver"
)

// etcd leaves the connections between members to their idle timeout.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("net/http.(*conn).serve"),
		goleak.IgnoreAnyFunction("net/http.(*connReader).backgroundRead"),
	)
}

// socketDir returns a folder whose path is short enough for sockets.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "meta")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, o metaserver.Options) *metaserver.Server {
	t.Helper()
	o.NoFsync = true
	o.WALSegmentBytes = 1 << 20
	s, err := metaserver.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// proxy stands between a client and the server and gets in the way.
type proxy struct {
	server string
	l      net.Listener
	cut    atomic.Bool // refuse, and break what is connected
	lose   atomic.Bool // pass on what is asked, drop what is answered

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

func newProxy(t *testing.T, path, server string) *proxy {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{server: server, l: l, conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		p.cut.Store(true)
		l.Close()
		p.breakAll()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("unix", p.server)
		if err != nil || !p.keep(c, s) {
			c.Close()
			if s != nil {
				s.Close()
			}
			continue
		}
		p.wg.Go(func() { io.Copy(s, c); s.Close() })
		p.wg.Go(func() { p.answers(c, s) })
	}
}

// keep remembers a pair unless the proxy is cut.
func (p *proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut.Load() {
		return false
	}
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return true
}

func (p *proxy) answers(c, s net.Conn) {
	defer c.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		if p.lose.Load() {
			continue
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) breakAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

func (p *proxy) setCut(on bool) {
	p.cut.Store(on)
	p.breakAll()
}

func (p *proxy) setLose(on bool) {
	p.lose.Store(on)
	if !on {
		p.breakAll() // a connection that lost bytes is of no use
	}
}

// etcd keeps the contract, over a connection as other processes have one.
func TestEtcdContract(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	server := filepath.Join(dir, "etcd")
	start(t, metaserver.Options{Dir: filepath.Join(dir, "data"), ClientAddress: "unix:" + server})
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix:" + server}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	var sockets atomic.Int64
	runContract(t, metatest.Harness{
		Compact: func(t *testing.T) { compact(t, admin) },
		Expire:  func(t *testing.T, session string) { expire(t, admin, session) },
		TTL:     time.Second,
		Open: func(t *testing.T) metatest.Client {
			path := filepath.Join(dir, strconv.FormatInt(sockets.Add(1), 10))
			p := newProxy(t, path, server)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			s, err := meta.DialEtcd(ctx, meta.EtcdOptions{Endpoints: []string{"unix:" + path}, Log: testLog()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return metatest.Client{Store: s, LoseAnswers: p.setLose, Cut: p.setCut}
		},
	})
}

func runContract(t *testing.T, h metatest.Harness) {
	t.Helper()
	for _, c := range metatest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			if !c.Alone {
				t.Parallel()
			}
			h := h
			h.Prefix = "/" + c.Name + "/"
			c.Run(t, h)
		})
	}
}

func compact(t *testing.T, admin *clientv3.Client) {
	t.Helper()
	r, err := admin.Get(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Compact(t.Context(), r.Header.Revision); err != nil {
		t.Fatal(err)
	}
}

func expire(t *testing.T, admin *clientv3.Client, session string) {
	t.Helper()
	lease, err := strconv.ParseInt(session, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Revoke(t.Context(), clientv3.LeaseID(lease)); err != nil {
		t.Fatal(err)
	}
}

func testLog() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr})
}
