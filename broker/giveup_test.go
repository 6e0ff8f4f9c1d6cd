package broker

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// taker is a consumer's end that notes what it is given.
type taker struct {
	nobody
	mu  sync.Mutex
	got []subscription.Acked
}

func (k *taker) Deliver(_ uint64, entries []subscription.Delivery) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range entries {
		k.got = append(k.got, subscription.Acked{Position: e.Position})
	}
}

// reopening has a topic of a broker end by itself: a bookie says that its ledger
// is fenced. It returns while the topic is being closed, which takes logDelay, for
// an acknowledgement waits for the bundle's log.
func (n *node) reopening(name topicname.Name, logDelay time.Duration) (closing *ownedTopic, acked <-chan error) {
	w := n.w
	w.t.Helper()
	s := n.publish(name, "p", 3)
	tp, err := n.Broker.topic(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	k := &taker{}
	c, _, err := tp.Subscribe(w.t.Context(), topic.SubscribeRequest{
		Subscription: "s", Consumer: subscription.ConsumerOptions{Name: "c", WindowBytes: 1 << 20},
	}, k)
	if err == nil {
		_, err = tp.SeekIn(w.t.Context(), c.Subscription(), subscription.Place{Anchor: subscription.Earliest})
	}
	if err == nil {
		err = c.Flow(10, 0)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.until("deliveries", time.Minute, func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.got) == 3
	})
	for i := range 3 {
		w.bookies.At(i).OnAdd(func(a ledger.Add) ensembletest.AddFault {
			if a.Envelope.Class == ledger.Data {
				return ensembletest.AddFault{Err: ledger.ErrFenced}
			}
			return ensembletest.AddFault{Delay: logDelay}
		})
	}
	o := n.bundle(w.bundleOf(name))
	o.mu.Lock()
	t := o.topics[name]
	o.mu.Unlock()
	answer := make(chan error, 1)
	c.Ack(subscription.Ack{Positions: k.got}, func(err error) { answer <- err })
	s.producer.Publish(batch("p", 3, 0))
	w.until("the topic is being closed", time.Minute, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return t.reopening
	})
	for i := range 3 {
		w.bookies.At(i).OnAdd(nil) // what was asked before is still late
	}
	return t, answer
}

// isGone reports whether a topic that ended by itself is closed.
func (t *ownedTopic) isGone() bool {
	select {
	case <-t.gone:
		return true
	default:
		return false
	}
}

// A bundle is given up only when its topics that were just being closed, because
// they ended by themselves, are: what they say to the log belongs before its end.
func TestGivingUpWaitsForTopicsThatReopen(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		bd := w.bundleOf(name)
		a.open(bd)
		closing, acked := a.reopening(name, 3*time.Second)
		w.onCall(func(c meta.Call) meta.Fault {
			if writesOwner(c, keys.BundleOwner(bd.String())) && !closing.isGone() {
				t.Error("the bundle was given up before the topic was closed")
			}
			return meta.Fault{}
		})
		a.close()
		if !closing.isGone() {
			t.Error("the broker ended before the topic was closed")
		}
		if err := <-acked; err != nil {
			t.Errorf("an acknowledgement was not waited for: %v", err)
		}
		w.onCall(nil)
		b := w.start("b")
		b.open(bd)
		tp, err := b.Broker.topic(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range tp.Stats(t.Context()).Subscriptions {
			if s.BacklogMessages > 1 { // the fenced one may be stored
				t.Errorf("%d messages of %q are to be delivered again", s.BacklogMessages, s.Name)
			}
		}
	})
}

// A topic that was closed before the log had all it appended is not open again
// before the log has: an acknowledgement made again would be answered as durable,
// for it is in the topic's state already.
func TestReopeningWaitsForTheLog(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		o := a.open(w.bundleOf(name))
		closing, acked := a.reopening(name, a.opts.CloseTimeout+5*time.Second)
		landed := make(chan error, 1)
		if err := o.journal.Append(nil, func(err error) { landed <- err }); err != nil {
			t.Fatal(err)
		}
		<-closing.gone
		if err := <-acked; err == nil {
			t.Fatal("an acknowledgement was answered before the log had it")
		}
		tp, err := a.Broker.topic(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if st := tp.Stats(t.Context()).Subscriptions; len(st) != 1 || st[0].BacklogMessages > 1 {
			t.Errorf("the topic is open with %+v", st)
		}
		select {
		case err := <-landed:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("the topic is open, and what it was opened from is not durable")
		}
	})
}

// A bundle that is lost does not wait for what its log will not hear any more.
func TestLosingEndsTopicsThatReopen(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		o := a.open(w.bundleOf(name))
		closing, _ := a.reopening(name, time.Hour)
		began := time.Now()
		a.kill()
		if !closing.isGone() {
			t.Error("the broker ended before the topic was closed")
		}
		if took := time.Since(began); took > a.opts.CloseTimeout/2 {
			t.Errorf("ending %s took %v", o.bundle.String(), took)
		}
	})
}

// A topic that is to be deleted while it is being closed, because it ended by
// itself, is deleted as soon as it is closed.
func TestDeletionWaitsForATopicThatReopens(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		o := a.open(w.bundleOf(name))
		closing, _ := a.reopening(name, 3*time.Second)
		if _, err := w.catalog.MarkDeleting(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		w.until("the topic is deleted", time.Minute, func() bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.deletions.failed {
				t.Fatal("the deletion was broken off")
			}
			kv, err := w.store.Get(t.Context(), w.catalog.TopicKey(name))
			return err == nil && !kv.Exists()
		})
		if !closing.isGone() {
			t.Error("the topic was deleted while it was open")
		}
	})
}

