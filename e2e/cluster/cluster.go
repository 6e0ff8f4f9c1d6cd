// Package cluster runs a whole Magnetar cluster as processes on loopback: for
// `make cluster`, the demo and the end-to-end tests.
//
// Everything lies under one folder: a subfolder per process with its pid, log
// and command, and env with the address to use. So another program (or a
// person) can kill, stop and restart single processes of a running cluster.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Shape says what to run.
type Shape struct {
	Bookies   int
	Brokers   int
	PortBase  int      // first of the ports to use; 0 takes free ones
	ExtraArgs []string // for every broker and bookie

	BrokerArgs []string // for every broker besides
	BookieArgs []string // for every bookie besides
}

// Default is what `make cluster` runs.
var Default = Shape{Bookies: 3, Brokers: 2}

// StandaloneName names the one process of a cluster made by NewStandalone.
const StandaloneName = "standalone"

// Cluster is the plan of a cluster and the processes of it that this program
// started. Safe for concurrent use.
type Cluster struct {
	Dir    string
	Names  []string // in start order
	Server string   // HOST:PORT of the discovery process

	binary string
	specs  map[string]spec

	mu      sync.Mutex
	running map[string]*process
}

type spec struct {
	args []string
	grpc string // address
	http string // address
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once the process was waited for
}

// New plans a cluster under dir that runs binary. Nothing is started.
func New(dir, binary string, shape Shape) (*Cluster, error) {
	c, next, err := plan(dir, binary, shape.PortBase, 2+shape.Bookies+shape.Brokers)
	if err != nil {
		return nil, err
	}
	member := func(name, role string, args ...string) spec {
		return c.add(name, next(), append([]string{role, "start"}, args...)...)
	}
	meta := member("metadata", "metadata", "--data-dir", filepath.Join(c.Dir, "metadata", "data"))
	for i := 1; i <= shape.Bookies; i++ {
		name := fmt.Sprintf("bookie-%d", i)
		args := append([]string{"--id", name, "--metadata", meta.grpc,
			"--data-dir", filepath.Join(c.Dir, name, "data")}, shape.ExtraArgs...)
		member(name, "bookie", append(args, shape.BookieArgs...)...)
	}
	for i := 1; i <= shape.Brokers; i++ {
		name := fmt.Sprintf("broker-%d", i)
		args := append([]string{"--id", name, "--metadata", meta.grpc}, shape.ExtraArgs...)
		member(name, "broker", append(args, shape.BrokerArgs...)...)
	}
	c.Server = member("discovery", "discovery", "--metadata", meta.grpc).grpc
	return c, c.write()
}

// NewStandalone plans a cluster of one process, StandaloneName, with all roles.
// Nothing is started.
func NewStandalone(dir, binary string, args ...string) (*Cluster, error) {
	c, next, err := plan(dir, binary, 0, 1)
	if err != nil {
		return nil, err
	}
	args = append([]string{"standalone", "--data-dir", filepath.Join(c.Dir, StandaloneName, "data")}, args...)
	c.Server = c.add(StandaloneName, next(), args...).grpc
	return c, c.write()
}

// plan begins a cluster of so many processes; next gives each its two ports.
func plan(dir, binary string, portBase, processes int) (c *Cluster, next func() [2]int, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, nil, err
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return nil, nil, err
	}
	ports, err := pickPorts(portBase, 2*processes)
	if err != nil {
		return nil, nil, err
	}
	next = func() [2]int {
		pair := [2]int{ports[0], ports[1]}
		ports = ports[2:]
		return pair
	}
	return &Cluster{Dir: dir, binary: binary, specs: map[string]spec{}, running: map[string]*process{}}, next, nil
}

// add plans a process that takes the ports for gRPC and HTTP as flags.
func (c *Cluster) add(name string, ports [2]int, args ...string) spec {
	s := spec{
		args: append(args, "--grpc-port", strconv.Itoa(ports[0]), "--http-port", strconv.Itoa(ports[1])),
		grpc: fmt.Sprintf("127.0.0.1:%d", ports[0]),
		http: fmt.Sprintf("127.0.0.1:%d", ports[1]),
	}
	c.specs[name] = s
	c.Names = append(c.Names, name)
	return s
}

