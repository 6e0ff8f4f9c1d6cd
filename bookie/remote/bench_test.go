package remote_test

import (
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/bookie/remote"
	"github.com/magnetar-io/magnetar/internal/rpc"
)

// BenchmarkAdd measures entries of 64 KiB, synced, into one ledger of a bookie on
// this machine's disk: called directly, and over TCP.
func BenchmarkAdd(b *testing.B) {
	run := func(b *testing.B, target adder) {
		a := entryOf(1, 0, 64<<10)
		b.SetBytes(int64(len(a.Body)))
		slots := make(chan struct{}, 256)
		var wait sync.WaitGroup
		for e := range b.N {
			a.Envelope.Entry, a.Envelope.LAC, a.Envelope.TotalBytes = ledger.EntryID(e), ledger.EntryID(e-1), int64(e+1)<<16
			slots <- struct{}{}
			wait.Add(1)
			target.Add(a, func(err error) {
				if err != nil {
					b.Error(err)
				}
				<-slots
				wait.Done()
			})
		}
		wait.Wait()
	}
	open := func(b *testing.B) *bookie.Node {
		n, err := bookie.Open(bookie.Options{Dir: b.TempDir(), ID: "b", Cluster: "c"})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { n.Close() })
		return n
	}
	b.Run("direct", func(b *testing.B) { run(b, open(b)) })
	b.Run("tcp", func(b *testing.B) {
		n := open(b)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		server := grpc.NewServer(rpc.ServerOptions(rpc.Limits{Profile: rpc.BookieLink})...)
		n.Register(server)
		go server.Serve(listener)
		b.Cleanup(server.Stop)
		client, err := remote.New(remote.Options{Member: n.Member(), Address: listener.Addr().String()})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { client.Close() })
		run(b, client)
	})
}

type adder interface {
	Add(a ledger.Add, done func(error))
}
