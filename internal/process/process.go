// Package process is what every role has around it: a gRPC server with health
// and reflection, an HTTP server with health and metrics, pprof on loopback,
// and an orderly end.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/magnetar-io/magnetar/internal/health"
)

// Servers are the servers of one process. Make them with New and StartHTTP, so
// that health tells how the start goes; register services on GRPC, then
// StartGRPC. Stop ends them. One goroutine makes all these calls.
type Servers struct {
	GRPC     *grpc.Server
	Health   *health.State
	Registry *prometheus.Registry

	log  hclog.Logger
	mux  *http.ServeMux
	http []*http.Server
	done chan struct{} // gets one element per server that ended
	want int
}

// maxServers is how many servers a process has: gRPC, HTTP and pprof.
const maxServers = 3

// New makes the servers of a process that is ready once the named conditions
// hold.
func New(log hclog.Logger, options []grpc.ServerOption, conditions ...string) *Servers {
	s := newServers(log, health.New(conditions...))
	s.GRPC = grpc.NewServer(options...)
	healthpb.RegisterHealthServer(s.GRPC, s.Health.GRPC())
	reflection.Register(s.GRPC)
	return s
}

func newServers(log hclog.Logger, state *health.State) *Servers {
	r := newRegistry()
	return &Servers{Health: state, Registry: r, log: log, mux: state.Handler(r), done: make(chan struct{}, maxServers)}
}

// newRegistry returns a registry with the figures of the runtime and the process.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// HandleHTTP adds a handler to the HTTP server, under a pattern of http.ServeMux;
// also while it serves.
func (s *Servers) HandleHTTP(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// StartHTTP serves health and metrics on web, and pprof on debug; each may be nil.
// Stop closes them.
func (s *Servers) StartHTTP(web, debug net.Listener) {
	if web != nil {
		s.serveHTTP("HTTP", web, s.mux)
	}
	if debug != nil {
		mux := http.NewServeMux()
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
		s.serveHTTP("pprof", debug, mux)
	}
}

// StartGRPC serves on l, which Stop closes. All services must be registered before.
func (s *Servers) StartGRPC(l net.Listener) {
	s.serve("gRPC", func() error { return s.GRPC.Serve(l) })
}

// ServeHTTP is StartHTTP and its end for a process without a gRPC server of ours.
// Close ends it.
func ServeHTTP(log hclog.Logger, state *health.State, web, debug net.Listener) io.Closer {
	s := newServers(log, state)
	s.StartHTTP(web, debug)
	return closer(s.stopHTTP)
}

type closer func()

func (c closer) Close() error {
	c()
	return nil
}

func (s *Servers) serveHTTP(name string, l net.Listener, h http.Handler) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second}
	s.http = append(s.http, server)
	s.serve(name, func() error { return server.Serve(l) })
}

func (s *Servers) serve(name string, run func() error) {
	s.want++
	go func() {
		defer func() { s.done <- struct{}{} }()
		if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
			s.log.Error("server ended", "server", name, "error", err)
		}
	}()
}

// Stop ends the servers: streams have until ctx ends to end by themselves, then
// they are cut. Nothing that was started is alive afterwards.
func (s *Servers) Stop(ctx context.Context) {
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.GRPC.GracefulStop()
	}()
	select {
	case <-graceful:
	case <-ctx.Done():
		s.GRPC.Stop()
		<-graceful
	}
	s.stopHTTP()
}

func (s *Servers) stopHTTP() {
	for _, h := range s.http {
		_ = h.Close() // scrapes may be cut
	}
	for ; s.want > 0; s.want-- {
		<-s.done
	}
}

// DebugListener opens port on loopback for pprof; nil for port 0.
func DebugListener(port int) (net.Listener, error) {
	if port == 0 {
		return nil, nil
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen for pprof: %w; choose another with --debug-port", err)
	}
	return l, nil
}
