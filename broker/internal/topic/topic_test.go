package topic

import (
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
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
		"too many messages": {batch("p", 0, 1<<17), ErrTooLarge},
		"older partitions":  {routed(2), ErrStaleRouting},
		"a later delivery":  {headed(entry.BatchHeader{Producer: "p", DeliverAt: 1}), ErrInvalid},
	} {
		h := b.producer("p", 0)
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

// routed is a batch made for a version of the topic's partitions.
func routed(version uint64) Batch {
	return headed(entry.BatchHeader{Producer: "p", RoutingVersion: version})
}

// headed is a batch with such a header.
func headed(h entry.BatchHeader) Batch {
	var builder entry.Builder
	builder.Add(&entry.Message{Value: []byte("v")}, 0)
	part := builder.Close(h)
	return Batch{Buffer: append(make([]byte, entry.BrokerPartRoom), part...)}
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
	if len(h.holds) != 1 || !h.holds[0] {
		t.Fatalf("holds %v, want one", h.holds)
	}
	b.ledger.settle(1, nil, true)
	if len(h.refusals) != 2 || !errors.Is(h.refusals[0].Err, ErrHold) || !errors.Is(h.refusals[1].Err, ErrOutOfOrder) ||
		h.refusals[1].Expected != 0 || !h.refusals[1].HasExpected {
		t.Fatalf("refusals %+v, want a hold and an order to resume after 0", h.refusals)
	}
	h.producer.Publish(batch("p", 1, 1))
	h.producer.Publish(batch("p", 2, 2))
	b.ledger.settle(2, nil, true)
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
	h.receipts = nil
	for n := range uint64(5) {
		h.producer.Publish(batch("p", n, n))
	}
	b.ledger.settle(3, nil, true)
	var got []string
	for _, r := range h.receipts {
		got = append(got, fmt.Sprintf("%d at %v duplicate %v", r.Sequence, r.Position, r.Duplicate))
	}
	want := []string{
		"0 at 1:0 duplicate true", "1 at 1:1 duplicate true",
		"2 at 1:2 duplicate false", "2 at 1:2 duplicate true",
		"3 at 1:3 duplicate false", "3 at 1:3 duplicate true",
		"4 at 1:4 duplicate false",
	}
	if !slices.Equal(got, want) || len(h.refusals) != 0 {
		t.Errorf("receipts %q, refusals %+v", got, h.refusals)
	}
	if len(b.disk.entries) != 5 {
		t.Errorf("%d entries are stored, want 5", len(b.disk.entries))
	}
}

// TestRuleM11_OpenWaitsForWhatIsInFlight tells the story behind it: a producer
// dies with a batch in flight; a new process of its name is told where to go on.
// Told too early, it would give the same sequence id to another message, which
// would be answered as stored and never be.
func TestRuleM11_OpenWaitsForWhatIsInFlight(t *testing.T) {
	b := newBench(t)
	dead := b.producer("p", 0)
	dead.producer.Publish(batch("p", 0, 0))
	b.ledger.settle(1, nil, true)
	dead.producer.Publish(batch("p", 1, 1))
	dead.producer.Publish(batch("p", 2, 2))
	dead.producer.Close(false)
	h := b.producer("p", 0)
	b.ledger.settle(1, nil, true)
	if h.producer != nil {
		t.Fatalf("it may go on after %d, while another batch is in flight", h.last)
	}
	b.ledger.settle(1, nil, true)
	if h.producer == nil || !h.stored || h.last != 2 {
		t.Fatalf("told to go on after %d (stored %v), want 2", h.last, h.stored)
	}
	h.producer.Publish(batch("p", 3, 3))
	b.ledger.settle(1, nil, true)
	if len(h.receipts) != 1 || h.receipts[0].Duplicate {
		t.Fatalf("receipts %+v", h.receipts)
	}
	// And one that waits when the topic ends hears that.
	h.producer.Publish(batch("p", 4, 4))
	waits := b.producer("p", 1)
	b.ledger.settle(1, ledger.ErrFenced, false)
	if waits.producer != nil || !errors.Is(waits.closed, ErrUnknownOutcome) {
		t.Fatalf("opened %v, closed with %v", waits.producer, waits.closed)
	}
	<-b.ended
}

// TestRuleM11_GoesOnBehindWhatWasRefusedForGood shows that a batch which can
// never be stored does not stop its producer: the next one takes its place in the
// chain, whatever its sequence id.
func TestRuleM11_GoesOnBehindWhatWasRefusedForGood(t *testing.T) {
	b := newBench(t)
	h := b.producer("p", 0)
	h.producer.Publish(batch("p", 0, 0))
	large := batch("p", 1, 1)
	large.Buffer = reframed(append(large.Buffer, make([]byte, 2<<20)...))
	h.producer.Publish(large)
	h.producer.Publish(batch("p", 2, 2)) // sent before the refusal was heard
	next := batch("p", 2, 2)
	part, err := entry.Follow(next.Buffer[entry.BrokerPartRoom:], true, 0)
	if err != nil {
		t.Fatal(err)
	}
	h.producer.Publish(Batch{Buffer: append(make([]byte, entry.BrokerPartRoom), part...)})
	garbage := batch("p", 3, 3)
	garbage.Buffer = garbage.Buffer[:entry.BrokerPartRoom+5]
	h.producer.Publish(garbage)
	h.producer.Publish(batch("p", 3, 3))
	b.ledger.settle(len(b.ledger.waiting), nil, true)
	if len(h.refusals) != 3 || !errors.Is(h.refusals[0].Err, ErrTooLarge) || !errors.Is(h.refusals[1].Err, ErrOutOfOrder) || !errors.Is(h.refusals[2].Err, ErrInvalid) {
		t.Errorf("refusals %+v", h.refusals)
	}
	if len(h.receipts) != 3 || h.receipts[2].Sequence != 3 {
		t.Errorf("receipts %+v", h.receipts)
	}
}

// TestUnreadableBatchStopsNobody shows that a batch of which not even the
// sequence id can be read is refused alone, also where batches name no
// predecessor.
func TestUnreadableBatchStopsNobody(t *testing.T) {
	b := newBench(t)
	h := b.producer("p", 0)
	garbage := Batch{Buffer: make([]byte, entry.BrokerPartRoom+5)}
	for n := range uint64(3) {
		next := batch("p", n, n)
		part, err := entry.Follow(next.Buffer[entry.BrokerPartRoom:], false, 0)
		if err != nil {
			t.Fatal(err)
		}
		h.producer.Publish(garbage)
		h.producer.Publish(Batch{Buffer: append(make([]byte, entry.BrokerPartRoom), part...)})
	}
	b.ledger.settle(len(b.ledger.waiting), nil, true)
	if len(h.receipts) != 3 || len(h.refusals) != 3 {
		t.Errorf("receipts %+v, refusals %+v", h.receipts, h.refusals)
	}
}

// TestRuleM31_HoldEndsByItself shows that a producer held because others fill
// the broker's queues is let go on, though nothing of its topic is in flight to
// tell when.
func TestRuleM31_HoldEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		h := b.producer("p", 0)
		b.ledger.refuse = ledger.ErrTooBusy
		h.producer.Publish(batch("p", 0, 0))
		want := func(holds ...bool) {
			t.Helper()
			b.topic.mu.Lock() // a timer tells
			defer b.topic.mu.Unlock()
			if !slices.Equal(h.holds, holds) {
				t.Fatalf("holds %v, want %v", h.holds, holds)
			}
		}
		want(true)
		time.Sleep(2 * holdRetry)
		synctest.Wait()
		want(true, false)
		b.ledger.refuse = nil
		h.producer.Publish(batch("p", 0, 0))
		b.ledger.settle(1, nil, true)
		if len(h.receipts) != 1 {
			t.Fatalf("receipts %v", h.receipts)
		}
	})
}

