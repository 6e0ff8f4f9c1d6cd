package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// counters are the values of a process's metrics, those of one name summed over
// their labels.
type counters map[string]float64

// readCounters asks a process for its metrics.
func readCounters(ctx context.Context, http string) (counters, error) {
	text, err := get(ctx, "http://"+http+"/metrics")
	if err != nil {
		return nil, err
	}
	return parseCounters(text)
}

// get answers with the body of url.
func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	req.Close = true // what is measured keeps no connection for it
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(body), err
}

// parseCounters reads Prometheus' text format, as far as a node writes it.
func parseCounters(text string) (counters, error) {
	c := counters{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		space := strings.LastIndexByte(line, ' ')
		if space < 0 {
			return nil, fmt.Errorf("metrics line %q has no value", line)
		}
		v, err := strconv.ParseFloat(line[space+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metrics line %q: %w", line, err)
		}
		name, _, _ := strings.Cut(line[:space], "{")
		c[name] += v
	}
	return c, nil
}

// since is how far a counter rose. A counter that the process does not have is an
// error: it would measure nothing.
func (c counters) since(before counters, name string) (float64, error) {
	if _, ok := c[name]; !ok {
		return 0, fmt.Errorf("no metric %s", name)
	}
	return c[name] - before[name], nil
}
