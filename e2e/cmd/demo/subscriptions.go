package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/magnetar-io/magnetar/client"
)

// subscription is a judge that one goroutine feeds and others look at.
type subscription struct {
	name string

	mu        sync.Mutex
	judge     *judge
	last      time.Time // when something came
	published *timeline // by the broker's times; nil where they are not known
	partition map[int32]*timeline
}

func newSubscription(name string, open func(string) (io.ReadCloser, error)) *subscription {
	return &subscription{name: name, judge: newJudge(open), last: time.Now()}
}

// timed makes the subscription note when brokers took what it gets.
func (s *subscription) timed(start time.Time) *subscription {
	s.published, s.partition = &timeline{start: start}, map[int32]*timeline{}
	return s
}

// take takes the next message; at is when the broker took it, zero if not known.
func (s *subscription) take(file string, id client.MessageID, value []byte, at time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = time.Now()
	if s.published != nil {
		p := s.partition[id.Partition]
		if p == nil {
			p = &timeline{start: s.published.start}
			s.partition[id.Partition] = p
		}
		p.add(at)
		s.published.add(at)
	}
	return s.judge.deliver(file, id, value)
}

// state is how many messages came, and when the last one did.
func (s *subscription) state() (delivered int, last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.judge.delivered, s.last
}

// consumeCommand feeds s from `magnetar consume` until ctx ends. It then stops
// the command and takes what that still writes.
func (d *demo) consumeCommand(ctx context.Context, s *subscription) error {
	cmd := d.command("consume", topic, "-s", s.name, "--from", "earliest", "-F", deliveryFormat)
	cmd.Stderr = d.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) }) // or it has ended
	defer stop()
	err = readDeliveries(out, s.take)
	if err != nil {
		_ = cmd.Process.Kill() // nobody reads what it writes
	}
	if waitErr := cmd.Wait(); err == nil {
		err = waitErr
	}
	if err == nil && ctx.Err() == nil {
		err = errors.New("it ended by itself")
	}
	if err != nil {
		return fmt.Errorf("magnetar consume -s %s: %w", s.name, err)
	}
	return nil
}

// consumeClient feeds s from the Go client until ctx ends.
func (d *demo) consumeClient(ctx context.Context, s *subscription) (err error) {
	cl, err := client.Connect(ctx, d.cluster.Server)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if closeErr := cl.Close(closing); err == nil && closeErr != nil {
			err = fmt.Errorf("close the client of subscription %s: %w", s.name, closeErr)
		}
	}()
	c, err := cl.Subscribe(ctx, topic, s.name, client.From(client.Earliest()))
	if err != nil {
		return fmt.Errorf("subscribe %s: %w", s.name, err)
	}
	for {
		m, err := c.Receive(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive from %s: %w", s.name, err)
		}
		if err := s.take(m.Key, m.ID, m.Value, m.BrokerTime); err != nil {
			return err
		}
		m.AckAsync()
	}
}

// deliveryFormat makes `magnetar consume` print a message as a line with its id,
// the length of its value and its key, then the value, then a newline.
const deliveryFormat = `%i\t%s\t%k\n%v\n`

// readDeliveries reads what `magnetar consume` prints by deliveryFormat. The value
// given to take is good until take returns.
func readDeliveries(r io.Reader, take func(file string, id client.MessageID, value []byte, at time.Time) error) error {
	in := bufio.NewReaderSize(r, 1<<20)
	var value []byte
	for {
		head, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(head) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("message cut off at %.100q: %w", head, err)
		}
		idText, rest, _ := bytes.Cut(head[:len(head)-1], []byte("\t"))
		sizeText, key, ok := bytes.Cut(rest, []byte("\t"))
		size, err := strconv.Atoi(string(sizeText))
		if err != nil || !ok || size < 0 {
			return fmt.Errorf("message begins with %.100q", head)
		}
		id, err := client.ParseMessageID(string(idText))
		if err != nil {
			return err
		}
		file := string(key)
		if cap(value) < size+1 {
			value = make([]byte, size+1)
		}
		value = value[:size+1]
		if _, err := io.ReadFull(in, value); err != nil {
			return fmt.Errorf("message %s cut off: %w", id, err)
		}
		if value[size] != '\n' {
			return fmt.Errorf("message %s is longer than its %d bytes", id, size)
		}
		if err := take(file, id, value[:size], time.Time{}); err != nil {
			return err
		}
	}
}

// command is one of the binary's commands against the cluster.
func (d *demo) command(args ...string) *exec.Cmd {
	cmd := exec.Command(d.settings.binary, append(args, "--server", d.cluster.Server)...)
	// Away from the terminal's Ctrl-C: the demo stops them in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = os.Environ()
	return cmd
}
