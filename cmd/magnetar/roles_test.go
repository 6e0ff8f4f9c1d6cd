package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestHealthWhileWaitingForMetadata shows that a role that waits for its metadata
// store lives, is not ready and says why, and that it ends when told to.
func TestHealthWhileWaitingForMetadata(t *testing.T) {
	for _, role := range []string{"bookie", "broker", "discovery"} {
		t.Run(role, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			talk, errs := io.Pipe()
			code := make(chan int, 1)
			go func() {
				defer errs.Close()
				code <- run(ctx, []string{role, "start", "--metadata", "127.0.0.1:1", "--grpc-port", "0", "--http-port", "0"}, nil, io.Discard, errs)
			}()
			lines := bufio.NewScanner(talk)
			address := ""
			for address == "" && lines.Scan() {
				if strings.Contains(lines.Text(), "health is served") {
					_, address, _ = strings.Cut(lines.Text(), " address=")
				}
			}
			go io.Copy(io.Discard, talk)
			for path, want := range map[string]int{"/healthz/live": 200, "/healthz/ready": 503, "/api/v1/cluster": 503, "/metrics": 200} {
				status, body := fetch(ctx, t, "http://"+address+path)
				if status != want || want == 503 && !strings.Contains(body, `"name":"metadata","ok":false`) {
					t.Errorf("%s answers %d: %.300s", path, status, body)
				}
			}
			stop()
			if got := <-code; got != exitError {
				t.Errorf("exit code %d, want %d", got, exitError)
			}
		})
	}
}

func fetch(ctx context.Context, t *testing.T, url string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // leaves no connection open
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
