package simnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestConnIsANetConn shows that a connection keeps the contract of net.Conn.
func TestConnIsANetConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := New(nil)
		n.SetUsual(Link{Delay: 100 * time.Microsecond, Jitter: 100 * time.Microsecond})
		l, err := n.Listen("b:1")
		if err != nil {
			return nil, nil, nil, err
		}
		if c1, err = n.Dialer("a")(t.Context(), "b:1"); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = l.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close(); l.Close() }, nil
	})
}

// wire is a network with a listener at b:1 and a connection from a to it, in a
// bubble of virtual time.
type wire struct {
	*Network
	t         *testing.T
	near, far net.Conn
	listener  net.Listener
}

func story(t *testing.T, tell func(t *testing.T, w *wire)) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{Network: New(nil), t: t}
		var err error
		if w.listener, err = w.Listen("b:1"); err != nil {
			t.Fatal(err)
		}
		if w.near, err = w.dial(time.Minute); err != nil {
			t.Fatal(err)
		}
		if w.far, err = w.listener.Accept(); err != nil {
			t.Fatal(err)
		}
		tell(t, w)
		w.near.Close()
		w.far.Close()
		w.listener.Close()
	})
}

func (w *wire) dial(patience time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return w.Dialer("a")(ctx, "b:1")
}

// reads expects a text at the far end after d.
func (w *wire) reads(want string, d time.Duration) {
	w.t.Helper()
	start := time.Now()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(w.far, got); err != nil || string(got) != want {
		w.t.Fatalf("read %q, %v; want %q", got, err, want)
	}
	if took := time.Since(start); took != d {
		w.t.Fatalf("%q came after %v, want %v", want, took, d)
	}
}

func (w *wire) writes(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w.near, text); err != nil {
		w.t.Fatal(err)
	}
}

// TestDelayKeepsOrder shows that bytes take as long as the link says and do not
// overtake each other when it gets faster.
func TestDelayKeepsOrder(t *testing.T) {
	story(t, func(t *testing.T, w *wire) {
		w.SetLink("a", "b", Link{Delay: time.Second})
		w.writes("slow ")
		w.SetLink("a", "b", Link{Delay: time.Millisecond})
		w.writes("fast")
		w.reads("slow fast", time.Second)
		w.writes("again")
		w.reads("again", time.Millisecond)
	})
}

// TestCutOneWay shows that what is sent over a cut link comes when it heals, the
// other way working meanwhile, and that nobody can connect over it.
func TestCutOneWay(t *testing.T) {
	story(t, func(t *testing.T, w *wire) {
		w.SetLink("a", "b", Link{Cut: true})
		w.writes("held")
		w.near, w.far = w.far, w.near
		w.writes("back")
		w.reads("back", 0)
		w.near, w.far = w.far, w.near
		if _, err := w.dial(time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("dialled over a cut link: %v", err)
		}
		time.AfterFunc(time.Minute, w.Heal)
		w.reads("held", time.Minute)
	})
}

// TestStoppedHost shows that a stopped host takes nothing in and sends nothing,
// while others connect to it and their bytes wait.
func TestStoppedHost(t *testing.T) {
	story(t, func(t *testing.T, w *wire) {
		w.Stop("b")
		w.writes("wait")
		c, err := w.dial(time.Second)
		if err != nil {
			t.Fatalf("the kernel of a stopped process takes connections: %v", err)
		}
		defer c.Close()
		answered := make(chan error)
		go func() {
			_, err := io.WriteString(w.far, "answer")
			answered <- err
		}()
		time.AfterFunc(time.Hour, func() { w.Resume("b") })
		w.reads("wait", time.Hour)
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		accepted, err := w.listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		accepted.Close()
	})
}

// TestDeathIsHeardOfOnceItGetsThrough shows that the other end of a connection
// reads what was sent before the death of a host, then a reset, and over a cut
// link neither; that the address is refused then, and free.
func TestDeathIsHeardOfOnceItGetsThrough(t *testing.T) {
	story(t, func(t *testing.T, w *wire) {
		w.near, w.far = w.far, w.near // b writes, a reads
		w.SetLink("b", "a", Link{Cut: true})
		w.writes("last words")
		w.Kill("b")
		if _, err := io.WriteString(w.far, "into the void"); err != nil {
			t.Fatalf("a death was heard of over a cut link: %v", err)
		}
		time.AfterFunc(time.Minute, w.Heal)
		w.reads("last words", time.Minute)
		if _, err := w.far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read %v, want a reset", err)
		}
		if _, err := w.far.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("write after a reset: %v", err)
		}
		if _, err := w.dial(time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("dialled the dead: %v", err)
		}
		again, err := w.Listen("b:1")
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
	})
}

// TestBreak shows that a broken connection is reset at both ends.
func TestBreak(t *testing.T) {
	story(t, func(t *testing.T, w *wire) {
		w.Break("b", "a")
		for _, c := range []net.Conn{w.near, w.far} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("read %v, want a reset", err)
			}
		}
	})
}

// TestCloseEndsTheStream shows that the other end reads all, then the end.
func TestCloseEndsTheStream(t *testing.T) {
	story(t, func(t *testing.T, w *wire) {
		w.SetUsual(Link{Delay: time.Second})
		w.writes("all")
		w.near.Close()
		got, err := io.ReadAll(w.far)
		if err != nil || string(got) != "all" {
			t.Fatalf("read %q, %v", got, err)
		}
	})
}

// TestWindow shows that a writer waits once the window is full, and no longer
// than its deadline.
func TestWindow(t *testing.T) {
	story(t, func(t *testing.T, w *wire) {
		w.SetLink("a", "b", Link{Cut: true})
		block := strings.Repeat("x", windowBytes)
		w.writes(block)
		w.near.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(w.near, "more"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a write into a full window: %v", err)
		}
		w.near.SetWriteDeadline(time.Time{})
		w.Heal()
		w.reads(block, 0)
		w.writes("more")
		w.reads("more", 0)
	})
}

// TestLoss shows that a lost packet is late and not lost.
func TestLoss(t *testing.T) {
	story(t, func(t *testing.T, w *wire) {
		tosses := 0
		w.rand = func() uint64 { // the first two tries are lost
			tosses++
			if tosses <= 2 {
				return 0
			}
			return 1 << 63
		}
		w.SetLink("a", "b", Link{Loss: 0.3})
		w.writes("thrice")
		w.reads("thrice", 600*time.Millisecond)
	})
}
