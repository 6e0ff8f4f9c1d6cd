package topic

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/topicname"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// disk is what survives a topic: its entries and its journal.
type disk struct {
	entries []managedledger.Add
	records []subscription.Record
}

// parked is the journal as a shelf would have it.
func (d *disk) parked() (p bundlelog.Parked) {
	for _, r := range d.records {
		p.Records = append(p.Records, bundlelog.Record{Topic: 7, Kind: uint8(r.Kind), Data: r.Data})
	}
	return p
}

// fakeLedger is a chain of one ledger in memory. Appends wait until settle.
type fakeLedger struct {
	mu      sync.Mutex
	disk    *disk
	waiting []func(position.Position, error)
	adds    []managedledger.Add
	refuse  error         // of Append
	delay   time.Duration // of Read
}

func at(i int) position.Position { return position.Position{Ledger: 1, Entry: ledger.EntryID(i)} }

func (l *fakeLedger) Append(add managedledger.Add, done func(position.Position, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return l.refuse
	}
	l.adds = append(l.adds, add)
	l.waiting = append(l.waiting, done)
	return nil
}

// settle answers the n oldest appends; with err they are of unknown outcome and,
// if kept, stored all the same.
func (l *fakeLedger) settle(n int, err error, kept bool) {
	for range n {
		l.mu.Lock()
		add, done := l.adds[0], l.waiting[0]
		l.adds, l.waiting = l.adds[1:], l.waiting[1:]
		if err == nil || kept {
			l.disk.entries = append(l.disk.entries, add)
		}
		p := at(len(l.disk.entries) - 1)
		l.mu.Unlock()
		if err != nil {
			p = position.Position{}
		}
		done(p, err)
	}
}

