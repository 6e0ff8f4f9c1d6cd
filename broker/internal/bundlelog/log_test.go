package bundlelog

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/idblock"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Kinds of the records that tests append.
const (
	kindSet   = 1 // data is a number that the topic remembers
	kindEnd   = 2 // the topic forgets everything
	kindStart = 3 // as kindSet, of a topic of which nothing is held
)

// book is a State that remembers, per topic, the numbers set, in order. It
// notices records it could not have been given in a right replay.
type book struct {
	t   *testing.T
	pad int // bytes added to each snapshot

	mu     sync.Mutex
	topics map[Topic][]uint64
}

func newBook(t *testing.T, pad int) *book { return &book{t: t, pad: pad, topics: map[Topic][]uint64{}} }

func (b *book) Restore(t Topic, p Parked) error {
	n := binary.LittleEndian.Uint32(p.Base)
	numbers := make([]uint64, n)
	for i := range numbers {
		numbers[i] = binary.LittleEndian.Uint64(p.Base[4+8*i:])
	}
	b.topics[t] = numbers
	for _, r := range p.Records {
		if err := b.Apply(r); err != nil {
			return err
		}
	}
	return nil
}

func (b *book) Apply(r Record) error {
	b.change(r)
	return nil
}

// change is one record; numbers of a topic count up from its start, or something
// is lost, twice, out of order, or without what it builds on.
func (b *book) change(r Record) {
	t := Topic{ID: r.Topic, Hash: r.Hash}
	if r.Kind == kindEnd {
		delete(b.topics, t)
		return
	}
	n := binary.LittleEndian.Uint64(r.Data)
	have, held := b.topics[t]
	switch {
	case held != (r.Kind == kindSet):
		b.t.Errorf("topic %d: record of kind %d, held before: %v", t.ID, r.Kind, held)
	case held && have[len(have)-1]+1 != n:
		b.t.Errorf("topic %d: %d follows %d", t.ID, n, have[len(have)-1])
	}
	b.topics[t] = append(b.topics[t], n)
}

func (b *book) encode(t Topic) []byte {
	numbers := b.topics[t]
	out := binary.LittleEndian.AppendUint32(nil, uint32(len(numbers)))
	for _, n := range numbers {
		out = binary.LittleEndian.AppendUint64(out, n)
	}
	return append(out, make([]byte, b.pad)...)
}

func (b *book) Topics() []Topic {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.topics))
}

func (b *book) Snapshot(t Topic, emit func(*Parked)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.topics[t]; !ok {
		emit(nil)
		return
	}
	emit(&Parked{Base: b.encode(t)})
}

// world is the bookies and the store that successive owners of a bundle share.
type world struct {
	t       *testing.T
	store   *meta.Mem
	layout  layout.Layout
	bookies *ensembletest.Cluster
}

func newWorld(t *testing.T) *world {
	return &world{t: t, store: meta.NewMem(), layout: layout.New("test"), bookies: ensembletest.New(3)}
}

const (
	testBundle = "t/n/00000000-ffffffff"
	ownerKey   = "/owner"
)

// owner is one broker that made itself the owner of the bundle, and all it did.
type owner struct {
	w     *world
	store *meta.MemClient
	opts  Options
	guard []meta.Cond
	book  *book
	log   *Log
	lost  chan error

	appended []Record // one per group, in order
	next     map[Topic]uint64
	acked    int // of appended, from the front
}

