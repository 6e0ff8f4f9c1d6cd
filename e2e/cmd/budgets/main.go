// Command budgets measures what one node may cost and how fast it has to be, and
// says which budgets are kept. Rates are judged as shares of the bare chain (see
// command bare), measured in turn with it: bare, ours, bare, ours, … so that a
// machine that gets slower meanwhile is slower for both.
//
// It takes a few minutes on a machine that does nothing else, starts its own
// processes on loopback, and removes everything. Exit code 1: a budget was missed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// settings are the command line.
type settings struct {
	binary, bare           string
	dir                    string
	rounds                 int
	duration, warmup, idle time.Duration
	topics                 int
	fresh                  bool
	memory                 string
	only                   []string
	output                 string
}

func parse(args []string, errs io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("budgets", flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.StringVar(&s.binary, "binary", "bin/magnetar", "what to measure")
	flags.StringVar(&s.bare, "bare", "bin/tools/bare", "what to measure it against")
	flags.StringVar(&s.dir, "dir", ".run/budgets", "folder for data, on the disk to measure")
	flags.IntVar(&s.rounds, "rounds", 3, "how often to measure each")
	flags.DurationVar(&s.duration, "duration", 5*time.Second, "how long each run is measured")
	flags.DurationVar(&s.warmup, "warmup", 3*time.Second, "how long each runs before that")
	flags.DurationVar(&s.idle, "idle", 5*time.Second, "how long a node idles before its memory is looked at")
	flags.IntVar(&s.topics, "topics", 100_000, "how many topics an idle broker has open")
	flags.BoolVar(&s.fresh, "fresh", true, "the bare chain's log goes on into new files, as that of a node does that was just started; false: it goes round in old ones")
	flags.StringVar(&s.memory, "memory", "512MiB", "--memory of nodes that are published to: caches fill up, and the kernel hands out their pages, within the warm-up rather than while measuring; empty: the nodes' default")
	only := flags.String("only", "", "parts to measure, separated by commas: start, command, processes, standalone, costs, moves, idle, restart; empty: all")
	flags.StringVar(&s.output, "o", "table", "table or json")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if *only != "" {
		s.only = strings.Split(*only, ",")
	}
	for _, name := range s.only {
		if !slices.ContainsFunc(newPlan().parts(), func(p part) bool { return p.name == name }) {
			return s, fmt.Errorf("-only %q: no such part", name)
		}
	}
	switch {
	case s.topics < 0:
		return s, errors.New("-topics: want no negative number")
	case s.rounds < 1 || s.duration < time.Second || s.warmup < 0 || s.idle < 0:
		return s, errors.New("want a round, a second of it, and no negative time")
	case s.output != "table" && s.output != "json":
		return s, fmt.Errorf("-o %q: want table or json", s.output)
	case flags.NArg() > 0:
		return s, fmt.Errorf("argument %q: there are only flags", flags.Arg(0))
	}
	return s, nil
}

// plan holds all budgets of one node.
type plan struct {
	size, fresh, again, rss, command *budget
	cluster, standalone, small       *share
	steadyP50, steadyP99, one        *budget
	even, compressed                 *budget
	written, movedTwice              *budget
	topic, subscription, connection  *budget
	idle, restart                    *budget
}

// memoryArgs are the flags of every process that caches.
func (s settings) memoryArgs() []string {
	if s.memory == "" {
		return nil
	}
	return []string{"--memory", s.memory}
}

func newPlan() *plan {
	return &plan{
		size:       &budget{name: "binary, stripped", unit: "MB", limit: 50},
		fresh:      &budget{name: "standalone, first start to ready", unit: "ms", limit: 250},
		again:      &budget{name: "standalone, later start to ready", unit: "ms", limit: 250},
		rss:        &budget{name: "standalone, resident when idle", unit: "MB", limit: 80},
		command:    &budget{name: "command, before its first byte on the network", unit: "ms", limit: 50},
		cluster:    &share{budget: &budget{name: "publish 1 KiB, three processes, share of the bare chain", unit: "%", limit: 65, atLeast: true}},
		standalone: &share{budget: &budget{name: "publish 1 KiB, standalone, share of the bare chain", unit: "%", limit: 65, atLeast: true}},
		small:      &share{budget: &budget{name: "publish 100 B, share of the rate with 1 KiB", unit: "%", limit: 75, atLeast: true}},
		steadyP50:  &budget{name: "publish at 10 MB/s, p50", unit: "ms", limit: 1.5},
		steadyP99:  &budget{name: "publish at 10 MB/s, p99", unit: "ms", limit: 5},
		one:        &budget{name: "one 1 KiB message outstanding, p50", unit: "ms", limit: 0.8},

		even:         &budget{name: "CPU per MiB of 64 KiB batches, dearer over cheaper filling", unit: "%", limit: 15},
		compressed:   &budget{name: "CPU per MiB as sent, compressed or plain, dearer over cheaper", unit: "%", limit: 15},
		written:      &budget{name: "bytes written per byte published, hot", unit: "B", limit: 1.1},
		movedTwice:   &budget{name: "bytes written per byte published, moved to cold", unit: "B", limit: 2.2},
		topic:        &budget{name: "idle topic", unit: "B", limit: 2 << 10},
		subscription: &budget{name: "idle subscription", unit: "B", limit: 512},
		connection:   &budget{name: "idle connection", unit: "B", limit: 64 << 10},
		idle:         &budget{name: "idle broker, cores", unit: "", limit: 0.05},
		restart:      &budget{name: "bookie restart with 8 GB of hot store", unit: "s", limit: 10},
	}
}

func (p *plan) budgets() []*budget {
	return []*budget{p.size, p.fresh, p.again, p.rss, p.command, p.cluster.budget, p.standalone.budget, p.small.budget, p.steadyP50, p.steadyP99, p.one,
		p.even, p.compressed, p.written, p.movedTwice, p.topic, p.subscription, p.connection, p.idle, p.restart}
}

// part is a measurement that can be asked for alone.
type part struct {
	name   string
	filled bool // fills a node first, and measures it as often as there are rounds
	run    func(context.Context, settings) error
}

func (p *plan) parts() []part {
	return []part{
		{name: "start", run: func(ctx context.Context, s settings) error {
			return measureStart(ctx, s, p.fresh, p.again, p.rss)
		}},
		{name: "command", run: func(_ context.Context, s settings) error {
			return errors.Join(measureCommand(s, p.command), measureSize(s, p.size))
		}},
		{name: "processes", run: p.threeProcesses},
		{name: "standalone", run: p.oneProcess},
		{name: "costs", run: p.costs},
		{name: "moves", filled: true, run: p.moves},
		{name: "idle", filled: true, run: p.idling},
		{name: "restart", filled: true, run: p.restarts},
	}
}

// measure runs the parts asked for: in rounds, so that what slows the machine for
// a while slows all alike, then those that fill a node.
func measure(ctx context.Context, s settings) (*plan, error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	p := newPlan()
	for i := range s.rounds {
		for _, part := range p.parts() {
			if len(s.only) > 0 && !slices.Contains(s.only, part.name) || part.filled && i > 0 {
				continue
			}
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", i+1, s.rounds, part.name)
			if err := part.run(ctx, s); err != nil {
				return nil, fmt.Errorf("%s: %w", part.name, err)
			}
		}
	}
	return p, nil
}

func main() {
	s, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "budgets:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p, err := measure(ctx, s)
	if err == nil {
		err = print(s, p)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "budgets:", err)
		os.Exit(1)
	}
}

// print prints the budgets; the error says how many were missed.
func print(s settings, p *plan) error {
	list := slices.DeleteFunc(p.budgets(), func(b *budget) bool { return len(b.rounds) == 0 && len(s.only) > 0 })
	missed := 0
	for _, b := range list {
		if !b.kept() {
			missed++
		}
	}
	var err error
	if s.output == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		err = enc.Encode(list)
	} else {
		err = table(os.Stdout, list)
	}
	if err == nil && missed > 0 {
		err = fmt.Errorf("%d of %d budgets missed", missed, len(list))
	}
	return err
}
