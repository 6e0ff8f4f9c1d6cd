package history

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/magnetar-io/magnetar/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a history told step by step, on one topic without partitions unless
// a step says more.
type script struct {
	*Log
	consumers map[string]*Consumer
	kind      Kind
}

type step func(*script)

func message(n int) Message { return Message{"p", n} }
func position(n int) client.MessageID {
	return client.MessageID{Ledger: 1, Entry: int64(n), Partition: -1, BatchIndex: -1}
}

func begin(n int) step { return func(s *script) { s.Publishing(message(n)) } }
func ended(n int, o Outcome) step {
	return func(s *script) { s.Published(message(n), o, client.MessageID{}) }
}
func storedAt(n, at int) step { return func(s *script) { s.Published(message(n), OK, position(at)) } }
func stored(n int) step       { return storedAt(n, n) }

// sent publishes and acknowledges, each at the position of its number.
func sent(numbers ...int) step {
	return func(s *script) {
		for _, n := range numbers {
			begin(n)(s)
			stored(n)(s)
		}
	}
}

func unsure(n int) step { return func(s *script) { begin(n)(s); ended(n, Unknown)(s) } }

// by is the consumer of a name, which joins at its first step.
func (s *script) by(name string) *Consumer {
	if s.consumers[name] == nil {
		s.consumers[name] = s.Join("s", s.kind, name)
	}
	return s.consumers[name]
}
func join(name string) step  { return func(s *script) { s.by(name) } }
func leave(name string) step { return func(s *script) { s.by(name).Leaving() } }
func open(name string) step  { return func(s *script) { s.by(name).Opened(-1) } }
func gotAt(name string, n, at int) step {
	return func(s *script) { s.by(name).Delivered(message(n), position(at), 0) }
}
func got(name string, numbers ...int) step {
	return func(s *script) {
		for _, n := range numbers {
			gotAt(name, n, n)(s)
		}
	}
}
func gotAgain(name string, n int) step {
	return func(s *script) { s.by(name).Delivered(message(n), position(n), 1) }
}
func ack(name string, n int) step {
	return func(s *script) { s.by(name).Acking(position(n), false).Ended(nil) }
}
func ackAll(name string, n int) step {
	return func(s *script) { s.by(name).Acking(position(n), true).Ended(nil) }
}
func ackUnanswered(name string, n int) step {
	return func(s *script) { s.by(name).Acking(position(n), false).Ended(errors.New("no answer")) }
}
func nack(name string, n int) step { return func(s *script) { s.by(name).Nacked(position(n)) } }
func seek(name string, t Target) step {
	return func(s *script) { s.by(name).Seeking(t).Ended(nil) }
}
func deletion(s *script) { s.Deleted() }

