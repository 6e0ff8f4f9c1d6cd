package ensemble_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ensemble/ensembletest"
	"github.com/magnetar-io/magnetar/bookie/ledger"
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

// TestTooLargeForEveryBookieIsSaid shows that where each bookie refuses an entry as
// too large, without having said before what it takes, the log and an append beyond
// the budget name the bookies with what they answered.
func TestTooLargeForEveryBookieIsSaid(t *testing.T) {
	var log strings.Builder
	opts := ensemble.Options{Log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Warn}), BudgetBytes: 1 << 10}
	playWith(t, 3, opts, func(t *testing.T, s *stage) {
		for i := range 3 {
			s.cluster.At(i).OnAdd(func(a ledger.Add) ensembletest.AddFault {
				return ensembletest.AddFault{Err: fmt.Errorf("%d bytes in segments of 512: %w", len(a.Body), ledger.ErrTooLarge)}
			})
		}
		w := s.create(threeTwo)
		large := make([]byte, 600)
		if _, err := w.Append(large, sum(large), func(ledger.EntryID, error) {}); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		_, err := w.Append(large, sum(large), nil)
		for i := range 3 {
			want := s.cluster.At(i).Member().Bookie + " refuses: 600 bytes in segments of 512"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("an append beyond the budget: %v, want %q in it", err, want)
			}
			if !strings.Contains(log.String(), want) {
				t.Errorf("%q is not in the log:\n%s", want, log.String())
			}
		}
		w.Abandon()
	})
}
