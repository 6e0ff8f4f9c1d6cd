package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/magnetar-io/magnetar/e2e/cluster"
)

const (
	topic      = "sources"
	partitions = 8

	// killAfter is the share of the lines that both subscriptions have before the
	// broker is killed.
	killAfter = 0.2
	// bookieAfter is from the kill of the broker to that of the bookie, downFor how
	// long each is away.
	bookieAfter = 5 * time.Second
	downFor     = 4 * time.Second

	// stalled is how long nothing may come before what is missing counts as lost;
	// quiet, how long to wait for what should not come.
	stalled = 45 * time.Second
	quiet   = 3 * time.Second
)

// demo is one run.
type demo struct {
	settings settings
	corpus   *corpus
	cluster  *cluster.Cluster
	log      *os.File // of the commands
	start    time.Time
	total    int // lines there are to send

	sent          atomic.Int64
	subscriptions []*subscription
}

// run runs the demo in a fresh cluster, and leaves no process behind.
func run(ctx context.Context, s settings, c *corpus) (r report, err error) {
	d := &demo{settings: s, corpus: c}
	dir := filepath.Join(s.dir, "cluster")
	// What an earlier run left behind would hold its folder.
	if _, err := cluster.Down(dir); err != nil {
		return r, err
	}
	if err := os.RemoveAll(s.dir); err != nil {
		return r, err
	}
	if d.total, err = c.count(); err != nil {
		return r, err
	}
	shape := cluster.Default
	shape.ExtraArgs = []string{"--memory", s.memory}
	if d.cluster, err = cluster.New(dir, s.binary, shape); err != nil {
		return r, err
	}
	if err := cluster.Supervise(dir); err != nil {
		return r, err
	}
	if d.log, err = os.Create(filepath.Join(s.dir, "commands.log")); err != nil {
		return r, err
	}
	defer d.log.Close()
	defer d.cluster.Stop()
	starting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := d.cluster.StartAll(starting); err != nil {
		return r, err
	}
	if _, err := d.ask("topic", "create", topic, "--partitions", strconv.Itoa(partitions)); err != nil {
		return r, err
	}
	return d.story(ctx)
}

// story publishes, consumes and kills, and judges in the end.
func (d *demo) story(ctx context.Context) (r report, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var consumers, helpers sync.WaitGroup
	defer func() {
		cancel(nil)
		consumers.Wait()
		helpers.Wait()
	}()
	d.start = time.Now()
	byCommand := newSubscription("by-command", d.corpus.open)
	byClient := newSubscription("by-client", d.corpus.open).timed(d.start)
	d.subscriptions = []*subscription{byCommand, byClient}

	// Consumers end when consuming does; whatever fails ends the rest.
	consuming, stopConsuming := context.WithCancel(ctx)
	defer stopConsuming()
	failed := func(err error) {
		if err != nil {
			cancel(err)
		}
	}
	consumers.Go(func() { failed(d.consumeCommand(consuming, byCommand)) })
	consumers.Go(func() { failed(d.consumeClient(consuming, byClient)) })
	talking, stopTalking := context.WithCancel(ctx)
	defer stopTalking()
	helpers.Go(func() { d.talk(talking) })

	p, err := d.startProducer(ctx)
	if err != nil {
		return r, err
	}
	helpers.Go(func() {
		kills, err := d.kill(ctx, p)
		r.kills = kills
		failed(err)
		p.killed <- struct{}{}
	})
	if r.stored, err = p.wait(); err != nil && context.Cause(ctx) == nil {
		cancel(err)
	}
	r.took = time.Since(d.start)
	<-p.killed
	r.lines, r.files = int(d.sent.Load()), len(d.corpus.files)
	d.awaitDeliveries(ctx, r.lines)
	stopConsuming()
	consumers.Wait()
	stopTalking()
	helpers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return r, fmt.Errorf("%w; %s", cause, d.progress())
	}
	for _, s := range d.subscriptions {
		v, err := s.judge.verdict(p.files)
		if err != nil {
			return r, err
		}
		r.verdicts = append(r.verdicts, named{s.name, v})
	}
	r.gap, r.gapBegin = byClient.published.longestGap()
	for _, t := range byClient.partition {
		gap, _ := t.longestGap()
		r.partitionGap = max(r.partitionGap, gap)
	}
	if n := len(r.kills); n > 0 {
		r.afterKills = byClient.published.last().Sub(d.start) - r.kills[n-1].at
	}
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return r, err
	}
	r.peakBytes = usage.Maxrss << 10
	return r, nil
}

// producer is a running `magnetar produce`.
type producer struct {
	cmd    *exec.Cmd
	talk   bytes.Buffer // its stderr; read once it has ended
	killed chan struct{}

	ended atomic.Bool
	done  chan struct{} // closed once all was written to it; files and err are set
	files map[string]published
	err   error
}

