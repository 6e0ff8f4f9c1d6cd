package client

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// Shows that bitsets of different lengths do what sets of numbers do.
func TestBitsetIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type set = map[int]bool
		draw := func(name string) (bitset, set) {
			n := rapid.IntRange(0, 200).Draw(t, name)
			b, s := allBits(n), set{}
			for i := range n {
				if s[i] = rapid.Bool().Draw(t, name); !s[i] {
					b.clear(i)
				}
			}
			return b, s
		}
		check := func(what string, b bitset, want func(int) bool) {
			n, next := 0, -1
			for i := 250; i >= 0; i-- {
				if b.has(i) != want(i) {
					t.Fatalf("%s: %d is %v", what, i, b.has(i))
				}
				if want(i) {
					n, next = n+1, i
				}
				if got := b.next(i); got != next {
					t.Fatalf("%s: next from %d is %d, want %d", what, i, got, next)
				}
			}
			if b.count() != n || b.empty() != (n == 0) {
				t.Fatalf("%s: counts %d, empty %v; want %d", what, b.count(), b.empty(), n)
			}
		}
		a, sa := draw("a")
		b, sb := draw("b")
		check("a", a, func(i int) bool { return sa[i] })
		check("and", a.and(b), func(i int) bool { return sa[i] && sb[i] })
		check("without", a.without(b), func(i int) bool { return sa[i] && !sb[i] })
		through := rapid.IntRange(0, 250).Draw(t, "through")
		part := append(bitset(nil), a...)
		part.clearThrough(through)
		check("clearThrough", part, func(i int) bool { return sa[i] && i > through })
		part.add(a)
		check("add", part, func(i int) bool { return sa[i] })
	})
}

// Shows that a delivery whose entries do not add up to its payload is refused,
// before anything is allocated for them.
func TestDeliveryThatDoesNotAddUp(t *testing.T) {
	d := brokerv1.Delivery_builder{Entries: []*brokerv1.DeliveredEntry{
		brokerv1.DeliveredEntry_builder{Length: new(uint32(1<<32 - 1))}.Build(),
		brokerv1.DeliveredEntry_builder{Length: new(uint32(2))}.Build(),
	}}.Build()
	if _, err := carve(d, &rpc.Frame{}); !errors.Is(err, ErrInternal) {
		t.Errorf("got %v", err)
	}
}

// FuzzParseMessageID shows that what parses prints as it was typed, or shorter
// by leading signs and zeros only.
func FuzzParseMessageID(f *testing.F) {
	for _, s := range []string{"5:7:-1", "5:7:0:3", "1:2", "9223372036854775807:0:0", "+1:00:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseMessageID(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || id != (MessageID{}) {
				t.Fatalf("%q: %v, %v", s, id, err)
			}
			return
		}
		if again, err := ParseMessageID(id.String()); err != nil || again != id || len(id.String()) > len(s) || !id.Known() {
			t.Fatalf("%q is %v, which is %v, %v", s, id, again, err)
		}
	})
}