// TestEachAnomaly shows, for every kind of anomaly, a history that has it, beside
// the smallest ones that do not.
func TestEachAnomaly(t *testing.T) {
	none := [anomalies]int{}
	found := func(kinds ...Anomaly) (n [anomalies]int) {
		for _, k := range kinds {
			n[k]++
		}
		return n
	}
	for _, c := range []struct {
		name  string
		kind  Kind
		steps []step
		want  [anomalies]int
	}{
		{"clean", Exclusive, []step{sent(1, 2), got("a", 1), ack("a", 1), got("a", 2), ack("a", 2)}, none},
		{"nothing at all", Exclusive, nil, none},
		{"got before the answer", Exclusive, []step{begin(1), got("a", 1), stored(1)}, none},
		{"unknown, not got", Exclusive, []step{sent(1), unsure(2), got("a", 1)}, none},
		{"unknown, got", Exclusive, []step{sent(1), unsure(2), got("a", 1, 2)}, none},

		{"two messages acknowledged at a position", Exclusive, []step{begin(1), begin(2), storedAt(1, 7), storedAt(2, 7), gotAt("a", 1, 7)}, found(InconsistentOffsets, Unseen)},
		{"two messages got at a position", Shared, []step{unsure(1), unsure(2), gotAt("a", 1, 7), gotAt("b", 2, 7)}, found(InconsistentOffsets)},
		{"two messages got at two positions", Shared, []step{unsure(1), unsure(2), gotAt("a", 1, 7), gotAt("b", 2, 8)}, none},

		{"lost write", Exclusive, []step{sent(1, 2), got("a", 1), ack("a", 1), leave("a")}, found(Unseen)},
		{"lost below what was got", Shared, []step{sent(1, 2), got("a", 2)}, found(LostWrite)},
		{"all got in any order", Shared, []step{sent(1, 2), got("a", 2, 1)}, none},
		{"acknowledged nowhere, never got", Exclusive, []step{begin(1), func(s *script) { s.Published(message(1), OK, client.MessageID{}) }, join("a")}, found(Unseen)},
		{"unseen, with nobody there", Exclusive, []step{sent(1), func(s *script) { s.Subscription("s", Exclusive) }}, found(Unseen)},
		{"passed over by a seek", Exclusive, []step{sent(1, 2, 3), got("a", 1), seek("a", At(position(3))), got("a", 3)}, none},
		{"behind where a seek went", Exclusive, []step{sent(1, 2, 3, 4), got("a", 1), seek("a", At(position(3))), got("a", 3)}, found(Unseen)},
		{"published before a seek to the latest", Exclusive, []step{sent(1, 2), seek("a", Latest()), sent(3), got("a", 3)}, none},
		{"published after a seek to the latest", Exclusive, []step{seek("a", Latest()), sent(1)}, found(Unseen)},

		{"refused, not got", Exclusive, []step{begin(1), ended(1, Failed)}, none},
		{"refused, got", Exclusive, []step{begin(1), ended(1, Failed), got("a", 1)}, found(AbortedRead)},
		{"refused after it was got", Exclusive, []step{begin(1), got("a", 1), ended(1, Failed)}, found(AbortedRead)},

		{"at two positions", Exclusive, []step{unsure(1), gotAt("a", 1, 1), gotAt("a", 1, 2)}, found(Duplicate)},
		{"at one position twice", Exclusive, []step{unsure(1), got("a", 1), gotAgain("a", 1)}, none},
		{"acknowledged at one, got at two", Exclusive, []step{sent(1), got("a", 1), gotAt("a", 1, 2)}, found(Duplicate, Invented)},

		{"never published", Exclusive, []step{got("a", 1)}, found(Invented)},
		{"got before it was published", Exclusive, []step{got("a", 1), sent(1)}, found(Invented)},
		{"elsewhere than acknowledged", Shared, []step{sent(1), gotAt("a", 1, 9)}, found(Invented)},

		{"skip", Exclusive, []step{sent(1, 2, 3), got("a", 1, 3), gotAgain("a", 2)}, found(PollSkip)},
		{"skip of what was acknowledged before", Exclusive, []step{sent(1, 2, 3), got("a", 1, 2, 3), ack("a", 2), leave("a"), gotAgain("b", 1), gotAgain("b", 3)}, none},
		{"skip on a shared subscription", Shared, []step{sent(1, 2, 3), got("a", 1, 3), got("b", 2)}, none},
		{"skip of what nobody has", Exclusive, []step{sent(1), unsure(2), sent(3), got("a", 1, 3)}, none},
		{"skip of what another subscription has", Exclusive, []step{sent(1), unsure(2), sent(3), got("a", 1, 3), func(s *script) {
			o := s.Join("other", Shared, "o")
			for n := 1; n <= 3; n++ {
				o.Delivered(message(n), position(n), 0)
			}
		}}, found(PollSkip)},
		{"skip after a hand-over", Failover, []step{sent(1, 2, 3), got("a", 1), got("b", 3), gotAgain("b", 2)}, found(PollSkip)},
		{"a hand-over", Failover, []step{sent(1, 2, 3), got("a", 1, 2), got("b", 1, 2, 3), got("a", 3)}, none},
		{"skip after a seek to the earliest", Exclusive, []step{sent(1, 2, 3), got("a", 1, 2, 3), seek("a", Earliest()), got("a", 1, 3)}, found(PollSkip)},

		{"back", Exclusive, []step{sent(1, 2), got("a", 1, 2, 1)}, found(NonmonotonicPoll)},
		{"the same again", Exclusive, []step{sent(1), got("a", 1, 1)}, found(NonmonotonicPoll)},
		{"back, said to be a redelivery", Exclusive, []step{sent(1, 2), got("a", 1, 2), gotAgain("a", 1)}, none},
		{"back, after a nack", Exclusive, []step{sent(1, 2), got("a", 1, 2), nack("a", 1), got("a", 1)}, none},
		{"back twice, after a nack", Exclusive, []step{sent(1, 2), got("a", 1, 2), nack("a", 1), got("a", 1, 1)}, found(NonmonotonicPoll)},
		{"back, after a seek", Exclusive, []step{sent(1, 2), got("a", 1, 2), seek("a", Earliest()), got("a", 1, 2)}, none},
		{"back twice, after a seek", Exclusive, []step{sent(1, 2), got("a", 1, 2), seek("a", Earliest()), got("a", 1, 2, 1)}, found(NonmonotonicPoll)},
		{"back, after another one's seek", Failover, []step{sent(1, 2), join("b"), got("a", 1, 2), seek("b", Earliest()), got("a", 1, 2)}, none},
		{"back twice, after another one's seek", Failover, []step{sent(1, 2), join("b"), got("a", 1, 2), seek("b", Earliest()), open("a"), got("a", 1, 2, 1)}, found(NonmonotonicPoll)},
		{"on, from before another one's seek", Failover, []step{sent(1, 2, 3), join("b"), got("a", 1, 2), seek("b", Earliest()), got("b", 1), got("a", 3), got("b", 2, 3)}, none},
		{"back, after two seeks at once", Failover, []step{sent(1, 2, 3), join("b"), got("a", 1, 2, 3), func(s *script) {
			one, other := s.by("a").Seeking(Earliest()), s.by("b").Seeking(At(position(2)))
			one.Ended(nil)
			other.Ended(nil)
		}, got("b", 1, 2), got("b", 2, 3)}, none},
		{"a seek to the latest, and a new consumer", Exclusive, []step{sent(1, 2, 3), got("a", 1), seek("a", At(position(3))), leave("a"), got("b", 3)}, none},
		{"in front of where a seek went", Exclusive, []step{sent(1, 2, 3), got("a", 1, 2, 3), seek("a", At(position(2))), got("a", 1, 2, 3)}, found(NonmonotonicPoll)},
		{"right where a seek went", Exclusive, []step{sent(1, 2, 3), got("a", 1, 2, 3), seek("a", At(position(2))), got("a", 2, 3)}, none},
		{"at the message after which a seek went", Exclusive, []step{sent(1, 2), got("a", 1, 2), seek("a", After(position(1))), got("a", 1, 2)}, found(NonmonotonicPoll)},
		{"back, while a seek is under way", Exclusive, []step{sent(1, 2), got("a", 1, 2), func(s *script) { s.by("a").Seeking(Earliest()) }, got("a", 1, 2, 1, 2)}, none},

		{"a producer's order is not kept", Shared, []step{begin(1), begin(2), storedAt(1, 5), storedAt(2, 4), gotAt("a", 1, 5), gotAt("a", 2, 4)}, found(NonmonotonicSend)},
		{"a producer's order is not kept, outcomes unknown", Shared, []step{unsure(1), unsure(2), gotAt("a", 1, 5), gotAt("a", 2, 4)}, found(NonmonotonicSend)},
		{"two producers in any order", Shared, []step{begin(1), func(s *script) {
			s.Publishing(Message{"q", 1})
			s.Published(Message{"q", 1}, OK, position(4))
			s.by("a").Delivered(Message{"q", 1}, position(4), 0)
		}, storedAt(1, 3), gotAt("a", 1, 3)}, none},
		{"below what had been acknowledged before", Shared, []step{func(s *script) {
			s.Publishing(Message{"q", 1})
			s.Published(Message{"q", 1}, OK, position(4))
			s.by("a").Delivered(Message{"q", 1}, position(4), 0)
		}, begin(1), storedAt(1, 3), gotAt("a", 1, 3)}, found(OrderOfIDs)},

		{"acknowledged and back", Shared, []step{sent(1), got("a", 1), ack("a", 1), join("b"), got("b", 1)}, found(AckUndone)},
		{"acknowledged and back, to one that was there", Shared, []step{sent(1), join("b"), got("a", 1), ack("a", 1), got("b", 1)}, none},
		{"acknowledged and back, on a new stream", Shared, []step{sent(1), join("b"), got("a", 1), ack("a", 1), open("b"), got("b", 1)}, found(AckUndone)},
		{"acknowledged without an answer, and back", Shared, []step{sent(1), got("a", 1), ackUnanswered("a", 1), join("b"), got("b", 1)}, none},
		{"acknowledged, sought and back", Shared, []step{sent(1), got("a", 1), ack("a", 1), seek("a", Earliest()), join("b"), got("b", 1)}, none},
		{"sought, acknowledged and back", Shared, []step{sent(1), seek("a", Earliest()), got("a", 1), ack("a", 1), join("b"), got("b", 1)}, found(AckUndone)},
		{"all acknowledged and back", Failover, []step{sent(1, 2), got("a", 1, 2), ackAll("a", 2), leave("a"), join("b"), got("b", 1)}, found(AckUndone)},
		{"some acknowledged, others back", Failover, []step{sent(1, 2), got("a", 1, 2), ackAll("a", 1), leave("a"), join("b"), got("b", 2)}, none},

		{"two at once", Exclusive, []step{sent(1), got("a", 1), got("b", 1)}, found(TwoHolders)},
		{"one after the other", Exclusive, []step{sent(1), got("a", 1), leave("a"), got("b", 1)}, none},
		{"given back and got by another", Exclusive, []step{sent(1), got("a", 1), nack("a", 1), got("b", 1)}, none},
		{"being acknowledged and got by another", Exclusive, []step{sent(1), join("b"), got("a", 1), ackUnanswered("a", 1), got("b", 1)}, none},
		{"two at once of a failover subscription", Failover, []step{sent(1), got("a", 1), got("b", 1)}, none},

		{"after its topic was deleted", Shared, []step{sent(1), got("a", 1), deletion, got("b", 1)}, found(AfterDelete)},
		{"under way while its topic was deleted", Shared, []step{sent(1), join("b"), deletion, got("b", 1)}, none},
		{"published after the topic was deleted", Shared, []step{deletion, sent(1), got("b", 1)}, none},
	} {
		s := &script{New(), map[string]*Consumer{}, c.kind}
		for _, do := range c.steps {
			do(s)
		}
		v := s.Check()
		if v.Found != c.want {
			t.Errorf("%s: %v", c.name, v)
		}
		if v.Bad() != (c.want != none) {
			t.Errorf("%s: bad is %v", c.name, v.Bad())
		}
	}
}

