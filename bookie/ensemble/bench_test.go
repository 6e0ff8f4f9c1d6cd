package ensemble_test

import (
	"context"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// batching is a directory of bookies that answer adds in batches from a
// goroutine of their own, as a connection does, and store nothing.
type batching struct {
	*ensembletest.Cluster
	conns map[ledger.Member]*batchingBookie
}

type batchingBookie struct {
	ensemble.Bookie
	adds chan func(error)
}

func (d *batching) Bookie(m ledger.Member) (ensemble.Bookie, error) { return d.conns[m], nil }

func (b *batchingBookie) Add(_ ledger.Add, done func(error)) { b.adds <- done }

func newBatching(b *testing.B, n int) *batching {
	d := &batching{Cluster: ensembletest.New(n), conns: make(map[ledger.Member]*batchingBookie)}
	for _, c := range d.Candidates() {
		conn := &batchingBookie{adds: make(chan func(error), 1<<16)}
		d.conns[c.Member] = conn
		go func() {
			for done := range conn.adds {
				done(nil)
			}
		}()
		b.Cleanup(func() { close(conn.adds) })
	}
	return d
}

// BenchmarkAppend is the cost of one entry in the client: append, three sends,
// three answers, one acknowledgement.
func BenchmarkAppend(b *testing.B) {
	d := newBatching(b, 3)
	client, err := ensemble.New(d.Options(ensemble.Options{Directory: d}))
	if err != nil {
		b.Fatal(err)
	}
	w, err := client.Create(context.Background(), ensemble.CreateRequest{Quorum: threeTwo})
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 1024)
	crc := sum(body)
	window := make(chan struct{}, 1000)
	done := func(ledger.EntryID, error) { <-window }
	b.ReportAllocs()
	for b.Loop() {
		window <- struct{}{}
		if _, err := w.Append(body, crc, done); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := w.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	client.Close()
}
