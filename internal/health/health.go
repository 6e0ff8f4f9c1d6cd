// Package health says over HTTP and gRPC whether a process lives and is ready,
// and why not.
//
// A process declares its conditions ("metadata", "journal", …); it is ready
// while all of them hold. A condition that it needed to start, and goes on working
// without, is tolerated when it fails later: it is shown as it is, and the process
// stays ready. Live means that it answers at all.
package health

import (
	"encoding/json"
	"net/http"
	"sort"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// State of a process. Safe for concurrent use. Make one with New.
type State struct {
	grpc *grpchealth.Server

	mu         sync.Mutex
	conditions map[string]state
}

// state of a condition.
type state struct {
	wrong     string // "": it holds
	tolerated bool   // the process works without it
}

func (s state) hinders() bool { return s.wrong != "" && !s.tolerated }

// Condition is one thing that must hold for the process to be ready.
type Condition struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
	// Tolerated: it does not hold, and the process is ready without it.
	Tolerated bool `json:"tolerated,omitempty"`
}

// Report is what /healthz/ready answers.
type Report struct {
	Ready      bool        `json:"ready"`
	Conditions []Condition `json:"conditions"`
}

// New returns a State that is not ready until each of the named conditions was
// set to hold.
func New(conditions ...string) *State {
	s := &State{grpc: grpchealth.NewServer(), conditions: map[string]state{}}
	for _, c := range conditions {
		s.conditions[c] = state{wrong: "starting"}
	}
	s.grpc.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	return s
}

// Set says what is wrong with a condition; "" means that it holds.
func (s *State) Set(condition, wrong string) { s.set(condition, state{wrong: wrong}) }

// Tolerate is Set for a condition that the process works without.
func (s *State) Tolerate(condition, wrong string) {
	s.set(condition, state{wrong: wrong, tolerated: wrong != ""})
}

func (s *State) set(condition string, now state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conditions[condition] = now
	status := healthpb.HealthCheckResponse_SERVING
	for _, c := range s.conditions {
		if c.hinders() {
			status = healthpb.HealthCheckResponse_NOT_SERVING
		}
	}
	s.grpc.SetServingStatus("", status)
}

// Report returns the conditions by name.
func (s *State) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Report{Ready: true, Conditions: []Condition{}}
	for name, c := range s.conditions {
		r.Conditions = append(r.Conditions, Condition{Name: name, OK: c.wrong == "", Reason: c.wrong, Tolerated: c.tolerated})
		r.Ready = r.Ready && !c.hinders()
	}
	sort.Slice(r.Conditions, func(i, j int) bool { return r.Conditions[i].Name < r.Conditions[j].Name })
	return r
}

// GRPC is the standard gRPC health service, kept in step.
func (s *State) GRPC() healthpb.HealthServer { return s.grpc }

// Handler serves /healthz/live, /healthz/ready and, from gatherer, /metrics. Other
// paths are not found once the process is ready; before that it answers for them
// that it is not, for handlers may be added yet.
func (s *State) Handler(gatherer prometheus.Gatherer) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]bool{"live": true})
	})
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		r := s.Report()
		code := http.StatusOK
		if !r.Ready {
			code = http.StatusServiceUnavailable
		}
		reply(w, code, r)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if report := s.Report(); !report.Ready {
			reply(w, http.StatusServiceUnavailable, report)
			return
		}
		http.NotFound(w, r)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
	return mux
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// The client may be gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(v)
}