// A bundle that is given up does not wait for the deletion of a topic: its next
// owner takes that up.
func TestGivingUpEndsDeletions(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		bd := w.bundleOf(name)
		a.open(bd)
		a.publish(name, "p", 3)
		tp, err := a.Broker.topic(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		stuck, never := make(chan struct{}), make(chan struct{})
		defer close(never)
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Client == "a" && c.Kind == meta.CallRange && c.Key == keys.Chain(tp.ID()) {
				close(stuck)
				return meta.Fault{Until: never}
			}
			return meta.Fault{}
		})
		if _, err := w.catalog.MarkDeleting(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		<-stuck
		w.onCall(nil)
		given := make(chan error, 1)
		go func() { given <- a.ownership.handOver(t.Context(), bd, discovery.BrokerInfo{}, "the test says so") }()
		select {
		case err := <-given:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Minute):
			t.Fatal("the bundle is still not given up")
		}
		w.until("the next owner deletes the topic", time.Minute, func() bool {
			kv, err := w.store.Get(t.Context(), w.catalog.TopicKey(name))
			return err == nil && !kv.Exists()
		})
	})
}

// A topic that is marked for deletion while its bundle is being opened is deleted,
// though the one who watches the marks finds no open bundle then.
func TestDeletionMarkedWhileTheBundleOpens(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		name := w.topic("orders")
		a := w.start("a")
		again, letGo := a.openAgain(w.bundleOf(name))
		defer letGo()
		synctest.Wait() // whatever the opened one does by itself is done
		if _, err := w.catalog.MarkDeleting(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !a.admit(again, 0) {
			t.Fatal("not admitted")
		}
		w.until("the topic is deleted", time.Minute, func() bool {
			kv, err := w.store.Get(t.Context(), w.catalog.TopicKey(name))
			return err == nil && !kv.Exists()
		})
	})
}

// A deletion that was broken off is taken up again, also while the policy of the
// namespace, which says nothing of it, cannot be read.
func TestDeletionGoesOnWithoutAPolicy(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		a.open(w.bundleOf(name))
		a.publish(name, "p", 3)
		tries, chain := 0, keys.Chain(w.idOf(name))
		w.onCall(func(c meta.Call) meta.Fault {
			switch {
			case c.Client == "a" && c.Key == keys.Namespace(name.NamespaceName()):
				return meta.Fault{Err: meta.ErrUnavailable}
			case c.Client == "a" && c.Kind == meta.CallRange && c.Key == chain:
				if tries++; tries == 1 {
					return meta.Fault{Err: meta.ErrUnavailable}
				}
			}
			return meta.Fault{}
		})
		if _, err := w.catalog.MarkDeleting(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * trimEvery)
		if _, err := w.catalog.Topic(t.Context(), name); !errors.Is(err, rpcerr.ErrNotFound) || tries < 2 {
			t.Errorf("after %d tries the topic is there: %v", tries, err)
		}
	})
}

// gate is a log that holds back whoever logs a warning.
type gate struct {
	hclog.Logger // for what is not called
	text         string
	reached      chan struct{} // closed by the first that is held back
	once         *sync.Once
	open         chan struct{}
}

func (g gate) Named(string) hclog.Logger { return g }
func (g gate) With(...any) hclog.Logger  { return g }

func (g gate) Warn(message string, _ ...any) {
	if message == g.text {
		g.once.Do(func() { close(g.reached) })
		<-g.open
	}
}

// killWaitsFor kills a broker with a goroutine that is held back until gate is
// closed.
func (n *node) killWaitsFor(gate chan struct{}) {
	n.w.t.Helper()
	killed := make(chan struct{})
	go func() {
		n.kill()
		close(killed)
	}()
	synctest.Wait()
	select {
	case <-killed:
		n.w.t.Error("the broker ended, and somebody is still at it")
	default:
	}
	close(gate)
	<-killed
}

// When a broker has ended, nobody is left who is about to find out that a bundle
// was lost.
func TestClosingWaitsForThoseWhoFindALoss(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		g := gate{hclog.NewNullLogger(), "bundle is lost", make(chan struct{}), new(sync.Once), make(chan struct{})}
		a := w.start("a", func(o *Options) { o.Log = g })
		name := w.topic("orders")
		bd := w.bundleOf(name)
		o := a.open(bd)
		for i := range 3 {
			w.bookies.At(i).OnAdd(func(a ledger.Add) ensembletest.AddFault {
				return ensembletest.AddFault{Err: ledger.ErrFenced}
			})
		}
		if err := o.journal.Append(nil, func(error) {}); err != nil {
			t.Fatal(err)
		}
		<-g.reached
		a.killWaitsFor(g.open)
	})
}

// The same for those who ask the metadata store whether a bundle was lost.
func TestClosingWaitsForThoseWhoAskForALoss(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		name := w.topic("orders")
		bd := w.bundleOf(name)
		a.open(bd)
		s := a.publish(name, "p", 1)
		reached, open := make(chan struct{}), make(chan struct{})
		var once sync.Once
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Client == "a" && c.Kind == meta.CallGet && c.Key == keys.BundleOwner(bd.String()) {
				once.Do(func() { close(reached) })
				<-open // as one who asks and does not hear that nobody wants to know any more
			}
			return meta.Fault{}
		})
		for i := range 3 {
			w.bookies.At(i).OnAdd(func(ledger.Add) ensembletest.AddFault {
				return ensembletest.AddFault{Err: ledger.ErrFenced}
			})
		}
		s.producer.Publish(batch("p", 1, 0))
		<-reached
		a.killWaitsFor(open)
	})
}
