package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"
)

// column of a table: its heading and the cell of a row.
type column[T any] struct {
	head string
	cell func(T) string
}

// printRows prints rows as --output asks: a table of columns on a terminal, or
// all fields as json (one array), jsonl (one object a line) or yaml.
func printRows[T any](a *app, rows []T, columns []column[T]) error {
	switch a.outputFormat() {
	case "table":
		w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
		heads := make([]string, len(columns))
		for i, c := range columns {
			heads[i] = c.head
		}
		fmt.Fprintln(w, strings.Join(heads, "\t"))
		for _, r := range rows {
			cells := make([]string, len(columns))
			for i, c := range columns {
				cells[i] = c.cell(r)
			}
			fmt.Fprintln(w, strings.Join(cells, "\t"))
		}
		return w.Flush()
	case "json":
		if rows == nil {
			rows = []T{}
		}
		return writeJSON(a.out, rows, "  ")
	case "jsonl":
		for _, r := range rows {
			if err := writeJSON(a.out, r, ""); err != nil {
				return err
			}
		}
		return nil
	case "yaml":
		if rows == nil {
			rows = []T{}
		}
		return writeYAML(a.out, rows)
	}
	return &coded{exitUsage, fmt.Errorf("--output %q: want table, json, jsonl or yaml", a.format)}
}

// printOne prints a single thing: as a two-column table, or as one object.
func printOne[T any](a *app, one T, fields []column[T]) error {
	switch a.outputFormat() {
	case "table":
		w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
		for _, f := range fields {
			fmt.Fprintf(w, "%s\t%s\n", f.head, f.cell(one))
		}
		return w.Flush()
	case "json":
		return writeJSON(a.out, one, "  ")
	case "jsonl":
		return writeJSON(a.out, one, "")
	case "yaml":
		return writeYAML(a.out, one)
	}
	return &coded{exitUsage, fmt.Errorf("--output %q: want table, json, jsonl or yaml", a.format)}
}

// did says on stderr what a command changed that has no data to print, unless err
// says that it did not; it returns err.
func (a *app) did(err error, format string, args ...any) error {
	if err == nil {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
	return err
}

// fields are the columns of a list as printOne heads them.
func fields[T any](columns []column[T]) []column[T] {
	out := make([]column[T], len(columns))
	for i, c := range columns {
		out[i] = column[T]{strings.ToLower(c.head), c.cell}
	}
	return out
}

func (a *app) outputFormat() string {
	if a.format == "" {
		if isTerminal(a.out) {
			return "table"
		}
		return "jsonl"
	}
	return a.format
}

func writeJSON(w io.Writer, v any, indent string) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	return enc.Encode(v)
}

// writeYAML prints v with the keys, and the order of keys, that its JSON has.
func writeYAML(w io.Writer, v any) error {
	var buf bytes.Buffer
	if err := writeJSON(&buf, v, ""); err != nil {
		return err
	}
	var node yaml.Node // JSON is YAML; a Node keeps the order
	if err := yaml.Unmarshal(buf.Bytes(), &node); err != nil {
		return err
	}
	blockStyle(&node)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return err
	}
	return enc.Close()
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// isTerminal reports whether w is a terminal. /dev/null is a character device, too,
// and no terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(st, null)
}
