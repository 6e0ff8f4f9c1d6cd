package main

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/bookie/logonly"
	"github.com/magnetar-io/magnetar/internal/latency"
	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSealedBatchesHaveOneChecksum shows that bytes that end in their own
// checksum all have the same one, which is what the broker counts on.
func TestSealedBatchesHaveOneChecksum(t *testing.T) {
	for _, text := range []string{"", "a", "a batch of messages"} {
		sealed := binary.LittleEndian.AppendUint32([]byte(text), crc32.Checksum([]byte(text), ledger.Castagnoli))
		if crc := crc32.Checksum(sealed, ledger.Castagnoli); crc != sealedCRC {
			t.Errorf("%q: checksum %#x, want %#x", text, crc, sealedCRC)
		}
	}
}

// TestChain shows that what is published arrives in the log, each batch once and
// in order, whether the bookie is called or dialled, and that the log refuses a
// batch that was damaged on the way.
func TestChain(t *testing.T) {
	for _, dialled := range []bool{false, true} {
		bookie, err := logonly.Open(logonly.Options{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		open := callBookie(bookie)
		var stop []func()
		if dialled {
			address, end := listen(t, rpc.BookieLink, bookie.Register)
			open, stop = dialBookie(address), append(stop, end)
		}
		address, end := listen(t, rpc.ClientFacing, func(s grpc.ServiceRegistrar) {
			brokerv1.RegisterMessagingServer(s, &broker{open: open})
		})
		stop = append(stop, end)

		p := &producer{load: load{size: 100, batchBytes: 1000, window: 4}, times: latency.NewRecorder()}
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if err := p.publish(ctx, address); err != nil {
			t.Errorf("dialled %t: %v", dialled, err)
		}
		if n := p.stored.Load(); n == 0 || n%10 != 0 || n/10 != p.times.Total().Count {
			t.Errorf("dialled %t: %d messages in batches of 10 answered, %d times taken", dialled, n, p.times.Total().Count)
		}
		damaged := ledger.Envelope{Ledger: 1, Entry: 0, LAC: ledger.NoEntry, TotalBytes: 3, BodyBytes: 3, BodyCRC: sealedCRC}
		bookie.Add(&damaged, []byte("xyz"), func(err error) {
			if err == nil {
				t.Error("a damaged batch was stored")
			}
		})
		for i := len(stop) - 1; i >= 0; i-- {
			stop[i]()
		}
		if err := bookie.Close(); err != nil {
			t.Error(err)
		}
	}
}

func listen(t *testing.T, profile rpc.Profile, register func(grpc.ServiceRegistrar)) (address string, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(rpc.ServerOptions(rpc.Limits{Profile: profile}, grpc.WaitForHandlers(true))...)
	register(s)
	go s.Serve(l)
	return l.Addr().String(), s.Stop
}

// TestParse shows which command lines are refused.
func TestParse(t *testing.T) {
	s, err := parse([]string{"-shape", "one-process", "-rate", "10", "-seconds", "0.5"}, io.Discard)
	if err != nil || len(s.shapes) != 1 || s.rate != 10e6 || s.duration != 500*time.Millisecond {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, args := range [][]string{{"-shape", "two"}, {"-size", "0"}, {"-window", "0"}, {"-o", "xml"}, {"-rate", "-1"}, {"-seconds", "0"}, {"now"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
