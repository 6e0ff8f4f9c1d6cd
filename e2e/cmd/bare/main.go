// Command bare measures the bare chain: the hops of a publish with the real codec
// and the real synced log, and no logic. A client sends batches to a broker, which
// puts an envelope in front of each and passes it on, to a bookie that is nothing
// but its log. What it reaches is what this machine allows; what Magnetar reaches
// is judged as a share of it.
//
// It starts its own processes on loopback, runs each shape for a fixed time, prints
// what came of it and removes everything.
//
//	bare                                     both shapes, 5 s each
//	bare -shape one-process -seconds 10      one of them
//	bare -batch-bytes 1024 -window 1         one message outstanding
//	bare -rate 10 -batch-bytes 8192          latency at 10 MB/s
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie/logonly"
	"github.com/magnetar-io/magnetar/internal/rpc"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// settings are the command line.
type settings struct {
	load
	shapes           []string
	warmup, duration time.Duration
	dir              string
	fresh            bool
	profiles         string // folder; "": none
	output           string

	role, next string // of a process of a chain
}

func parse(args []string, errs io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bare", flag.ContinueOnError)
	flags.SetOutput(errs)
	shape := flags.String("shape", "three-processes,one-process", "what to measure, in this order: three-processes (client, broker, bookie), one-process (broker and bookie in one)")
	seconds := flags.Float64("seconds", 5, "how long to measure each")
	warmup := flags.Float64("warmup", 3, "seconds before that; the log's files are made meanwhile")
	flags.IntVar(&s.size, "size", 1024, "bytes of a message")
	flags.IntVar(&s.batchBytes, "batch-bytes", 128<<10, "bytes of messages in a batch")
	flags.IntVar(&s.window, "window", 16, "batches without an answer")
	rate := flags.Float64("rate", 0, "MB a second; 0: as many as go")
	flags.StringVar(&s.dir, "dir", ".run/bare", "folder for the logs, on the disk to measure")
	flags.BoolVar(&s.fresh, "fresh", false, "never write a segment of the log again, as in a store that is filling up")
	flags.StringVar(&s.profiles, "profiles", "", "existing folder for a CPU profile of each process")
	flags.StringVar(&s.output, "o", "table", "table or json")
	flags.StringVar(&s.role, "role", "", "for this program alone: be a process of a chain")
	flags.StringVar(&s.next, "next", "", "for this program alone: address of the process behind this one")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	s.shapes = strings.Split(*shape, ",")
	s.duration, s.warmup = time.Duration(*seconds*float64(time.Second)), time.Duration(*warmup*float64(time.Second))
	s.rate = *rate * 1e6
	var faults []error
	for _, one := range s.shapes {
		if shapes[one] == nil {
			faults = append(faults, fmt.Errorf("-shape %q: want three-processes or one-process", one))
		}
	}
	if s.size < 1 || s.batchBytes < 1 || s.window < 1 || s.batchBytes+2*s.size > 8<<20 {
		faults = append(faults, fmt.Errorf("-size %d -batch-bytes %d -window %d: want at least 1, and batches below 8 MiB", s.size, s.batchBytes, s.window))
	}
	if s.rate < 0 || s.duration <= 0 || s.warmup < 0 {
		faults = append(faults, errors.New("-rate, -seconds and -warmup: want no negative number, and seconds above 0"))
	}
	if !slices.Contains([]string{"table", "json"}, s.output) {
		faults = append(faults, fmt.Errorf("-o %q: want table or json", s.output))
	}
	if flags.NArg() > 0 {
		faults = append(faults, fmt.Errorf("argument %q: there are only flags", flags.Arg(0)))
	}
	return s, errors.Join(faults...)
}

func main() {
	s, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(2)
	}
	role, work := s.role, serve
	if role == "" {
		role, work = "client", measure
	}
	if s.profiles != "" {
		work = profiled(filepath.Join(s.profiles, role+".pprof"), work)
	}
	if err := work(s); err != nil {
		fmt.Fprintf(os.Stderr, "bare %s: %v\n", s.role, err)
		os.Exit(1)
	}
}

// profiled returns work with a CPU profile of it written to file.
func profiled(file string, work func(settings) error) func(settings) error {
	return func(s settings) error {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		return work(s)
	}
}

func measure(s settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var results []result
	for _, shape := range s.shapes {
		fmt.Fprintf(os.Stderr, "%s: %v, then %v …\n", shape, s.warmup, s.duration)
		r, err := run(ctx, shape, s)
		if err != nil {
			return fmt.Errorf("%s: %w", shape, err)
		}
		results = append(results, r)
	}
	if s.output == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(results)
	}
	return table(os.Stdout, results)
}

func table(out io.Writer, results []result) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "SHAPE\tMB/s\tmsg/s\tp50 ms\tp99 ms\tmax ms\tCPU s/GB: client\tbroker\tbookie\ttotal\t")
	for _, r := range results {
		ms := func(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()*1000) }
		cpu := func(role string) string {
			if v, ok := r.CPU[role]; ok {
				return fmt.Sprintf("%.2f", v)
			}
			return "-"
		}
		total := 0.0
		for _, v := range r.CPU {
			total += v
		}
		broker := cpu("broker")
		if broker == "-" {
			broker = cpu("node")
		}
		fmt.Fprintf(w, "%s\t%.1f\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t\n", r.Shape, r.MegabytesPerSec, r.MessagesPerSecond,
			ms(r.Latency.P50), ms(r.Latency.P99), ms(r.Latency.Max), cpu("client"), broker, cpu("bookie"), total)
	}
	return w.Flush()
}

// serve is a process of a chain until standard input ends. It prints its address.
func serve(s settings) error {
	log := hclog.New(&hclog.LoggerOptions{Name: "bare", Level: hclog.Warn, Output: os.Stderr})
	profile := rpc.ClientFacing
	if s.role == "bookie" {
		profile = rpc.BookieLink
	}
	server := grpc.NewServer(rpc.ServerOptions(rpc.Limits{Profile: profile})...)
	var bookie *logonly.Bookie
	var err error
	if s.role != "broker" {
		if bookie, err = logonly.Open(logonly.Options{Dir: s.dir, Fresh: s.fresh, Log: log}); err != nil {
			return err
		}
	}
	switch s.role {
	case "bookie":
		bookie.Register(server)
	case "broker":
		brokerv1.RegisterMessagingServer(server, &broker{open: dialBookie(s.next)})
	case "node":
		brokerv1.RegisterMessagingServer(server, &broker{open: callBookie(bookie)})
	default:
		return fmt.Errorf("no role %q", s.role)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // its end is all that counts
		server.Stop()                        // waits for its handlers
	}()
	if err := server.Serve(l); err != nil {
		return err
	}
	if bookie != nil {
		return bookie.Close()
	}
	return nil
}
