package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/bookie/inspect"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

func (a *app) bookieInspect() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect DIR",
		Short: "Read a stopped bookie's files and check every checksum",
		Long: `Read the files of a bookie that does not run and check every checksum. It alters
nothing. It exits with 10 when something is damaged, and says what and where on stderr.
So it does, without that exit code, of what may be damage and may be what a crash left.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		files := &readMeter{FS: vfs.OS()}
		end := showProgress(c.Context(), a.err, func() string { return fmt.Sprintf("read %d bytes", files.bytes.Load()) })
		r, err := inspect.Dir(files, args[0])
		end()
		switch {
		case errors.Is(err, bookie.ErrLocked), errors.Is(err, bookie.ErrNewer), errors.Is(err, bookie.ErrForeign):
			return refusedf("%w", err)
		case errors.Is(err, fs.ErrNotExist):
			return notFoundf("%w", err)
		case err != nil:
			return err
		}
		if err := printOne(a, *r, inspectColumns); err != nil {
			return err
		}
		for _, p := range r.Notices {
			fmt.Fprintf(a.err, "%s: notice: %s\n", p.File, p.What)
		}
		for _, p := range r.Problems {
			fmt.Fprintf(a.err, "%s: %s\n", p.File, p.What)
		}
		if n := len(r.Problems); n > 0 {
			return &coded{exitUnhealthy, fmt.Errorf("%s: %d problems; keep a copy of the directory, and check its ledgers with 'magnetar ledger verify'", r.Dir, n)}
		}
		return nil
	}
	return cmd
}

var inspectColumns = []column[inspect.Report]{
	{"bookie", func(r inspect.Report) string { return r.Bookie }},
	{"cluster", func(r inspect.Report) string { return r.Cluster }},
	{"incarnation", func(r inspect.Report) string { return r.Incarnation }},
	{"log", func(r inspect.Report) string {
		entries := 0
		for _, s := range r.Hot {
			entries += s.Entries
		}
		return fmt.Sprintf("%d segments, %d entries", len(r.Hot), entries)
	}},
	{"cold", func(r inspect.Report) string {
		entries := 0
		for _, s := range r.Cold {
			entries += s.Entries
		}
		return fmt.Sprintf("%d segments, %d entries", len(r.Cold), entries)
	}},
	{"index", func(r inspect.Report) string {
		return fmt.Sprintf("%d ledgers, %d extents, %d tombstones", r.Index.Ledgers, r.Index.Extents, r.Index.Tombstones)
	}},
	{"notices", func(r inspect.Report) string { return fmt.Sprint(len(r.Notices)) }},
	{"problems", func(r inspect.Report) string { return fmt.Sprint(len(r.Problems)) }},
}
