package history

import (
	"fmt"
	"sync"
	"testing"

	"github.com/magnetar-io/magnetar/client"
)

// large is a history of n operations or more: two partitions, two producers, three
// subscriptions.
func large(n int) *record {
	l := New()
	kinds := []Kind{Exclusive, Failover, Shared}
	var consumers []*Consumer
	for i, k := range kinds {
		consumers = append(consumers, l.Join(fmt.Sprint(i), k, "c"))
	}
	for i := 0; len(l.h.events) < n; i++ {
		m := Message{fmt.Sprintf("p%d", i%2), i}
		id := client.MessageID{Ledger: int64(1 + i/50_000), Entry: int64(i % 50_000), Partition: int32(i % 2), BatchIndex: -1}
		l.Publishing(m)
		l.Published(m, OK, id)
		for k, c := range consumers {
			c.Delivered(m, id, 0)
			if i%16 < 2 && kinds[k] != Shared {
				c.Acking(id, true).Ended(nil)
			} else if kinds[k] == Shared {
				c.Acking(id, false).Ended(nil)
			}
		}
	}
	return &l.h
}

// TestLargeHistory shows that a history of a million operations is checked: all
// that grows with it grows no faster than it.
func TestLargeHistory(t *testing.T) {
	h := large(1_000_000)
	if v := h.check(); v.Bad() || v.OK < 100_000 {
		t.Errorf("%v", v)
	}
}

// BenchmarkCheck checks a million operations.
func BenchmarkCheck(b *testing.B) {
	h := large(1_000_000)
	b.ReportAllocs()
	for b.Loop() {
		if v := h.check(); v.Bad() {
			b.Fatal(v)
		}
	}
	b.ReportMetric(float64(len(h.events)), "operations")
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/check")
}

// BenchmarkRecord records from 64 goroutines: a publish with its answer, a delivery
// and an acknowledgement with its answer, which are five operations.
func BenchmarkRecord(b *testing.B) {
	l := New()
	var all sync.WaitGroup
	const goroutines = 64
	b.ResetTimer()
	for g := range goroutines {
		all.Go(func() {
			c := l.Join("s", Shared, "c")
			name := fmt.Sprintf("p%d", g)
			for i := range b.N/goroutines + 1 {
				m := Message{name, i}
				id := client.MessageID{Ledger: int64(1 + g), Entry: int64(i), Partition: -1, BatchIndex: -1}
				l.Publishing(m)
				l.Published(m, OK, id)
				c.Delivered(m, id, 0)
				c.Acking(id, false).Ended(nil)
			}
		})
	}
	all.Wait()
	b.ReportMetric(5*float64(b.N)/b.Elapsed().Seconds(), "operations/s")
}
