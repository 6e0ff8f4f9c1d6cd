package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// String declares a text setting.
func (s *Set) String(p *string, name, value, usage string) {
	s.declare(name, usage, func(f *pflag.FlagSet) { f.StringVar(p, name, value, usage) })
}

// Strings declares a list setting, comma-separated outside the file.
func (s *Set) Strings(p *[]string, name string, value []string, usage string) {
	s.declare(name, usage, func(f *pflag.FlagSet) { f.StringSliceVar(p, name, value, usage) })
}

// Int declares a whole-number setting.
func (s *Set) Int(p *int, name string, value int, usage string) {
	s.declare(name, usage, func(f *pflag.FlagSet) { f.IntVar(p, name, value, usage) })
}

// Bool declares a yes-or-no setting.
func (s *Set) Bool(p *bool, name string, value bool, usage string) {
	s.declare(name, usage, func(f *pflag.FlagSet) { f.BoolVar(p, name, value, usage) })
}

// Duration declares a setting such as 1m30s.
func (s *Set) Duration(p *time.Duration, name string, value time.Duration, usage string) {
	s.declare(name, usage, func(f *pflag.FlagSet) { f.DurationVar(p, name, value, usage) })
}

// Bytes declares a size setting such as 512MiB.
func (s *Set) Bytes(p *int64, name string, value int64, usage string) {
	*p = value
	s.Var((*ByteSize)(p), name, usage)
}

// declare borrows pflag's values, which parse and print the common types.
func (s *Set) declare(name, usage string, define func(*pflag.FlagSet)) {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	define(f)
	s.Var(f.Lookup(name).Value, name, usage)
}

// ByteSize is a number of bytes that reads and prints with a unit: B, KB, MB,
// GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024).
type ByteSize int64

var byteUnits = []struct {
	suffix string
	bytes  float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3}, {"B", 1},
}

// ParseByteSize reads a size; a plain number is bytes.
func ParseByteSize(text string) (ByteSize, error) {
	number, unit := text, 1.0
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(n) || n < 0 || n*unit >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size; want a number with a unit, such as 512MiB", text)
	}
	return ByteSize(n * unit), nil
}

// Set implements pflag.Value.
func (b *ByteSize) Set(text string) error {
	v, err := ParseByteSize(text)
	if err == nil {
		*b = v
	}
	return err
}

// Type implements pflag.Value.
func (b *ByteSize) Type() string { return "bytes" }

func (b *ByteSize) String() string {
	n := int64(*b)
	for _, u := range byteUnits[:4] {
		if n != 0 && n%int64(u.bytes) == 0 {
			return strconv.FormatInt(n/int64(u.bytes), 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}
