package subscription

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/internal/entry"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLedger is a managed ledger in memory: ledgers by rising id, each a list of
// bodies.
type fakeLedger struct {
	mu      sync.Mutex
	ids     []ledger.ID
	bodies  map[ledger.ID][][]byte
	trimmed map[ledger.ID]bool
	// readErr, when set, is asked before every read.
	readErr func(from position.Position) error
	reads   int
}

func newFakeLedger() *fakeLedger {
	return &fakeLedger{bodies: map[ledger.ID][][]byte{}, trimmed: map[ledger.ID]bool{}}
}

// body is one with so many messages and about so many bytes of payload.
func body(messages, payload int) []byte {
	md := entryv1.MessageMetadata_builder{
		ProducerName:       proto.String("p"),
		SequenceId:         proto.Uint64(0),
		PublishTime:        proto.Uint64(1),
		NumMessagesInBatch: proto.Int32(int32(messages)),
	}.Build()
	return entry.AppendProducerPart(entry.BrokerPart{Time: 1}.AppendTo(nil), md, make([]byte, payload))
}

func (l *fakeLedger) roll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := ledger.ID(1)
	if n := len(l.ids); n > 0 {
		id = l.ids[n-1] + 2
	}
	l.ids = append(l.ids, id)
}

func (l *fakeLedger) append(b []byte) position.Position {
	if len(l.ids) == 0 {
		l.roll()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.ids[len(l.ids)-1]
	l.bodies[id] = append(l.bodies[id], b)
	return position.Position{Ledger: id, Entry: ledger.EntryID(len(l.bodies[id]) - 1)}
}

func (l *fakeLedger) trim(id ledger.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trimmed[id] = true
}

// all returns every entry that can be read.
func (l *fakeLedger) all() []position.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []position.Position
	for _, id := range l.ids {
		for e := range l.bodies[id] {
			if !l.trimmed[id] {
				out = append(out, position.Position{Ledger: id, Entry: ledger.EntryID(e)})
			}
		}
	}
	return out
}

func (l *fakeLedger) LastConfirmed() position.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastLocked()
}

func (l *fakeLedger) lastLocked() position.Position {
	for i := len(l.ids) - 1; i >= 0; i-- {
		if n := len(l.bodies[l.ids[i]]); n > 0 || i == 0 {
			return position.Position{Ledger: l.ids[i], Entry: ledger.EntryID(n - 1)}
		}
	}
	return position.Start
}

func (l *fakeLedger) Next(p position.Position) (position.Position, error) {
	return l.Normalize(p.Next())
}

func (l *fakeLedger) Normalize(p position.Position) (position.Position, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range l.ids {
		n := ledger.EntryID(len(l.bodies[id]))
		switch {
		case id < p.Ledger:
		case id == p.Ledger && p.Entry > n:
			return p, fmt.Errorf("%v: %w", p, managedledger.ErrBeyondEnd)
		case id == p.Ledger && p.Entry < n && !l.trimmed[id]:
			return position.Position{Ledger: id, Entry: max(0, p.Entry)}, nil
		case id > p.Ledger && n > 0 && !l.trimmed[id]:
			return position.Position{Ledger: id}, nil
		}
	}
	if next := l.lastLocked().Next(); p.Compare(next) <= 0 {
		return next, nil
	}
	return p, fmt.Errorf("%v: %w", p, managedledger.ErrBeyondEnd)
}

func (l *fakeLedger) Between(from, to position.Position) (x managedledger.Extent) {
	for _, p := range l.all() {
		if from.Compare(p) <= 0 && p.Before(to) {
			x.Entries++
			x.Messages++
			x.Bytes += 100
		}
	}
	return x
}

