package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/client/internal/faketest"
)

// Shows that a reader from the latest message gets what is published while its
// first connection is broken, on a topic that was empty and on one that was not.
func TestReaderFromLatestMissesNothing(t *testing.T) {
	for _, before := range []int{0, 30} {
		world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
			cluster.CreateTopic("t", 0)
			writer := connect(t, ctx, cluster)
			defer closing(t, ctx, writer)
			if before > 0 {
				publish(t, ctx, writer, cluster, "t", 0, before)
			}
			var away atomic.Bool
			c := connect(t, ctx, cluster, client.WithDialer(func(ctx context.Context, address string) (net.Conn, error) {
				if away.Load() {
					return nil, errors.New("no way")
				}
				return cluster.Dial(ctx, address)
			}))
			defer closing(t, ctx, c)
			r := must[*client.Reader](t)(c.Reader(ctx, "t", client.ReadFrom(client.Latest())))
			away.Store(true)
			cluster.Cut(cluster.Owner("t"))
			publish(t, ctx, writer, cluster, "t", before, before+20)
			away.Store(false)
			for i := range 20 {
				receive(t, ctx, r, before+i)
			}
		})
	}
}

// Shows that a reader to the end ends there wherever it starts: behind the last
// message of a batch, behind the end, where a seek has put it, or at an entry that
// is damaged.
func TestReaderEnds(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		publish(t, ctx, c, cluster, "t", 0, 30)
		var ids []client.MessageID
		read := func(r *client.Reader) (n int) {
			t.Helper()
			for {
				short, cancel := context.WithTimeout(ctx, time.Minute)
				m, err := r.Receive(short)
				cancel()
				if errors.Is(err, client.ErrEnd) {
					return n
				}
				if err != nil {
					t.Errorf("after %d messages: %v", n, err)
					return n
				}
				ids = append(ids, m.ID)
				n++
			}
		}
		open := func(opts ...client.ReaderOption) *client.Reader {
			t.Helper()
			return must[*client.Reader](t)(c.Reader(ctx, "t", append(opts, client.ReadToEnd())...))
		}
		if n := read(open()); n != 30 {
			t.Fatalf("read %d", n)
		}
		for from, want := range map[int]int{29: 0, 24: 5, 19: 10, 13: 16} {
			if n := read(open(client.ReadFrom(client.After(ids[from])))); n != want {
				t.Errorf("after %v: read %d, want %d", ids[from], n, want)
			}
		}
		r := open()
		receive(t, ctx, r, 0)
		for _, x := range []struct {
			to   client.Position
			want int
		}{{client.Latest(), 0}, {client.After(ids[29]), 0}, {client.After(entryOf(ids[29])), 0}, {client.After(ids[24]), 5}, {client.Earliest(), 30}} {
			if err := r.Seek(ctx, x.to); err != nil {
				t.Fatal(err)
			}
			if n := read(r); n != x.want {
				t.Errorf("sought: read %d, want %d", n, x.want)
			}
		}
		cluster.Damage(long+"t", 2)
		r = open(client.ReadFrom(client.At(entryOf(ids[29]))))
		if _, err := r.Receive(ctx); !errors.Is(err, client.ErrCorrupt) {
			t.Errorf("damaged end: %v", err)
		}
		read(r)
	})
}

// Shows that a reader goes on at the place it sought, whether what is there comes
// before the answer or behind it, also to those who wait for a message meanwhile.
func TestReaderSeeksToAndFro(t *testing.T) {
	for seed := range uint64(4) {
		world(t, seed, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
			c := connect(t, ctx, cluster)
			defer closing(t, ctx, c)
			publish(t, ctx, c, cluster, "t", 0, 30)
			r := must[*client.Reader](t)(c.Reader(ctx, "t"))
			for range 6 {
				short, cancel := context.WithTimeout(ctx, time.Minute)
				for i := range 30 {
					receive(t, short, r, i)
				}
				cancel()
				sought := make(chan error, 1)
				go func() { sought <- r.Seek(ctx, client.Earliest()) }()
				defer func() {
					if err := <-sought; err != nil {
						t.Error(err)
					}
				}()
			}
		})
	}
}

