package main

import (
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/internal/config"
)

// settings are the options of all roles; each role declares those it has.
type settings struct {
	set  *config.Set
	file string

	dataDir   string
	cluster   string
	id        string
	rack      string
	listen    string
	advertise string
	grpcPort  int
	httpPort  int
	debugPort int
	metadata  []string
	bookies   int
	copies    int
	memory    int64
	diskLimit int64
	lease     time.Duration
	maxMsg    int64

	ledgerBytes int64

	noFsync        bool
	insecureListen bool
	logLevel       string
	logFormat      string
}

// declarations are the commands with settings, for `config explain`.
var declarations = map[string]func() *settings{
	"standalone": standaloneSettings,
	"metadata":   metadataSettings,
	"bookie":     bookieSettings,
	"broker":     brokerSettings,
	"discovery":  discoverySettings,
}

// settingsHelp says where settings come from.
const settingsHelp = `Each flag can also stand in the file of --config (dataDir for --data-dir) or in the
environment (MAGNETAR_DATA_DIR); flags have the last word, then the environment.
'magnetar config explain' shows what it comes to.`

func newSettings(grpcPort, httpPort int) *settings {
	s := &settings{set: config.New()}
	s.set.String(&s.listen, "listen", "127.0.0.1", "`HOST` to listen on")
	s.set.Int(&s.grpcPort, "grpc-port", grpcPort, "port for gRPC; 0 takes a free one")
	s.set.Int(&s.httpPort, "http-port", httpPort, "port for health and metrics; 0 takes a free one")
	s.set.Int(&s.debugPort, "debug-port", 0, "port for pprof, on loopback; 0: off")
	s.set.Bool(&s.insecureListen, "insecure-listen", false, "allow an address beyond loopback without TLS and authentication")
	s.set.String(&s.logLevel, "log-level", "info", "trace, debug, info, warn or error")
	s.set.String(&s.logFormat, "log-format", "text", "text or json")
	return s
}

func (s *settings) declareMember() {
	s.set.String(&s.cluster, "cluster", "magnetar", "name of the cluster")
	s.set.Strings(&s.metadata, "metadata", []string{"127.0.0.1:6650"}, "`HOST:PORT[,...]` of the metadata store")
	s.set.Duration(&s.lease, "session-lease", 5*time.Second, "how long others wait before they take this process for dead")
	s.set.String(&s.advertise, "advertise", "", "`HOST:PORT` that others reach this process at (default: where it listens)")
}

func (s *settings) declareMemory() {
	s.set.Bytes(&s.memory, "memory", 0, "budget for caches and data in flight (default: a quarter of the memory there is)")
}

func (s *settings) declareDisk() {
	s.set.Bytes(&s.diskLimit, "disk-limit", 0, "most bytes that bookies use, at least 128MiB for each (default: what the disk has)")
}

func (s *settings) declareFsync() {
	s.set.Bool(&s.noFsync, "no-fsync", false, "UNSAFE: acknowledge before data is on the disk; a power cut loses it")
}

func standaloneSettings() *settings {
	s := newSettings(6660, 8080)
	s.set.String(&s.dataDir, "data-dir", "./magnetar-data", "where the data lies")
	s.set.Int(&s.bookies, "bookies", 1, "how many bookies; 1, 2 and 3 or more keep 1, 2 and 3 copies")
	s.set.Bytes(&s.ledgerBytes, "ledger-bytes", 1<<30, "size at which a topic starts its next ledger")
	s.set.Bytes(&s.maxMsg, "max-message-bytes", 5<<20, "largest message taken, at most 15MiB")
	s.declareDisk()
	s.declareMemory()
	s.declareFsync()
	return s
}

func metadataSettings() *settings {
	s := newSettings(6650, 8081)
	s.set.String(&s.dataDir, "data-dir", "./magnetar-data/metadata", "where the data lies")
	return s
}

func bookieSettings() *settings {
	s := newSettings(6661, 8082)
	s.declareMember()
	s.set.String(&s.dataDir, "data-dir", "./magnetar-data/bookie", "where the data lies")
	s.set.String(&s.id, "id", "", "name of this bookie in the cluster (default: HOSTNAME-GRPCPORT)")
	s.set.String(&s.rack, "rack", "", "copies are spread over racks")
	s.declareDisk()
	s.declareMemory()
	s.declareFsync()
	return s
}

