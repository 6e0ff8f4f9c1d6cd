package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/magnetar-io/magnetar/internal/latency"
)

// figures are what `magnetar bench` and `bare` both print of a run.
type figures struct {
	MegabytesPerSecond float64         `json:"megabytesPerSecond"`
	Latency            latency.Summary `json:"latency"`
}

// output runs a command and reads what it prints. Its talk is shown if it fails.
func output(ctx context.Context, into any, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, talk.String())
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		return fmt.Errorf("%s printed %q: %w", strings.Join(command, " "), out.String(), err)
	}
	return nil
}

// bare runs the bare chain in one shape.
func bare(ctx context.Context, s settings, shape string) (figures, error) {
	var list []figures
	err := output(ctx, &list, s.bare, "-shape", shape, "-seconds", fmt.Sprint(s.duration.Seconds()),
		"-warmup", fmt.Sprint(s.warmup.Seconds()), "-dir", s.dir, "-o", "json",
		fmt.Sprintf("-fresh=%t", s.fresh))
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("bare printed %d results, want 1", len(list))
	}
	if err != nil {
		return figures{}, err
	}
	return list[0], nil
}

// bench runs one of `magnetar bench`'s commands against a server.
func bench(ctx context.Context, s settings, server string, args ...string) (f figures, err error) {
	command := append([]string{s.binary, "bench"}, args...)
	command = append(command, "--server", server, "--duration", s.duration.String(), "--warmup", s.warmup.String(), "-o", "json")
	return f, output(ctx, &f, command...)
}

// share compares two rates of the same round and keeps the absolute ones.
type share struct {
	budget      *budget
	ours, yards []float64
}

func (s *share) add(ours, yard float64) {
	s.ours, s.yards = append(s.ours, ours), append(s.yards, yard)
	s.budget.add(100 * ours / yard)
	s.budget.detail = fmt.Sprintf("%.0f of %.0f MB/s", median(s.ours), median(s.yards))
}

// threeProcesses measures a broker and a bookie that keep one copy, beside the
// bare chain.
func (p *plan) threeProcesses(ctx context.Context, s settings) (err error) {
	yard, err := bare(ctx, s, "three-processes")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, "cluster-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := oneCopy(ctx, s, dir)
	if err != nil {
		return err
	}
	defer c.Stop()
	kib, err := bench(ctx, s, c.Server, "produce")
	if err != nil {
		return err
	}
	p.cluster.add(kib.MegabytesPerSecond, yard.MegabytesPerSecond)
	small, err := bench(ctx, s, c.Server, "produce", "--size", "100")
	if err != nil {
		return err
	}
	p.small.add(small.MegabytesPerSecond, kib.MegabytesPerSecond)
	steady, err := bench(ctx, s, c.Server, "produce", "--rate", "9765.625") // 10 MB/s of 1 KiB
	if err != nil {
		return err
	}
	if steady.MegabytesPerSecond < 9.9 {
		return fmt.Errorf("10 MB/s were asked for, %.2f were published", steady.MegabytesPerSecond)
	}
	p.steadyP50.add(millis(steady.Latency.P50))
	p.steadyP99.add(millis(steady.Latency.P99))
	one, err := bench(ctx, s, c.Server, "latency")
	if err != nil {
		return err
	}
	p.one.add(millis(one.Latency.P50))
	p.one.detail = fmt.Sprintf("p99 %.2f ms", millis(one.Latency.P99))
	return nil
}

// oneProcess measures a standalone node beside the bare chain in one process.
func (p *plan) oneProcess(ctx context.Context, s settings) error {
	yard, err := bare(ctx, s, "one-process")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, "standalone-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	n, err := startNode(ctx, s.binary, dir, s.memoryArgs()...)
	if err != nil {
		return err
	}
	ours, err := bench(ctx, s, n.server, "produce")
	if err = errors.Join(err, n.stop()); err != nil {
		return err
	}
	p.standalone.add(ours.MegabytesPerSecond, yard.MegabytesPerSecond)
	return nil
}
