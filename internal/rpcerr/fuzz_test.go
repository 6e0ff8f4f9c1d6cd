package rpcerr

import (
	"errors"
	"testing"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// FuzzTo shows that whatever status comes over the wire becomes an error that keeps
// its code, and that only a reason of ours with its own code becomes its sentinel.
func FuzzTo(f *testing.F) {
	for _, err := range []error{
		&NotOwnerError{Bundle: "t/n/00000000-ffffffff", Owner: "b", Address: "b:1"}, ledger.ErrFenced, errors.New("else"),
		status.Error(codes.Code(99), "\xff"), status.Error(codes.OK, ""),
	} {
		s, _ := status.FromError(From(err))
		b, err := proto.Marshal(s.Proto())
		if err != nil {
			continue // text that is not UTF-8
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s spb.Status
		if proto.Unmarshal(b, &s) != nil || s.GetCode() == 0 {
			return
		}
		err := To(status.ErrorProto(&s))
		if got := status.Code(err); err == nil || uint32(got) != uint32(s.GetCode()) {
			t.Fatalf("status %v became %v", &s, err)
		}
		_ = err.Error()
		if errors.Is(err, ledger.ErrFenced) && status.Code(err) != codes.FailedPrecondition {
			t.Fatalf("status %v became %v", &s, err)
		}
		if again := status.Code(From(err)); uint32(again) != uint32(s.GetCode()) {
			t.Fatalf("%v passed on as %v", err, again)
		}
	})
}