func (w *world) owner(name string, pad int) *owner {
	w.t.Helper()
	ctx := w.t.Context()
	o := &owner{w: w, store: w.store.Client(name), book: newBook(w.t, pad), lost: make(chan error, 1), next: map[Topic]uint64{}}
	kv, err := w.store.Get(ctx, ownerKey)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := w.store.Txn(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: ownerKey, Revision: kv.Revision}}, Ops: []meta.Op{{Key: ownerKey, Value: []byte(name)}},
	})
	if err != nil || !res.Done {
		w.t.Fatalf("take over: %v, %v", res, err)
	}
	o.guard = []meta.Cond{{Key: ownerKey, Revision: res.Revision}}
	client := w.bookies.Client(w.t, ensemble.Options{Store: o.store, Layout: w.layout, IDs: idblock.New(o.store, w.layout)})
	o.opts = Options{
		Bundle: testBundle, Last: 1<<32 - 1, Layout: w.layout, Store: o.store, Ledgers: client,
		Guard: func() []meta.Cond { return o.guard }, Quorum: ledger.Quorum{Write: 3, Ack: 2}, State: o.book,
		RollBytes: 2000, PassBytes: 3000, OnFenced: func(err error) { o.lost <- err },
	}
	return o
}

func (o *owner) open() *owner {
	o.w.t.Helper()
	l, err := Open(o.w.t.Context(), o.opts)
	if err != nil {
		o.w.t.Fatalf("open: %v", err)
	}
	o.log = l
	return o
}

// topic n of the tests; their hashes spread over the whole range.
func topic(n int) Topic { return Topic{ID: uint64(n + 1), Hash: uint32(n) * 0x10000001} }

// set appends one number to a topic's state, as an open topic would: the change
// and its Append are one step to a snapshot.
func (o *owner) set(n int) error {
	t := topic(n)
	o.book.mu.Lock()
	kind := o.book.kindOf(t)
	o.book.mu.Unlock()
	return o.do(Record{Topic: t.ID, Hash: t.Hash, Kind: kind, Data: number(o.next[t])})
}

// kindOf is the kind of the next record of a topic that is not its end.
func (b *book) kindOf(t Topic) uint8 {
	if _, held := b.topics[t]; held {
		return kindSet
	}
	return kindStart
}

func (o *owner) do(r Record) error {
	o.book.mu.Lock()
	defer o.book.mu.Unlock()
	at := len(o.appended)
	err := o.log.Append([]Record{r}, func(err error) {
		o.book.mu.Lock()
		defer o.book.mu.Unlock()
		if err == nil {
			if o.acked != at {
				o.w.t.Errorf("append %d was acknowledged after %d", at, o.acked)
			}
			o.acked++
		}
	})
	if err != nil {
		return err
	}
	o.appended = append(o.appended, r)
	o.next[Topic{ID: r.Topic, Hash: r.Hash}]++
	o.book.change(r)
	return nil
}

// counts are the numbers that o's topics go on from.
func (o *owner) resume(topics map[Topic][]uint64) {
	for t, numbers := range topics {
		if n := len(numbers); n > 0 {
			o.next[t] = numbers[n-1] + 1
		}
	}
}

// checkReplay checks that what replay made is the state after some number of o's
// appends, at least those acknowledged, on top of the state it began with.
func checkReplay(t *testing.T, began map[Topic][]uint64, o *owner, got map[Topic][]uint64) {
	t.Helper()
	model := &book{t: t, topics: map[Topic][]uint64{}}
	for topic, numbers := range began {
		model.topics[topic] = slices.Clone(numbers)
	}
	for n := 0; ; n++ {
		if n >= o.acked && maps.EqualFunc(model.topics, got, slices.Equal) {
			return
		}
		if n == len(o.appended) {
			break
		}
		model.change(o.appended[n])
	}
	t.Errorf("the state replayed is that of no prefix of %d appends with the %d acknowledged: %v, the last one is %v", len(o.appended), o.acked, summary(got), summary(model.topics))
}

