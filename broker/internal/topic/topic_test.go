package topic

import (
	"errors"
	"fmt"
	"hash/crc32"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/internal/entry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRuleM9_RefusedBeforeTheID shows that all that can be wrong with a batch is
// found before it gets an id: nothing of it reaches the ledger.
func TestRuleM9_RefusedBeforeTheID(t *testing.T) {
	b := newBench(t)
	good := func() Batch { return batch("p", 0, 0) }
	flipped := good()
	flipped.Buffer[len(flipped.Buffer)-1] ^= 1
	cut := good()
	cut.Buffer = cut.Buffer[:entry.BrokerPartRoom+5]
	large := batch("p", 0, 0)
	large.Buffer = append(large.Buffer, make([]byte, 2<<20)...)
	for name, c := range map[string]struct {
		batch Batch
		want  error
	}{
		"a flipped bit":     {flipped, ErrChecksum},
		"cut off":           {cut, ErrInvalid},
		"another's name":    {batch("q", 0, 0), ErrInvalid},
		"above the limit":   {Batch{Buffer: reframed(large.Buffer)}, ErrTooLarge},
		"sequence reversed": {batch("p", 5, 3), ErrInvalid},
	} {
		h := b.producer(fmt.Sprint("p"), 0)
		h.producer.Publish(c.batch)
		if len(h.refusals) != 1 || !errors.Is(h.refusals[0].Err, c.want) {
			t.Errorf("%s: refused with %v, want %v", name, h.refusals, c.want)
		}
		if len(b.ledger.adds) != 0 {
			t.Errorf("%s: it reached the ledger", name)
		}
		h.producer.Close(false)
	}
}

// reframed gives a batch with bytes added a checksum that matches again.
func reframed(buffer []byte) []byte {
	part := buffer[entry.BrokerPartRoom:]
	sum := crc32.Checksum(part[6:], ledger.Castagnoli)
	part[2], part[3], part[4], part[5] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	return buffer
}

// TestRuleM10_BrokerPart shows that entries get rising indexes and times that
// never fall, though the clock does, across owners too, and that the body's
// checksum is right.
func TestRuleM10_BrokerPart(t *testing.T) {
	b := newBench(t)
	h := b.producer("p", 0)
	h.producer.Publish(batch("p", 0, 4))
	b.now = b.now.Add(-time.Hour)
	h.producer.Publish(batch("p", 5, 5))
	b.ledger.settle(2, nil, true)
	b.open()
	h = b.producer("p", 1)
	h.producer.Publish(batch("p", 6, 8))
	b.ledger.settle(1, nil, true)
	var wantIndex = []uint64{4, 5, 8}
	last := int64(0)
	for i, e := range b.disk.entries {
		broker, part, err := entry.ParseBody(e.Body)
		if err != nil {
			t.Fatal(err)
		}
		if broker.Index != wantIndex[i] || broker.Time < last {
			t.Errorf("entry %d: index %d at %d, want index %d and no time before %d", i, broker.Index, broker.Time, wantIndex[i], last)
		}
		last = broker.Time
		if crc32.Checksum(e.Body, ledger.Castagnoli) != e.BodyCRC {
			t.Errorf("entry %d: checksum of the body does not match", i)
		}
		if _, err := entry.VerifyProducerPart(part); err != nil {
			t.Errorf("entry %d: producer part was touched: %v", i, err)
		}
	}
}

// TestRuleM11_NothingAfterARefusal shows that after a refusal the stream takes
// nothing until the producer resumes there, also where batches name no
// predecessor.
func TestRuleM11_NothingAfterARefusal(t *testing.T) {
	b := newBench(t)
	h := b.producer("p", 0)
	h.producer.Publish(batch("p", 0, 0))
	b.ledger.refuse = fmt.Errorf("queue: %w", ledger.ErrTooBusy)
	h.producer.Publish(batch("p", 1, 1))
	b.ledger.refuse = nil
	h.producer.Publish(batch("p", 2, 2))
	if len(h.refusals) != 2 || !errors.Is(h.refusals[0].Err, ErrHold) || !errors.Is(h.refusals[1].Err, ErrOutOfOrder) ||
		h.refusals[1].Expected != 0 || !h.refusals[1].HasExpected {
		t.Fatalf("refusals %+v, want a hold and an order to resume after 0", h.refusals)
	}
	if len(h.holds) != 1 || !h.holds[0] {
		t.Fatalf("holds %v, want one", h.holds)
	}
	h.producer.Publish(batch("p", 1, 1))
	h.producer.Publish(batch("p", 2, 2))
	b.ledger.settle(3, nil, true)
	if len(h.receipts) != 3 || len(h.holds) != 2 || h.holds[1] {
		t.Fatalf("receipts %+v, holds %v; want three receipts and the hold lifted", h.receipts, h.holds)
	}
}

// TestRuleM11_ReceiptsInOrder shows that duplicates, retries in flight and new
// batches are answered in the order they were sent.
func TestRuleM11_ReceiptsInOrder(t *testing.T) {
	b := newBench(t)
	h := b.producer("p", 0)
	for n := range uint64(4) {
		h.producer.Publish(batch("p", n, n))
	}
	b.ledger.settle(2, nil, true) // 0 and 1 are stored, 2 and 3 in flight
	again := b.producer("p", 1)   // the same producer on a new connection
	if h.closed == nil || !errors.Is(h.closed, ErrFenced) {
		t.Fatalf("the older connection was told %v", h.closed)
	}
	for n := range uint64(5) {
		again.producer.Publish(batch("p", n, n))
	}
	b.ledger.settle(3, nil, true)
	if len(again.receipts) != 5 || len(again.refusals) != 0 {
		t.Fatalf("receipts %+v, refusals %+v", again.receipts, again.refusals)
	}
	for n, r := range again.receipts {
		if r.Sequence != uint64(n) || r.Position != at(n) || r.Duplicate != (n < 4) {
			t.Errorf("receipt %d: %+v", n, r)
		}
	}
	if len(b.disk.entries) != 5 {
		t.Errorf("%d entries are stored, want 5", len(b.disk.entries))
	}
}

// TestUnknownOutcomeEndsTheTopic shows that when one publish may or may not be
// stored, its producer hears "unknown" and the topic ends, to be opened again
// from what the ledgers hold.
func TestUnknownOutcomeEndsTheTopic(t *testing.T) {
	for _, kept := range []bool{false, true} {
		b := newBench(t)
		h := b.producer("p", 0)
		h.producer.Publish(batch("p", 0, 0))
		b.ledger.settle(1, ledger.ErrFenced, kept)
		if !errors.Is(h.closed, ErrUnknownOutcome) || len(h.receipts) != 0 {
			t.Fatalf("told %v, receipts %v", h.closed, h.receipts)
		}
		if err := <-b.ended; !errors.Is(err, ledger.ErrFenced) {
			t.Fatalf("ended with %v", err)
		}
		b.open()
		h = b.producer("p", 1)
		h.producer.Publish(batch("p", 0, 0))
		b.ledger.settle(len(b.ledger.waiting), nil, true)
		if len(h.receipts) != 1 || h.receipts[0].Duplicate != kept || len(b.disk.entries) != 1 {
			t.Fatalf("kept %v: receipts %+v, %d entries", kept, h.receipts, len(b.disk.entries))
		}
	}
}

// TestRuleM22_DedupSurvivesOwners drives producers that resend after random
// failures through owners that come and go at random, with and without their
// checkpoints: every message is stored once, in order.
func TestRuleM22_DedupSurvivesOwners(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t)
		next := uint64(0) // first message that has no receipt
		epoch := uint64(0)
		h := b.producer("p", epoch)
		sent := next
		counted := 0
		for range rapid.IntRange(1, 200).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0: // the connection breaks
				h.producer.Close(false)
				epoch++
				h, sent, counted = b.producer("p", epoch), next, 0
			case 1: // the owner dies: in flight are kept in part
				n := len(b.ledger.waiting)
				kept := rapid.IntRange(0, n).Draw(rt, "kept")
				b.ledger.settle(kept, ledger.ErrStopping, true)
				b.open()
				epoch++
				h, sent, counted = b.producer("p", epoch), next, 0
			case 2: // a checkpoint
				b.topic.mu.Lock()
				b.topic.checkpointLocked(true)
				b.topic.mu.Unlock()
			case 3, 4, 5: // outcomes
				n := rapid.IntRange(0, len(b.ledger.waiting)).Draw(rt, "outcomes")
				b.ledger.settle(n, nil, true)
			default:
				h.producer.Publish(batch("p", sent, sent))
				sent++
			}
			if len(h.refusals) > 0 {
				rt.Fatalf("refused: %+v", h.refusals)
			}
			for ; counted < len(h.receipts); counted++ {
				if got := h.receipts[counted].Sequence; got != next {
					rt.Fatalf("receipt of %d, want %d", got, next)
				}
				next++
			}
		}
		b.ledger.settle(len(b.ledger.waiting), nil, true)
		for i, e := range b.disk.entries {
			_, part, _ := entry.ParseBody(e.Body)
			if got, _, _ := entry.ParseHeader(part); got.SequenceID != uint64(i) {
				rt.Fatalf("entry %d holds message %d", i, got.SequenceID)
			}
		}
		if uint64(len(b.disk.entries)) < next {
			rt.Fatalf("%d entries are stored, %d were answered", len(b.disk.entries), next)
		}
	})
}

