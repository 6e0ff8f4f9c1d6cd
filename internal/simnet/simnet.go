// Package simnet is a network in memory between named hosts, for whole clusters
// in one process: connections take time, lose packets, stall, break, and can be
// cut one way or both; hosts can stop and die.
//
// It behaves as TCP does: within a connection bytes arrive in order, once, or the
// connection breaks; what was sent over a cut link arrives when it heals. Nothing
// is promised between connections. All its time is that of package time, so
// that it runs in a synctest bubble, where a day of it costs nothing.
package simnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Link is how bytes travel from one host to another, one way.
type Link struct {
	Delay  time.Duration // of everything
	Jitter time.Duration // up to so much more, evenly
	// Loss is the part of the packets that are lost: each is sent again after 200 ms,
	// twice that, and so on, and holds up what is behind it.
	Loss float64
	// Cut: nothing gets through until it is lifted. Then what was sent meanwhile
	// arrives. Dialling waits.
	Cut bool
}

// resend is how long a sender waits before it sends a lost packet again.
const resend = 200 * time.Millisecond

// Network is a set of hosts. Safe for concurrent use.
type Network struct {
	rand func() uint64

	mu        sync.Mutex
	usual     Link // of hosts without one of their own
	links     map[way]Link
	stopped   map[string]bool
	listeners map[string]*listener // by address
	conns     map[*conn]bool       // both ends of each
	changed   chan struct{}        // closed and replaced when links or hosts change
}

// way is a direction between two hosts.
type way struct{ from, to string }

// New returns a network without faults. rand is the source of chance, safe for
// concurrent use; nil: math/rand/v2.
func New(random func() uint64) *Network {
	if random == nil {
		random = rand.Uint64
	}
	return &Network{rand: random, links: make(map[way]Link), stopped: make(map[string]bool), listeners: make(map[string]*listener),
		conns: make(map[*conn]bool), changed: make(chan struct{})}
}

// hostOf is the host of an address.
func hostOf(address string) string {
	host, _, _ := strings.Cut(address, ":")
	return host
}

// SetUsual sets how bytes travel between hosts that have no link of their own. A
// host reaches itself without delay, always.
func (n *Network) SetUsual(l Link) { n.change(func() { n.usual = l }) }

// SetLink sets how bytes travel from one host to another, the other way not
// included.
func (n *Network) SetLink(from, to string, l Link) { n.change(func() { n.links[way{from, to}] = l }) }

// Mend makes the link from one host to another the usual one again.
func (n *Network) Mend(from, to string) { n.change(func() { delete(n.links, way{from, to}) }) }

// Heal makes every link the usual one again and lets stopped hosts go on.
func (n *Network) Heal() {
	n.change(func() {
		clear(n.links)
		clear(n.stopped)
	})
}

// Stop makes a host stand still: it takes nothing in and sends nothing out, as
// if its processes were stopped. Others may connect to it all the same, as the
// kernel lets them, and wait.
func (n *Network) Stop(host string) { n.change(func() { n.stopped[host] = true }) }

// Resume lets a stopped host go on.
func (n *Network) Resume(host string) { n.change(func() { delete(n.stopped, host) }) }

// change alters the network and wakes all who wait for that.
func (n *Network) change(f func()) {
	n.mu.Lock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
	conns := make([]*conn, 0, len(n.conns))
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	for _, c := range conns {
		c.in.poke()
		c.out.poke()
	}
}

// Kill ends all that a host listens on and its connections: the other ends see a
// reset once it gets through to them.
func (n *Network) Kill(host string) {
	n.mu.Lock()
	var ls []*listener
	for _, l := range n.listeners {
		if hostOf(l.address) == host {
			ls = append(ls, l)
		}
	}
	conns := n.connsLocked(func(c *conn) bool { return hostOf(c.local) == host })
	n.mu.Unlock()
	for _, l := range ls {
		_ = l.Close()
	}
	for _, c := range conns {
		c.kill()
	}
}

