package history

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// TestGeneratedHistories takes histories of an honest cluster, in which nothing is
// found, spoils each of them with each anomaly at a random place, and finds it:
// MAGNETAR_HISTORIES of them, or a few, of 10,000 operations or more.
func TestGeneratedHistories(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("MAGNETAR_HISTORIES"))
	if err != nil {
		n = 12
	}
	for seed := range uint64(n) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			h := generate(seed, 10_000)
			if v := h.check(); v.Bad() || v.OK == 0 || v.Redelivered == 0 || v.Replayed == 0 || v.Unknown == 0 || v.Failed == 0 {
				t.Fatalf("an honest history: %v", v)
			}
			for a, inject := range injections {
				s := h.spoiler(rand.New(rand.NewPCG(seed, uint64(1+a))))
				if !inject(s) {
					t.Errorf("no place for %s", Anomaly(a))
				} else if v := s.check(); v.Found[a] == 0 {
					t.Errorf("%s is not found: %v", Anomaly(a), v)
				}
			}
		})
	}
}
