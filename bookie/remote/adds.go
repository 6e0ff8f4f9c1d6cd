package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/rpc"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

// adds is the stream of adds over one connection, opened on use and again, after
// a pause, when it broke.
//
// An entry goes queue → sent → answered. While one message is being sent the next
// one fills, so the size of messages follows the load without a timer. One timer
// serves the deadlines of all entries, which are in order because all have the
// same time.
//
// Lock order: mu is innermost; done functions are called without it.
type adds struct {
	opts   *Options
	client bookiev1.BookieClient

	mu     sync.Mutex
	wake   *sync.Cond // of the sender: queue, window, broken
	closed bool
	queue  []*add         // not sent yet, in order
	sent   map[key]*add   // sent and not answered by the bookie
	order  []*add         // all by deadline; those settled are dropped lazily
	bytes  int64          // of queue and sent
	flight int64          // of sent
	window int64          // how much of it the bookie allows
	timer  *time.Timer    // for order[0]; nil while nothing waits
	heard  time.Time      // when the bookie last answered, or the first was sent
	run    *run           // nil while no stream is open or being opened
	fails  int            // streams broken in a row without a word from the bookie
	retry  time.Time      // no stream is opened before
	runs   sync.WaitGroup // of goroutines
}

// run is one life of the stream.
type run struct {
	cancel context.CancelFunc
	broken error // set once; guarded by adds.mu
}

type key struct {
	ledger ledger.ID
	entry  ledger.EntryID
}

// add is one entry on its way. Guarded by adds.mu until settled.
type add struct {
	ledger.Add
	done     func(error)
	began    time.Time
	deadline time.Time
	bytes    int64
	sent     bool
	settled  bool // done was, or is about to be, called
	next     *add // a later add of the same entry, also sent
}

const (
	firstWindow  = 256 << 10 // until the bookie has said how much it takes
	messageBytes = 1 << 20   // of entries in one message, unless one alone is larger
	minRetry     = 20 * time.Millisecond
	maxRetry     = 2 * time.Second
)

func newAdds(opts *Options, client bookiev1.BookieClient) *adds {
	s := &adds{opts: opts, client: client, sent: make(map[key]*add), window: firstWindow}
	s.wake = sync.NewCond(&s.mu)
	return s
}

// add queues an entry. It never blocks; see ensemble.Bookie.
func (s *adds) add(a ledger.Add, done func(error)) {
	if err := s.enqueue(a, done); err != nil {
		s.opts.Metrics.addFailures.WithLabelValues(reason(err)).Inc()
		done(err)
	}
}

func (s *adds) enqueue(a ledger.Add, done func(error)) error {
	now := time.Now()
	p := &add{
		Add:      a,
		done:     done,
		began:    now,
		deadline: now.Add(s.opts.AddTimeout),
		bytes:    int64(ledger.EnvelopeBytes + len(a.Body)),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return fmt.Errorf("add to bookie %s: connection is closed: %w", s.opts.Member.Bookie, ledger.ErrStopping)
	case s.bytes > 0 && s.bytes+p.bytes > s.opts.QueueBytes:
		return fmt.Errorf("add to bookie %s: %d bytes unanswered: %w", s.opts.Member.Bookie, s.bytes, ledger.ErrTooBusy)
	case s.run == nil && now.Before(s.retry):
		return fmt.Errorf("add to bookie %s: %w, trying again in %v", s.opts.Member.Bookie, errDown, s.retry.Sub(now).Round(time.Millisecond))
	}
	if s.run == nil {
		ctx, cancel := context.WithCancel(context.Background())
		s.run = &run{cancel: cancel}
		s.runs.Add(1)
		go s.serve(ctx, s.run)
	}
	s.queue = append(s.queue, p)
	s.order = append(s.order, p)
	s.countLocked(p.bytes)
	if s.timer == nil {
		s.armLocked()
	}
	s.wake.Signal()
	return nil
}

// countLocked changes bytes and the gauge together.
func (s *adds) countLocked(n int64) {
	s.bytes += n
	s.opts.Metrics.unanswered.Add(float64(n))
}

var (
	errDown    = errors.New("remote: no connection")
	errTimeout = errors.New("remote: no answer in time")
	errBroken  = errors.New("remote: connection broke")
	errClosed  = errors.New("remote: connection was closed")
)

