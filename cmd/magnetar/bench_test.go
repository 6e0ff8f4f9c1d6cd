package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/internal/entry"
)

// TestMeter shows that a warm-up does not count, that a line is printed each
// second and that rates are those of the measured time.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeter()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		defer func() {
			cancel()
			<-ended
		}()
		go func() {
			defer close(ended)
			time.Sleep(5 * time.Millisecond) // between the moments at which it is measured
			for i := 0; ctx.Err() == nil; i++ {
				time.Sleep(10 * time.Millisecond)
				m.did(1000)
				m.times.Record(time.Duration(i) * time.Microsecond)
			}
		}()
		var talk strings.Builder
		r := m.measure(ctx, &talk, 2*time.Second, 2500*time.Millisecond, nil)
		if r.Seconds != 2.5 || r.Messages != 250 || r.Bytes != 1000*r.Messages || r.Latency.Count != r.Messages {
			t.Errorf("result %+v", r)
		}
		if r.MessagesPerSecond != float64(r.Messages)/2.5 || r.MegabytesPerSec != float64(r.Bytes)/2.5e6 {
			t.Errorf("rates %v messages, %v MB", r.MessagesPerSecond, r.MegabytesPerSec)
		}
		if n := strings.Count(talk.String(), "msg/s"); n != 3 {
			t.Errorf("%d lines about rates, want 3:\n%s", n, talk.String())
		}

		done := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(done) })
		if r := m.measure(ctx, io.Discard, 0, time.Minute, done); r.Seconds != 1 {
			t.Errorf("measured %v s after being told to end, want 1", r.Seconds)
		}
	})
}

// TestStamp shows that a stamp is read back, and not seen where there is none.
func TestStamp(t *testing.T) {
	at := time.Unix(1234, 5678)
	value := benchValues(100)[0]
	if _, ok := stamped(value); ok {
		t.Error("a fresh value has a stamp")
	}
	stamp(value, at)
	if got, ok := stamped(value); !ok || !got.Equal(at) {
		t.Errorf("got %v, %t, want %v", got, ok, at)
	}
	short := make([]byte, stampBytes-1)
	stamp(short, at)
	if _, ok := stamped(short); ok || !bytes.Equal(short, make([]byte, stampBytes-1)) {
		t.Error("a short value was stamped")
	}
}

// TestBenchValues shows that values have the size asked for, differ, and compress
// somewhat, as real ones do.
func TestBenchValues(t *testing.T) {
	for _, size := range []int{1, 10, 100, 1024, 100_000} {
		for _, v := range benchValues(size) {
			if len(v) != size {
				t.Fatalf("size %d: a value of %d bytes", size, len(v))
			}
		}
	}
	values := benchValues(1024)
	if bytes.Equal(values[0], values[1]) {
		t.Error("values are all the same")
	}
	var b entry.Builder
	for _, v := range values {
		b.Add(&entry.Message{Value: v}, 0)
	}
	plain := b.Bytes()
	if packed := len(b.Close(entry.BatchHeader{Producer: "p", Compression: 3})); packed > plain/2 || packed < plain/20 {
		t.Errorf("%d bytes become %d with zstd", plain, packed)
	}
}

// TestBenchUsage shows which command lines are refused before anything is
// connected to.
func TestBenchUsage(t *testing.T) {
	for _, line := range []string{
		"bench produce --size 0",
		"bench produce --producers 0",
		"bench produce --rate -1",
		"bench produce --compression brotli",
		"bench produce --memory 1KiB",
		"bench produce --topic t --partitions 3",
		"bench produce --duration 0s",
		"bench produce now",
		"bench latency --size 8 --deliver",
		"bench consume --type broadcast",
		"bench consume --fill 10 --size 100",
		"bench sleep",
	} {
		var errs bytes.Buffer
		if code := run(t.Context(), strings.Fields(line), nil, io.Discard, &errs); code != exitUsage {
			t.Errorf("%s: exit code %d, %s", line, code, errs.String())
		}
	}
}
