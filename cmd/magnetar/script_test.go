package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptsTime bounds all scripts together, nodes included.
const scriptsTime = 3 * time.Minute

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"magnetar": main})
}

// TestScripts runs what a person types, and what they get back: the tour of the
// README as printed there, and every kind of bad input with its exit code and
// what stderr says.
func TestScripts(t *testing.T) {
	readme, err := filepath.Abs("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:      "testdata/script",
		Deadline: time.Now().Add(scriptsTime),
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, "README="+readme)
			e.Values[membersKey{}] = members{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "node": node, "member": scriptMember, "tour": tour,
		},
	})
}

// exits CODE COMMAND… runs a command and wants that exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// node start [FLAG…] runs a standalone node in the script's directory and names
// it in MAGNETAR_SERVER. The first start takes free ports, later ones the same.
// node kill ends it as kill -9 does.
func node(ts *testscript.TestScript, neg bool, args []string) {
	running := ts.Value(membersKey{}).(members)
	switch {
	case !neg && len(args) > 0 && args[0] == "start":
		startNode(ts, args[1:]...)
	case !neg && len(args) == 1 && args[0] == "kill" && running["node"] != nil:
		ts.Check(running["node"].Process.Kill())
		_ = running["node"].Wait() // it was killed
		delete(running, "node")
	default:
		ts.Fatalf("usage: node start [FLAG…] | node kill")
	}
}

func startNode(ts *testscript.TestScript, flags ...string) {
	port := "0"
	if _, p, ok := strings.Cut(ts.Getenv("MAGNETAR_SERVER"), ":"); ok {
		port = p
	}
	ts.Value(membersKey{}).(members)["node"] = start(ts, "node", append([]string{"standalone", "--memory", "256MiB", "--http-port", "0", "--grpc-port", port}, flags...), func(line string) bool {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "clients" {
			ts.Setenv("MAGNETAR_SERVER", f[1])
		}
		return strings.Contains(line, "consume greetings") // the last line it prints
	})
}

// members are the processes that a script started by name.
type members map[string]*exec.Cmd

// membersKey is the key of a script's members among its values.
type membersKey struct{}

// member start NAME ROLE [FLAG…] runs a process of a cluster on free ports, with
// its log in NAME.log, and puts its address into the variable NAME. member stop
// NAME stops it in order.
func scriptMember(ts *testscript.TestScript, neg bool, args []string) {
	running := ts.Value(membersKey{}).(members)
	switch {
	case !neg && len(args) > 2 && args[0] == "start":
		name := args[1]
		command := append([]string{args[2], "start", "--grpc-port", "0", "--http-port", "0"}, args[3:]...)
		running[name] = start(ts, name, command, func(line string) bool {
			_, rest, ready := strings.Cut(line, " is ready at ")
			if ready {
				address, _, _ := strings.Cut(rest, ",")
				ts.Setenv(name, address)
			}
			return ready
		})
	case !neg && len(args) == 2 && args[0] == "stop" && running[args[1]] != nil:
		ts.Check(running[args[1]].Process.Signal(syscall.SIGTERM))
		ts.Check(running[args[1]].Wait())
		delete(running, args[1])
	default:
		ts.Fatalf("usage: member start NAME ROLE [FLAG…] | member stop NAME")
	}
}

// start runs a command until ready says of a line of its output that it is, with
// its log in NAME.log. It is killed when the script ends.
func start(ts *testscript.TestScript, name string, command []string, ready func(line string) bool) *exec.Cmd {
	log, err := os.Create(ts.MkAbs(name + ".log"))
	ts.Check(err)
	defer log.Close()
	path, err := exec.LookPath("magnetar")
	ts.Check(err)
	cmd := exec.Command(path, command...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL) // it may be over already
		_ = cmd.Wait()
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if ready(lines.Text()) {
			return cmd
		}
	}
	ts.Fatalf("%s did not get ready: %s", name, ts.ReadFile(name+".log"))
	return nil
}

// tour runs the lines of the README's blocks marked sh, in their order, by a
// shell. 'make run' is the node of this script, so that ports are free ones.
func tour(ts *testscript.TestScript, neg bool, args []string) {
	lines, err := tourLines(ts.ReadFile(ts.Getenv("README")))
	ts.Check(err)
	for _, line := range lines {
		if line == "make run" {
			startNode(ts)
			continue
		}
		ts.Logf("$ %s", line)
		if err := ts.Exec("sh", "-e", "-c", line); err != nil {
			ts.Fatalf("%s: %v", line, err)
		}
	}
}

// tourLines are the commands of the section "A five-minute tour".
func tourLines(readme string) ([]string, error) {
	_, section, found := strings.Cut(readme, "\n## A five-minute tour\n")
	if !found {
		return nil, errors.New("README.md has no section 'A five-minute tour'")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var lines []string
	in := false
	for _, line := range strings.Split(section, "\n") {
		switch {
		case line == "```sh":
			in = true
		case line == "```":
			in = false
		case in && line != "":
			lines = append(lines, line)
		}
	}
	if len(lines) < 10 {
		return nil, fmt.Errorf("README.md: the tour has %d commands, want at least 10", len(lines))
	}
	return lines, nil
}
