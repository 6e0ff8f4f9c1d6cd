package registers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/magnetar-io/magnetar/discovery/meta"
)

// TestAnomaliesAreFound shows histories that are not linearizable beside those that
// are.
func TestAnomaliesAreFound(t *testing.T) {
	write := func(l *Log, old, new string) { l.Swapping(1, "k", old, new).Swapped(Done) }
	read := func(l *Log, value string) { l.Reading(2, "k").Read(value) }
	for _, c := range []struct {
		name string
		tell func(*Log)
		want porcupine.CheckResult
	}{
		{"in turn", func(l *Log) { write(l, "", "a"); read(l, "a"); write(l, "a", "b"); read(l, "b") }, porcupine.Ok},
		{"stale read", func(l *Log) { write(l, "", "a"); write(l, "a", "b"); read(l, "a") }, porcupine.Illegal},
		{"a read beside the write", func(l *Log) {
			write(l, "", "a")
			r := l.Reading(2, "k")
			write(l, "a", "b")
			r.Read("a")
		}, porcupine.Ok},
		{"lost update", func(l *Log) { write(l, "", "a"); write(l, "a", "b"); write(l, "a", "c") }, porcupine.Illegal},
		{"a swap that compares unequal", func(l *Log) { write(l, "", "a"); l.Swapping(1, "k", "", "b").Swapped(NotDone); read(l, "a") }, porcupine.Ok},
		{"a swap refused without reason", func(l *Log) { write(l, "", "a"); l.Swapping(1, "k", "a", "b").Swapped(NotDone) }, porcupine.Illegal},
		{"unknown and never done", func(l *Log) {
			write(l, "", "a")
			l.Swapping(1, "k", "a", "b").Swapped(Unknown)
			read(l, "a")
			write(l, "a", "c")
		}, porcupine.Ok},
		{"unknown and done later", func(l *Log) {
			write(l, "", "a")
			l.Swapping(1, "k", "a", "b").Swapped(Unknown)
			read(l, "a")
			read(l, "b")
		}, porcupine.Ok},
		{"unknown, done and undone", func(l *Log) {
			write(l, "", "a")
			l.Swapping(1, "k", "a", "b").Swapped(Unknown)
			read(l, "b")
			read(l, "a")
		}, porcupine.Illegal},
		{"two registers", func(l *Log) { write(l, "", "a"); l.Reading(2, "other").Read("") }, porcupine.Ok},
	} {
		var l Log
		c.tell(&l)
		if got := l.Check(time.Minute); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// workload has clients read and swap registers of a store under faults. spoil may
// alter what a read found and how a swap ended, by number of the operation, one
// at a time.
func workload(t *testing.T, seed uint64, spoil func(n int, read bool, value string, o Outcome) (string, Outcome)) *Log {
	t.Helper()
	l := &Log{}
	synctest.Test(t, func(t *testing.T) {
		store := meta.NewMem()
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(seed, 1))
		draw := func(n int) int {
			mu.Lock()
			defer mu.Unlock()
			return r.IntN(n)
		}
		store.OnCall(func(meta.Call) meta.Fault {
			f := meta.Fault{Delay: time.Duration(draw(5)) * time.Millisecond, AnswerDelay: time.Duration(draw(5)) * time.Millisecond}
			switch draw(12) {
			case 0:
				f.Lost = true
			case 1:
				f.Err = meta.ErrUnavailable
			}
			return f
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		n := 0
		var clients sync.WaitGroup
		for c := range 4 {
			client := store.Client(fmt.Sprint(c))
			clients.Go(func() {
				defer client.Close()
				for k := range 60 {
					key := fmt.Sprintf("/r/%d", draw(3))
					op := l.Reading(c, key)
					kv, err := client.Get(ctx, key)
					if err != nil {
						continue
					}
					mu.Lock()
					n++
					mine := n
					value, _ := spoil(mine, true, string(kv.Value), 0)
					mu.Unlock()
					op.Read(value)
					next := fmt.Sprintf("%d-%d", c, k)
					op = l.Swapping(c, key, string(kv.Value), next)
					// Some give up before the swap arrives, which it does all the same.
					swapping, cancel := context.WithTimeout(ctx, time.Duration(2+draw(30))*time.Millisecond)
					result, err := client.Txn(swapping, meta.Txn{Conds: []meta.Cond{{Key: key, Revision: kv.Revision}}, Ops: []meta.Op{{Key: key, Value: []byte(next)}}})
					cancel()
					outcome := NotDone
					switch {
					case errors.Is(err, meta.ErrUncertain):
						outcome = Unknown
					case err != nil:
						continue // surely not done
					case result.Done:
						outcome = Done
					}
					mu.Lock()
					_, outcome = spoil(mine, false, "", outcome)
					mu.Unlock()
					op.Swapped(outcome)
				}
			})
		}
		clients.Wait()
	})
	return l
}

// TestStoreIsLinearizable shows that the metadata store's twin is linearizable for
// concurrent clients whose calls are late, lose their answers or are refused.
func TestStoreIsLinearizable(t *testing.T) {
	for seed := range uint64(20) {
		l := workload(t, seed, func(_ int, _ bool, value string, o Outcome) (string, Outcome) { return value, o })
		if got := l.Check(time.Minute); got != porcupine.Ok || len(l.operations) < 200 {
			t.Errorf("seed %d: %s after %d operations", seed, got, len(l.operations))
		}
	}
}

// TestPlantedFaultsAreFound plants a stale read, and a lost update, in the history
// of a store under faults.
func TestPlantedFaultsAreFound(t *testing.T) {
	for seed := range uint64(20) {
		first, stale := "", false
		l := workload(t, seed, func(n int, read bool, value string, o Outcome) (string, Outcome) {
			switch {
			case !read || value == "":
			case first == "":
				first = value
			case n > 100 && !stale:
				stale = true
				return first, o
			}
			return value, o
		})
		if got := l.Check(time.Minute); !stale || got != porcupine.Illegal {
			t.Errorf("seed %d: a read of long ago: %s", seed, got)
		}
		lost := false
		l = workload(t, seed, func(n int, read bool, value string, o Outcome) (string, Outcome) {
			if !read && n > 30 && o == NotDone && !lost {
				lost = true
				return value, Done // over what another client wrote
			}
			return value, o
		})
		if got := l.Check(time.Minute); !lost || got != porcupine.Illegal {
			t.Errorf("seed %d: a lost update: %s", seed, got)
		}
	}
}