// TestDeleteIsRefusedWhileTheJournalIsBusy shows that a subscription which could
// not be deleted goes on as it was, and that the id of a deleted one is not used
// again, also by a topic that was opened from a snapshot.
func TestDeleteIsRefusedWhileTheJournalIsBusy(t *testing.T) {
	b := newBench(t)
	sub := func(name string) *subscription.Subscription {
		c, _, err := b.topic.Subscribe(t.Context(), SubscribeRequest{Subscription: name}, nobody{})
		if err != nil {
			t.Fatal(err)
		}
		defer b.topic.Leave(c)
		return c.Subscription()
	}
	first := sub("s")
	b.journal.mu.Lock()
	b.journal.busy = true
	b.journal.mu.Unlock()
	if err := b.topic.DeleteSubscription(t.Context(), "s", false); !errors.Is(err, subscription.ErrTooBusy) {
		t.Fatalf("deleted: %v", err)
	}
	b.journal.mu.Lock()
	b.journal.busy = false
	b.journal.mu.Unlock()
	if sub("s") != first {
		t.Fatal("it is another one")
	}
	if err := b.topic.DeleteSubscription(t.Context(), "s", false); err != nil {
		t.Fatal(err)
	}
	var base []byte
	b.topic.Snapshot(func(bytes []byte) { base = append([]byte(nil), bytes...) })
	state, err := restore(bundlelog.Parked{Base: base}, 10)
	if err != nil || state.subscriptions.NextID <= first.ID() {
		t.Fatalf("the next id is %d, %d was used: %v", state.subscriptions.NextID, first.ID(), err)
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

// TestRuleM1_LedgerLostWhileIdleEndsTheTopic shows that a ledger which was fenced
// while nothing was in flight, so that no publish was told, ends the topic with the
// next publish: refused it is stored nowhere, and its producer comes back to a topic
// that is opened again. The topic would refuse everything for ever otherwise.
func TestRuleM1_LedgerLostWhileIdleEndsTheTopic(t *testing.T) {
	b := newBench(t)
	h, other := b.producer("p", 0), b.producer("q", 0)
	h.producer.Publish(batch("p", 0, 0))
	b.ledger.settle(1, nil, true)
	b.ledger.refuse = ledger.ErrFenced
	h.producer.Publish(batch("p", 1, 1))
	if len(h.refusals) != 1 || !errors.Is(h.refusals[0].Err, ErrClosed) {
		t.Errorf("refusals %+v, want the batch's", h.refusals)
	}
	for _, told := range []error{h.closed, other.closed} {
		if !errors.Is(told, ErrClosed) || !errors.Is(told, ledger.ErrFenced) {
			t.Errorf("a producer was told %v", told)
		}
	}
	select {
	case err := <-b.ended:
		if !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("ended with %v", err)
		}
	default:
		t.Fatal("the topic has not ended")
	}
	b.open()
	h = b.producer("p", 1)
	h.producer.Publish(batch("p", 1, 1))
	b.ledger.settle(1, nil, true)
	if len(h.receipts) != 1 || h.receipts[0].Duplicate || len(b.disk.entries) != 2 {
		t.Errorf("opened again: receipts %+v, %d entries", h.receipts, len(b.disk.entries))
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
				if h.producer != nil {
					h.producer.Close(false)
				}
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
			case 6, 7, 8, 9:
				if h.producer == nil {
					continue // what it had in flight has no outcome yet
				}
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

// TestRuleM22_CheckpointForABusyLog shows that a log which is too busy for a
// checkpoint is not offered a new one with every entry that is stored, and that it
// gets one soon after it has room again.
func TestRuleM22_CheckpointForABusyLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		h := b.producer("p", 0)
		next := uint64(0)
		store := func(entries int) {
			for range entries {
				h.producer.Publish(batch("p", next, next))
				b.ledger.settle(1, nil, true)
				next++
			}
			synctest.Wait()
		}
		b.journal.busy = true
		store(checkpointEntries)
		if n := b.journal.refused; n < 2 || n > checkpointEntries/2/retryEntries+1 {
			t.Errorf("%d checkpoints were offered to a busy log while %d entries were stored", n, checkpointEntries/2)
		}
		b.journal.busy = false
		store(retryEntries)
		if lag := int(b.topic.storedAt.Entry - b.topic.checkpointAt.Entry); lag >= retryEntries {
			t.Errorf("the checkpoint lags by %d entries though the log has room", lag)
		}
		store(checkpointEntries/2 - retryEntries)
		if n := len(b.disk.records); n != 1 {
			t.Errorf("%d checkpoints, the next one is not due", n)
		}
		b.topic.Close(t.Context(), errors.New("end"))
	})
}

