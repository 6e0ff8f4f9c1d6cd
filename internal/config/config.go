// Package config fills a command's options from four places, each stronger than
// the one before: defaults, a YAML file, MAGNETAR_… environment variables,
// flags. It remembers where each value came from, so that `magnetar config
// explain` can show it.
//
// A setting has one name in three spellings: data-dir as a flag, dataDir in
// the file, MAGNETAR_DATA_DIR in the environment.
package config

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// Set is the settings of one command. Declare them, AddFlags, then Load once.
// Not safe for concurrent use.
type Set struct {
	settings []*setting
	byName   map[string]*setting
}

type setting struct {
	name   string
	usage  string
	value  pflag.Value
	origin string
}

// Explained is a setting as it came out.
type Explained struct {
	Name   string `json:"name" yaml:"name"`
	Value  string `json:"value" yaml:"value"`
	Origin string `json:"origin" yaml:"origin"` // default, file:LINE, environment variable, flag
	Usage  string `json:"usage" yaml:"usage"`
}

// New returns an empty Set.
func New() *Set { return &Set{byName: map[string]*setting{}} }

// Var declares a setting whose value, its default already in it, is v. name is
// the flag's spelling. Declaring a name twice is a bug in the program.
func (s *Set) Var(v pflag.Value, name, usage string) {
	if s.byName[name] != nil {
		panic("config: setting declared twice: " + name)
	}
	st := &setting{name: name, usage: usage, value: v, origin: "default"}
	s.settings = append(s.settings, st)
	s.byName[name] = st
}

// AddFlags gives every setting its flag.
func (s *Set) AddFlags(flags *pflag.FlagSet) {
	for _, st := range s.settings {
		flag := flags.VarPF(st.value, st.name, "", st.usage)
		if st.value.Type() == "bool" {
			flag.NoOptDefVal = "true"
		}
	}
}

// Load applies file (none if ""), then environ, then gives the flags that were
// set on the command line the last word. All faults are reported together.
func (s *Set) Load(file string, environ []string, flags *pflag.FlagSet) error {
	fromFlags := map[string]string{}
	flags.Visit(func(f *pflag.Flag) {
		if s.byName[f.Name] != nil {
			fromFlags[f.Name] = f.Value.String()
		}
	})
	errs := []error{}
	if file != "" {
		errs = append(errs, s.loadFile(file))
	}
	errs = append(errs, s.loadEnvironment(environ))
	for name, v := range fromFlags {
		st := s.byName[name]
		if err := reset(st.value, v); err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", name, err))
		}
		st.origin = "flag"
	}
	return errors.Join(errs...)
}

// reset sets v to text, replacing what is there also where Set would append.
func reset(v pflag.Value, text string) error {
	if list, ok := v.(pflag.SliceValue); ok {
		text = strings.Trim(text, "[]")
		if text == "" {
			return list.Replace(nil)
		}
		return list.Replace(strings.Split(text, ","))
	}
	return v.Set(text)
}

func (s *Set) loadFile(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("configuration file %s: %w", file, err)
	}
	if len(doc.Content) == 0 {
		return nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return fmt.Errorf("configuration file %s:%d: want 'name: value' lines", file, top.Line)
	}
	var errs []error
	seen := map[string]bool{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, val := top.Content[i], top.Content[i+1]
		where := fmt.Sprintf("%s:%d", file, key.Line)
		st := s.byName[kebab(key.Value)]
		switch {
		case st == nil || camel(st.name) != key.Value:
			errs = append(errs, fmt.Errorf("%s: unknown key %q%s", where, key.Value, s.suggest(key.Value)))
			continue
		case seen[st.name]:
			errs = append(errs, fmt.Errorf("%s: key %q appears twice", where, key.Value))
			continue
		}
		seen[st.name] = true
		text, err := scalar(val)
		if err == nil {
			err = reset(st.value, text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", where, key.Value, err))
			continue
		}
		st.origin = where
	}
	return errors.Join(errs...)
}

func scalar(n *yaml.Node) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		return n.Value, nil
	case yaml.SequenceNode:
		var parts []string
		for _, c := range n.Content {
			if c.Kind != yaml.ScalarNode {
				return "", errors.New("want a list of plain values")
			}
			parts = append(parts, c.Value)
		}
		return strings.Join(parts, ","), nil
	}
	return "", errors.New("want a value or a list of values")
}

func (s *Set) loadEnvironment(environ []string) error {
	var errs []error
	for _, kv := range environ {
		name, text, _ := strings.Cut(kv, "=")
		rest, ok := strings.CutPrefix(name, "MAGNETAR_")
		if !ok {
			continue
		}
		st := s.byName[strings.ToLower(strings.ReplaceAll(rest, "_", "-"))]
		if st == nil {
			continue // another command's setting
		}
		if err := reset(st.value, text); err != nil {
			errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
			continue
		}
		st.origin = "environment " + name
	}
	return errors.Join(errs...)
}

// Explain lists the settings by name, as they are now.
func (s *Set) Explain() []Explained {
	out := make([]Explained, 0, len(s.settings))
	for _, st := range s.settings {
		out = append(out, Explained{Name: camel(st.name), Value: st.value.String(), Origin: st.origin, Usage: st.usage})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// suggest names the settings there are.
func (s *Set) suggest(key string) string {
	var near, all []string
	for _, st := range s.settings {
		name := camel(st.name)
		all = append(all, name)
		if strings.EqualFold(name, strings.ReplaceAll(key, "-", "")) || strings.EqualFold(name, strings.ReplaceAll(key, "_", "")) {
			near = append(near, name)
		}
	}
	if len(near) > 0 {
		return "; did you mean " + strings.Join(near, " or ") + "?"
	}
	sort.Strings(all)
	return "; known keys: " + strings.Join(all, ", ")
}

func camel(kebab string) string {
	parts := strings.Split(kebab, "-")
	for i, p := range parts[1:] {
		parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
	}
	return strings.Join(parts, "")
}

func kebab(camel string) string {
	var b strings.Builder
	for _, r := range camel {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('-')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}