// TestRuleM22_CheckpointIsDue shows that a checkpoint is written before a restart
// would have to replay 4,096 entries, and that nothing is trimmed past it.
func TestRuleM22_CheckpointIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		h := b.producer("p", 0)
		for n := range uint64(3 * checkpointEntries) {
			h.producer.Publish(batch("p", n, n))
			b.ledger.settle(1, nil, true)
			synctest.Wait()
			b.topic.mu.Lock()
			lag := int(b.topic.storedAt.Entry - b.topic.checkpointAt.Entry)
			b.topic.mu.Unlock()
			if lag > checkpointEntries {
				t.Fatalf("after entry %d the checkpoint lags by %d entries", n, lag)
			}
		}
		b.topic.mu.Lock()
		checkpoint := b.topic.checkpointAt
		b.topic.mu.Unlock()
		trimmed, err := b.topic.Trim(t.Context(), managedledger.Retention{Bytes: 1, Age: time.Millisecond})
		if err != nil || trimmed > int(checkpoint.Entry)+1 {
			t.Errorf("trimmed up to entry %d, the checkpoint stands at %v: %v", trimmed, checkpoint, err)
		}
	})
}

// TestSnapshotHoldsEverything shows that a topic opened from its own snapshot
// has the same subscriptions and producers as before.
func TestSnapshotHoldsEverything(t *testing.T) {
	b := newBench(t)
	h := b.producer("p", 0)
	for n := range uint64(10) {
		h.producer.Publish(batch("p", n, n))
	}
	b.ledger.settle(10, nil, true)
	for _, name := range []string{"audit", "billing"} {
		if _, created, err := b.topic.Subscribe(t.Context(), SubscribeRequest{
			Subscription: name, Start: subscription.Place{Anchor: subscription.Earliest},
		}, nobody{}); err != nil || !created {
			t.Fatal(created, err)
		}
	}
	if _, err := b.topic.Seek(t.Context(), "billing", subscription.Place{Anchor: subscription.At, Position: at(6)}); err != nil {
		t.Fatal(err)
	}
	var base []byte
	b.topic.Snapshot(func(s []byte) { base = s })
	b.topic.Close(t.Context(), errors.New("moved"))
	state, err := parseState(base)
	if err != nil {
		t.Fatal(err)
	}
	b.disk.records = state
	b.open()
	defer b.topic.Close(t.Context(), errors.New("end"))
	marks := map[string]int64{}
	for _, s := range b.topic.Stats(t.Context()).Subscriptions {
		marks[s.Name] = s.Backlog
	}
	if len(marks) != 2 || marks["audit"] != 10 || marks["billing"] != 4 {
		t.Errorf("backlogs %v, want audit 10 and billing 4", marks)
	}
	if h := b.producer("p", 1); !h.stored || h.last != 9 {
		t.Errorf("producer stands at %d (%v), want 9", h.last, h.stored)
	}
}