// number is the data of a record that sets n.
func number(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

func summary(m map[Topic][]uint64) string {
	var out []string
	for t, n := range m {
		out = append(out, fmt.Sprintf("%d:%d", t.ID, len(n)))
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	return fmt.Sprint(out)
}

// settle gives everything under way the time to end.
func settle() {
	time.Sleep(time.Minute)
	synctest.Wait()
}

// checkStore checks that the log names exactly the ledgers that are not
// tombstones, and that at most two of these are not closed.
func (w *world) checkStore() {
	w.t.Helper()
	ctx := context.Background()
	named := map[ledger.ID]bool{}
	kvs, _, err := w.store.Range(ctx, w.layout.Bundles("t/n"), "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, kv := range kvs {
		segments, err := Decode(kv.Value)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, s := range segments {
			named[s.Ledger] = true
		}
	}
	if kvs, _, err = w.store.Range(ctx, w.layout.Ledgers(), "", 0); err != nil {
		w.t.Fatal(err)
	}
	open := 0
	for _, kv := range kvs {
		id, _ := w.layout.ParseLedger(kv.Key)
		var md metav1.Ledger
		if err := proto.Unmarshal(kv.Value, &md); err != nil {
			w.t.Fatal(err)
		}
		deleted := md.GetState() == metav1.LedgerState_LEDGER_STATE_DELETED
		if deleted == named[ledger.ID(id)] {
			w.t.Errorf("ledger %d: deleted %v, in the log %v", id, deleted, !deleted)
		}
		delete(named, ledger.ID(id))
		if !deleted && md.GetState() != metav1.LedgerState_LEDGER_STATE_CLOSED {
			open++
		}
	}
	if len(named) > 0 || open > 2 {
		w.t.Errorf("the log names ledgers without a record: %v; %d are not closed", named, open)
	}
}

// Shows that Settle returns when what was appended before is durable, with the
// context's error before that, with the log's once it has ended; and that it writes
// nothing where there is nothing to wait for.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		o := w.owner("a", 0).open()
		adds := atomic.Int64{}
		var fault atomic.Pointer[ensembletest.AddFault]
		fault.Store(&ensembletest.AddFault{Delay: time.Second})
		for i := range 3 {
			w.bookies.At(i).OnAdd(func(ledger.Add) ensembletest.AddFault {
				adds.Add(1)
				return *fault.Load()
			})
		}
		if err := o.log.Settle(t.Context()); err != nil || adds.Load() != 0 {
			t.Errorf("with nothing appended: %d adds, %v", adds.Load(), err)
		}
		if err := o.set(0); err != nil {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := o.log.Settle(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("within no time: %v", err)
		}
		if err := o.log.Settle(t.Context()); err != nil || o.acked != 1 {
			t.Errorf("%d appends are durable: %v", o.acked, err)
		}
		fault.Store(&ensembletest.AddFault{Err: ledger.ErrFenced})
		if err := o.set(0); err != nil {
			t.Fatal(err)
		}
		<-o.lost
		if err := o.log.Settle(t.Context()); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("after the end: %v", err)
		}
		o.log.Abandon()
	})
}

// Shows that everything acknowledged is replayed by the next owner, across rolls
// and snapshot passes, and that old ledgers go.
func TestRuleM21_TheLogIsTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var began map[Topic][]uint64
		for round := range 4 {
			o := w.owner(fmt.Sprint("owner-", round), 0).open()
			if round > 0 {
				began = maps.Clone(o.book.topics)
				o.resume(began)
			}
			for i := range 400 {
				if err := o.set(i % 17); err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Microsecond)
			}
			settle()
			if o.acked != 400 || o.log.Pending() != 0 {
				t.Errorf("%d of 400 acknowledged, %d bytes pending", o.acked, o.log.Pending())
			}
			if o.log.StateBytes() == 0 {
				t.Error("no snapshot pass has ended")
			}
			if round%2 == 0 {
				if err := o.log.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				o.log.Abandon()
			}
			w.checkStore()
			kv, _ := w.store.Get(t.Context(), w.layout.BundleLog(testBundle))
			if segments, _ := Decode(kv.Value); len(segments) > 30 {
				t.Errorf("%d ledgers stay in the log", len(segments))
			}
			next := w.owner("check", 0).open()
			checkReplay(t, began, o, next.book.topics)
			next.log.Abandon()
		}
	})
}

