package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/rpc"
)

// A link is one stream to one broker, Produce or Consume, with all the client's
// producers or consumers there as its members. One goroutine sends, one
// receives; neither waits for a member.
//
// A member that has something to send asks for the sender with want; the sender
// calls its pull, so that what has gathered by then goes out together. What the
// receiver hears goes to the member by its id; ids are never used again on a link,
// so what comes late for a member that left is dropped.
type link struct {
	address string
	cancel  context.CancelFunc
	stream  frameStream
	// dispatch hands a received frame to its members.
	dispatch func(*link, *rpc.Frame) error
	newHead  func() proto.Message
	// pack puts what members gave to send into frames.
	pack func(*parcel) []*rpc.Frame

	mu       sync.Mutex
	members  map[uint64]member
	lastID   uint64
	controls []proto.Message // to send before anything members pull
	ready    []ready         // members that asked for the sender
	err      error           // why the link ended; nil while it lives
	lastUsed time.Time       // when the last member left
	wake     chan struct{}   // buffered by one: there is something to send
}

// frameStream is what a link needs of a gRPC client stream.
type frameStream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
	CloseSend() error
}

// member is a producer's or a consumer's end of one partition. Its methods are
// called without the link's lock, by the link's goroutines.
type member interface {
	// pull adds what member id has to send to p, and reports whether it has more
	// that did not fit.
	pull(l *link, id uint64, p *parcel) (more bool)
	// lost tells that the link ended; nothing sent and not answered will be.
	lost(l *link, id uint64, err error)
}

type ready struct {
	m  member
	id uint64
}

// parcel gathers what goes out in one go.
type parcel struct {
	messages []proto.Message
	parts    [][]byte // closed batches, on a Produce link: they go out as one message
	ids      []uint64 // of the producers, one for each of parts
	bytes    int
}

// parcelBytes is how many bytes of batches go out in one message; one more batch
// may exceed it.
const parcelBytes = 512 << 10

// start starts the goroutines of the link; wg counts them.
func (l *link) start(wg *sync.WaitGroup) {
	l.members = map[uint64]member{}
	l.wake = make(chan struct{}, 1)
	l.lastUsed = time.Now()
	wg.Go(func() {
		if err := l.send(); err != nil {
			l.end(err)
		}
	})
	wg.Go(func() { l.end(l.receive()) })
}

// join adds a member and sends its first message, which open makes of its id.
func (l *link) join(m member, open func(id uint64) proto.Message) (id uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	l.lastID++
	l.members[l.lastID] = m
	l.controls = append(l.controls, open(l.lastID))
	l.wakeLocked()
	return l.lastID, nil
}

// leave takes a member out, so that it hears nothing more, and sends goodbye,
// which may be nil. The link ends by itself when it stays without members.
func (l *link) leave(id uint64, goodbye proto.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.members[id] == nil {
		return
	}
	delete(l.members, id)
	l.lastUsed = time.Now()
	if goodbye != nil && l.err == nil {
		l.controls = append(l.controls, goodbye)
		l.wakeLocked()
	}
}

// say sends a message that concerns nobody who is still a member.
func (l *link) say(m proto.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.controls = append(l.controls, m)
		l.wakeLocked()
	}
}

// want asks for the sender. The caller makes sure that it has not asked already
// without having been pulled since.
func (l *link) want(m member, id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.ready = append(l.ready, ready{m, id})
		l.wakeLocked()
	}
}

func (l *link) wakeLocked() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// member returns the member of that id, or nil when it left.
func (l *link) member(id uint64) member {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.members[id]
}

// ended returns why the link ended, nil while it lives.
func (l *link) ended() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// endIdle ends the link if it has been without members for as long as linger. One
// who was about to join takes another.
func (l *link) endIdle(now time.Time) {
	l.endIf(fmt.Errorf("link to %s had no users: %w", l.address, ErrUnavailable), func() bool {
		return len(l.members) == 0 && now.Sub(l.lastUsed) >= linger
	})
}

// end ends the link once, and tells all members.
func (l *link) end(err error) { l.endIf(err, func() bool { return true }) }

// endIf ends the link if cond, called with the lock held, says so.
func (l *link) endIf(err error, cond func() bool) {
	l.mu.Lock()
	if l.err != nil || !cond() {
		l.mu.Unlock()
		return
	}
	l.err = err
	members := l.members
	l.members, l.controls, l.ready = nil, nil, nil
	l.wakeLocked()
	l.mu.Unlock()
	l.cancel()
	for id, m := range members {
		m.lost(l, id, err)
	}
}

// send is the only goroutine that sends on the stream.
func (l *link) send() error {
	var turn []ready
	for range l.wake {
		l.mu.Lock()
		if l.err != nil {
			l.mu.Unlock()
			return l.err
		}
		controls := l.controls
		l.controls = nil
		turn, l.ready = l.ready, turn[:0]
		l.mu.Unlock()
		for _, c := range controls {
			if err := l.stream.SendMsg(&rpc.Frame{Head: c}); err != nil {
				return sendError(err)
			}
		}
		for len(turn) > 0 {
			var p parcel
			n := 0
			for ; n < len(turn) && p.bytes < parcelBytes; n++ {
				if turn[n].m.pull(l, turn[n].id, &p) {
					l.want(turn[n].m, turn[n].id)
				}
			}
			clear(turn[:n])
			turn = turn[n:]
			for _, f := range l.pack(&p) {
				if err := l.stream.SendMsg(f); err != nil {
					return sendError(err)
				}
			}
		}
	}
	return nil
}

// sendError leaves it to the receiver to say why a stream ended: the sender only
// hears that it did.
func sendError(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// receive is the only goroutine that receives from the stream.
func (l *link) receive() error {
	for {
		f := rpc.Frame{Head: l.newHead()}
		if err := l.stream.RecvMsg(&f); err != nil {
			return fmt.Errorf("stream to %s: %w", l.address, fromStatus(err))
		}
		err := l.dispatch(l, &f)
		f.Free()
		if err != nil {
			return fmt.Errorf("stream to %s: %w", l.address, err)
		}
	}
}
