// Command demo publishes every line of Go's own sources through a cluster whose
// processes are killed meanwhile, and checks that each file comes out as it went
// in, for `make demo`.
//
// A line is a message, the file's path its key. One subscription is read by
// `magnetar consume`, one by the Go client. While lines are being published, the
// broker that owns most partitions is killed with SIGKILL, a bookie five seconds
// later, and both are started again.
//
// The publish gap is the longest time in which no broker took a message that was
// delivered later, by the broker's times in the messages.
//
// It starts its own processes on loopback and stops them all; what they kept is
// removed, unless something was wrong. Exit code 1: a line was lost, duplicated or
// out of order, or the kills did not hit publishing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// settings are the command line.
type settings struct {
	binary, dir, sources string
	memory               string
	rate                 int
	timeout              time.Duration
	keep                 bool
}

func parse(args []string, errs io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.StringVar(&s.binary, "binary", "bin/magnetar", "what to run")
	flags.StringVar(&s.dir, "dir", ".run/demo", "folder of the cluster; it is wiped")
	flags.StringVar(&s.sources, "sources", "", "folder whose *.go files are sent; empty: Go's own")
	flags.StringVar(&s.memory, "memory", "256MiB", "--memory of every broker and bookie")
	flags.IntVar(&s.rate, "rate", 50000, "lines a second: slow enough for the kills to hit publishing")
	flags.DurationVar(&s.timeout, "timeout", 10*time.Minute, "give up after this long")
	flags.BoolVar(&s.keep, "keep", false, "keep the cluster's files also when all is well")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	switch {
	case s.rate < 1 || s.timeout <= 0:
		return s, errors.New("want a rate and a time above 0")
	case flags.NArg() > 0:
		return s, fmt.Errorf("argument %q: there are only flags", flags.Arg(0))
	}
	if s.sources == "" {
		out, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return s, fmt.Errorf("go env GOROOT: %w", err)
		}
		s.sources = filepath.Join(strings.TrimSpace(string(out)), "src")
	}
	return s, nil
}

func main() {
	s, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demonstrate(ctx, s); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\nwhat the processes said is in %s\n", err, s.dir)
		os.Exit(1)
	}
}

// demonstrate runs the demo, prints its report and returns what was wrong.
func demonstrate(ctx context.Context, s settings) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	c, err := readCorpus(s.sources)
	if err != nil {
		return err
	}
	r, err := run(ctx, s, c)
	if err != nil {
		return err
	}
	r.print(os.Stdout)
	if err := r.fault(); err != nil || s.keep {
		return err
	}
	return os.RemoveAll(s.dir)
}