// startProducer starts `magnetar produce` and feeds it until the corpus or ctx ends.
func (d *demo) startProducer(ctx context.Context) (*producer, error) {
	p := &producer{killed: make(chan struct{}, 1), done: make(chan struct{})}
	p.cmd = d.command("produce", topic, "--key-separator", keySeparator, "--producer-name", "demo",
		"--rate", strconv.Itoa(d.settings.rate))
	p.cmd.Stderr = &p.talk
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() }) // or it has ended
	go func() {
		defer close(p.done)
		defer stop()
		p.files, p.err = d.corpus.send(in, &d.sent)
		if err := in.Close(); p.err == nil {
			p.err = err
		}
		err := p.cmd.Wait()
		p.ended.Store(true)
		if err != nil {
			p.err = err
		}
	}()
	return p, nil
}

var storedCount = regexp.MustCompile(`published (\d+) messages`)

// wait waits until the producer ends, and returns how many messages it says are
// stored.
func (p *producer) wait() (stored int, err error) {
	<-p.done
	talk := strings.TrimSpace(p.talk.String())
	if p.err != nil {
		return 0, fmt.Errorf("magnetar produce: %w\n%s", p.err, talk)
	}
	m := storedCount.FindStringSubmatch(talk)
	if m == nil {
		return 0, fmt.Errorf("magnetar produce does not say how much it published: %q", talk)
	}
	return strconv.Atoi(m[1])
}

// kill kills the broker with most partitions, then a bookie, and starts both
// again. It kills nothing if the producer ended before it was time.
func (d *demo) kill(ctx context.Context, p *producer) (kills []kill, err error) {
	for d.delivered() < int(killAfter*float64(d.total)) {
		if p.ended.Load() {
			return kills, nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return kills, err
		}
	}
	broker, owned, err := d.busiestBroker()
	if err != nil {
		return kills, err
	}
	strike := func(name, remark string) error {
		k := kill{process: name, at: time.Since(d.start), sent: d.sent.Load(), remark: remark, producing: !p.ended.Load()}
		if err := d.cluster.Signal(name, syscall.SIGKILL); err != nil {
			return err
		}
		kills = append(kills, k)
		d.say("kill -9 %s%s", name, remark)
		return nil
	}
	revive := func(name string) error {
		if err := d.cluster.Start(name); err != nil {
			return err
		}
		if err := d.cluster.WaitReady(ctx, name); err != nil {
			return err
		}
		d.say("%s is back", name)
		return nil
	}
	bookie := fmt.Sprintf("bookie-%d", 1+rand.IntN(cluster.Default.Bookies))
	for _, step := range []func() error{
		func() error {
			return strike(broker, fmt.Sprintf(", which owns %d of %d partitions", owned, partitions))
		},
		func() error { return sleep(ctx, bookieAfter) },
		func() error { return strike(bookie, "") },
		func() error { return sleep(ctx, downFor) },
		func() error { return revive(broker) },
		func() error { return revive(bookie) },
	} {
		if err := step(); err != nil {
			return kills, err
		}
	}
	return kills, nil
}

// busiestBroker asks which broker owns most partitions.
func (d *demo) busiestBroker() (name string, owned int, err error) {
	out, err := d.ask("topic", "lookup", topic, "-o", "jsonl")
	if err != nil {
		return "", 0, err
	}
	return mostPartitions(out)
}

// mostPartitions reads the JSON lines of `magnetar topic lookup`. Of brokers with
// equally many it takes the first by name.
func mostPartitions(lookup []byte) (broker string, owned int, err error) {
	counts := map[string]int{}
	for line := range bytes.Lines(lookup) {
		var row struct{ Broker string }
		if err := json.Unmarshal(line, &row); err != nil {
			return "", 0, fmt.Errorf("topic lookup printed %q: %w", line, err)
		}
		if row.Broker != "" {
			counts[row.Broker]++
		}
	}
	for name, n := range counts {
		if n > owned || n == owned && name < broker {
			broker, owned = name, n
		}
	}
	if owned == 0 {
		return "", 0, errors.New("no partition has an owner")
	}
	return broker, owned, nil
}

// awaitDeliveries waits until every subscription has all that was sent, or
// nothing comes any more.
func (d *demo) awaitDeliveries(ctx context.Context, sent int) {
	for {
		patience := quiet
		last := time.Time{}
		for _, s := range d.subscriptions {
			delivered, at := s.state()
			if delivered < sent {
				patience = stalled
			}
			if at.After(last) {
				last = at
			}
		}
		if time.Since(last) > patience || sleep(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
}

// delivered is what the slowest subscription has.
func (d *demo) delivered() int {
	least := d.total
	for _, s := range d.subscriptions {
		n, _ := s.state()
		least = min(least, n)
	}
	return least
}

// ask runs a command and returns what it prints.
func (d *demo) ask(args ...string) ([]byte, error) {
	cmd := d.command(args...)
	var talk bytes.Buffer
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("magnetar %s: %w\n%s", strings.Join(args, " "), err, talk.String())
	}
	return out, nil
}

// say prints what happened, with the time since publishing began.
func (d *demo) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

// talk says every few seconds how far it is.
func (d *demo) talk(ctx context.Context) {
	for sleep(ctx, 5*time.Second) == nil {
		d.say("%s", d.progress())
	}
}

func (d *demo) progress() string {
	line := fmt.Sprintf("sent %d of %d", d.sent.Load(), d.total)
	for _, s := range d.subscriptions {
		delivered, _ := s.state()
		line += fmt.Sprintf(", %s %d", s.name, delivered)
	}
	return line
}

// sleep waits, or returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
