// Package logonly is a bookie reduced to its log: the same service and the same
// hot log, and nothing between them. It keeps no ledgers, fences nobody, answers
// no reads, and throws entries away once they are a few segments old.
//
// It is the storage end of the bare chain, the yardstick that benchmarks measure
// the real thing against. It promises one thing: an add is answered once it is on
// the disk.
package logonly

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/vfs"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

// Options of a Bookie. Dir is required.
type Options struct {
	Dir string // made if absent
	// Fresh keeps every segment, so that the log goes on into files that have to be
	// made and written ahead, as in a store that is still filling up. Otherwise it
	// goes round in a few segments.
	Fresh bool
	Log   hclog.Logger
}

// keepSegments is how many full segments stay before the oldest is written again.
const keepSegments = 2

// Bookie is a log with a service.
type Bookie struct {
	bookiev1.UnimplementedBookieServer
	log *hotlog.Log

	mu     sync.RWMutex // held for reading by those who append
	closed bool

	fresh    bool
	segment  uint32        // the last one heard of; the log's goroutine's
	rolled   chan struct{} // buffered by one: a segment is full
	recycler sync.WaitGroup
}

// Open opens the log under o.Dir with the settings that a real bookie has.
func Open(o Options) (*Bookie, error) {
	b := &Bookie{fresh: o.Fresh, rolled: make(chan struct{}, 1)}
	var err error
	b.log, err = hotlog.Open(hotlog.Options{FS: vfs.OS(), Dir: o.Dir, Log: o.Log}, func(hotlog.Record, hotlog.Place) error { return nil })
	if err != nil {
		return nil, err
	}
	b.recycler.Go(b.recycle)
	return b, nil
}

// Register adds the service to a server.
func (b *Bookie) Register(s grpc.ServiceRegistrar) { bookiev1.RegisterBookieServer(s, b) }

// Add appends one entry. It never blocks; done is called once, after the entry is
// on disk or refused. body is not looked at after Add returned. Safe for
// concurrent use.
func (b *Bookie) Add(e *ledger.Envelope, body []byte, done func(error)) {
	if crc32.Checksum(body, ledger.Castagnoli) != e.BodyCRC {
		done(fmt.Errorf("entry %d: %w", e.Entry, ledger.ErrCorrupt))
		return
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		done(fmt.Errorf("entry %d: %w", e.Entry, ledger.ErrStopping))
		return
	}
	r := hotlog.Record{Kind: hotlog.KindEntry, Ledger: e.Ledger, Entry: e.Entry, Envelope: *e, Body: body}
	b.log.Append(r, func(p hotlog.Place, err error) {
		if err == nil && p.Segment != b.segment {
			b.segment = p.Segment
			select {
			case b.rolled <- struct{}{}:
			default:
			}
		}
		done(err)
	})
}

// recycle gives old segments back to the log until Close.
func (b *Bookie) recycle() {
	for range b.rolled {
		if b.fresh {
			continue
		}
		var full []uint32
		for _, s := range b.log.Segments() {
			if s.Sealed {
				full = append(full, s.ID)
			}
		}
		for len(full) > keepSegments {
			if b.log.Recycle(full[0]) != nil {
				return // the log failed, and says so to whoever adds
			}
			full = full[1:]
		}
	}
}

// Close answers what was added and ends the log.
func (b *Bookie) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	err := b.log.Close()
	close(b.rolled) // the log, which sends on it, has ended
	b.recycler.Wait()
	return err
}

// Write takes entries and answers them with as few words as there can be.
func (b *Bookie) Write(stream grpc.BidiStreamingServer[bookiev1.WriteRequest, bookiev1.WriteResponse]) error {
	w := &writer{wake: make(chan struct{}, 1)}
	received := make(chan error, 1)
	go func() { received <- b.receive(stream, w) }()
	for {
		select {
		case err := <-received:
			return err
		case <-w.wake:
		}
		answer, err := w.take()
		if err == nil && answer != nil {
			err = stream.Send(answer)
		}
		if err != nil {
			return err
		}
	}
}

func (b *Bookie) receive(stream grpc.BidiStreamingServer[bookiev1.WriteRequest, bookiev1.WriteResponse], w *writer) error {
	frame := rpc.Frame{Head: &bookiev1.WriteRequest{}}
	defer frame.Free()
	var buffer []byte
	for {
		if err := stream.RecvMsg(&frame); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if cap(buffer) < frame.Size() {
			buffer = make([]byte, frame.Size())
		}
		payload := buffer[:frame.Size()]
		frame.CopyTo(payload)
		for len(payload) > 0 {
			e, rest, err := wire.Cut(payload, 0)
			if err != nil {
				return err
			}
			payload = rest
			id, entry := e.Envelope.Ledger, e.Envelope.Entry
			b.Add(&e.Envelope, e.Body, func(err error) { w.stored(id, entry, err) })
		}
	}
}

// writer gathers what a stream has to answer. Entries of a stream belong to one
// ledger and are stored in order.
type writer struct {
	wake chan struct{} // buffered by one

	mu          sync.Mutex
	waits       bool // first to last are not answered yet
	ledger      ledger.ID
	first, last ledger.EntryID
	err         error
}

func (w *writer) stored(id ledger.ID, e ledger.EntryID, err error) {
	w.mu.Lock()
	if !w.waits {
		w.ledger, w.first, w.waits = id, e, true
	}
	w.last = e
	if w.err == nil {
		w.err = err
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns the answer to send, nil when there is none.
func (w *writer) take() (*bookiev1.WriteResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil || !w.waits {
		return nil, w.err
	}
	w.waits = false
	return bookiev1.WriteResponse_builder{Results: []*bookiev1.AddResult{bookiev1.AddResult_builder{
		Ledger: new(int64(w.ledger)), FirstEntry: new(int64(w.first)), LastEntry: new(int64(w.last)),
		Status: bookiev1.Status_STATUS_OK.Enum(),
	}.Build()}}.Build(), nil
}
