package meta

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestProbe shows that a store that goes away is told once, with the reason, as is
// its return; also one that takes the question and does not answer.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		c := m.Client("probe")
		var told []error
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			Probe(ctx, c, func(err error) { told = append(told, err) })
		}()
		after := func(d time.Duration, want int, why string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if len(told) != want {
				t.Fatalf("%s: told %d times, want %d: %v", why, len(told), want, told)
			}
		}
		after(time.Minute, 1, "it answers")
		if told[0] != nil {
			t.Fatal(told[0])
		}
		c.Cut(true)
		after(time.Minute, 2, "it is cut off")
		if !errors.Is(told[1], ErrUnavailable) {
			t.Errorf("told %v, want ErrUnavailable", told[1])
		}
		c.Cut(false)
		after(time.Minute, 3, "it is back")
		if told[2] != nil {
			t.Errorf("told %v of a store that is back", told[2])
		}
		hold := make(chan struct{})
		m.OnCall(func(Call) Fault { return Fault{Until: hold} })
		after(time.Minute, 4, "it hangs")
		if !errors.Is(told[3], ErrUnavailable) {
			t.Errorf("told %v, want ErrUnavailable", told[3])
		}
		cancel()
		<-stopped
		if len(told) != 4 {
			t.Errorf("the end was told: %v", told[4:])
		}
	})
}
