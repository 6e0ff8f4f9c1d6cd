package bookie

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/rpc"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

// writeStream is one stream of adds. Its receiver carves entries out of messages
// and hands them to the node, never waiting for anything but the next message; its
// sender answers what the log has answered, as many in one message as there are.
//
// A client may have only so many bytes unanswered, its window. What comes on top
// is answered TOO_BUSY without being looked at further, so that a stream holds
// no more memory than its window whatever the peer does (M31).
type writeStream struct {
	node   *Node
	stream grpc.BidiStreamingServer[bookiev1.WriteRequest, bookiev1.WriteResponse]

	// Of the receiver.
	checked bool   // the incarnation was named and is ours
	buffer  []byte // the last message's payload; entries are copied out of it by the log

	// Of the sender.
	granted uint64 // window last told to the client

	mu         sync.Mutex
	results    []result // answered, not yet sent
	unanswered int64    // bytes of entries the log has not answered
	widest     int64    // the widest window ever told
	received   bool     // the client has sent all it will
	failed     error    // ends the stream
	wake       chan struct{}
}

var errOverWindow = fmt.Errorf("bookie: more bytes unanswered than the stream's window: %w", ledger.ErrTooBusy)

// result is the answer to one add.
type result struct {
	ledger  ledger.ID
	entry   ledger.EntryID
	status  bookiev1.Status
	message string
}

const (
	// maxResults bounds the answers that wait for a client that sends and does not
	// read.
	maxResults = 1 << 18
	// keptBuffer is the largest payload buffer a stream keeps while it waits.
	keptBuffer = 2 << 20
)

func (s *service) Write(stream grpc.BidiStreamingServer[bookiev1.WriteRequest, bookiev1.WriteResponse]) error {
	w := &writeStream{node: s.node, stream: stream, wake: make(chan struct{}, 1)}
	s.node.streams.Add(1)
	defer s.node.streams.Add(-1)
	w.granted = w.node.window()
	w.widest = int64(w.granted)
	if err := stream.Send(bookiev1.WriteResponse_builder{WindowBytes: new(w.granted)}.Build()); err != nil {
		return err
	}
	// The receiver ends with the stream: when send returns, so does this call, which
	// cancels the stream's context and with it RecvMsg.
	go w.receive()
	return w.send()
}

func (w *writeStream) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// fail ends the stream with err, unless it has ended already.
func (w *writeStream) fail(err error) {
	w.mu.Lock()
	if w.failed == nil {
		w.failed = err
	}
	w.mu.Unlock()
	w.signal()
}

// receive takes messages until the client has no more or the stream is over.
func (w *writeStream) receive() {
	head := new(bookiev1.WriteRequest)
	frame := rpc.Frame{Head: head}
	defer frame.Free()
	for {
		err := w.stream.RecvMsg(&frame)
		if errors.Is(err, io.EOF) {
			w.mu.Lock()
			w.received = true
			w.mu.Unlock()
			w.signal()
			return
		}
		if err == nil {
			err = w.take(head, &frame)
		}
		if err != nil {
			w.fail(err)
			return
		}
	}
}

// take hands the entries of one message to the node. An error is a breach of the
// protocol and ends the stream; what was handed over before it may be stored.
func (w *writeStream) take(head *bookiev1.WriteRequest, frame *rpc.Frame) error {
	refuse := w.checkHead(head)
	size := frame.Size()
	if refuse == nil {
		refuse = w.checkWindow(int64(size))
	}
	if cap(w.buffer) < size {
		w.buffer = make([]byte, size)
	}
	payload := w.buffer[:size]
	frame.CopyTo(payload)
	if size > keptBuffer {
		w.buffer = nil
	}
	flags, terms := head.GetFlags(), head.GetTerms()
	for i := 0; len(payload) > 0; i++ {
		entry, rest, err := wire.Cut(payload, 0)
		if err != nil {
			return status.Error(codes.DataLoss, err.Error()) // where the next one begins is lost with it
		}
		payload = rest
		a := ledger.Add{Envelope: entry.Envelope, Body: entry.Body}
		if i < len(flags) {
			a.Create = flags[i]&uint32(bookiev1.AddFlag_ADD_FLAG_CREATE) != 0
			if flags[i]&uint32(bookiev1.AddFlag_ADD_FLAG_RECOVERY) != 0 {
				if len(terms) == 0 || terms[0] < 1 {
					return status.Error(codes.InvalidArgument, "an entry is marked as a recovery add and has no term")
				}
				a.RecoveryTerm, terms = terms[0], terms[1:]
			}
		}
		if refuse != nil {
			w.answered(a.Envelope.Ledger, a.Envelope.Entry, 0, refuse)
			continue
		}
		bytes := int64(ledger.EnvelopeBytes + len(a.Body))
		w.mu.Lock()
		w.unanswered += bytes
		w.mu.Unlock()
		id, e := a.Envelope.Ledger, a.Envelope.Entry // all that waits for the answer: not the body
		w.node.Add(a, func(err error) { w.answered(id, e, bytes, err) })
	}
	return nil
}

