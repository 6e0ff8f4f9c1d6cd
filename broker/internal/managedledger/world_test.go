package managedledger

import (
	"context"
	"errors"
	"hash/crc32"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	"github.com/magnetar-io/magnetar/internal/entry"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testTopic = 42
	ownerKey  = "/owner"
)

// world is the bookies and the store that successive owners of one topic share,
// and what all of them were told about their publishes.
type world struct {
	t       *testing.T
	store   *meta.Mem
	layout  layout.Layout
	bookies *ensembletest.Cluster

	mu    sync.Mutex
	sent  int                       // bodies are numbered across owners
	acked map[position.Position]int // number of the body acknowledged there
}

func newWorld(t *testing.T) *world {
	return &world{t: t, store: meta.NewMem(), layout: layout.New("test"), bookies: ensembletest.New(3), acked: map[position.Position]int{}}
}

// owner is one broker that made itself the owner of the topic.
type owner struct {
	w       *world
	store   *meta.MemClient
	client  *ensemble.Client
	guard   []meta.Cond
	opts    Options
	m       *ManagedLedger
	lost    chan error
	index   uint64 // of the next message
	now     int64  // broker time of the next
	results []error
}

// owner takes the topic over from whoever had it.
func (w *world) owner(name string, roll Roll) *owner {
	w.t.Helper()
	ctx := w.t.Context()
	o := &owner{w: w, store: w.store.Client(name), lost: make(chan error, 1)}
	kv, err := w.store.Get(ctx, ownerKey)
	if err != nil {
		w.t.Fatal(err)
	}
	session := "/sessions/" + name
	res, err := w.store.Txn(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: ownerKey, Revision: kv.Revision}},
		Ops:   []meta.Op{{Key: ownerKey, Value: []byte(name)}, {Key: session}},
	})
	if err != nil || !res.Done {
		w.t.Fatalf("take over: %v, %v", res, err)
	}
	o.guard = []meta.Cond{{Key: ownerKey, Revision: res.Revision}, {Key: session, AnyRevision: true}}
	o.client = w.bookies.Client(w.t, ensemble.Options{
		Store: o.store, Layout: w.layout, IDs: idblock.New(o.store, w.layout), Session: func() string { return name },
	})
	o.opts = Options{
		Topic: testTopic, Layout: w.layout, Store: o.store, Ledgers: o.client,
		Guard: func() []meta.Cond { return o.guard }, Quorum: ledger.Quorum{Write: 3, Ack: 2},
		Roll: roll, Cache: NewCache(CacheOptions{}), OnFenced: func(err error) { o.lost <- err },
	}
	return o
}

// open opens the topic and fails the test if that does not work.
func (o *owner) open() *owner {
	o.w.t.Helper()
	if err := o.tryOpen(o.w.t.Context()); err != nil {
		o.w.t.Fatalf("open: %v", err)
	}
	return o
}

func (o *owner) tryOpen(ctx context.Context) error {
	m, err := Open(ctx, o.opts)
	if err != nil {
		return err
	}
	o.m, o.index, o.now = m, m.NextIndex(), m.LastTime()
	return nil
}

// bodyOf makes the body with the given number.
func bodyOf(number int, kind entryv1.Kind, lastIndex uint64, ms int64) []byte {
	b := entry.BrokerPart{Kind: kind, Index: lastIndex, Time: ms}.AppendTo(nil)
	return entry.AppendProducerPart(b, entryv1.MessageMetadata_builder{
		ProducerName: proto.String("p"), SequenceId: proto.Uint64(uint64(number)),
	}.Build(), nil)
}

func numberOf(t *testing.T, body []byte) (int, entry.BrokerPart) {
	t.Helper()
	b, p, err := entry.ParseBody(body)
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := entry.ParseHeader(p)
	if err != nil {
		t.Fatal(err)
	}
	return int(h.SequenceID), b
}

// publish appends one batch of so many messages, 10 ms of broker time after the
// one before; none makes it a HALF.
func (o *owner) publish(messages uint32) error {
	w := o.w
	w.mu.Lock()
	number := w.sent
	w.sent++
	at := len(o.results)
	o.results = append(o.results, errors.New("not answered"))
	w.mu.Unlock()
	kind := entryv1.Kind_KIND_DATA
	if messages == 0 {
		kind = entryv1.Kind_KIND_HALF
	}
	body := bodyOf(number, kind, o.index+uint64(messages)-1, o.now+10)
	err := o.m.Append(Add{Body: body, BodyCRC: crc32.Checksum(body, ledger.Castagnoli), Messages: messages, Time: o.now + 10},
		func(p position.Position, err error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			o.results[at] = err
			if err == nil {
				if _, twice := w.acked[p]; twice {
					w.t.Errorf("%v was acknowledged twice", p)
				}
				w.acked[p] = number
			}
		})
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		o.results = o.results[:at]
		return err
	}
	o.index += uint64(messages)
	o.now += 10
	return nil
}