// nobody is a consumer that takes nothing.
type nobody struct{}

func (nobody) Deliver(uint64, []subscription.Delivery) {}
func (nobody) Active(bool)                             {}
func (nobody) Closed(error)                            {}
func (nobody) Alive() bool                             { return true }

// TestNameIsTaken shows that a second producer of a connected name is refused.
func TestNameIsTaken(t *testing.T) {
	b := newBench(t)
	b.producer("p", 0)
	if err := b.topic.OpenProducer("p", 0, false, &heard{}); !errors.Is(err, producer.ErrBusy) {
		t.Errorf("got %v", err)
	}
	if h := b.producer("", 0); h.producer.Name() == "" || h.producer.Name() == b.producer("", 0).producer.Name() {
		t.Error("names made up are empty or the same")
	}
}

// FuzzParseState shows that broken snapshots are refused and good ones come back
// the same.
func FuzzParseState(f *testing.F) {
	f.Add(appendState(nil, []subscription.Record{{Kind: kindProducers, Data: []byte("x")}, {Kind: subscription.KindCreate}}))
	f.Add([]byte{1, 16, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := parseState(b)
		if err != nil || len(b) == 0 {
			return
		}
		again, err := parseState(appendState(nil, records))
		if err != nil || len(again) != len(records) {
			t.Fatalf("%d records, then %d: %v", len(records), len(again), err)
		}
	})
}