// Break resets the connections between two hosts, at both ends at once.
func (n *Network) Break(a, b string) {
	n.mu.Lock()
	conns := n.connsLocked(func(c *conn) bool {
		from, to := hostOf(c.local), hostOf(c.remote)
		return from == a && to == b || from == b && to == a
	})
	n.mu.Unlock()
	for _, c := range conns {
		c.in.fail(syscall.ECONNRESET)
		c.out.fail(syscall.ECONNRESET)
	}
}

func (n *Network) connsLocked(which func(*conn) bool) []*conn {
	var conns []*conn
	for c := range n.conns {
		if which(c) {
			conns = append(conns, c)
		}
	}
	return conns
}

// linkLocked is how bytes travel now.
func (n *Network) linkLocked(from, to string) Link {
	if from == to {
		return Link{}
	}
	if l, ok := n.links[way{from, to}]; ok {
		return l
	}
	return n.usual
}

// travel is how long a packet is on its way.
func (n *Network) travel(from, to string) time.Duration {
	n.mu.Lock()
	l := n.linkLocked(from, to)
	n.mu.Unlock()
	d := l.Delay
	if l.Jitter > 0 {
		d += time.Duration(n.rand() % uint64(l.Jitter))
	}
	for again := resend; l.Loss > 0 && float64(n.rand()>>11)/(1<<53) < l.Loss && again < time.Minute; again *= 2 {
		d += again
	}
	return d
}

// passes reports whether a packet gets in now that has arrived.
func (n *Network) passes(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.stopped[to] && !n.linkLocked(from, to).Cut
}

// moves reports whether a host's processes run.
func (n *Network) moves(host string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.stopped[host]
}

// Listen begins to accept connections at an address, "host:port".
func (n *Network) Listen(address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "sim", Err: syscall.EADDRINUSE}
	}
	l := &listener{network: n, address: address, backlog: make(chan *conn, 128), closed: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

// Dialer returns how a host opens connections.
func (n *Network) Dialer(from string) func(ctx context.Context, address string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		c, err := n.dial(ctx, from, address)
		if err != nil {
			return nil, fmt.Errorf("dial %s from %s: %w", address, from, err)
		}
		return c, nil
	}
}

// dial goes there and back before it knows.
func (n *Network) dial(ctx context.Context, from, address string) (net.Conn, error) {
	to := hostOf(address)
	if err := n.cross(ctx, from, to, from); err != nil {
		return nil, err
	}
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if err := n.cross(ctx, to, from, from); err != nil {
		return nil, err
	}
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	near, far := n.pair(from, address)
	select {
	case l.backlog <- far:
		return near, nil
	case <-l.closed:
		near.kill()
		far.kill()
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		near.kill()
		far.kill()
		return nil, ctx.Err()
	}
}

// cross waits until one packet has gone one way, and while the host is stopped
// whose process waits for it.
func (n *Network) cross(ctx context.Context, from, to, waiting string) error {
	timer := time.NewTimer(n.travel(from, to))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		n.mu.Lock()
		changed, closed := n.changed, n.stopped[waiting] || n.linkLocked(from, to).Cut
		n.mu.Unlock()
		if !closed {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// listener accepts connections at an address.
type listener struct {
	network *Network
	address string
	backlog chan *conn
	once    sync.Once
	closed  chan struct{}
}

func (l *listener) Addr() net.Addr { return Address(l.address) }

func (l *listener) Accept() (net.Conn, error) {
	for {
		l.network.mu.Lock()
		changed, stopped := l.network.changed, l.network.stopped[hostOf(l.address)]
		l.network.mu.Unlock()
		backlog := l.backlog
		if stopped {
			backlog = nil
		}
		select {
		case c := <-backlog:
			return c, nil
		case <-changed:
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
}

// Close resets the connections that nobody has accepted.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.network.mu.Lock()
		delete(l.network.listeners, l.address)
		l.network.mu.Unlock()
		for {
			select {
			case c := <-l.backlog:
				c.kill()
			default:
				return
			}
		}
	})
	return nil
}

// Address of a host and port.
type Address string

func (Address) Network() string  { return "sim" }
func (a Address) String() string { return string(a) }
