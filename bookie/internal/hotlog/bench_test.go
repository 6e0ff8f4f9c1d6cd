package hotlog

import (
	"fmt"
	"sync"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// BenchmarkAppend: entries to a real disk, synced, as many at a time as the queue takes.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{4 << 10, 128 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			const segmentBytes = 64 << 20
			l := mustOpen(b, Options{FS: vfs.OS(), Dir: b.TempDir(), SegmentBytes: segmentBytes, QueueBytes: 64 << 20,
				TailCacheBytes: 16 << 20, SpareSegments: 20})
			defer mustClose(b, l)
			r := entry(1, 0, 0, size)
			window := make(chan struct{}, max(4, (4<<20)/size))
			run := func(n int) {
				var wg sync.WaitGroup
				wg.Add(n)
				for range n {
					window <- struct{}{}
					r.Envelope.Entry++
					r.Envelope.LAC++
					l.Append(r, func(_ Place, err error) {
						if err != nil {
							b.Error(err)
						}
						<-window
						wg.Done()
					})
					if r.Envelope.Entry%64 == 0 {
						recycleAll(b, l)
					}
				}
				wg.Wait()
			}
			run(5 * segmentBytes / size) // until it runs on recycled files
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			run(b.N)
		})
	}
}

func recycleAll(b *testing.B, l *Log) {
	for _, s := range l.Segments() {
		if s.Sealed {
			if err := l.Recycle(s.ID); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkLatency: one small entry outstanding.
func BenchmarkLatency(b *testing.B) {
	l := mustOpen(b, Options{FS: vfs.OS(), Dir: b.TempDir()})
	defer mustClose(b, l)
	done := make(chan error, 1)
	for e := range b.N {
		l.Append(entry(1, ledger.EntryID(e), 0, 1024), func(_ Place, err error) { done <- err })
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
