package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// app is what every command shares: its streams and the global flags.
type app struct {
	in  io.Reader
	out io.Writer // data
	err io.Writer // talk

	servers string
	format  string
	timeout time.Duration
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	a := &app{in: in, out: out, err: errs}
	root := a.root()
	root.SetArgs(agePlace(root, args))
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err != nil && !errors.Is(err, errSilent) {
		fmt.Fprintln(errs, "magnetar:", explain(err, a.servers))
	}
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "magnetar",
		Short: "Messaging: stateless brokers over a separate ledger store, in one binary",
		Long: `Magnetar is a messaging system: stateless brokers over a separate ledger
store, with etcd for metadata, in one static binary.

Start here:
  magnetar standalone                      a whole node on this machine
  echo hello | magnetar produce greetings
  magnetar consume greetings -s me --from earliest -n 1`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error { // before anything was done
		switch a.format {
		case "", "table", "json", "jsonl", "yaml":
		case "raw":
			if c.Name() != "consume" {
				return usagef(c, "--output raw is for consume; want table, json, jsonl or yaml")
			}
		default:
			return usagef(c, "--output %q: want table, json, jsonl or yaml", a.format)
		}
		if a.timeout < 0 {
			return usagef(c, "--timeout %s is negative", a.timeout)
		}
		return nil
	}
	flags := root.PersistentFlags()
	server := os.Getenv("MAGNETAR_SERVER")
	if server == "" {
		server = "127.0.0.1:6660"
	}
	flags.StringVar(&a.servers, "server", server, "`HOST:PORT[,...]` of any discovery process or broker (env MAGNETAR_SERVER)")
	flags.StringVarP(&a.format, "output", "o", "", "how to print data: table, json, jsonl or yaml (default: table on a terminal, else jsonl)")
	flags.DurationVar(&a.timeout, "timeout", 0, "give up after this long (default 30s for questions, none for what may take long)")
	root.AddCommand(a.commands()...)
	root.SetHelpCommand(helpCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usagef(cmd, "%v", err) })
	prepare(root)
	return root
}

// prepare gives a noun without a subcommand its help, and makes an unknown word
// a usage error, down the whole tree.
func prepare(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		prepare(c)
	}
	if cmd.HasSubCommands() && cmd.Run == nil && cmd.RunE == nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return usagef(c, "unknown command %q for %q%s", args[0], c.CommandPath(), didYouMean(c, args[0]))
		}
	}
	check := cmd.Args
	cmd.Args = func(c *cobra.Command, args []string) error {
		if check != nil {
			if err := check(c, args); err != nil {
				return usagef(c, "%v; want: %s", err, c.UseLine())
			}
		}
		return nil
	}
}

// serving marks a command that runs a part of a cluster: the flags of commands
// that ask one mean nothing to it, so it refuses them and its help leaves them out.
func serving(cmd *cobra.Command) *cobra.Command {
	askers := []string{"server", "output", "timeout"}
	runIt := cmd.RunE
	cmd.RunE = func(c *cobra.Command, args []string) error {
		for _, name := range askers {
			if c.Flags().Changed(name) {
				return usagef(c, "--%s is for commands that ask a cluster; '%s' runs a part of one", name, c.CommandPath())
			}
		}
		return runIt(c, args)
	}
	cmd.SetHelpFunc(func(c *cobra.Command, args []string) {
		for _, name := range askers {
			c.InheritedFlags().Lookup(name).Hidden = true
		}
		c.Parent().HelpFunc()(c, args)
	})
	return cmd
}

// helpCommand is cobra's, but for an unknown word, which is a usage error here.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil || about == nil || len(rest) > 0 {
				return usagef(c.Root(), "there is no command %q", strings.Join(args, " "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

func didYouMean(c *cobra.Command, word string) string {
	c.SuggestionsMinimumDistance = 2
	if s := c.SuggestionsFor(word); len(s) > 0 {
		return "; did you mean " + strings.Join(s, " or ") + "?"
	}
	return ""
}

// question returns the context of a command that asks and answers.
func (a *app) question(ctx context.Context) (context.Context, context.CancelFunc) {
	d := a.timeout
	if d == 0 {
		d = 30 * time.Second
	}
	return context.WithTimeout(ctx, d)
}

// stream returns the context of a command that may run for ever.
func (a *app) stream(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, a.timeout)
}

// serverList is what --server or its variable names, at least one.
func (a *app) serverList() ([]string, error) {
	var list []string
	for _, s := range strings.Split(a.servers, ",") {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
			return nil, &coded{exitUsage, fmt.Errorf("%q is no address of a server; --server and MAGNETAR_SERVER want HOST:PORT[,...]", s)}
		}
		list = append(list, s)
	}
	if len(list) == 0 {
		return nil, &coded{exitUsage, errors.New("--server is empty; want HOST:PORT[,...]")}
	}
	return list, nil
}
