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

// Servers are the servers of one process. Make them with New, register services
// on GRPC, then Start; Stop ends them.
type Servers struct {
	GRPC     *grpc.Server
	Health   *health.State
	Registry *prometheus.Registry

	log    hclog.Logger
	mounts []mount
	http   []*http.Server
	done   chan struct{} // gets one element per server that ended
	want   int
}

// mount is a handler that the HTTP server serves beside health and metrics.
type mount struct {
	pattern string
	handler http.Handler
}

// New makes the servers of a process that is ready once the named conditions
// hold.
func New(log hclog.Logger, options []grpc.ServerOption, conditions ...string) *Servers {
	s := &Servers{
		GRPC:     grpc.NewServer(options...),
		Health:   health.New(conditions...),
		Registry: newRegistry(),
		log:      log,
	}
	healthpb.RegisterHealthServer(s.GRPC, s.Health.GRPC())
	reflection.Register(s.GRPC)
	return s
}

// newRegistry returns a registry with the figures of the runtime and the process.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// HandleHTTP adds a handler to the HTTP server, under a pattern of http.ServeMux.
// Call it before Start.
func (s *Servers) HandleHTTP(pattern string, h http.Handler) {
	s.mounts = append(s.mounts, mount{pattern, h})
}

// Start serves on the listeners, which Stop closes; web and debug may be nil.
// All services must be registered before.
func (s *Servers) Start(grpcListener, web, debug net.Listener) {
	s.done = make(chan struct{}, 3)
	s.serve("gRPC", func() error { return s.GRPC.Serve(grpcListener) })
	s.startHTTP(web, debug)
}

// ServeHTTP is Start and its end for a process without a gRPC server of ours:
// health, and pprof if debug is not nil. Close ends it.
func ServeHTTP(log hclog.Logger, state *health.State, web, debug net.Listener) io.Closer {
	s := &Servers{Health: state, Registry: newRegistry(), log: log, done: make(chan struct{}, 2)}
	s.startHTTP(web, debug)
	return closer(s.stopHTTP)
}

type closer func()

func (c closer) Close() error {
	c()
	return nil
}

func (s *Servers) startHTTP(web, debug net.Listener) {
	if web != nil {
		mux := s.Health.Handler(s.Registry)
		for _, m := range s.mounts {
			mux.Handle(m.pattern, m.handler)
		}
		s.serveHTTP("HTTP", web, mux)
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
// they are cut. Nothing that Start started is alive afterwards.
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