// Shows that a take-over writes nothing before it serves, and that a snapshot pass
// that was cut off is not needed and not used.
func TestRuleM23_TakeOverWritesNoSnapshotFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", 0).open()
		for i := range 100 {
			if err := a.set(i % 5); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		a.log.Abandon()
		count := func() (adds int) {
			for i := range 3 {
				n, _, _ := w.bookies.At(i).Calls()
				adds += n
			}
			return adds
		}
		if _, err := Open(t.Context(), w.owner("b", 0).opts); err != nil { // recovers, which may add
			t.Fatal(err)
		}
		before := count()
		c := w.owner("c", 0).open()
		settle()
		if got := count() - before; got != 0 {
			t.Errorf("opening a closed log added %d entries", got)
		}
		checkReplay(t, nil, a, c.book.topics)
	})
}

// Shows that while one entry is on its way appends gather into the next: with n
// appends at once there are two entries, and each append is answered.
func TestAppendsShareAnEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", 0)
		a.opts.RollBytes, a.opts.PassBytes = 0, 0
		a.open()
		if err := a.set(0); err != nil {
			t.Fatal(err)
		}
		settle()
		for i := range 3 {
			w.bookies.At(i).SetLatency(time.Millisecond)
		}
		before, _, _ := w.bookies.At(0).Calls()
		for i := range 1000 {
			if err := a.set(i % 10); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		after, _, _ := w.bookies.At(0).Calls()
		if after-before != 2 || a.acked != 1001 {
			t.Errorf("1000 appends made %d entries, %d acknowledged", after-before, a.acked)
		}
		a.log.Abandon()
	})
}

// Shows that every entry fits on a bookie with the smallest segments there are by
// default, however much gathers while one is on its way, and that an append that
// could not is refused.
func TestEntriesFitOnEveryBookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", 0)
		a.opts.RollBytes, a.opts.PassBytes = 0, 0
		a.open()
		for i := range 3 {
			w.bookies.At(i).SetMaxBody(ledger.LeastBodyBytes)
			w.bookies.At(i).SetLatency(time.Millisecond)
		}
		set := func(bytes int) error {
			const only = 0
			data := append(number(a.next[topic(only)]), make([]byte, bytes-8)...)
			return a.do(Record{Topic: topic(only).ID, Hash: topic(only).Hash, Kind: a.book.kindOf(topic(only)), Data: data})
		}
		most := ledger.LeastBodyBytes - groupHeaderBytes - itemHeaderBytes
		if err := set(most + 1); !errors.Is(err, ledger.ErrTooLarge) {
			t.Errorf("an append above what an entry may have: %v", err)
		}
		sent := 0
		for _, bytes := range append([]int{8, most, 8}, slices.Repeat([]int{100_000}, 75)...) {
			if err := set(bytes); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		settle()
		if a.acked != sent {
			t.Errorf("%d of %d appends acknowledged; trouble: %v", a.acked, sent, a.log.Trouble())
		}
		a.log.Abandon()
		b := w.owner("b", 0).open()
		checkReplay(t, nil, a, b.book.topics)
		b.log.Abandon()
	})
}

// Shows that what is not answered is bounded: beyond that an append is refused,
// surely not in the log, and works again once there is room.
func TestAppendsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", 0)
		a.opts.QueueBytes = 1000
		a.open()
		for i := range 2 {
			w.bookies.At(i).Freeze()
		}
		n := 0
		var err error
		for ; err == nil; n++ {
			err = a.set(1)
		}
		if !errors.Is(err, ledger.ErrTooBusy) || n < 20 {
			t.Errorf("append %d: %v", n, err)
		}
		if err := a.do(Record{Topic: 1, Data: make([]byte, 600)}); !errors.Is(err, ledger.ErrTooLarge) {
			t.Errorf("an append of more than half the queue: %v", err)
		}
		for i := range 2 {
			w.bookies.At(i).Thaw()
		}
		settle()
		if err := a.set(1); err != nil {
			t.Errorf("once there is room: %v", err)
		}
		settle()
		a.log.Abandon()
		b := w.owner("b", 0).open()
		checkReplay(t, nil, a, b.book.topics)
		b.log.Abandon()
	})
}

