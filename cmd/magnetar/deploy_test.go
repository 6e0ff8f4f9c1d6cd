package main

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/magnetar-io/magnetar/internal/config"
)

// What lies in deploy/ is read here by the product's own parts: its loader of
// settings and its tree of commands. So a name that changes there changes here.

const deployDir = "../../deploy/"

// disabled is a setting that a file leaves at its default: #name: value.
var disabled = regexp.MustCompile(`(?m)^#([a-z][A-Za-z]*: .*)$`)

// loadDeployed loads a role's settings from text, and from nothing else, and gives
// them by name.
func loadDeployed(t *testing.T, role, text string, environ ...string) map[string]config.Explained {
	t.Helper()
	file := filepath.Join(t.TempDir(), role+".yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := declarations[role]()
	if err := s.set.Load(file, environ, pflag.NewFlagSet(role, pflag.ContinueOnError)); err != nil {
		t.Errorf("role %s: %v", role, err)
	}
	settings := map[string]config.Explained{}
	for _, e := range s.set.Explain() {
		settings[e.Name] = e
	}
	return settings
}

func readDeployed(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(deployDir + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDeployedConfigs shows that every role has a file, that its role takes it,
// and that it names each setting of the role once: set, or behind # with the
// default that counts then.
func TestDeployedConfigs(t *testing.T) {
	for role := range declarations {
		text := readDeployed(t, "config/"+role+".yaml")
		set := loadDeployed(t, role, text)
		all := loadDeployed(t, role, disabled.ReplaceAllString(text, "$1"))
		defaults := loadDeployed(t, role, "")
		for name, d := range defaults {
			if set[name].Value != all[name].Value {
				t.Errorf("config/%s.yaml: %s is %q behind #, its default %q", role, name, all[name].Value, d.Value)
			}
			if n := len(regexp.MustCompile(`(?m)^#?`+name+`: `).FindAllString(text, -1)); n != 1 {
				t.Errorf("config/%s.yaml names %s %d times, want once", role, name, n)
			}
		}
		if set["noFsync"].Value == "true" {
			t.Errorf("config/%s.yaml turns fsync off", role)
		}
	}
}

// TestDeployedHostEnvironment shows that each variable of host.env is a setting of
// some role, that every role takes its value, and that the address it names is
// one the role may listen on.
func TestDeployedHostEnvironment(t *testing.T) {
	variables := units(t, "config/host.env")[""]
	var environ []string
	for name, values := range variables {
		environ = append(environ, name+"="+values[0])
	}
	used := map[string]bool{}
	for role := range declarations {
		settings := loadDeployed(t, role, readDeployed(t, "config/"+role+".yaml"), environ...)
		for _, e := range settings {
			used[strings.TrimPrefix(e.Origin, "environment ")] = true
		}
		if address := settings["listen"]; role != "standalone" && (address.Origin != "environment MAGNETAR_LISTEN" || settings["insecureListen"].Value != "true") {
			t.Errorf("role %s does not listen where host.env says, but on %s", role, address.Value)
		}
	}
	for name := range variables {
		if !used[name] {
			t.Errorf("host.env: %s is no setting of any role", name)
		}
	}
}

// units reads a file of systemd's kind: section, key, values in their order.
func units(t *testing.T, name string) map[string]map[string][]string {
	t.Helper()
	section, out := "", map[string]map[string][]string{}
	for i, line := range strings.Split(readDeployed(t, name), "\n") {
		key, value, assigned := strings.Cut(line, "=")
		switch {
		case line == "", line[0] == '#':
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			section = strings.Trim(line, "[]")
		case !assigned || strings.HasSuffix(line, `\`):
			t.Fatalf("%s:%d: want KEY=VALUE on one line, got %q", name, i+1, line)
		default:
			if out[section] == nil {
				out[section] = map[string][]string{}
			}
			out[section][key] = append(out[section][key], value)
		}
	}
	return out
}

// sandbox are the settings of a unit that keep a process to its own; all units
// have the same.
var sandbox = regexp.MustCompile(`^(NoNewPrivileges|CapabilityBoundingSet|AmbientCapabilities|UMask|RemoveIPC|LockPersonality|MemoryDenyWriteExecute|Protect.*|Private.*|Restrict[A-Z][a-zA-Z]*s|RestrictRealtime|RestrictSUIDSGID|SystemCall.*)$`)

// TestDeployedUnits shows that every role has a unit, whose command the binary
// knows and whose files are the ones deployed; that it is started again unless that
// is in vain, and has the time to stop that the role takes.
func TestDeployedUnits(t *testing.T) {
	sysusers := readDeployed(t, "systemd/magnetar.sysusers")
	var first map[string][]string
	for _, role := range slices.Sorted(maps.Keys(declarations)) {
		unit := "systemd/magnetar-" + role + ".service"
		service := units(t, unit)["Service"]
		one := func(key string) string {
			if v := service[key]; len(v) == 1 {
				return v[0]
			}
			t.Errorf("%s: %s has the values %q, want one", unit, key, service[key])
			return ""
		}
		optional := func(key string) string { return strings.Join(service[key], " ") }

		start, ok := strings.CutPrefix(one("ExecStart"), "/usr/local/bin/")
		if !ok {
			t.Errorf("%s: ExecStart is not where the README installs the binary", unit)
		}
		cmd, err := command(start)
		if err != nil {
			t.Errorf("%s: ExecStart: %v", unit, err)
			continue
		}
		if want := strings.TrimSuffix("magnetar "+role+" start", "standalone start"); !strings.HasPrefix(cmd.CommandPath(), want) || cmd.HasSubCommands() {
			t.Errorf("%s runs %q", unit, cmd.CommandPath())
		}
		if file := cmd.Flag("config"); file == nil || file.Value.String() != "/etc/magnetar/"+role+".yaml" {
			t.Errorf("%s does not read /etc/magnetar/%s.yaml", unit, role)
		}

		// Data lies where the unit may write, and belongs to a user there is.
		settings := loadDeployed(t, role, readDeployed(t, "config/"+role+".yaml"))
		if dir := settings["dataDir"].Value; dir == "" {
			if optional("DynamicUser") != "yes" || optional("User") != "" {
				t.Errorf("%s: a role without data wants DynamicUser=yes and no User", unit)
			}
		} else {
			if !strings.HasPrefix(dir, "/var/lib/"+one("StateDirectory")+"/") {
				t.Errorf("config/%s.yaml: dataDir %s is not in StateDirectory %s", role, dir, one("StateDirectory"))
			}
			if !strings.Contains(sysusers, "\nu "+one("User")+" ") {
				t.Errorf("%s: user %s is not in magnetar.sysusers", unit, one("User"))
			}
		}
		if env := optional("EnvironmentFile"); env != "/etc/magnetar/host.env" && role != "standalone" {
			t.Errorf("%s reads %q, want /etc/magnetar/host.env, which must exist", unit, env)
		}

		if one("Restart") != "on-failure" || one("RestartPreventExitStatus") != strconv.Itoa(exitUsage) {
			t.Errorf("%s: restarts %s but for %s, want on-failure but for %d", unit, one("Restart"), one("RestartPreventExitStatus"), exitUsage)
		}
		if limit := units(t, unit)["Unit"]["StartLimitIntervalSec"]; !slices.Equal(limit, []string{"0"}) {
			t.Errorf("%s: systemd gives up starting it: StartLimitIntervalSec=%q", unit, limit)
		}
		seconds, err := strconv.Atoi(one("TimeoutStopSec"))
		least := 10
		if role == "broker" || role == "standalone" {
			least += int(stopTimeout.Seconds())
		}
		if err != nil || seconds < least {
			t.Errorf("%s: TimeoutStopSec=%s, want at least %d", unit, one("TimeoutStopSec"), least)
		}
		if n, err := strconv.Atoi(one("LimitNOFILE")); err != nil || n < 65536 {
			t.Errorf("%s: LimitNOFILE=%s, want at least 65536", unit, one("LimitNOFILE"))
		}

		walls := maps.Clone(service)
		maps.DeleteFunc(walls, func(key string, _ []string) bool { return !sandbox.MatchString(key) })
		if first == nil {
			first = walls
		}
		if len(walls) < 20 || !maps.EqualFunc(walls, first, slices.Equal[[]string]) {
			t.Errorf("%s has another sandbox than the units before it, or none: %v", unit, walls)
		}
	}
}

// command finds the command of a line as a person types it, and takes its flags.
func command(line string) (*cobra.Command, error) {
	words := strings.Fields(line)
	if len(words) == 0 || words[0] != "magnetar" {
		return nil, fmt.Errorf("%q is not a magnetar command", line)
	}
	cmd, rest, err := (&app{}).root().Find(words[1:])
	if err != nil {
		return nil, err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return nil, fmt.Errorf("%q: %w", line, err)
	}
	args := cmd.Flags().Args()
	if cmd.HasSubCommands() && len(args) > 0 {
		return nil, fmt.Errorf("%q: %s has no %s", line, cmd.CommandPath(), args[0])
	}
	if cmd.HasSubCommands() {
		return cmd, nil // a noun, to talk about
	}
	if err := cmd.ValidateArgs(args); err != nil {
		return nil, fmt.Errorf("%q: %w", line, err)
	}
	return cmd, nil
}

// typed are the commands that a text tells people to type: in backquotes, or on a
// line of their own.
var typed = regexp.MustCompile("`(magnetar (?:[a-z-]+)[^`]*)`|(?m:^(magnetar [^|\n]*))")

// TestDeployedCommands shows that each command that deploy/ and the operations page
// tell people to type is one that the binary has.
func TestDeployedCommands(t *testing.T) {
	found := 0
	check := func(name, text string) {
		text = regexp.MustCompile("\n#? +").ReplaceAllString(text, " ") // a command may be broken over lines of a comment
		for _, m := range typed.FindAllStringSubmatch(text, -1) {
			found++
			if _, err := command(m[1] + m[2]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	err := filepath.WalkDir(deployDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		check(path, string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	operations, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	check("docs/operations.md", string(operations))
	if found < 25 {
		t.Errorf("found %d commands only", found)
	}
}
