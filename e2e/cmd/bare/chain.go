package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/magnetar-io/magnetar/e2e/procstat"
	"github.com/magnetar-io/magnetar/internal/latency"
)

// result is what one run of a chain came to. MB and GB are powers of ten.
type result struct {
	Shape             string             `json:"shape"`
	Seconds           float64            `json:"seconds"`
	Messages          int64              `json:"messages"`
	MessagesPerSecond float64            `json:"messagesPerSecond"`
	MegabytesPerSec   float64            `json:"megabytesPerSecond"`
	Latency           latency.Summary    `json:"latency"` // of batches
	CPU               map[string]float64 `json:"cpuSecondsPerGB"`
}

// shapes are the processes of each chain beside the client, in the order they are
// started; each is told the address of the one before.
var shapes = map[string][]string{
	"three-processes": {"bookie", "broker"},
	"one-process":     {"node"},
}

// run measures one chain. Its processes and files are gone when it returns.
func run(ctx context.Context, shape string, s settings) (r result, err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return r, err
	}
	dir, err := os.MkdirTemp(s.dir, shape+"-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	pids := map[string]int{"client": os.Getpid()}
	var address string
	for _, role := range shapes[shape] {
		p, err := start(role, address, filepath.Join(dir, role), s)
		if err != nil {
			return r, fmt.Errorf("%s: %w", role, err)
		}
		defer func() { err = errors.Join(err, p.stop()) }()
		address, pids[role] = p.address, p.cmd.Process.Pid
	}
	client := &producer{load: s.load, times: latency.NewRecorder()}
	publishing, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- client.publish(publishing, address) }()

	if err := wait(ctx, s.warmup, ended); err != nil {
		return r, err
	}
	before, err := usage(pids)
	if err != nil {
		return r, err
	}
	client.times.Restart()
	stored, began := client.stored.Load(), time.Now()
	if err := wait(ctx, s.duration, ended); err != nil {
		return r, err
	}
	took := time.Since(began).Seconds()
	stored = client.stored.Load() - stored
	times := client.times.Total()
	after, err := usage(pids)
	if err != nil {
		return r, err
	}
	cancel()
	bytes := float64(stored) * float64(s.size)
	r = result{
		Shape: shape, Seconds: took, Messages: stored, MessagesPerSecond: float64(stored) / took,
		MegabytesPerSec: bytes / took / 1e6, Latency: times, CPU: map[string]float64{},
	}
	for role, used := range after {
		r.CPU[role] = (used - before[role]).Seconds() / max(bytes/1e9, 1e-9)
	}
	return r, <-ended
}

// wait lets d pass, unless the client ends before.
func wait(ctx context.Context, d time.Duration, ended <-chan error) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case err := <-ended:
		if err == nil {
			err = errors.New("the client stopped by itself")
		}
		return err
	}
}

// usage reads the CPU time of every process.
func usage(pids map[string]int) (map[string]time.Duration, error) {
	used := map[string]time.Duration{}
	for role, pid := range pids {
		var err error
		if used[role], err = procstat.CPU(pid); err != nil {
			return nil, fmt.Errorf("%s: %w", role, err)
		}
	}
	return used, nil
}

// process is a process of the chain: this program, run as one of its roles. It
// ends when its standard input does, so it cannot outlive us.
type process struct {
	cmd     *exec.Cmd
	stdin   io.Closer
	address string
}

func start(role, next, dir string, s settings) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-role", role, "-next", next, "-dir", dir, fmt.Sprintf("-fresh=%t", s.fresh), "-profiles", s.profiles)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("it did not start: %w", err), p.stop())
	}
	p.address = strings.TrimSpace(line)
	return p, nil
}

func (p *process) stop() error {
	p.stdin.Close()
	return p.cmd.Wait()
}
