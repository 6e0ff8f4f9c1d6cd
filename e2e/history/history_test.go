package history

import (
	"fmt"
	"testing"
)

// TestEachAnomalyIsFound shows, for every kind of anomaly, a history that has
// it, beside the smallest history that does not.
func TestEachAnomalyIsFound(t *testing.T) {
	type step func(*Log)
	m := func(n int) Message { return Message{"p", n} }
	at := func(n int) string { return fmt.Sprintf("1:%d", n) }
	ok := func(n int) step { return func(l *Log) { l.Published(m(n), OK, at(n)) } }
	outcome := func(n int, o Outcome) step { return func(l *Log) { l.Published(m(n), o, "") } }
	got := func(n int) step { return func(l *Log) { l.Delivered("s", m(n), 0, at(n)) } }
	gotAt := func(n int, pos string) step { return func(l *Log) { l.Delivered("s", m(n), 0, pos) } }
	ack := func(n int) step { return func(l *Log) { l.Acked("s", at(n)) } }

	for _, c := range []struct {
		name  string
		steps []step
		want  Verdict
	}{
		{"clean", []step{ok(1), ok(2), got(1), ack(1), got(2), ack(2)}, Verdict{}},
		{"unknown not delivered", []step{ok(1), outcome(2, Unknown), got(1)}, Verdict{}},
		{"unknown delivered", []step{ok(1), outcome(2, Unknown), got(1), got(2)}, Verdict{}},
		{"refused not delivered", []step{outcome(1, Failed)}, Verdict{}},
		{"redelivered before the ack", []step{ok(1), ok(2), got(1), got(2), got(1)}, Verdict{Redelivered: 1}},
		{"lost", []step{ok(1), ok(2), got(2)}, Verdict{Lost: 1}},
		{"at two positions", []step{ok(1), got(1), gotAt(1, "2:0")}, Verdict{Duplicated: 1, Invented: 1}},
		{"again after the ack", []step{ok(1), got(1), ack(1), got(1)}, Verdict{Duplicated: 1}},
		{"reordered", []step{ok(1), ok(2), got(2), got(1)}, Verdict{Reordered: 1}},
		{"position goes back", []step{outcome(1, Unknown), outcome(2, Unknown), gotAt(1, "12:0"), gotAt(2, "9:5")}, Verdict{Reordered: 1}},
		{"position goes back in a batch", []step{outcome(1, Unknown), outcome(2, Unknown), gotAt(1, "9:5:0:10"), gotAt(2, "9:5:0:9")}, Verdict{Reordered: 1}},
		{"invented", []step{got(1)}, Verdict{Invented: 1}},
		{"two contents at one position", []step{outcome(1, Unknown), outcome(2, Unknown), gotAt(1, "1:7"), gotAt(2, "1:7")}, Verdict{Invented: 1}},
		{"moved", []step{ok(1), gotAt(1, "1:9")}, Verdict{Invented: 1}},
		{"refused but delivered", []step{outcome(1, Failed), got(1)}, Verdict{Undead: 1}},
	} {
		l := New()
		for _, s := range c.steps {
			s(l)
		}
		v := l.Check([]string{"s"}, []string{"s"})
		if v.Lost != c.want.Lost || v.Duplicated != c.want.Duplicated || v.Reordered != c.want.Reordered ||
			v.Invented != c.want.Invented || v.Undead != c.want.Undead || v.Redelivered != c.want.Redelivered {
			t.Errorf("%s: %v", c.name, v)
		}
	}
}

// TestMissingCountsWhatIsStillToCome shows the count of acknowledged messages
// that a subscription has not got, in either order of answer and delivery.
func TestMissingCountsWhatIsStillToCome(t *testing.T) {
	l := New()
	missing := func(want int) {
		t.Helper()
		if got := l.Missing("s"); got != want {
			t.Fatalf("missing %d, want %d", got, want)
		}
	}
	missing(0)
	l.Published(Message{"p", 1}, OK, "1:1")
	missing(1)
	l.Delivered("s", Message{"p", 1}, 0, "1:1")
	l.Delivered("s", Message{"p", 1}, 0, "1:1")
	missing(0)
	l.Delivered("s", Message{"p", 2}, 0, "1:2")
	missing(0)
	l.Published(Message{"p", 2}, OK, "1:2")
	l.Published(Message{"p", 3}, Unknown, "")
	missing(0)
	l.Published(Message{"p", 4}, OK, "1:4")
	missing(1)
	if got := l.Acknowledged(); got != 3 {
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
}
