package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/magnetar-io/magnetar/internal/latency"
)

// meter counts what a benchmark does. Safe for concurrent use.
type meter struct {
	times    *latency.Recorder
	delivery *latency.Recorder // of the whole way to a consumer, where that is timed
	messages atomic.Int64
	bytes    atomic.Int64
}

func newMeter() *meter { return &meter{times: latency.NewRecorder(), delivery: latency.NewRecorder()} }

// did counts one message of so many bytes.
func (m *meter) did(bytes int) {
	m.messages.Add(1)
	m.bytes.Add(int64(bytes))
}

// count is a meter's reading.
type count struct {
	at              time.Time
	messages, bytes int64
}

func (m *meter) read() count { return count{time.Now(), m.messages.Load(), m.bytes.Load()} }

// rates are messages and megabytes a second between two readings.
func (c count) rates(since count) (messages, megabytes float64) {
	s := max(c.at.Sub(since.at).Seconds(), 1e-9)
	return float64(c.messages-since.messages) / s, float64(c.bytes-since.bytes) / s / 1e6
}

// measure lets the warm-up pass, then counts until duration has passed, done is
// closed or ctx ends, and says what goes on each second.
func (m *meter) measure(ctx context.Context, w io.Writer, warmup, duration time.Duration, done <-chan struct{}) benchResult {
	if warmup > 0 {
		fmt.Fprintf(w, "warming up for %v\n", warmup)
		select {
		case <-time.After(warmup):
		case <-done:
		case <-ctx.Done():
		}
	}
	m.times.Restart()
	m.delivery.Restart()
	first := m.read()
	end := time.After(duration)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := first
	for running := true; running; {
		select {
		case <-ticker.C:
		case <-end:
			running = false
		case <-done:
			running = false
		case <-ctx.Done():
			running = false
		}
		now := m.read()
		if part := now.at.Sub(last.at); running || part > 100*time.Millisecond {
			rate, mb := now.rates(last)
			fmt.Fprintf(w, "%5.0fs  %9.0f msg/s  %7.1f MB/s   %v\n", now.at.Sub(first.at).Seconds(), rate, mb, m.times.Cut())
		}
		last = now
	}
	r := benchResult{Seconds: last.at.Sub(first.at).Seconds(), Messages: last.messages - first.messages, Bytes: last.bytes - first.bytes, Latency: m.times.Total()}
	if d := m.delivery.Total(); d.Count > 0 {
		r.Delivery = &d
	}
	r.MessagesPerSecond, r.MegabytesPerSec = last.rates(first)
	return r
}

// stampMagic heads a value that tells when it was published.
const stampMagic = "mgbench1"

// stampBytes is the size of a stamp: the magic and a wall clock, nanoseconds since
// the Unix epoch, little endian.
const stampBytes = len(stampMagic) + 8

// stamp writes the time at the front of a value that has room for it.
func stamp(value []byte, at time.Time) {
	if len(value) >= stampBytes {
		copy(value, stampMagic)
		binary.LittleEndian.PutUint64(value[len(stampMagic):], uint64(at.UnixNano()))
	}
}

// stamped reads the time that a value was stamped with.
func stamped(value []byte) (at time.Time, ok bool) {
	if len(value) < stampBytes || string(value[:len(stampMagic)]) != stampMagic {
		return at, false
	}
	return time.Unix(0, int64(binary.LittleEndian.Uint64(value[len(stampMagic):]))), true
}

// benchValues are values of the given size to publish in turn: the text of events
// such as services send each other, which compresses about as theirs does.
func benchValues(size int) [][]byte {
	const values = 64
	var text []byte
	seed := uint64(1)
	draw := func(n uint64) uint64 { // xorshift: the same values in every run
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		return seed % n
	}
	names := []string{"checkout", "payment", "inventory", "shipping", "search", "session", "invoice", "refund"}
	list := make([][]byte, values)
	for i := range list {
		text = make([]byte, 0, size+256)
		text = append(text, "                "[:min(size, stampBytes)]...)
		for len(text) < size {
			text = fmt.Appendf(text, `{"event":"%s","user":%d,"order":"%016x","amount":%d.%02d,"currency":"EUR","region":"eu-%d","ok":%t,"tookMs":%d}`,
				names[draw(uint64(len(names)))], draw(1e6), draw(1<<62), draw(500), draw(100), draw(4), draw(8) > 0, draw(900))
		}
		list[i] = text[:size]
	}
	return list
}