// Shows that a seek of which nobody heard the answer in time, and which the broker
// did all the same, moves the reader: it is neither stuck nor does it skip anything.
func TestReaderSeekGivenUp(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		publish(t, ctx, c, cluster, "t", 0, 30)
		r := must[*client.Reader](t)(c.Reader(ctx, "t"))
		for i := range 30 {
			receive(t, ctx, r, i)
		}
		synctest.Wait()
		cluster.DelayAnswers(30 * time.Second)
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		if err := r.Seek(short, client.Earliest()); !errors.Is(err, client.ErrUnknownOutcome) {
			t.Errorf("seek: %v", err)
		}
		cluster.DelayAnswers(0)
		for i := range 30 {
			receive(t, ctx, r, i)
		}
		if m, err := r.Receive(short); err == nil {
			t.Errorf("read %q on top", m.Value)
		}
		must[*client.Producer](t)(c.Producer(ctx, "t")).SendAsync(ctx, client.Message{Value: fmt.Append(nil, 30)})
		receive(t, ctx, r, 30)
	})
}

// Shows that a reader which sought the latest message gets what is published from
// then on, though its connection breaks before it has read any of it: before that is
// delivered, and when it waits to be received.
func TestReaderSoughtLatestMissesNothing(t *testing.T) {
	for seed := range uint64(4) {
		for _, delivered := range []bool{false, true} {
			world(t, seed, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
				writer := connect(t, ctx, cluster)
				defer closing(t, ctx, writer)
				publish(t, ctx, writer, cluster, "t", 0, 30)
				var away atomic.Bool
				c := connect(t, ctx, cluster, client.WithDialer(func(ctx context.Context, address string) (net.Conn, error) {
					if away.Load() {
						return nil, errors.New("no way")
					}
					return cluster.Dial(ctx, address)
				}))
				defer closing(t, ctx, c)
				r := must[*client.Reader](t)(c.Reader(ctx, "t"))
				receive(t, ctx, r, 0)
				if err := r.Seek(ctx, client.Latest()); err != nil {
					t.Fatal(err)
				}
				if delivered {
					publish(t, ctx, writer, cluster, "t", 30, 40)
					synctest.Wait()
				}
				away.Store(true)
				cluster.Cut(cluster.Owner("t"))
				publish(t, ctx, writer, cluster, "t", map[bool]int{false: 30, true: 40}[delivered], 50)
				away.Store(false)
				for i := range 20 {
					receive(t, ctx, r, 30+i)
				}
			})
		}
	}
}

// Shows that a reader to the end is there at once when it starts, or seeks to, a time
// after which nothing was published.
func TestReaderFromATimeBeyondTheEnd(t *testing.T) {
	world(t, 1, func(t *testing.T, ctx context.Context, cluster *faketest.Cluster) {
		c := connect(t, ctx, cluster)
		defer closing(t, ctx, c)
		publish(t, ctx, c, cluster, "t", 0, 30)
		later := time.Now().Add(time.Hour)
		atEnd := func(what string, r *client.Reader) {
			t.Helper()
			short, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if m, err := r.Receive(short); !errors.Is(err, client.ErrEnd) {
				t.Errorf("%s: %v, %v", what, m, err)
			}
		}
		atEnd("from there", must[*client.Reader](t)(c.Reader(ctx, "t", client.ReadFrom(client.Since(later)), client.ReadToEnd())))
		r := must[*client.Reader](t)(c.Reader(ctx, "t", client.ReadToEnd()))
		receive(t, ctx, r, 0)
		if err := r.Seek(ctx, client.Since(later)); err != nil {
			t.Fatal(err)
		}
		atEnd("sought", r)
		if err := r.Seek(ctx, client.Since(time.Time{})); err != nil {
			t.Fatal(err)
		}
		for i := range 30 {
			receive(t, ctx, r, i)
		}
		atEnd("after all", r)
	})
}
