package latency

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"
)

// TestRecorder shows that stretches are told apart, that a total holds all since
// the restart, and that quantiles are right to three digits.
func TestRecorder(t *testing.T) {
	r := NewRecorder()
	r.Record(time.Hour) // warm-up
	r.Restart()
	for i := 1; i <= 1000; i++ {
		r.Record(time.Duration(i) * time.Millisecond)
	}
	if s := r.Cut(); s.Count != 1000 || !near(s.P50, 500*time.Millisecond) || !near(s.P99, 990*time.Millisecond) || !near(s.Max, time.Second) {
		t.Errorf("first stretch: %d, %v", s.Count, s)
	}
	r.Record(2 * time.Second)
	if s := r.Cut(); s.Count != 1 || !near(s.P50, 2*time.Second) {
		t.Errorf("second stretch: %d, %v", s.Count, s)
	}
	r.Record(-time.Second) // a clock that was set back
	if s := r.Total(); s.Count != 1002 || !near(s.Max, 2*time.Second) {
		t.Errorf("total: %d, %v", s.Count, s)
	}
}

func near(a, b time.Duration) bool { return a >= b && a <= b+b/500 }

// TestSummaryThroughJSON shows that a summary survives the way through JSON.
func TestSummaryThroughJSON(t *testing.T) {
	want := Summary{Count: 3, P50: 1234 * time.Microsecond, P95: 2 * time.Millisecond, P99: 3 * time.Second, P999: time.Minute, Max: time.Microsecond}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Summary
	if err := json.Unmarshal(text, &got); err != nil || got != want {
		t.Errorf("got %+v, %v from %s, want %+v", got, err, text, want)
	}
}

// TestPacer shows that events are due at a fixed rate whatever the caller's
// delays, that one who is late catches up at once, and that a context ends the
// wait.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := NewPacer(10, 0.5)
		for i := range 20 {
			due, err := p.Next(t.Context())
			if want := time.Duration(50+100*i) * time.Millisecond; err != nil || due.Sub(began) != want {
				t.Fatalf("event %d is due after %v, %v, want %v", i, due.Sub(began), err, want)
			}
			if i == 5 {
				time.Sleep(time.Second) // the next ten are overdue
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := p.Next(ctx); err == nil {
			t.Error("Next outlived its context")
		}
	})
}