// Shows that records of one append are replayed all or none, though the owner dies
// with several appends in flight, at any time.
func TestRuleM23_OneAppendIsAtomic(t *testing.T) {
	for pause := range 10 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a := w.owner("a", 0).open()
			for i := range 3 {
				w.bookies.At(i).SetLatency(time.Duration(1+i) * time.Millisecond)
			}
			for n := range uint64(100) {
				var records []Record
				a.book.mu.Lock()
				for i := range 4 {
					records = append(records, Record{Topic: topic(i).ID, Hash: topic(i).Hash, Kind: a.book.kindOf(topic(i)), Data: number(n)})
				}
				if err := a.log.Append(records, func(error) {}); err != nil {
					t.Fatal(err)
				}
				for _, r := range records {
					a.book.change(r)
				}
				a.book.mu.Unlock()
				time.Sleep(time.Duration(pause) * 100 * time.Microsecond)
			}
			a.log.Abandon()
			b := w.owner("b", 0).open()
			for i := range 4 {
				if got, want := len(b.book.topics[topic(i)]), len(b.book.topics[topic(0)]); got != want {
					t.Errorf("topic %d has %d numbers, topic 0 has %d", i, got, want)
				}
			}
			b.log.Abandon()
		})
	}
}

// Shows that without the metadata store the log takes appends, up to four times
// the size of a ledger, and goes on by itself when the store is back.
func TestRuleM20_AppendsGoOnWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.owner("a", 0)
		a.opts.RollBytes, a.opts.PassBytes = 4000, 1<<20
		a.open()
		if err := a.set(0); err != nil {
			t.Fatal(err)
		}
		settle()
		w.store.SetUnavailable(true)
		for i := range 200 {
			if err := a.set(i % 3); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		settle()
		if a.acked != 201 {
			t.Errorf("%d of 201 acknowledged", a.acked)
		}
		w.store.SetUnavailable(false)
		for i := range 200 {
			if err := a.set(i % 3); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if a.acked != 401 {
			t.Errorf("%d of 401 acknowledged", a.acked)
		}
		a.log.Abandon()
		b := w.owner("b", 0).open()
		checkReplay(t, nil, a, b.book.topics)
		b.log.Abandon()
	})
}

// Shows that a paused owner of the bundle gets nothing acknowledged once another
// has opened its log, with a ledger of its own or without.
func TestRuleM1_PausedOwnerIsShutOut(t *testing.T) {
	for _, before := range []int{0, 10} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a := w.owner("a", 0).open()
			for range before {
				if err := a.set(1); err != nil {
					t.Fatal(err)
				}
			}
			settle()
			b := w.owner("b", 0).open()
			b.resume(b.book.topics)
			began := map[Topic][]uint64{topic(1): slices.Clone(b.book.topics[topic(1)])}
			if before == 0 {
				began = nil
			}
			for range 20 {
				_ = a.set(1)
				if err := b.set(1); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
			settle()
			if a.acked != before || b.acked != 20 {
				t.Errorf("the paused owner got %d acknowledged, the new one %d", a.acked, b.acked)
			}
			if err := <-a.lost; err == nil {
				t.Error("lost without a reason")
			}
			if err := a.set(1); err == nil {
				t.Error("an append after the end was accepted")
			}
			a.log.Abandon()
			b.log.Abandon()
			c := w.owner("c", 0).open()
			checkReplay(t, began, b, c.book.topics)
			c.log.Abandon()
			w.checkStore()
		})
	}
}