// serve opens a stream and feeds it until it breaks.
func (s *adds) serve(ctx context.Context, r *run) {
	defer s.runs.Done()
	defer r.cancel()
	stream, err := s.client.Write(ctx)
	if err != nil {
		s.breakRun(r, err)
		return
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			response, err := stream.Recv()
			if err == nil {
				err = s.receive(r, response)
			}
			if err != nil {
				s.breakRun(r, err)
				return
			}
		}
	}()
	for first := true; ; first = false {
		batch := s.next(r)
		if batch == nil {
			break
		}
		frame := s.frame(batch, first)
		if err := stream.SendMsg(frame); err != nil {
			// The stream is over; why is for the receiver to say.
			break
		}
	}
	r.cancel()
	<-received
	s.breakRun(r, errBroken)
}

// next waits for entries that may be sent and takes them off the queue; nil when
// the stream is over.
func (s *adds) next(r *run) []*add {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if r.broken != nil {
			return nil
		}
		var batch []*add
		var bytes int64
		n := 0
		for _, p := range s.queue {
			if !p.settled {
				first := len(batch) == 0
				if !first && bytes+p.bytes > messageBytes || s.flight > 0 && s.flight+p.bytes > s.window {
					break
				}
				batch = append(batch, p)
				bytes += p.bytes
				s.flight += p.bytes
			}
			n++
		}
		clear(s.queue[:n])
		s.queue = s.queue[n:]
		if len(batch) > 0 {
			if len(s.sent) == 0 {
				s.heard = time.Now()
			}
			for _, p := range batch {
				s.sentLocked(p)
			}
			return batch
		}
		s.wake.Wait()
	}
}

// sentLocked enters p among the sent, behind an earlier add of the same entry.
func (s *adds) sentLocked(p *add) {
	p.sent = true
	k := key{p.Envelope.Ledger, p.Envelope.Entry}
	earlier := s.sent[k]
	if earlier == nil {
		s.sent[k] = p
		return
	}
	for earlier.next != nil {
		earlier = earlier.next
	}
	earlier.next = p
}

// frame puts a batch into one message.
func (s *adds) frame(batch []*add, first bool) *rpc.Frame {
	head := bookiev1.WriteRequest_builder{}
	if first {
		head.Incarnation = new(s.opts.Member.Incarnation)
	}
	pieces := make([][]byte, 0, 2*len(batch))
	envelopes := make([]byte, ledger.EnvelopeBytes*len(batch))
	bytes := 0
	for i, p := range batch {
		var flag bookiev1.AddFlag
		if p.Create {
			flag |= bookiev1.AddFlag_ADD_FLAG_CREATE
		}
		if p.RecoveryTerm > 0 {
			flag |= bookiev1.AddFlag_ADD_FLAG_RECOVERY
			head.Terms = append(head.Terms, p.RecoveryTerm)
		}
		if flag != 0 {
			for len(head.Flags) < i {
				head.Flags = append(head.Flags, 0)
			}
			head.Flags = append(head.Flags, uint32(flag))
		}
		envelope := envelopes[i*ledger.EnvelopeBytes : (i+1)*ledger.EnvelopeBytes]
		p.Envelope.Encode(envelope)
		pieces = append(pieces, envelope, p.Body)
		bytes += int(p.bytes)
		p.Body = nil // held by the message alone from now on
	}
	s.opts.Metrics.messages.Inc()
	s.opts.Metrics.sentBytes.Add(float64(bytes))
	return &rpc.Frame{Head: head.Build(), Payload: pieces}
}

// settled is an add with its answer, to be told without the lock.
type settled struct {
	add *add
	err error
}

func (s *adds) tell(answers []settled) {
	now := time.Now()
	for _, a := range answers {
		if a.err == nil {
			s.opts.Metrics.addSeconds.Observe(now.Sub(a.add.began).Seconds())
		} else {
			s.opts.Metrics.addFailures.WithLabelValues(reason(a.err)).Inc()
		}
		a.add.done(a.err)
	}
}

