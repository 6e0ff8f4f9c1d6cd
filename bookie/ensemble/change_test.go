package ensemble_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
)

// TestHelplessChangeSaysWhyOnce shows that a change nobody can help with is logged once
// for each reason, not once for ever: while the bookies that fail are still listed, all
// count as writable.
func TestHelplessChangeSaysWhyOnce(t *testing.T) {
	var log strings.Builder // hclog writes under a lock of its own
	opts := ensemble.Options{Log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Warn})}
	playWith(t, 3, opts, func(t *testing.T, s *stage) {
		w := s.create(threeTwo)
		s.wantAcked(s.appendSome(w, 1, nil), 1)
		for i := range 2 {
			s.cluster.At(i).Cut(true)
		}
		s.appendSome(w, 1, nil)
		after(time.Minute)
		for i := range 2 { // no try in between: virtual time stands still
			s.cluster.At(i).Unlist(true)
		}
		after(time.Minute)
	})
	var reasons []string
	for line := range strings.Lines(log.String()) {
		if _, reason, ok := strings.Cut(line, "no bookie can help"); ok {
			_, reason, _ = strings.Cut(reason, "error=")
			reasons = append(reasons, strings.Trim(reason, "\"\n")[:len("3 of 3 bookies writable")])
		}
	}
	if want := []string{"3 of 3 bookies writable", "1 of 1 bookies writable"}; !slices.Equal(reasons, want) {
		t.Errorf("said %q, want %q; all of it:\n%s", reasons, want, log.String())
	}
}