func brokerSettings() *settings {
	s := newSettings(6662, 8083)
	s.declareMember()
	s.set.String(&s.id, "id", "", "name of this broker in the cluster (default: HOSTNAME-GRPCPORT)")
	s.set.Int(&s.copies, "copies", 3, "copies of all that is published; 1 or 2 for clusters of as many bookies")
	s.set.Bytes(&s.ledgerBytes, "ledger-bytes", 1<<30, "size at which a topic starts its next ledger")
	s.set.Bytes(&s.maxMsg, "max-message-bytes", 5<<20, "largest message taken, at most 15MiB")
	s.declareMemory()
	return s
}

func discoverySettings() *settings {
	s := newSettings(6660, 8080)
	s.declareMember()
	return s
}

// command makes the command of a role: it loads the settings, then runs.
func (s *settings) command(cmd *cobra.Command, run func(*cobra.Command, *settings) error) *cobra.Command {
	s.set.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&s.file, "config", "", "YAML `FILE` with settings")
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if err := s.load(c); err != nil {
			return err
		}
		return run(c, s)
	}
	return cmd
}

func (s *settings) load(c *cobra.Command) error {
	if err := s.set.Load(s.file, os.Environ(), c.Flags()); err != nil {
		return usagef(c, "%v", err)
	}
	if hclog.LevelFromString(s.logLevel) == hclog.NoLevel {
		return usagef(c, "--log-level %q: want trace, debug, info, warn or error", s.logLevel)
	}
	// An empty path would mean the working directory, which nobody asks for so.
	if c.Flags().Lookup("data-dir") != nil && s.dataDir == "" {
		return usagef(c, "--data-dir is empty; name the folder for the data")
	}
	for flag, port := range map[string]int{"grpc-port": s.grpcPort, "http-port": s.httpPort, "debug-port": s.debugPort} {
		if port < 0 || port > 65535 {
			return usagef(c, "--%s %d: want 0 to 65535", flag, port)
		}
	}
	for flag, check := range map[string]func() error{"metadata": s.checkMember, "memory": s.checkSizes, "max-message-bytes": s.checkMessages} {
		if c.Flags().Lookup(flag) == nil {
			continue // a role without such settings
		}
		if err := check(); err != nil {
			return usagef(c, "%v", err)
		}
	}
	if s.logFormat != "text" && s.logFormat != "json" {
		return usagef(c, "--log-format %q: want text or json", s.logFormat)
	}
	return nil
}

// logger writes to stderr, which is where talk goes.
func (s *settings) logger(name string, a *app) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{
		Name:       name,
		Level:      hclog.LevelFromString(s.logLevel),
		Output:     a.err,
		JSONFormat: s.logFormat == "json",
	})
}

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Settings and where they come from"}
	explain := standaloneSettings().command(&cobra.Command{
		Use:   "explain [ROLE]",
		Short: "Show each setting of a role, its value and where that came from",
		Long: `Show each setting of a role, its effective value and where that came from:
default, file, environment or flag. It takes the flags that the role takes, and
starts nothing. Without a role: of standalone.`,
	}, a.explainSettings)
	for role, declare := range declarations { // help sorts them
		explain.AddCommand(declare().command(&cobra.Command{Use: role, Short: "Show the settings of " + role}, a.explainSettings))
	}
	cmd.AddCommand(explain)
	return cmd
}

func (a *app) explainSettings(_ *cobra.Command, s *settings) error {
	return printRows(a, s.set.Explain(), []column[config.Explained]{
		{"SETTING", func(e config.Explained) string { return e.Name }},
		{"VALUE", func(e config.Explained) string { return e.Value }},
		{"FROM", func(e config.Explained) string { return e.Origin }},
		{"MEANING", func(e config.Explained) string { return e.Usage }},
	})
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.format == "" {
				_, err := fmt.Fprintln(a.out, versionText())
				return err
			}
			return printOne(a, thisVersion(), []column[versionView]{
				{"version", func(v versionView) string { return v.Version }},
				{"commit", func(v versionView) string { return v.Commit }},
				{"go", func(v versionView) string { return v.Go }},
				{"platform", func(v versionView) string { return v.Platform }},
			})
		},
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "completion bash|zsh|fish|powershell",
		Short:     "Print a completion script for a shell",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(c *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return c.Root().GenBashCompletionV2(a.out, true)
			case "zsh":
				return c.Root().GenZshCompletion(a.out)
			case "fish":
				return c.Root().GenFishCompletion(a.out, true)
			}
			return c.Root().GenPowerShellCompletionWithDesc(a.out)
		},
	}
}
