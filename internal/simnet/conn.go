package simnet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// windowBytes is how much may be on its way in one direction before a write
// waits.
const windowBytes = 256 << 10

// conn is one end of a connection. Safe for concurrent use, as every net.Conn.
type conn struct {
	network       *Network
	local, remote string
	in, out       *pipe
}

// pair makes a connection; far's local end is the address that was dialled.
func (n *Network) pair(from, address string) (near, far *conn) {
	there, back := newPipe(n, from, hostOf(address)), newPipe(n, hostOf(address), from)
	near = &conn{network: n, local: from, remote: address, in: back, out: there}
	far = &conn{network: n, local: address, remote: from, in: there, out: back}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[near], n.conns[far] = true, true
	return near, far
}

// Read hears of the other end's death, which ends writing too.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	if errors.Is(err, syscall.ECONNRESET) {
		c.out.fail(err)
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) { return c.out.write(p) }

func (c *conn) forget() {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	delete(c.network.conns, c)
}

// Close ends this end; the other end reads what was sent, then the end of it.
func (c *conn) Close() error {
	c.in.deafen(net.ErrClosed)
	c.out.end(io.EOF, net.ErrClosed)
	c.forget()
	return nil
}

// kill ends this end as the death of its process does.
func (c *conn) kill() {
	c.in.deafen(syscall.ECONNRESET)
	c.out.end(syscall.ECONNRESET, syscall.ECONNRESET)
	c.forget()
}

func (c *conn) LocalAddr() net.Addr  { return Address(c.local) }
func (c *conn) RemoteAddr() net.Addr { return Address(c.remote) }

func (c *conn) SetDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readBy, t)
	c.out.setDeadline(&c.out.writeBy, t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readBy, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writeBy, t)
	return nil
}

// packet is what one write sent, or the end of a direction.
type packet struct {
	bytes  []byte
	end    error // nil: bytes
	arrive time.Time
}

// pipe is one direction of a connection.
type pipe struct {
	network  *Network
	from, to string

	// Each holds one token at most: the waiter looks again.
	readable, writable chan struct{}

	mu         sync.Mutex
	queue      []packet // in order of arrival
	queued     int      // bytes
	readErr    error    // what reads return; nil: the queue says
	writeErr   error    // what writes return
	readBy     time.Time
	writeBy    time.Time
	lastArrive time.Time
}

func newPipe(n *Network, from, to string) *pipe {
	return &pipe{network: n, from: from, to: to, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
}

// poke makes reader and writer look again.
func (p *pipe) poke() {
	for _, c := range []chan struct{}{p.readable, p.writable} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// deafen ends reading. The other end may write on: it does not know.
func (p *pipe) deafen(err error) {
	p.mu.Lock()
	if p.readErr == nil {
		p.readErr = err
	}
	p.queue, p.queued = nil, 0
	p.mu.Unlock()
	p.poke()
}

// fail ends reading and writing at once.
func (p *pipe) fail(err error) {
	p.mu.Lock()
	if p.writeErr == nil {
		p.writeErr = err
	}
	p.mu.Unlock()
	p.deafen(err)
}

// end lets the reader have what was sent, then told; writes fail from now on.
func (p *pipe) end(told, writeErr error) {
	arrive := p.network.travel(p.from, p.to)
	p.mu.Lock()
	if p.writeErr == nil {
		p.writeErr = writeErr
		p.pushLocked(packet{end: told}, arrive)
	}
	p.mu.Unlock()
	p.poke()
}

func (p *pipe) pushLocked(k packet, travel time.Duration) {
	if p.readErr != nil { // nobody is there
		return
	}
	k.arrive = time.Now().Add(travel)
	if k.arrive.Before(p.lastArrive) { // overtakes nothing
		k.arrive = p.lastArrive
	}
	p.lastArrive = k.arrive
	p.queue = append(p.queue, k)
	p.queued += len(k.bytes)
}

func (p *pipe) setDeadline(field *time.Time, t time.Time) {
	p.mu.Lock()
	*field = t
	p.mu.Unlock()
	p.poke()
}

// wait waits for a token, or for as long as d; d 0: without end.
func wait(token chan struct{}, d time.Duration) {
	if d == 0 {
		<-token
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-token:
	case <-timer.C:
	}
}

// sooner is the shorter of two waits, where 0 means without end.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// left is how long until a deadline; passed once it is over.
func left(by time.Time) (d time.Duration, passed bool) {
	if by.IsZero() {
		return 0, false
	}
	d = time.Until(by)
	return d, d <= 0
}

func (p *pipe) read(b []byte) (int, error) {
	for {
		passes := p.network.passes(p.from, p.to)
		p.mu.Lock()
		n, d, err := p.takeLocked(b, passes)
		p.mu.Unlock()
		if n > 0 || err != nil || len(b) == 0 {
			p.poke() // a writer has room, another reader its turn
			return n, err
		}
		wait(p.readable, d)
	}
}

// takeLocked takes what has arrived; with neither bytes nor an error, look again
// after d or when poked.
func (p *pipe) takeLocked(b []byte, passes bool) (n int, d time.Duration, err error) {
	if p.readErr != nil {
		return 0, 0, p.readErr
	}
	d, passed := left(p.readBy)
	if passed {
		return 0, 0, os.ErrDeadlineExceeded
	}
	if !passes {
		return 0, d, nil
	}
	now := time.Now()
	for len(p.queue) > 0 && n < len(b) {
		k := &p.queue[0]
		if k.arrive.After(now) {
			d = sooner(d, k.arrive.Sub(now))
			break
		}
		if k.end != nil {
			if n == 0 {
				p.readErr = k.end
				return 0, 0, k.end
			}
			break
		}
		m := copy(b[n:], k.bytes)
		n += m
		p.queued -= m
		if k.bytes = k.bytes[m:]; len(k.bytes) == 0 {
			p.queue[0] = packet{}
			p.queue = p.queue[1:]
		}
	}
	return n, d, nil
}

func (p *pipe) write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	travel := p.network.travel(p.from, p.to)
	for {
		moves := p.network.moves(p.from)
		p.mu.Lock()
		err := p.writeErr
		d, passed := left(p.writeBy)
		if err == nil && passed {
			err = os.ErrDeadlineExceeded
		}
		sent := err == nil && moves && p.queued < windowBytes
		if sent {
			p.pushLocked(packet{bytes: append([]byte(nil), b...)}, travel)
		}
		p.mu.Unlock()
		switch {
		case err != nil:
			p.poke()
			return 0, err
		case sent:
			p.poke()
			return len(b), nil
		}
		wait(p.writable, d)
	}
}