// TestCounts shows what is allowed and counted: deliveries again before and after
// the answer of an acknowledgement, and behind a seek.
func TestCounts(t *testing.T) {
	s := &script{New(), map[string]*Consumer{}, Shared}
	for _, do := range []step{sent(1, 2), join("b"), got("a", 1, 2), ack("a", 1), got("b", 1, 2), seek("b", Earliest()), got("b", 1, 2), unsure(3), begin(4), ended(4, Failed)} {
		do(s)
	}
	s.Owner("broker-1")
	v := s.Check()
	if v.Bad() || v.Redelivered != 2 || v.AfterAck != 1 || v.Replayed != 2 || v.Owners != 1 || v.Published != 4 || v.OK != 2 || v.Unknown != 1 || v.Failed != 1 || v.Delivered["s"] != 2 {
		t.Errorf("%v", v)
	}
}

// TestFindingTellsItsStory shows a verdict's text: the anomaly by its name, what
// it is, and the operations on the message and beside it.
func TestFindingTellsItsStory(t *testing.T) {
	s := &script{New(), map[string]*Consumer{}, Shared}
	for _, do := range []step{sent(1), got("a", 1), ack("a", 1), leave("a"), join("b"), got("b", 1)} {
		do(s)
	}
	text := s.Check().String()
	for _, want := range []string{"ack-undone: 1", "publish of p/1: ok at 1:1:-1", "a of s gets p/1 at 1:1:-1", "a of s acknowledged 1:1:-1: done", "a of s leaves", "b of s joins", "b of s gets p/1"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

// TestMissingCountsWhatIsStillToCome shows the count of acknowledged messages
// that a subscription has not got, in either order of answer and delivery.
func TestMissingCountsWhatIsStillToCome(t *testing.T) {
	s := &script{New(), map[string]*Consumer{}, Exclusive}
	missing := func(want int) {
		t.Helper()
		if got := s.Missing("s"); got != want {
			t.Fatalf("missing %d, want %d", got, want)
		}
	}
	missing(0)
	sent(1)(s)
	missing(1)
	got("a", 1, 1)(s)
	missing(0)
	begin(2)(s)
	got("a", 2)(s)
	missing(0)
	stored(2)(s)
	unsure(3)(s)
	missing(0)
	sent(4)(s)
	missing(1)
	if got := s.Acknowledged(); got != 3 {
		t.Fatalf("acknowledged %d, want 3", got)
	}
}

// TestPayloadNamesItsMessage shows that a payload can be parsed back.
func TestPayloadNamesItsMessage(t *testing.T) {
	m := Message{"producer-2", 77}
	if got, err := Parse(m.Payload(300)); err != nil || got != m {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, err := Parse([]byte("garbage")); err == nil {
		t.Fatal("garbage names a message")
	}
	if _, err := Parse(fmt.Append(nil, "p/x rest")); err == nil {
		t.Fatal("a message without a number")
	}
}
