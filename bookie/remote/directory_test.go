package remote_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/bookie/remote"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

var keys = layout.New("test")

func list(t *testing.T, store meta.Store, id, incarnation, address string, readOnly bool) {
	t.Helper()
	value, err := proto.Marshal(metav1.Bookie_builder{Incarnation: &incarnation, Address: &address, Rack: new("r"), ReadOnly: &readOnly, MaxEntryBytes: new(uint64(4096))}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Txn(context.Background(), meta.Txn{Ops: []meta.Op{{Key: keys.Bookie(id), Value: value}}}); err != nil {
		t.Fatal(err)
	}
}

func unlist(t *testing.T, store meta.Store, id string) {
	t.Helper()
	if _, err := store.Txn(context.Background(), meta.Txn{Ops: []meta.Op{{Key: keys.Bookie(id), Delete: true}}}); err != nil {
		t.Fatal(err)
	}
}

// TestDirectoryFollowsTheStore shows that the directory lists who is live, says
// when that changes, reaches bookies that are no longer listed where they were,
// refuses other incarnations, and keeps to what it knew when the store is gone.
func TestDirectoryFollowsTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := meta.NewMem()
		defer store.Close()
		list(t, store, "b1", "i1", "host:1", false)
		d := remote.NewDirectory(remote.DirectoryOptions{Store: store, Layout: keys})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { d.Run(ctx); close(ended) }()
		<-d.Ready()
		candidate := func(id, incarnation string, readOnly bool) ensemble.Candidate {
			return ensemble.Candidate{Member: ledger.Member{Bookie: id, Incarnation: incarnation}, Rack: "r", ReadOnly: readOnly, MaxBodyBytes: 4096}
		}
		expect := func(when string, want ...ensemble.Candidate) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(want, d.Candidates()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		expect("at first", candidate("b1", "i1", false))
		changed := d.Changed()
		list(t, store, "b2", "i2", "host:2", true)
		expect("one more", candidate("b1", "i1", false), candidate("b2", "i2", true))
		select {
		case <-changed:
		default:
			t.Error("nobody was told of the change")
		}
		first, err := d.Bookie(ledger.Member{Bookie: "b1", Incarnation: "i1"})
		if err != nil {
			t.Fatal(err)
		}
		unlist(t, store, "b1")
		expect("one less", candidate("b2", "i2", true))
		if again, err := d.Bookie(ledger.Member{Bookie: "b1", Incarnation: "i1"}); err != nil || again != first {
			t.Errorf("a bookie whose session lapsed: %v, %v; want it where it was", again, err)
		}
		if _, err := d.Bookie(ledger.Member{Bookie: "b2", Incarnation: "older"}); !errors.Is(err, ledger.ErrIncarnation) {
			t.Errorf("another incarnation: %v", err)
		}
		if _, err := d.Bookie(ledger.Member{Bookie: "b9", Incarnation: "i"}); err == nil {
			t.Error("a bookie nobody listed was given")
		}
		store.SetUnavailable(true)
		time.Sleep(time.Hour)
		expect("store gone", candidate("b2", "i2", true))
		store.SetUnavailable(false)
		list(t, store, "b1", "i9", "host:9", false)
		store.Compact()
		time.Sleep(time.Minute)
		expect("wiped and back", candidate("b1", "i9", false), candidate("b2", "i2", true))
		if _, err := d.Bookie(ledger.Member{Bookie: "b1", Incarnation: "i1"}); !errors.Is(err, ledger.ErrIncarnation) {
			t.Errorf("the wiped incarnation: %v", err)
		}
		cancel()
		<-ended
		if _, err := d.Bookie(ledger.Member{Bookie: "b2", Incarnation: "i2"}); !errors.Is(err, ledger.ErrStopping) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestDirectoryPrefersLocal shows that a bookie in this process is called
// directly.
func TestDirectoryPrefersLocal(t *testing.T) {
	n, _ := openNode(t)
	d := remote.NewDirectory(remote.DirectoryOptions{Local: func(m ledger.Member) (ensemble.Bookie, bool) {
		return n, m == n.Member()
	}})
	if b, err := d.Bookie(n.Member()); err != nil || b != ensemble.Bookie(n) {
		t.Errorf("got %v, %v", b, err)
	}
}