// Shows that after a split both children replay their own topics and only those,
// that a shared ledger goes with its last reference and not before, and that a
// merged log replays each half from its own last pass.
func TestRuleM24_SplitAndMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		parent := w.owner("parent", 0).open()
		for i := range 200 {
			if err := parent.set(i % 16); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		settle()
		if err := parent.log.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		kv, err := w.store.Get(t.Context(), w.layout.BundleLog(testBundle))
		if err != nil {
			t.Fatal(err)
		}
		segments, err := Decode(kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		const middle = 0x80000000
		low, high := "t/n/00000000-7fffffff", "t/n/80000000-ffffffff"
		if _, err := w.store.Txn(t.Context(), meta.Txn{Ops: []meta.Op{
			{Key: w.layout.BundleLog(testBundle), Delete: true},
			{Key: w.layout.BundleLog(low), Value: Encode(Inherit(segments, 0, middle-1))},
			{Key: w.layout.BundleLog(high), Value: Encode(Inherit(segments, middle, 1<<32-1))},
		}}); err != nil {
			t.Fatal(err)
		}
		w.checkStore()

		all := maps.Clone(parent.book.topics)
		var children []*owner
		for i, bundle := range []string{low, high} {
			c := w.owner(fmt.Sprint("child-", i), 0)
			c.guard = nil
			c.opts.Bundle, c.opts.First, c.opts.Last = bundle, uint32(i)*middle, uint32(i)*middle+middle-1
			c.open()
			children = append(children, c)
			for topic, numbers := range all {
				inside := topic.Hash >= c.opts.First && topic.Hash <= c.opts.Last
				if got, ok := c.book.topics[topic]; ok != inside || inside && !slices.Equal(got, numbers) {
					t.Errorf("%s: topic %d with hash %08x replayed: %v", bundle, topic.ID, topic.Hash, ok)
				}
			}
			if err := c.log.Append([]Record{{Topic: 1, Hash: c.opts.Last + 1}}, nil); !errors.Is(err, chain.ErrNotOwner) {
				t.Errorf("a record of another bundle: %v", err)
			}
			c.resume(c.book.topics)
		}
		// The first child makes passes and lets go of what it inherited; the other
		// still needs it.
		for i, c := range children {
			for n := range 400 {
				if err := c.set(8*i + n%8); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
			settle()
			w.checkStore()
			if err := c.log.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			all := maps.Clone(c.book.topics)
			again := w.owner("again", 0)
			again.guard = nil
			again.opts.Bundle, again.opts.First, again.opts.Last = c.opts.Bundle, c.opts.First, c.opts.Last
			again.open()
			if !maps.EqualFunc(again.book.topics, all, slices.Equal) {
				t.Errorf("%s replays %s, want %s", c.opts.Bundle, summary(again.book.topics), summary(all))
			}
			again.log.Abandon()
		}
		for _, s := range segments {
			kv, err := w.store.Get(t.Context(), w.layout.Ledger(int64(s.Ledger)))
			if err != nil {
				t.Fatal(err)
			}
			var md metav1.Ledger
			if err := proto.Unmarshal(kv.Value, &md); err != nil || md.GetState() != metav1.LedgerState_LEDGER_STATE_DELETED {
				t.Errorf("inherited ledger %d is %v, though both children are past it", s.Ledger, md.GetState())
			}
		}

		want := map[Topic][]uint64{}
		var ops []meta.Op
		var merged []Segment
		for _, c := range children {
			maps.Copy(want, c.book.topics)
			kv, err := w.store.Get(t.Context(), w.layout.BundleLog(c.opts.Bundle))
			if err != nil {
				t.Fatal(err)
			}
			own, err := Decode(kv.Value)
			if err != nil {
				t.Fatal(err)
			}
			merged = Union(merged, own)
			ops = append(ops, meta.Op{Key: kv.Key, Delete: true})
		}
		ops = append(ops, meta.Op{Key: w.layout.BundleLog(testBundle), Value: Encode(merged)})
		if _, err := w.store.Txn(t.Context(), meta.Txn{Ops: ops}); err != nil {
			t.Fatal(err)
		}
		for round := range 2 {
			m := w.owner("merged", 0).open()
			if !maps.EqualFunc(m.book.topics, want, slices.Equal) {
				t.Errorf("round %d: the merged log replays %s, want %s", round, summary(m.book.topics), summary(want))
			}
			m.resume(m.book.topics)
			for n := range 300 {
				if err := m.set(n % 16); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
			settle()
			m.log.Abandon()
			w.checkStore()
			want = m.book.topics
		}
	})
}
