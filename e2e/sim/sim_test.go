package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/go-hclog"
)

// TestSeeds runs one cluster per seed: MAGNETAR_SIM_SEEDS of them from
// MAGNETAR_SIM_SEED on.
func TestSeeds(t *testing.T) {
	first, n := number("MAGNETAR_SIM_SEED", 1), number("MAGNETAR_SIM_SEEDS", 20)
	total := newCounts()
	t.Cleanup(func() { t.Logf("%d seeds:\n%v", n, total) })
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := Run(seed, Options{Log: level()})
				total.merge(r.Counts)
				total.add("virtual seconds", int(r.Virtual.Seconds()))
				if len(r.Problems) > 0 {
					t.Errorf("seed %d:\n%s\nThe journal is in %s.", seed, strings.Join(r.Problems, "\n"), keep(t, r))
				}
			})
		})
	}
}

// TestCalm runs clusters to which nothing is done: what goes wrong in them needs no
// fault to.
func TestCalm(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := Run(seed, Options{Calm: true, Log: level()})
				if len(r.Problems) > 0 {
					t.Errorf("seed %d:\n%s\nThe journal is in %s.", seed, strings.Join(r.Problems, "\n"), keep(t, r))
				}
			})
		})
	}
}

// keep writes the journal of a run to a file that stays.
func keep(t *testing.T, r Result) string {
	name := filepath.Join(os.TempDir(), fmt.Sprintf("magnetar-sim-%d.journal", r.Seed))
	if err := os.WriteFile(name, []byte(r.Journal), 0o600); err != nil {
		t.Error(err)
	}
	return name
}

func level() hclog.Level {
	if l := os.Getenv("MAGNETAR_SIM_LOG"); l != "" {
		return hclog.LevelFromString(l)
	}
	return hclog.Warn
}

func number(name string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return otherwise
}
