package topicname

import (
	"errors"
	"math"
	"strings"
	"testing"
)

// Shows that the short forms stand for the long one and that the long form is a
// fixed point.
func TestParseForms(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Name
		long string
	}{
		{"t", Name{"public", "default", "t", -1}, "persistent://public/default/t"},
		{"a/b/c", Name{"a", "b", "c", -1}, "persistent://a/b/c"},
		{"persistent://a/b/c", Name{"a", "b", "c", -1}, "persistent://a/b/c"},
		{"t-partition-0", Name{"public", "default", "t", 0}, "persistent://public/default/t-partition-0"},
		{"a/b/c-partition-12", Name{"a", "b", "c", 12}, "persistent://a/b/c-partition-12"},
		{"A.b_c=d:e%20~f+g@h$", Name{"public", "default", "A.b_c=d:e%20~f+g@h$", -1}, "persistent://public/default/A.b_c=d:e%20~f+g@h$"},
	} {
		got, err := Parse(c.in)
		if err != nil || got != c.want || got.String() != c.long {
			t.Errorf("Parse(%q) = %+v (%s), %v; want %+v", c.in, got, got, err, c.want)
		}
		if again, err := Parse(got.String()); err != nil || again != got {
			t.Errorf("Parse(%q) = %+v, %v; want itself", got, again, err)
		}
	}
}

// Shows that what cannot be a topic is refused, and that the reason is told.
func TestParseRefuses(t *testing.T) {
	for in, reason := range map[string]string{
		"":                                 "without a name",
		"a/b":                              "want TOPIC",
		"/t":                               "want TOPIC",
		"a/b/c/d":                          "want TOPIC",
		"persistent://t":                   "want TOPIC",
		"persistent://a/cluster/b/c":       "want TOPIC",
		"a//c":                             "namespace without",
		"non-persistent://a/b/c":           "non-persistent topics are not supported",
		"kafka://a/b/c":                    "unknown kind",
		"t-partition-":                     "partitions",
		"t-partition-01":                   "partitions",
		"t-partition--1":                   "partitions",
		"t-partition-65536":                "partitions",
		"t-partition-1-partition-2":        "partitions",
		"-partition-1":                     "without a name",
		"..":                               "file systems",
		"a/../c":                           "file systems",
		"a b":                              "not allowed",
		"a\x00b":                           "not allowed",
		"ü":                                "not allowed",
		"a\xffb":                           "not allowed",
		strings.Repeat("x", 256):           "at most 255",
		"persistent://" + "a/b/" + "x\ny":  "not allowed",
		"persistent://persistent://a/b/c":  "unknown kind",
		"persistent://a/b/c-partition-1e1": "partitions",
	} {
		n, err := Parse(in)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), reason) || n != (Name{}) {
			t.Errorf("Parse(%q) = %v, %v; want the reason %q", in, n, err, reason)
		}
	}
}

// Shows that a partition and its topic are told apart and found from each other.
func TestPartitions(t *testing.T) {
	base := MustParse("a/b/c")
	p := base.WithPartition(7)
	if p.String() != "persistent://a/b/c-partition-7" || p.Base() != base || p.NamespaceName() != "a/b" {
		t.Errorf("partition 7 of %v is %v, base %v, namespace %s", base, p, p.Base(), p.NamespaceName())
	}
	if p.Hash() == base.Hash() {
		t.Error("a partition falls in its topic's place")
	}
}

// Shows the hashes that place topics and keys: they are on disk and in other
// people's programs and never change. Vectors of Murmur3_32, seed 0.
func TestHashesAreFixed(t *testing.T) {
	for in, want := range map[string]uint32{"": 0, "hello": 0x248bfa47, "hello, world": 0x149bbb7f,
		"The quick brown fox jumps over the lazy dog": 0x2e4ff723} {
		if got := KeyHash([]byte(in)); got != want {
			t.Errorf("KeyHash(%q) = %#x, want %#x", in, got, want)
		}
	}
	if got, want := MustParse("t").Hash(), KeyHash([]byte("persistent://public/default/t")); got != want {
		t.Errorf("topic hash %#x, want that of the long form %#x", got, want)
	}
}

// Shows the rules for the names of subscriptions, producers and consumers.
func TestOtherNames(t *testing.T) {
	for _, c := range []struct {
		check func(string) error
		in    string
		ok    bool
	}{
		{ValidateSubscription, "billing-1", true},
		{ValidateSubscription, "a/b", false},
		{ValidateSubscription, "", false},
		{ValidateProducer, "host 7 / Müller", true},
		{ValidateProducer, "a\nb", false},
		{ValidateProducer, "a\xff", false},
		{ValidateConsumer, strings.Repeat("x", 256), false},
		{ValidateTenant, "acme", true},
		{ValidateTenant, "a/b", false},
	} {
		if err := c.check(c.in); (err == nil) != c.ok || (err != nil && !errors.Is(err, ErrInvalid)) {
			t.Errorf("%q: %v, want ok=%v", c.in, err, c.ok)
		}
	}
	if ten, ns, err := ParseNamespace("a/b"); ten != "a" || ns != "b" || err != nil {
		t.Errorf("ParseNamespace: %q %q %v", ten, ns, err)
	}
	for _, bad := range []string{"a", "a/b/c", "/b", "a/"} {
		if _, _, err := ParseNamespace(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseNamespace(%q): %v", bad, err)
		}
	}
}

// FuzzParse shows that whatever parses prints a long form that parses to the
// same name, within bounds.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"t", "a/b/c", "persistent://a/b/c-partition-3", "non-persistent://x/y/z", "t-partition-01", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("Parse(%q): %v", s, err)
			}
			return
		}
		if again, err := Parse(n.String()); err != nil || again != n {
			t.Fatalf("Parse(%q) = %+v; its long form gives %+v, %v", s, n, again, err)
		}
		if n.Partition < -1 || n.Partition > math.MaxUint16 || len(n.Local) > MaxBytes {
			t.Fatalf("Parse(%q) = %+v", s, n)
		}
	})
}

// FuzzNames shows that a name which is accepted can stand in a key or a line: it has
// a bounded size and no sign that means something there.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"t/n", "t/n/x", "..", "a b", "\xff", "é", "x\n", strings.Repeat("é", MaxBytes)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tenant, namespace, err := ParseNamespace(s)
		if err != nil && !errors.Is(err, ErrInvalid) || err == nil && (tenant+"/"+namespace != s || strings.Count(s, "/") != 1) {
			t.Fatalf("ParseNamespace(%q) = %q, %q, %v", s, tenant, namespace, err)
		}
		for what, err := range map[string]error{"subscription": ValidateSubscription(s), "producer": ValidateProducer(s), "consumer": ValidateConsumer(s)} {
			if err != nil && !errors.Is(err, ErrInvalid) || err == nil && (s == "" || len(s) > MaxBytes || strings.ContainsAny(s, "\n\x00")) {
				t.Fatalf("%s %q: %v", what, s, err)
			}
		}
	})
}
