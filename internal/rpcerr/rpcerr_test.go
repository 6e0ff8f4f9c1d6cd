package rpcerr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// failing answers every call with the error its ledger number selects.
type failing struct {
	bookiev1.UnimplementedBookieServer
	errs []error
}

func (f *failing) Fence(_ context.Context, r *bookiev1.FenceRequest) (*bookiev1.FenceResponse, error) {
	return nil, f.errs[r.GetLedger()]
}

func (f *failing) Read(r *bookiev1.ReadRequest, _ grpc.ServerStreamingServer[bookiev1.ReadResponse]) error {
	return f.errs[r.GetLedger()]
}

func dial(t *testing.T, srv bookiev1.BookieServer) bookiev1.BookieClient {
	lis := bufconn.Listen(1 << 16)
	s := grpc.NewServer(ServerOptions()...)
	bookiev1.RegisterBookieServer(s, srv)
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///x", append(DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); s.Stop(); <-served })
	return bookiev1.NewBookieClient(conn)
}

// Shows that each row of the table reaches the other side, over unary calls and
// over streams, as the same sentinel, with its code and its text.
func TestEachRowThereAndBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	f := &failing{}
	for i, r := range table {
		f.errs = append(f.errs, fmt.Errorf("case %d: %w", i, r.err))
	}
	cl := dial(t, f)
	for i, r := range table {
		_, unary := cl.Fence(ctx, bookiev1.FenceRequest_builder{Ledger: proto.Int64(int64(i))}.Build())
		stream, err := cl.Read(ctx, bookiev1.ReadRequest_builder{Ledger: proto.Int64(int64(i))}.Build())
		if err == nil {
			_, err = stream.Recv()
		}
		for _, got := range []error{unary, err} {
			if !errors.Is(got, r.err) || !Told(got) || status.Code(got) != r.code || got.Error() != f.errs[i].Error() {
				t.Errorf("%s: got %v (%v)", r.reason, got, status.Code(got))
			}
			for _, other := range table {
				if other.err != r.err && errors.Is(got, other.err) && !errors.Is(r.err, other.err) {
					t.Errorf("%s came back as %s too", r.reason, other.reason)
				}
			}
		}
	}
}

// Shows that a bundle's owner is told with the refusal.
func TestOwnerHint(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := dial(t, &failing{errs: []error{
		fmt.Errorf("topic t: %w", &NotOwnerError{Bundle: "a/b/0-f", Owner: "broker-2", Address: "host:6660"}),
		&NotOwnerError{Bundle: "a/b/0-f"},
	}})
	_, err := cl.Fence(ctx, bookiev1.FenceRequest_builder{Ledger: proto.Int64(0)}.Build())
	var not *NotOwnerError
	if !errors.As(err, &not) || not.Owner != "broker-2" || not.Address != "host:6660" || !errors.Is(err, ErrNotOwner) {
		t.Errorf("got %v", err)
	}
	_, err = cl.Fence(ctx, bookiev1.FenceRequest_builder{Ledger: proto.Int64(1)}.Build())
	if !errors.As(err, &not) || not.Owner != "" {
		t.Errorf("got %v", err)
	}
}

// Shows what becomes of errors that are in no row: a status that is passed on
// keeps its code, a plain error is INTERNAL, a status of another system maps by
// its code, and nil and io.EOF mean what they mean.
func TestOtherErrors(t *testing.T) {
	if From(nil) != nil || To(nil) != nil || From(io.EOF) != io.EOF || To(io.EOF) != io.EOF {
		t.Error("nil or io.EOF changed")
	}
	if got := From(errors.New("oops")); status.Code(got) != codes.Internal {
		t.Errorf("got %v", got)
	}
	if got := From(fmt.Errorf("downstream: %w", status.Error(codes.PermissionDenied, "no"))); status.Code(got) != codes.PermissionDenied {
		t.Errorf("got %v", got)
	}
	if got := To(status.Error(codes.Unavailable, "connection refused")); !errors.Is(got, ErrUnavailable) || Told(got) {
		t.Errorf("got %v", got)
	}
	if got := To(status.Error(codes.Internal, "oops")); status.Code(got) != codes.Internal {
		t.Errorf("got %v", got)
	}
	if got := From(To(From(ledger.ErrFenced))); !errors.Is(To(got), ledger.ErrFenced) {
		t.Errorf("passed on through a third process: %v", got)
	}
	if got := To(errors.New("local")); got.Error() != "local" {
		t.Errorf("got %v", got)
	}
}

// Shows that of several sentinels the one counts that forbids a retry.
func TestFencedBeforeUnavailable(t *testing.T) {
	err := To(From(errors.Join(ledger.ErrStopping, ledger.ErrFenced)))
	if !errors.Is(err, ledger.ErrFenced) || errors.Is(err, ledger.ErrStopping) {
		t.Errorf("got %v", err)
	}
}
