// Package httpadmin serves the administration services as JSON over HTTP, for
// scripts and people without a gRPC client. It decides nothing itself: each
// route makes one request of a service that gRPC serves too.
//
//	GET               /api/v1/cluster, /brokers, /bookies, /tenants
//	POST, DELETE      /api/v1/tenants/{tenant}
//	GET               /api/v1/namespaces?tenant=
//	GET, POST, DELETE /api/v1/namespaces/{tenant}/{namespace}
//	GET               /api/v1/bundles?namespace=
//	GET               /api/v1/topics/{tenant}/{namespace}
//	GET, POST, DELETE /api/v1/topic/{tenant}/{namespace}/{topic}
//	GET               /api/v1/topic/{tenant}/{namespace}/{topic}/stats
//	GET               /api/v1/ledgers?topic=&after=&limit=
//	GET               /api/v1/ledgers/{id}
//
// Bodies are the proto3 JSON of the messages of proto/admin/v1, lowerCamel. The
// body of POST may be empty: that asks for the defaults. An error is an object
// {"error", "reason", "code"}: what happened, the reason as on gRPC, and the
// gRPC code. GET changes nothing, whatever its body.
package httpadmin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/rpcerr"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// Pattern is where New's handler is mounted.
const Pattern = "/api/v1/"

const (
	maxBodyBytes = 64 << 10
	// requestTime bounds what one request waits for.
	requestTime = 30 * time.Second
)

// Services are what the routes ask. Topics is nil in a process that owns none.
type Services struct {
	Admin     adminv1.AdminServer
	Discovery discoveryv1.DiscoveryServer
	Topics    adminv1.TopicAdminServer
}

// New returns a handler for everything under Pattern. What a browser sends from
// another site's page is refused, unless it changes nothing.
func New(s Services) http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range s.routes() {
		mux.Handle(pattern, h)
	}
	guard := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := guard.Check(r); err != nil {
			reject(w, http.StatusForbidden, codes.PermissionDenied, "CROSS_ORIGIN", err.Error())
			return
		}
		if h, pattern := mux.Handler(r); pattern == "" {
			noRoute(w, r, h)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// noRoute answers what no route serves; h is the mux's own answer, in which it
// says which methods there are.
func noRoute(w http.ResponseWriter, r *http.Request, h http.Handler) {
	mute := &muted{header: w.Header()}
	h.ServeHTTP(mute, r)
	if mute.code == http.StatusMethodNotAllowed {
		reject(w, mute.code, codes.Unimplemented, "METHOD", fmt.Sprintf("%s is not served with method %s, only with %s", r.URL.Path, r.Method, w.Header().Get("Allow")))
		return
	}
	reject(w, http.StatusNotFound, codes.NotFound, "NO_ROUTE", fmt.Sprintf("nothing is served at %s", r.URL.Path))
}

// muted is a ResponseWriter that keeps the headers and the code, and drops the body.
type muted struct {
	header http.Header
	code   int
}

func (m *muted) Header() http.Header         { return m.header }
func (m *muted) WriteHeader(code int)        { m.code = code }
func (m *muted) Write(b []byte) (int, error) { return len(b), nil }

// route serves one method of a service: request reads what is asked out of the
// HTTP request, call asks it.
func route[Req, Resp proto.Message](call func(context.Context, Req) (Resp, error), request func(*http.Request) (Req, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTime)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		req, err := request(r)
		if err != nil {
			fail(w, err)
			return
		}
		resp, err := call(ctx, req)
		if err != nil {
			fail(w, err)
			return
		}
		text, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(resp)
		if err != nil {
			fail(w, fmt.Errorf("answer to %s %s: %w", r.Method, r.URL.Path, err))
			return
		}
		write(w, http.StatusOK, text)
	})
}

// body reads the JSON in a request's body into m; an empty one leaves m as it is.
func body(r *http.Request, m proto.Message) error {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Errorf("request body: %w", err)
	}
	if len(text) == 0 {
		return nil
	}
	if err := protojson.Unmarshal(text, m); err != nil {
		return fmt.Errorf("request body: %w: %w", err, rpcerr.ErrInvalid)
	}
	return nil
}

// number reads a whole number of at least 0; "" is 0.
func number(what, text string, bits int) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, bits)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s %q: want a whole number of at least 0: %w", what, text, rpcerr.ErrInvalid)
	}
	return n, nil
}

// statusOf is the HTTP status of a gRPC code.
var statusOf = map[codes.Code]int{
	codes.Canceled:           499, // the client went away; nobody reads it
	codes.InvalidArgument:    http.StatusBadRequest,
	codes.FailedPrecondition: http.StatusBadRequest,
	codes.OutOfRange:         http.StatusBadRequest,
	codes.DeadlineExceeded:   http.StatusGatewayTimeout,
	codes.NotFound:           http.StatusNotFound,
	codes.AlreadyExists:      http.StatusConflict,
	codes.Aborted:            http.StatusConflict,
	codes.PermissionDenied:   http.StatusForbidden,
	codes.Unauthenticated:    http.StatusUnauthorized,
	codes.ResourceExhausted:  http.StatusTooManyRequests,
	codes.Unimplemented:      http.StatusNotImplemented,
	codes.Unavailable:        http.StatusServiceUnavailable,
}

// fail answers with an error of a service, or of reading the request.
func fail(w http.ResponseWriter, err error) {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		reject(w, http.StatusRequestEntityTooLarge, codes.InvalidArgument, "BODY_TOO_LARGE", fmt.Sprintf("request body is larger than %d bytes", large.Limit))
		return
	}
	s, _ := status.FromError(rpcerr.From(err)) // From gives a status
	code, known := statusOf[s.Code()]
	if !known {
		code = http.StatusInternalServerError
	}
	reason := ""
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			reason = info.GetReason()
		}
	}
	reject(w, code, s.Code(), reason, s.Message())
}

func reject(w http.ResponseWriter, httpCode int, code codes.Code, reason, text string) {
	out, err := json.Marshal(struct {
		Error  string `json:"error"`
		Reason string `json:"reason,omitempty"`
		Code   string `json:"code"`
	}{text, reason, code.String()})
	if err != nil { // strings always encode
		panic(err)
	}
	write(w, httpCode, out)
}

func write(w http.ResponseWriter, code int, text []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // the client may be gone; there is nobody left to tell
}