// write makes the folders of the processes and the files that say how to start
// and reach them.
func (c *Cluster) write() error {
	for _, name := range c.Names {
		if err := os.MkdirAll(filepath.Join(c.Dir, name), 0o755); err != nil {
			return err
		}
		line := shellQuote(append([]string{c.binary}, c.specs[name].args...))
		if err := os.WriteFile(filepath.Join(c.Dir, name, "command"), []byte(line+"\n"), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(c.Dir, "env"), []byte(fmt.Sprintf("MAGNETAR_SERVER=%s\n", c.Server)), 0o644)
}

// StartAll starts every process, in order, and waits until each is ready.
func (c *Cluster) StartAll(ctx context.Context) error {
	for _, name := range c.Names {
		if err := c.Start(name); err != nil {
			return err
		}
	}
	for _, name := range c.Names {
		if err := c.WaitReady(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// Start starts one process; its log is appended to.
func (c *Cluster) Start(name string) error {
	s, ok := c.specs[name]
	if !ok {
		return fmt.Errorf("no process %q; there are %s", name, strings.Join(c.Names, ", "))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.running[name]; p != nil {
		select {
		case <-p.done:
		default:
			return fmt.Errorf("%s is running already, pid %d", name, p.cmd.Process.Pid)
		}
	}
	cmd, err := launch(filepath.Join(c.Dir, name), append([]string{c.binary}, s.args...))
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	c.running[name] = p
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended stands in its log
	}()
	return nil
}

// launch starts a command whose output goes to dir/log and whose pid to dir/pid.
// It gets a process group of its own, so that a Ctrl-C at the terminal reaches
// only the one that started it, which then stops them in order.
func launch(dir string, command []string) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own copy
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	return cmd, os.WriteFile(filepath.Join(dir, "pid"), []byte(pid+"\n"), 0o644)
}

// Restart starts a process of the cluster under dir again from its command
// file, in the background; the cluster may have been started by another program.
func Restart(dir, name string) error {
	folder := filepath.Join(dir, name)
	line, err := os.ReadFile(filepath.Join(folder, "command"))
	if err != nil {
		return fmt.Errorf("no process %q in %s: %w", name, dir, err)
	}
	if pid, alive := alive(folder); alive {
		return fmt.Errorf("%s is running already, pid %d", name, pid)
	}
	cmd, err := launch(folder, []string{"/bin/sh", "-c", "exec " + strings.TrimSpace(string(line))})
	if err != nil {
		return err
	}
	return cmd.Process.Release()
}

// Supervise notes that this program runs the cluster under dir, for Down to end
// it too.
func Supervise(dir string) error {
	return os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
}

// Down ends every process of the cluster under dir, whoever started it, last
// started first, then the program that called Supervise, and returns the names
// of the processes that were running.
func Down(dir string) ([]string, error) {
	pids, err := filepath.Glob(filepath.Join(dir, "*", "pid"))
	if err != nil {
		return nil, err
	}
	var stopped []string
	for _, role := range []string{"discovery", "broker", "bookie", "metadata", StandaloneName} {
		var group []string
		for _, file := range pids {
			name := filepath.Base(filepath.Dir(file))
			pid, up := alive(filepath.Dir(file))
			if !strings.HasPrefix(name, role) || !up {
				continue
			}
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return stopped, fmt.Errorf("stop %s: %w", name, err)
			}
			group = append(group, name)
		}
		for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			left := 0
			for _, name := range group {
				if _, up := alive(filepath.Join(dir, name)); up {
					left++
				}
			}
			if left == 0 {
				break
			}
			if time.Now().After(deadline) {
				return stopped, fmt.Errorf("%d processes did not stop in 90s; see their logs under %s", left, dir)
			}
		}
		stopped = append(stopped, group...)
	}
	if pid, up := alive(dir); up && pid != os.Getpid() {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return stopped, fmt.Errorf("stop the program that runs the cluster: %w", err)
		}
	}
	return stopped, nil
}

// alive reads folder's pid and whether that process runs our command.
func alive(folder string) (pid int, up bool) {
	text, err := os.ReadFile(filepath.Join(folder, "pid"))
	if err != nil {
		return 0, false
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return 0, false
	}
	// A process that ended but was not waited for is a zombie: no command line.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return pid, err == nil && strings.Contains(string(line), "magnetar")
}

// Signal sends sig to a process that this program started. After SIGKILL it
// waits until the process is gone.
func (c *Cluster) Signal(name string, sig syscall.Signal) error {
	c.mu.Lock()
	p := c.running[name]
	c.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%s is not running", name)
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	if sig == syscall.SIGKILL {
		<-p.done
	}
	return nil
}

// WaitReady waits until the process answers that it is ready.
func (c *Cluster) WaitReady(ctx context.Context, name string) error {
	s := c.specs[name]
	client := &http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	for {
		resp, err := client.Get("http://" + s.http + "/healthz/ready")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		c.mu.Lock()
		p := c.running[name]
		c.mu.Unlock()
		var done <-chan struct{}
		if p != nil {
			done = p.done
		}
		select {
		case <-done:
			return fmt.Errorf("%s ended before it was ready; its log ends:\n%s", name, c.LogTail(name, 20))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its log ends:\n%s", name, ctx.Err(), c.LogTail(name, 20))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends all processes that this program started, last started first.
func (c *Cluster) Stop() {
	for i := len(c.Names) - 1; i >= 0; i-- {
		c.mu.Lock()
		p := c.running[c.Names[i]]
		c.mu.Unlock()
		if p == nil {
			continue
		}
		// A paused process would never see the request to end.
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(60 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	}
}

// Address is the gRPC address of a process.
func (c *Cluster) Address(name string) string { return c.specs[name].grpc }

// HTTP is the address of a process for health and metrics.
func (c *Cluster) HTTP(name string) string { return c.specs[name].http }

// PID is the process id of a process that this program started.
func (c *Cluster) PID(name string) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.running[name]
	if p == nil {
		return 0, fmt.Errorf("%s is not running", name)
	}
	return p.cmd.Process.Pid, nil
}

// LogTail returns the last lines of a process's log.
func (c *Cluster) LogTail(name string, lines int) string {
	text, err := os.ReadFile(filepath.Join(c.Dir, name, "log"))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// pickPorts returns n ports: base, base+1, …, or free ones for base 0.
func pickPorts(base, n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		if base > 0 {
			ports[i] = base + i
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after all are picked, so that none is picked twice
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

func shellQuote(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}
