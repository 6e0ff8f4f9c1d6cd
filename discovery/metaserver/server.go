// Package metaserver runs an etcd server inside this process, for those who
// have none: alone and tuned for it, or as a member of a real cluster. It is
// alone in importing the server.
package metaserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Server is an etcd in this process. Safe for concurrent use.
type Server struct {
	etcd  *embed.Etcd
	log   hclog.Logger
	quiet *bridge
	lock  io.Closer

	ready   chan struct{}
	stopped chan struct{}
	watch   sync.WaitGroup
	closing sync.Once
}

// ErrDataDir reports a data directory that cannot be used: not writable, in use
// by another process, or of another version.
var ErrDataDir = errors.New("metaserver: data directory cannot be used")

// Start opens the data directory, listens and starts serving. It returns before
// the server is ready; see Ready.
func Start(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	log := o.Log
	if log == nil {
		log = hclog.NewNullLogger()
	}
	fs := vfs.OS()
	if err := fs.MkdirAll(o.Dir); err != nil {
		return nil, fmt.Errorf("%w: make %s: %w; pass another with --data-dir", ErrDataDir, o.Dir, err)
	}
	lock, err := fs.Lock(filepath.Join(o.Dir, "LOCK"))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w: %s is in use by another process; stop that one, or pass another with --data-dir: %w", ErrDataDir, o.Dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: lock %s: %w; check its owner and mode, or pass another with --data-dir", ErrDataDir, o.Dir, err)
	}
	s := &Server{log: log, lock: lock, ready: make(chan struct{}), stopped: make(chan struct{})}
	cfg, quiet := o.config(log)
	s.quiet = quiet
	setSegmentBytes(o.walSegmentBytes())
	s.etcd, err = embed.StartEtcd(cfg)
	if err != nil {
		lock.Close()
		var taken *net.OpError
		if errors.As(err, &taken) {
			return nil, fmt.Errorf("metaserver: listen on %s: %w", o.ClientAddress, err)
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrDataDir, o.Dir, err)
	}
	s.watch.Go(s.waitReady)
	return s, nil
}

// waitReady closes ready once the member is part of its cluster.
func (s *Server) waitReady() {
	select {
	case <-s.etcd.Server.ReadyNotify():
		close(s.ready)
		s.log.Info("metadata server is ready", "dir", s.etcd.Config().Dir)
	case <-s.stopped:
	}
}

// Ready is closed once the server answers. It stays open as long as a member of
// a cluster finds no majority.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Failed is closed when the server stopped by itself.
func (s *Server) Failed() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Wait returns nil once the server is ready, or why it will not be.
func (s *Server) Wait(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.Failed():
		return errors.New("metaserver: server stopped before it was ready")
	case <-s.stopped:
		return errors.New("metaserver: closed before it was ready")
	case <-ctx.Done():
		return fmt.Errorf("metaserver: not ready yet, has the cluster a majority? %w", ctx.Err())
	}
}

// Store returns a client that calls the server without a connection. The caller
// closes it before the server.
func (s *Server) Store() *meta.Etcd {
	return meta.NewEtcd(v3client.New(s.etcd.Server), s.log)
}

// Endpoint is what a client in another process dials; "" when none can.
func (s *Server) Endpoint() string {
	if len(s.etcd.Clients) == 0 {
		return ""
	}
	a := s.etcd.Clients[0].Addr()
	if a.Network() == "unix" {
		return "unix:" + a.String()
	}
	return a.String()
}

// Close stops serving and releases the data directory.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.quiet.closing.Store(true)
		close(s.stopped)
		s.watch.Wait()
		// Nothing is decided any more before connections are closed. Close alone waits
		// up to seven seconds for watches to end, refusing renewals meanwhile: leases
		// run out, and those who watch see every broker and bookie go.
		s.etcd.Server.Stop()
		s.etcd.Close()
		for range s.etcd.Err() { // closed once all of it has ended
		}
		s.lock.Close()
	})
	return nil
}

// segment guards the one size of log segments that a process has.
var segment sync.Once

// setSegmentBytes sets the size for the whole process; the first call counts,
// because running servers read it.
func setSegmentBytes(n int64) { segment.Do(func() { wal.SegmentSizeBytes = n }) }

// clientURL turns host:port or unix:path into etcd's form.
func clientURL(address string) (url.URL, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if len(path) > maxUnixPath {
			return url.URL{}, fmt.Errorf("metaserver: socket path %s has %d bytes, at most %d", path, len(path), maxUnixPath)
		}
		if !filepath.IsAbs(path) {
			return url.URL{}, fmt.Errorf("metaserver: socket path %s is not absolute", path)
		}
		return url.URL{Scheme: "unix", Path: path}, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return url.URL{}, fmt.Errorf("metaserver: address %q: %w", address, err)
	}
	if net.ParseIP(host) == nil && host != "localhost" {
		return url.URL{}, fmt.Errorf("metaserver: listen address %q: want an IP address", address)
	}
	return url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}, nil
}

// maxUnixPath is what a socket address holds on Linux, its closing zero left out.
const maxUnixPath = 107

const (
	localTick     = 10 * time.Millisecond
	localElection = 100 * time.Millisecond
)
