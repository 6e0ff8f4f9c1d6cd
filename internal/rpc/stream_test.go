package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a bookie whose Read answers with as many bytes as were asked and whose
// Write answers with a checksum of sorts; frames or generated code, as told.
type echo struct {
	bookiev1.UnimplementedBookieServer
	frames bool
}

func (e *echo) Write(s grpc.BidiStreamingServer[bookiev1.WriteRequest, bookiev1.WriteResponse]) error {
	for {
		var payload []byte
		var flags int
		if e.frames {
			f := Frame{Head: &bookiev1.WriteRequest{}}
			if err := s.RecvMsg(&f); err != nil {
				return ignoreEOF(err)
			}
			payload, flags = f.Bytes(), len(f.Head.(*bookiev1.WriteRequest).GetFlags())
		} else {
			r, err := s.Recv()
			if err != nil {
				return ignoreEOF(err)
			}
			payload, flags = r.GetPayload(), len(r.GetFlags())
		}
		answer := bookiev1.WriteResponse_builder{WindowBytes: proto.Uint64(digest(payload) + uint64(flags))}.Build()
		if err := s.Send(answer); err != nil {
			return err
		}
	}
}

func (e *echo) Read(r *bookiev1.ReadRequest, s grpc.ServerStreamingServer[bookiev1.ReadResponse]) error {
	payload := random(rand.New(rand.NewPCG(uint64(r.GetMaxBytes()), 0)), int(r.GetMaxBytes()))
	head := bookiev1.ReadResponse_builder{FirstEntry: proto.Int64(r.GetFirstEntry())}.Build()
	if e.frames {
		return s.SendMsg(&Frame{Head: head, Payload: [][]byte{payload}})
	}
	head.SetPayload(payload)
	return s.Send(head)
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func digest(b []byte) uint64 {
	h := uint64(len(b)) << 20
	for _, c := range b {
		h = h*31 + uint64(c)
	}
	return h >> 1
}

func serve(t testing.TB, e *echo, opts []grpc.ServerOption, dial []grpc.DialOption) bookiev1.BookieClient {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(opts...)
	bookiev1.RegisterBookieServer(srv, e)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///bookie", append(dial,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return bookiev1.NewBookieClient(conn)
}

// Shows, over real gRPC, that each side may use frames or generated code with the
// stock codec without the other noticing, from 0 B to 3 MB.
func TestStreamsBetweenFramesAndStockCode(t *testing.T) {
	large := []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20), grpc.MaxCallSendMsgSize(8<<20))}
	for _, c := range []struct {
		name                       string
		serverFrames, clientFrames bool
	}{{"frame to frame", true, true}, {"stock to frame", true, false}, {"frame to stock", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			opts := []grpc.ServerOption{grpc.MaxRecvMsgSize(8 << 20)}
			if c.serverFrames {
				opts = ServerOptions(Limits{Profile: BookieLink})
			}
			dial := large
			if c.clientFrames {
				dial = DialOptions(BookieLink)
			}
			cl := serve(t, &echo{frames: c.serverFrames}, opts, dial)
			w, err := cl.Write(ctx)
			if err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(9, 9))
			for _, n := range sizes {
				payload := random(rng, n)
				if c.clientFrames {
					err = w.SendMsg(&Frame{Head: request(4), Payload: [][]byte{payload[:n/2], payload[n/2:]}})
				} else {
					r := request(4)
					r.SetPayload(payload)
					err = w.Send(r)
				}
				if err != nil {
					t.Fatal(err)
				}
				answer, err := w.Recv()
				if err != nil || answer.GetWindowBytes() != digest(payload)+4 {
					t.Fatalf("%d bytes arrived otherwise: %v", n, err)
				}

				r, err := cl.Read(ctx, bookiev1.ReadRequest_builder{FirstEntry: proto.Int64(int64(n)), MaxBytes: proto.Uint32(uint32(n))}.Build())
				if err != nil {
					t.Fatal(err)
				}
				var first int64
				var got []byte
				if c.clientFrames {
					f := Frame{Head: &bookiev1.ReadResponse{}}
					err = r.RecvMsg(&f)
					first, got = f.Head.(*bookiev1.ReadResponse).GetFirstEntry(), f.Bytes()
				} else {
					var m *bookiev1.ReadResponse
					if m, err = r.Recv(); err == nil {
						first, got = m.GetFirstEntry(), m.GetPayload()
					}
				}
				if err != nil || first != int64(n) || !bytes.Equal(got, random(rand.New(rand.NewPCG(uint64(n), 0)), n)) {
					t.Fatalf("read of %d bytes: entry %d, %d bytes, %v", n, first, len(got), err)
				}
			}
			if err := w.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("stream ends with %v", err)
			}
		})
	}
}

// Shows that a message above the server's limit is refused before it is held.
func TestMessageAboveTheLimit(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := serve(t, &echo{frames: true}, ServerOptions(Limits{MaxMessageBytes: 1 << 20}), DialOptions(ClientFacing))
	w, err := cl.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SendMsg(&Frame{Head: request(0), Payload: [][]byte{make([]byte, 1<<20)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}

func BenchmarkStream(b *testing.B) {
	for _, frames := range []bool{true, false} {
		for _, n := range []int{1 << 10, 128 << 10} {
			b.Run(fmt.Sprintf("frames=%v/%dKiB", frames, n>>10), func(b *testing.B) {
				dial, opts := DialOptions(BookieLink), ServerOptions(Limits{Profile: BookieLink})
				if !frames {
					dial = append(dial, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(stock)))
					opts = append(opts, grpc.ForceServerCodecV2(stock))
				}
				w, err := serve(b, &echo{frames: frames}, opts, dial).Write(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				payload := make([]byte, n)
				b.SetBytes(int64(n))
				for b.Loop() {
					if frames {
						err = w.SendMsg(&Frame{Head: request(1), Payload: [][]byte{payload}})
					} else {
						r := request(1)
						r.SetPayload(payload)
						err = w.Send(r)
					}
					if err != nil {
						b.Fatal(err)
					}
					if _, err := w.Recv(); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.CloseSend(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// Shows that a server decodes no request beyond what a frame may have beside its
// payload, on a stream or not, and takes the largest that is allowed.
func TestRequestsWithoutPayloadAreBounded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cl := serve(t, &echo{frames: true}, ServerOptions(Limits{}), DialOptions(ClientFacing))
	const tagAndLength = 2 + 3
	for over, want := range map[int]codes.Code{0: codes.Unimplemented, 1: codes.Internal} {
		filler := protowire.AppendBytes(protowire.AppendTag(nil, 100, protowire.BytesType), make([]byte, MaxHeadBytes-tagAndLength+over))
		r := &bookiev1.LedgerInfoRequest{}
		r.ProtoReflect().SetUnknown(filler)
		if _, err := cl.LedgerInfo(ctx, r); status.Code(err) != want {
			t.Errorf("%d bytes: %v, want %v", len(filler), err, want)
		}
		read := &bookiev1.ReadRequest{}
		read.ProtoReflect().SetUnknown(filler)
		s, err := cl.Read(ctx, read)
		if err == nil {
			_, err = s.Recv()
		}
		if (err != nil) != (want == codes.Internal) {
			t.Errorf("a stream opened with %d bytes: %v", len(filler), err)
		}
	}
}
