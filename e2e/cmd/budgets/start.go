package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/magnetar-io/magnetar/e2e/procstat"
)

// node is a standalone node in a process of its own.
type node struct {
	cmd    *exec.Cmd
	server string        // address for clients
	took   time.Duration // from starting the process until it was ready
	log    *os.File
}

// startNode starts a standalone node on dir and waits until it is ready.
func startNode(ctx context.Context, binary, dir string, args ...string) (*node, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	n := &node{server: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	if n.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	n.cmd = exec.Command(binary, append([]string{"standalone", "--data-dir", filepath.Join(dir, "data"),
		"--grpc-port", fmt.Sprint(ports[0]), "--http-port", fmt.Sprint(ports[1])}, args...)...)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	began := time.Now()
	if err := n.cmd.Start(); err != nil {
		return nil, errors.Join(err, n.log.Close())
	}
	if err := waitReady(ctx, fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", ports[1])); err != nil {
		text, _ := os.ReadFile(n.log.Name())
		return nil, errors.Join(fmt.Errorf("standalone node: %w; its log:\n%s", err, text), n.stop())
	}
	n.took = time.Since(began)
	return n, nil
}

// waitReady asks until the answer is 200, for 30 s at most.
func waitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		resp, err := client.Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not ready: %w", url, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (n *node) stop() error {
	defer n.log.Close()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return n.cmd.Wait()
}

// measureStart starts a node on an empty folder, lets it idle, and starts it again
// on what it left.
func measureStart(ctx context.Context, s settings, fresh, again, rss *budget) error {
	dir, err := os.MkdirTemp(s.dir, "start-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	n, err := startNode(ctx, s.binary, dir)
	if err != nil {
		return err
	}
	fresh.add(millis(n.took))
	select {
	case <-time.After(s.idle):
	case <-ctx.Done():
	}
	used, err := procstat.RSS(n.cmd.Process.Pid)
	if err = errors.Join(err, n.stop(), ctx.Err()); err != nil {
		return err
	}
	rss.add(float64(used) / 1e6)
	if n, err = startNode(ctx, s.binary, dir); err != nil {
		return err
	}
	again.add(millis(n.took))
	return n.stop()
}

func millis(d time.Duration) float64 { return d.Seconds() * 1000 }

// measureSize looks at the binary.
func measureSize(s settings, size *budget) error {
	st, err := os.Stat(s.binary)
	if err != nil {
		return fmt.Errorf("%w; 'make build' makes it", err)
	}
	size.add(float64(st.Size()) / 1e6)
	return nil
}

// measureCommand takes the time from starting a command until its first byte
// arrives here, in the place of a server.
func measureCommand(s settings, first *budget) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	cmd := exec.Command(s.binary, "topic", "list", "--timeout", "10s", "--server", l.Addr().String())
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: there is nothing to learn from how it ended
	}()
	if err := l.(*net.TCPListener).SetDeadline(began.Add(10 * time.Second)); err != nil {
		return err
	}
	conn, err := l.Accept()
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(began.Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	first.add(millis(time.Since(began)))
	return nil
}

// freePorts finds ports nobody listens on.
func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after all are found, so that they differ
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}
