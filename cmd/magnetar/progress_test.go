package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgressIsForTerminals shows that progress is one line written again and
// again, gone at the end, and that a file and the null device get none.
func TestProgressIsForTerminals(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) || isTerminal(new(bytes.Buffer)) {
		t.Error("the null device or a buffer is taken for a terminal")
	}
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		var out bytes.Buffer
		showProgress(t.Context(), &out, func() string { return "never" })()
		end := progressLines(context.Background(), &out, time.Second, func() string {
			return strings.Repeat("x", int(n.Add(1)))
		})
		time.Sleep(2500 * time.Millisecond)
		end()
		if got, want := out.String(), "\r\x1b[Kx\r\x1b[Kxx\r\x1b[K"; got != want {
			t.Errorf("progress %q, want %q", got, want)
		}
	})
}