// checkHead checks the incarnation, which the first message must name.
func (w *writeStream) checkHead(head *bookiev1.WriteRequest) error {
	if w.checked && !head.HasIncarnation() {
		return nil
	}
	err := w.node.checkIncarnation(head.GetIncarnation())
	w.checked = err == nil
	return err
}

// checkWindow refuses bytes that the client had no leave to send. One message of
// any size is taken when nothing is unanswered.
func (w *writeStream) checkWindow(bytes int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unanswered > 0 && w.unanswered+bytes > w.widest {
		return errOverWindow
	}
	return nil
}

// answered notes the answer to an add of so many bytes. Called by the log.
func (w *writeStream) answered(id ledger.ID, e ledger.EntryID, bytes int64, err error) {
	code, message, callErr := answer(err)
	w.mu.Lock()
	w.unanswered -= bytes
	switch {
	case w.failed != nil: // nobody is left to tell
	case callErr != nil:
		w.failed = callErr
	case len(w.results) >= maxResults:
		w.failed = status.Error(codes.ResourceExhausted, "too many answers wait to be read")
	default:
		w.results = append(w.results, result{id, e, code, message})
	}
	w.mu.Unlock()
	w.signal()
}

// send sends answers until the stream is over.
func (w *writeStream) send() error {
	var results []result
	for {
		select {
		case <-w.wake:
		case <-w.stream.Context().Done():
			err := w.stream.Context().Err()
			w.fail(err)
			return status.FromContextError(err).Err()
		}
		w.mu.Lock()
		results, w.results = w.results, results[:0]
		failed, done := w.failed, w.received && w.unanswered == 0
		w.mu.Unlock()
		if len(results) > 0 {
			if err := w.stream.Send(w.response(results)); err != nil {
				w.fail(err)
				return err
			}
		}
		if failed != nil || done {
			return failed
		}
	}
}

// response puts results into a message: runs of adds of one ledger that were
// stored become one AddResult.
func (w *writeStream) response(results []result) *bookiev1.WriteResponse {
	slices.SortStableFunc(results, func(a, b result) int {
		return cmp.Or(cmp.Compare(a.ledger, b.ledger), cmp.Compare(a.entry, b.entry))
	})
	var runs []*bookiev1.AddResult
	for i := 0; i < len(results); {
		first, n := results[i], 1
		for i+n < len(results) && first.status == bookiev1.Status_STATUS_OK &&
			results[i+n].status == first.status && results[i+n].ledger == first.ledger &&
			results[i+n].entry == first.entry+ledger.EntryID(n) {
			n++
		}
		run := bookiev1.AddResult_builder{
			Ledger:     new(int64(first.ledger)),
			FirstEntry: new(int64(first.entry)),
			LastEntry:  new(int64(first.entry) + int64(n) - 1),
			Status:     first.status.Enum(),
		}
		if first.message != "" {
			run.Message = new(first.message)
		}
		runs = append(runs, run.Build())
		i += n
	}
	response := bookiev1.WriteResponse_builder{Results: runs}
	if window := w.node.window(); window != w.granted {
		w.granted = window
		response.WindowBytes = new(window)
		w.mu.Lock()
		w.widest = max(w.widest, int64(window))
		w.mu.Unlock()
	}
	return response.Build()
}