// receive settles what a message answers.
func (s *adds) receive(r *run, response *bookiev1.WriteResponse) error {
	var answers []settled
	s.mu.Lock()
	if r.broken != nil {
		defer s.mu.Unlock()
		return r.broken
	}
	s.fails, s.heard = 0, time.Now()
	if window := response.GetWindowBytes(); window > 0 {
		s.window = int64(min(window, 1<<40))
	}
	var err error
	for _, result := range response.GetResults() {
		first, last := ledger.EntryID(result.GetFirstEntry()), ledger.EntryID(result.GetLastEntry())
		if last < first || uint64(last-first) >= uint64(len(s.sent)) {
			err = fmt.Errorf("remote: bookie %s answered entries %d to %d of ledger %d, which were not sent", s.opts.Member.Bookie, first, last, result.GetLedger())
			break
		}
		verdict := wire.ErrorOf(result.GetStatus(), result.GetMessage())
		for i := range last - first + 1 {
			p := s.answeredLocked(key{ledger.ID(result.GetLedger()), first + i})
			if p != nil && !p.settled {
				p.settled = true
				answers = append(answers, settled{p, verdict})
			}
		}
	}
	s.dropSettledLocked()
	s.wake.Signal()
	s.mu.Unlock()
	s.tell(answers)
	return err
}

// answeredLocked takes the earliest sent add of an entry off the books.
func (s *adds) answeredLocked(k key) *add {
	p := s.sent[k]
	if p == nil {
		return nil
	}
	if p.next == nil {
		delete(s.sent, k)
	} else {
		s.sent[k] = p.next
	}
	s.flight -= p.bytes
	s.countLocked(-p.bytes)
	return p
}

// breakRun ends a life of the stream: what waits has an unknown outcome, and the
// next stream is not opened at once.
func (s *adds) breakRun(r *run, cause error) {
	s.mu.Lock()
	if r.broken != nil {
		s.mu.Unlock()
		return
	}
	r.broken = cause
	r.cancel()
	var answers []settled
	err := fmt.Errorf("add to bookie %s: %w: %w", s.opts.Member.Bookie, errBroken, cause)
	for _, p := range s.order { // holds all that is not settled, oldest first
		if !p.settled {
			p.settled = true
			answers = append(answers, settled{p, err})
		}
	}
	s.countLocked(-s.bytes)
	s.queue, s.order, s.flight, s.window = nil, nil, 0, firstWindow
	clear(s.sent)
	s.stopTimerLocked()
	s.run = nil
	s.fails++
	bound := min(minRetry<<min(s.fails, 10), maxRetry)
	s.retry = time.Now().Add(bound/2 + time.Duration(s.opts.Rand()%uint64(bound/2)))
	closed := s.closed
	s.wake.Broadcast()
	s.mu.Unlock()
	if !closed {
		s.opts.Log.Warn("stream to bookie broke", "unanswered", len(answers), "error", cause)
	}
	s.tell(answers)
}

// dropSettledLocked lets go of what is settled and the oldest of its list.
func (s *adds) dropSettledLocked() {
	for _, list := range []*[]*add{&s.order, &s.queue} {
		for len(*list) > 0 && (*list)[0].settled {
			(*list)[0] = nil
			*list = (*list)[1:]
		}
	}
}

// armLocked sets the timer for the oldest entry that is not settled, if there is one.
func (s *adds) armLocked() {
	s.dropSettledLocked()
	if len(s.order) == 0 {
		s.timer = nil
		return
	}
	s.timer = time.AfterFunc(time.Until(s.order[0].deadline), s.expire)
}

func (s *adds) stopTimerLocked() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// expire gives up waiting for entries whose time is over. One that was sent stays
// on the books until the bookie answers or the stream breaks: until then its bytes
// are held somewhere. A bookie that says nothing at all for as long again is cut.
func (s *adds) expire() {
	s.mu.Lock()
	now := time.Now()
	var answers []settled
	for _, p := range s.order {
		if p.deadline.After(now) {
			break
		}
		if p.settled {
			continue
		}
		p.settled = true
		if !p.sent {
			s.countLocked(-p.bytes)
		}
		answers = append(answers, settled{p, fmt.Errorf("add entry %d of ledger %d to bookie %s: %w after %v",
			p.Envelope.Entry, p.Envelope.Ledger, s.opts.Member.Bookie, errTimeout, s.opts.AddTimeout)})
	}
	silent := len(s.sent) > 0 && now.Sub(s.heard) >= 2*s.opts.AddTimeout
	r := s.run
	s.armLocked()
	s.mu.Unlock()
	s.tell(answers)
	if silent && r != nil {
		s.breakRun(r, errTimeout)
	}
}

// close fails what waits and returns once the stream is gone.
func (s *adds) close() {
	s.mu.Lock()
	s.closed = true
	r := s.run
	s.mu.Unlock()
	if r != nil {
		s.breakRun(r, errClosed)
	}
	s.runs.Wait()
}