// TestRuleM22_BodiesCountAcrossOwners shows that owners who die before a checkpoint
// is due do not let it lag by more than 64 MiB: the next one counts the bodies of
// what it replays, though it reads their heads alone.
func TestRuleM22_BodiesCountAcrossOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		large := make([]byte, 1<<20)
		next := uint64(0)
		for epoch := range uint64(3) {
			if epoch > 0 {
				b.open()
			}
			h := b.producer("p", epoch)
			for range 24 {
				h.producer.Publish(Batch{Buffer: reframed(append(batch("p", next, next).Buffer, large...))})
				b.ledger.settle(1, nil, true)
				next++
				synctest.Wait()
				b.topic.mu.Lock()
				from, last := b.topic.checkpointAt, b.topic.storedAt
				b.topic.mu.Unlock()
				if lag, _ := b.ledger.Measure(t.Context(), from.Next(), last.Next()); lag.Bytes > checkpointBytes {
					t.Fatalf("after entry %d the checkpoint lags by %d bytes", next, lag.Bytes)
				}
			}
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
	if _, err := b.topic.OpenProducer("p", 0, false, &heard{}); !errors.Is(err, producer.ErrBusy) {
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

// FuzzRestore shows that a topic's state is restored or refused, whatever stands in
// its snapshot and in a record after it.
func FuzzRestore(f *testing.F) {
	registry := producer.New(10)
	registry.Replay("p", 3, producer.Batch{First: 5, Last: 9}, position.Position{Ledger: 4, Entry: 2})
	saved := subscription.Saved{ID: 3, Name: "a", Created: time.UnixMilli(7), Cursor: subscription.Target{Mark: position.Position{Ledger: 4}}.Cursor()}
	checkpoint := registry.AppendCheckpoint(nil, position.Position{Ledger: 4, Entry: 2})
	records := []subscription.Record{{Kind: kindProducers, Data: checkpoint}, {Kind: subscription.KindCreate, Data: saved.AppendCreate(nil)}}
	f.Add(appendState(nil, records), uint8(kindProducers), checkpoint)
	f.Add(appendState(nil, records), uint8(subscription.KindDelete), subscription.AppendDelete(nil, 3))
	f.Add([]byte{}, uint8(subscription.KindCreate), saved.AppendCreate(nil))
	f.Fuzz(func(t *testing.T, base []byte, kind uint8, data []byte) {
		r, err := restore(bundlelog.Parked{Base: base, Records: []bundlelog.Record{{Topic: 1, Kind: kind, Data: data}}}, 10)
		if err != nil {
			return
		}
		for id, s := range r.subscriptions.ByID {
			if s.ID != id || id >= r.subscriptions.NextID {
				t.Fatalf("subscription %d restored as %+v, the next id is %d", id, s, r.subscriptions.NextID)
			}
		}
	})
}