func (l *fakeLedger) LastConfirmed() position.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return at(len(l.disk.entries) - 1)
}
func (l *fakeLedger) First() position.Position { return at(0) }
func (l *fakeLedger) Next(p position.Position) (position.Position, error) {
	if p.IsStart() {
		return at(0), nil
	}
	return p.Next(), nil
}
func (l *fakeLedger) Normalize(p position.Position) (position.Position, error) {
	if p.Before(at(0)) {
		return at(0), nil
	}
	return p, nil
}
func (l *fakeLedger) Between(from, to position.Position) managedledger.Extent {
	n := max(0, int64(to.Entry)-max(0, int64(from.Entry)))
	return managedledger.Extent{Entries: n, Messages: n}
}
func (l *fakeLedger) Measure(_ context.Context, from, to position.Position) (managedledger.Extent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var e managedledger.Extent
	for i := max(0, int(from.Entry)); i < min(len(l.disk.entries), int(to.Entry)); i++ {
		e.Entries++
		e.Bytes += int64(len(l.disk.entries[i].Body))
	}
	return e, nil
}
func (l *fakeLedger) Read(_ context.Context, from position.Position, entries int, _ int64) ([]managedledger.Entry, error) {
	if l.delay > 0 {
		time.Sleep(l.delay)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []managedledger.Entry
	for i := max(0, int(from.Entry)); i < len(l.disk.entries) && len(out) < entries; i++ {
		out = append(out, managedledger.Entry{Position: at(i), Body: l.disk.entries[i].Body})
	}
	return out, nil
}
func (l *fakeLedger) ReadHeads(ctx context.Context, from position.Position, entries, n int) ([]managedledger.Entry, error) {
	out, err := l.Read(ctx, from, entries, 0)
	for i := range out {
		out[i].Body = out[i].Body[:min(n, len(out[i].Body))]
	}
	return out, err
}
func (l *fakeLedger) SeekTime(context.Context, time.Time) (position.Position, error) {
	return at(0), nil
}
func (l *fakeLedger) NextIndex() uint64 {
	n := uint64(0)
	for _, e := range l.disk.entries {
		n += uint64(e.Messages)
	}
	return n
}
func (l *fakeLedger) LastTime() int64 {
	if n := len(l.disk.entries); n > 0 {
		return l.disk.entries[n-1].Time
	}
	return 0
}
func (l *fakeLedger) Pending() (int, int64) { return len(l.waiting), 0 }
func (l *fakeLedger) Trim(_ context.Context, keep position.Position, _ managedledger.Retention) (int, error) {
	return int(keep.Entry), nil
}
func (l *fakeLedger) Stats() managedledger.Stats  { return managedledger.Stats{} }
func (l *fakeLedger) Close(context.Context) error { l.settle(len(l.waiting), nil, true); return nil }
func (l *fakeLedger) Abandon()                    { l.settle(len(l.waiting), ledger.ErrStopping, false) }

// fakeJournal keeps records and answers at once, on a goroutine's turn.
type fakeJournal struct {
	mu      sync.Mutex
	disk    *disk
	busy    bool
	refused int // appends
}

func (j *fakeJournal) Append(records []subscription.Record, done func(error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.busy {
		j.refused++
		return subscription.ErrTooBusy
	}
	for _, r := range records {
		j.disk.records = append(j.disk.records, subscription.Record{Kind: r.Kind, Data: append([]byte(nil), r.Data...)})
	}
	go done(nil)
	return nil
}

// heard records what a producer is told.
type heard struct {
	producer *Producer
	last     uint64
	stored   bool
	receipts []Receipt
	refusals []Refusal
	closed   error
	holds    []bool
}

func (h *heard) Opened(p *Producer, last uint64, stored bool) {
	h.producer, h.last, h.stored = p, last, stored
}
func (h *heard) Receipt(r Receipt)        { h.receipts = append(h.receipts, r) }
func (h *heard) Refused(r Refusal)        { h.refusals = append(h.refusals, r) }
func (h *heard) Closed(err error)         { h.closed = err }
func (h *heard) Hold(hold bool, _ string) { h.holds = append(h.holds, hold) }

// bench is an open topic on a disk.
type bench struct {
	t       *testing.T
	disk    *disk
	ledger  *fakeLedger
	journal *fakeJournal
	topic   *Topic
	now     time.Time
	ended   chan error
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, disk: &disk{}, now: time.UnixMilli(1_000_000)}
	b.open()
	return b
}

// open opens the topic from the disk, as a new owner would.
func (b *bench) open() {
	b.t.Helper()
	b.ledger = &fakeLedger{disk: b.disk}
	b.journal = &fakeJournal{disk: b.disk}
	b.ended = make(chan error, 1)
	ended := b.ended
	topic, err := Open(b.t.Context(), Options{
		Name: topicname.MustParse("orders"), ID: 7, Ledger: b.ledger, Journal: b.journal,
		MaxMessageBytes: 1 << 20, RoutingVersion: func() uint64 { return 3 }, OnEnd: func(err error) { ended <- err },
		Now: func() time.Time { return b.now },
	}, b.disk.parked())
	if err != nil {
		b.t.Fatal(err)
	}
	b.topic = topic
}

func (b *bench) producer(name string, epoch uint64) *heard {
	b.t.Helper()
	h := &heard{}
	if _, err := b.topic.OpenProducer(name, epoch, false, h); err != nil {
		b.t.Fatal(err)
	}
	return h
}

// batch makes a batch with sequence ids first to last that follows first−1.
func batch(name string, first, last uint64) Batch {
	md := entryv1.MessageMetadata_builder{
		ProducerName: &name, SequenceId: &first, HighestSequenceId: &last, PublishTime: new(uint64(1)),
		NumMessagesInBatch: new(int32(last - first + 1)),
	}.Build()
	if first > 0 {
		md.SetPreviousSequenceId(first - 1)
	}
	return Batch{Buffer: entry.AppendProducerPart(make([]byte, entry.BrokerPartRoom), md, []byte("payload"))}
}
