package procstat

import (
	"os"
	"testing"
	"time"
)

// TestParseCPU shows that user and system time are added up, whatever the
// command is called.
func TestParseCPU(t *testing.T) {
	d, err := parseCPU("42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 150 25 7 8 20 0 9 0 1234 0 0")
	if err != nil || d != 1750*time.Millisecond {
		t.Errorf("got %v, %v, want 1.75s", d, err)
	}
	if _, err := parseCPU("42 (a) S 1"); err == nil {
		t.Error("a line that is cut off was read")
	}
}

// TestOwnProcess shows that the figures of a living process are plausible.
func TestOwnProcess(t *testing.T) {
	for until := time.Now().Add(50 * time.Millisecond); time.Now().Before(until); {
	}
	if d, err := CPU(os.Getpid()); err != nil || d <= 0 || d > time.Minute {
		t.Errorf("CPU %v, %v", d, err)
	}
	if n, err := RSS(os.Getpid()); err != nil || n < 1<<20 || n > 1<<30 {
		t.Errorf("RSS %d, %v", n, err)
	}
}
