// Package latency measures how long things took, for benchmarks: a recorder that
// many goroutines may feed, and summaries of what it was fed.
package latency

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histograms count microseconds with three digits; what took longer than longest
// counts as longest.
const longest = 10 * time.Minute

// Histogram counts durations. Not safe for concurrent use.
type Histogram struct{ h *hdrhistogram.Histogram }

// NewHistogram returns an empty histogram, of about 200 KiB.
func NewHistogram() Histogram {
	return Histogram{hdrhistogram.New(1, longest.Microseconds(), 3)}
}

// Record counts one duration.
func (h Histogram) Record(d time.Duration) {
	// In range, so it cannot fail.
	_ = h.h.RecordValue(min(max(d.Microseconds(), 1), longest.Microseconds()))
}

// Summary reads the histogram.
func (h Histogram) Summary() Summary {
	at := func(q float64) time.Duration { return time.Duration(h.h.ValueAtQuantile(q)) * time.Microsecond }
	return Summary{
		Count: h.h.TotalCount(), P50: at(50), P95: at(95), P99: at(99), P999: at(99.9),
		Max: time.Duration(h.h.Max()) * time.Microsecond,
	}
}

// Summary is what people ask of a histogram. As JSON its durations are
// milliseconds.
type Summary struct {
	Count                    int64
	P50, P95, P99, P999, Max time.Duration
}

func (s Summary) String() string {
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f", Millis(d)) }
	return fmt.Sprintf("p50 %s  p95 %s  p99 %s  p99.9 %s  max %s ms", ms(s.P50), ms(s.P95), ms(s.P99), ms(s.P999), ms(s.Max))
}

// Millis is d in milliseconds.
func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// summaryJSON is how a Summary travels.
type summaryJSON struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50Ms"`
	P95   float64 `json:"p95Ms"`
	P99   float64 `json:"p99Ms"`
	P999  float64 `json:"p999Ms"`
	Max   float64 `json:"maxMs"`
}

func (s Summary) MarshalJSON() ([]byte, error) {
	return json.Marshal(summaryJSON{s.Count, Millis(s.P50), Millis(s.P95), Millis(s.P99), Millis(s.P999), Millis(s.Max)})
}

func (s *Summary) UnmarshalJSON(text []byte) error {
	var j summaryJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	duration := func(ms float64) time.Duration { return time.Duration(ms*1000+0.5) * time.Microsecond }
	*s = Summary{j.Count, duration(j.P50), duration(j.P95), duration(j.P99), duration(j.P999), duration(j.Max)}
	return nil
}

// Recorder collects durations in stretches of time. Safe for concurrent use.
//
// Durations belong to the stretch in which they were recorded, and to the total
// since the last Restart.
type Recorder struct {
	mu      sync.Mutex
	stretch Histogram
	total   Histogram
}

// NewRecorder returns an empty recorder.
func NewRecorder() *Recorder { return &Recorder{stretch: NewHistogram(), total: NewHistogram()} }

// Record counts one duration.
func (r *Recorder) Record(d time.Duration) {
	r.mu.Lock()
	r.stretch.Record(d)
	r.mu.Unlock()
}

// Cut ends the stretch and returns what it held.
func (r *Recorder) Cut() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stretch.Summary()
	r.total.h.Merge(r.stretch.h)
	r.stretch.h.Reset()
	return s
}

// Restart forgets everything: a warm-up is over.
func (r *Recorder) Restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stretch.h.Reset()
	r.total.h.Reset()
}

// Total ends the stretch and returns everything since the last Restart.
func (r *Recorder) Total() Summary {
	r.Cut()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total.Summary()
}
