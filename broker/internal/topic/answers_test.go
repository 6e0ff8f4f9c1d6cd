package topic

import (
	"errors"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/entry"
)

// story records what a producer is told, in order.
type story struct {
	heard
	order []string
}

func (s *story) Receipt(r Receipt) { s.order = append(s.order, "receipt"); s.heard.Receipt(r) }
func (s *story) Refused(r Refusal) { s.order = append(s.order, "refusal"); s.heard.Refused(r) }
func (s *story) Hold(h bool, why string) {
	word := "resume"
	if h {
		word = "hold"
	}
	s.order = append(s.order, word)
	s.heard.Hold(h, why)
}

func (b *bench) story(name string) *story {
	b.t.Helper()
	s := &story{}
	if _, err := b.topic.OpenProducer(name, 0, false, s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (s *story) want(t *testing.T, want ...string) {
	t.Helper()
	if len(s.order) != len(want) {
		t.Fatalf("heard %v, want %v", s.order, want)
	}
	for i := range want {
		if s.order[i] != want[i] {
			t.Fatalf("heard %v, want %v", s.order, want)
		}
	}
}

// TestRuleM11_RefusalWaitsItsTurn shows that a refusal does not overtake the
// receipts of batches sent before it: a client takes each answer for that of its
// oldest batch, and would report one as refused that is stored.
func TestRuleM11_RefusalWaitsItsTurn(t *testing.T) {
	b := newBench(t)
	s := b.story("p")
	s.producer.Publish(batch("p", 0, 0))
	s.producer.Publish(batch("p", 1, 1))
	bad := batch("p", 2, 2)
	bad.Buffer = reframed(append(bad.Buffer, make([]byte, 2<<20)...))
	s.producer.Publish(bad)
	s.producer.Publish(batch("p", 3, 3))
	s.want(t)
	b.ledger.settle(1, nil, true)
	s.want(t, "receipt")
	b.ledger.settle(1, nil, true)
	s.want(t, "receipt", "receipt", "refusal", "refusal")
	if !errors.Is(s.refusals[0].Err, ErrTooLarge) || s.refusals[0].Sequence != 2 || !errors.Is(s.refusals[1].Err, ErrOutOfOrder) {
		t.Fatalf("refusals %+v", s.refusals)
	}
}

// TestRuleM31_ResumeFollowsTheRefusals shows that a producer on hold is asked to
// go on only after it heard which of its batches it has to send again.
func TestRuleM31_ResumeFollowsTheRefusals(t *testing.T) {
	b := newBench(t)
	s := b.story("p")
	s.producer.Publish(batch("p", 0, 0))
	s.producer.Publish(batch("p", 1, 1))
	b.ledger.refuse = ledger.ErrTooBusy
	s.producer.Publish(batch("p", 2, 2))
	b.ledger.refuse = nil
	b.ledger.settle(2, nil, true)
	s.want(t, "hold", "receipt", "receipt", "refusal", "resume")
}

// TestRuleM32_RetryBeforeRouting shows that a batch that is stored, or in flight,
// is known again though it was made for older partitions: its outcome is the one
// it had, not a refusal.
func TestRuleM32_RetryBeforeRouting(t *testing.T) {
	b := newBench(t)
	version := uint64(2)
	b.topic.opts.RoutingVersion = func() uint64 { return version }
	s := b.story("p")
	s.producer.Publish(routed(2))
	version = 3
	s.producer.Publish(routed(2))
	b.ledger.settle(1, nil, true)
	s.producer.Publish(routed(2))
	s.want(t, "receipt", "receipt", "receipt")
	if !s.receipts[1].Duplicate || !s.receipts[2].Duplicate {
		t.Fatalf("receipts %+v", s.receipts)
	}
}

// TestRuleM31_RefusalsThatWaitAreBounded shows that a producer that goes on
// sending what cannot be taken, while an outcome is awaited, is ended.
func TestRuleM31_RefusalsThatWaitAreBounded(t *testing.T) {
	b := newBench(t)
	s := b.story("p")
	s.producer.Publish(batch("p", 0, 0))
	for range 4 * 256 {
		s.producer.Publish(Batch{Buffer: make([]byte, entry.BrokerPartRoom+1)})
	}
	if !errors.Is(s.closed, ErrOverCredit) {
		t.Fatalf("closed with %v after %d refusals", s.closed, len(s.refusals))
	}
	b.ledger.settle(1, nil, true)
}