func (l *fakeLedger) Read(ctx context.Context, from position.Position, maxEntries int, maxBytes int64) ([]managedledger.Entry, error) {
	l.mu.Lock()
	hook := l.readErr
	l.reads++
	l.mu.Unlock()
	if hook != nil {
		if err := hook(from); err != nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	from, err := l.Normalize(from)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []managedledger.Entry
	for bs := l.bodies[from.Ledger]; int(from.Entry) < len(bs) && len(out) < maxEntries && (len(out) == 0 || maxBytes > 0); from.Entry++ {
		out = append(out, managedledger.Entry{Position: from, Body: bs[from.Entry]})
		maxBytes -= int64(len(bs[from.Entry]))
	}
	return out, nil
}

func (l *fakeLedger) SeekTime(_ context.Context, t time.Time) (position.Position, error) {
	for _, p := range l.all() {
		b, _, err := entry.ParseBody(l.bodies[p.Ledger][p.Entry])
		if err != nil {
			return position.Start, err
		}
		if b.Time >= t.UnixMilli() {
			return p, nil
		}
	}
	return l.LastConfirmed().Next(), nil
}

// fakeJournal is a journal on a disk that takes its time. Of a crash it keeps
// what it answered, and what it had taken if keepTaken is set.
type fakeJournal struct {
	mu      sync.Mutex
	taken   []Record // in order; the first durable of them are answered
	durable int
	busy    bool  // refuse everything for now
	broken  error // what every append from now on ends with
	delay   time.Duration
	appends int
	done    sync.WaitGroup
}

func (j *fakeJournal) Append(records []Record, done func(error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.appends++
	if j.busy {
		return fmt.Errorf("journal: %w", ErrTooBusy)
	}
	j.taken = append(j.taken, records...)
	n, broken := len(j.taken), j.broken
	j.done.Add(1)
	go func() {
		defer j.done.Done()
		time.Sleep(j.delay)
		if broken == nil {
			j.mu.Lock()
			j.durable = max(j.durable, n)
			j.mu.Unlock()
		}
		done(broken)
	}()
	return nil
}

func (j *fakeJournal) set(f func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f()
}

// count is how many appends there were.
func (j *fakeJournal) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.appends
}

// afterCrash replays what the disk holds.
func (j *fakeJournal) afterCrash(t testing.TB, base Record, keepTaken bool) *Saved {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.durable
	if keepTaken {
		n = len(j.taken)
	}
	var r Restored
	for _, rec := range append([]Record{base}, j.taken[:n]...) {
		if err := r.Apply(rec); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range r.ByID {
		return s
	}
	t.Fatal("the subscription is gone")
	return nil
}

// fakeSink is a client that keeps what it gets.
type fakeSink struct {
	mu     sync.Mutex
	got    []Delivery
	epochs []uint64
	active []bool
	closed error
	dead   bool
}

func (k *fakeSink) Deliver(epoch uint64, ds []Delivery) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range ds {
		k.got, k.epochs = append(k.got, d), append(k.epochs, epoch)
	}
}

func (k *fakeSink) Active(a bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.active = append(k.active, a)
}

func (k *fakeSink) Closed(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = err
}

func (k *fakeSink) Alive() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.dead
}

// take returns what came since the last take.
func (k *fakeSink) take() []Delivery {
	k.mu.Lock()
	defer k.mu.Unlock()
	got := k.got
	k.got, k.epochs = nil, nil
	return got
}

func (k *fakeSink) isActive() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.active) > 0 && k.active[len(k.active)-1]
}

func positionsOf(ds []Delivery) []position.Position {
	var out []position.Position
	for _, d := range ds {
		out = append(out, d.Position)
	}
	return out
}

// newTest returns a subscription from the start of l, with journal j (nil: none).
func newTest(t testing.TB, l *fakeLedger, j *fakeJournal, change func(*Options)) (*Subscription, Record) {
	t.Helper()
	opts := Options{Topic: "persistent://public/default/t", Partition: -1, Ledger: l}
	var journal Journal
	if j != nil {
		journal = j
	}
	if change != nil {
		change(&opts)
	}
	saved := Saved{ID: 7, Name: "sub", Cursor: Target{}.Cursor()}
	base := Record{Kind: KindCreate, Data: saved.AppendCreate(nil)}
	s, err := New(opts.Filled(), journal, saved)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close(ErrClosed)
		if j != nil {
			j.done.Wait()
		}
	})
	return s, base
}

func join(t testing.TB, s *Subscription, name string, kind Type) (*Consumer, *fakeSink) {
	t.Helper()
	sink := &fakeSink{}
	c, err := s.Join(ConsumerOptions{Name: name, Type: kind}, sink)
	if err != nil {
		t.Fatal(err)
	}
	return c, sink
}

func flow(t testing.TB, c *Consumer, messages int) {
	t.Helper()
	if err := c.Flow(uint32(messages), 0); err != nil {
		t.Fatal(err)
	}
}

// acked remembers the answer to an acknowledgement.
type answer struct {
	mu   sync.Mutex
	came bool
	err  error
}

func (a *answer) done(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.came {
		panic("answered twice")
	}
	a.came, a.err = true, err
}

func (a *answer) get() (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.came, a.err
}

func ack(c *Consumer, ps ...position.Position) *answer {
	a := &answer{}
	var req Ack
	for _, p := range ps {
		req.Positions = append(req.Positions, Acked{Position: p})
	}
	c.Ack(req, a.done)
	return a
}

var errDisk = errors.New("disk on fire")