func (o *owner) publishMany(n int) {
	o.w.t.Helper()
	for range n {
		if err := o.publish(2); err != nil {
			o.w.t.Fatal(err)
		}
	}
}

// answered counts how many publishes of this owner ended well, and how many
// ended at all.
func (o *owner) answered() (ok, all int) {
	o.w.mu.Lock()
	defer o.w.mu.Unlock()
	for _, err := range o.results {
		if err == nil {
			ok++
		}
		if err == nil || err.Error() != "not answered" {
			all++
		}
	}
	return ok, all
}

// readAll reads the topic from the first position on and checks the order: body
// numbers, indexes and broker times rise, and everything acknowledged at a
// position that can still be read is there.
func (o *owner) readAll() []Entry {
	w := o.w
	w.t.Helper()
	var all []Entry
	from := position.Start
	for {
		es, err := o.m.Read(w.t.Context(), from, 7, 1<<20)
		if err != nil {
			w.t.Fatalf("read from %v: %v", from, err)
		}
		if len(es) == 0 {
			break
		}
		all = append(all, es...)
		if from, err = o.m.Next(es[len(es)-1].Position); err != nil {
			w.t.Fatal(err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	at := map[position.Position]int{}
	last, lastIndex, lastTime := -1, int64(-1), int64(-1)
	for _, e := range all {
		number, b := numberOf(w.t, e.Body)
		if number <= last || b.Time < lastTime {
			w.t.Fatalf("%v holds number %d at %d ms, after number %d at %d ms", e.Position, number, b.Time, last, lastTime)
		}
		if b.Kind == entryv1.Kind_KIND_DATA {
			if int64(b.Index) <= lastIndex {
				w.t.Fatalf("%v has index %d after %d", e.Position, b.Index, lastIndex)
			}
			lastIndex = int64(b.Index)
		}
		last, lastTime = number, b.Time
		at[e.Position] = number
	}
	first := o.m.First()
	for p, number := range w.acked {
		if got, ok := at[p]; !p.Before(first) && (!ok || got != number) {
			w.t.Errorf("number %d was acknowledged at %v; there is %d, %v", number, p, got, ok)
		}
	}
	return all
}

// checkStore checks what holds of the chain's keys and the ledgers' records at
// any time, whatever was interrupted: the chain names only ledgers that exist, a
// ledger that is not deleted is in the chain, and at most two are not closed.
func (w *world) checkStore() {
	w.t.Helper()
	ctx := context.Background()
	chained := map[ledger.ID]bool{}
	kvs, _, err := w.store.Range(ctx, w.layout.Chain(testTopic), "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	open := 0
	for _, kv := range kvs {
		l, err := decodeLink(1, kv.Value)
		if err != nil {
			w.t.Fatal(err)
		}
		if !l.trimmed {
			chained[l.ledger] = true
		} else if len(kvs) != 1 {
			w.t.Errorf("a trimmed link stays beside %d others", len(kvs)-1)
		}
	}
	kvs, _, err = w.store.Range(ctx, w.layout.Ledgers(), "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, kv := range kvs {
		id, _ := w.layout.ParseLedger(kv.Key)
		var md metav1.Ledger
		if err := proto.Unmarshal(kv.Value, &md); err != nil {
			w.t.Fatal(err)
		}
		deleted := md.GetState() == metav1.LedgerState_LEDGER_STATE_DELETED
		if deleted == chained[ledger.ID(id)] {
			w.t.Errorf("ledger %d: deleted %v, in the chain %v", id, deleted, !deleted)
		}
		delete(chained, ledger.ID(id))
		if !deleted && md.GetState() != metav1.LedgerState_LEDGER_STATE_CLOSED {
			open++
		}
	}
	if len(chained) > 0 || open > 2 {
		w.t.Errorf("the chain names ledgers without a record: %v; %d ledgers are not closed", chained, open)
	}
}

// settle gives everything under way the time to end.
func settle() {
	time.Sleep(time.Minute)
	synctest.Wait()
}
