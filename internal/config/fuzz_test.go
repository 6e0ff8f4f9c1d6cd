package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzFile shows that no configuration file makes loading panic, and that what it
// refuses it names the file for.
func FuzzFile(f *testing.F) {
	f.Add("dataDir: /file\nmemory: 1GiB\nbookies: 2\nmetadata: [x:1, y:2]\n")
	f.Add("bookies: many\nnosuch: 1\nbookies: 3\n")
	f.Add("a: &a [*a, *a]\n")
	f.Add("- 1\n")
	f.Add("sessionLease: {a: b}\n\xff")
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(t.TempDir(), "m.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		o, s, flags := declared()
		if err := s.Load(file, nil, flags); err != nil {
			if !strings.Contains(err.Error(), file) {
				t.Fatalf("an error that does not name the file: %v", err)
			}
			return
		}
		s.Explain()
		if o.memory < 0 {
			t.Fatalf("memory of %d bytes", o.memory)
		}
	})
}

// FuzzByteSize shows that a size is refused, or not negative and the same when
// printed and read again.
func FuzzByteSize(f *testing.F) {
	for _, s := range []string{"0", "512MiB", "1.5GB", "9223372036854775807", "8388608TiB", "-1", "1e300", "0x1p62", "NaN"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ParseByteSize(text)
		if err != nil {
			return
		}
		again, err := ParseByteSize(b.String())
		// Sizes are computed as floating point: what is beyond 2^53 may be rounded.
		if b < 0 || err != nil || again != b && b < 1<<53 {
			t.Fatalf("%q is %d, printed %q, read again %d, %v", text, int64(b), b.String(), int64(again), err)
		}
	})
}

// FuzzEnvironment shows that variables are taken or refused by their names.
func FuzzEnvironment(f *testing.F) {
	f.Add("MAGNETAR_MEMORY=1GiB", "MAGNETAR_METADATA=x:1,y:2")
	f.Add("MAGNETAR_BOOKIES=many", "MAGNETAR_")
	f.Add("MAGNETAR_SESSION_LEASE", "\xff=1")
	f.Fuzz(func(t *testing.T, one, other string) {
		o, s, flags := declared()
		err := s.Load("", []string{one, other}, flags)
		if err != nil && !strings.Contains(err.Error(), "MAGNETAR_") {
			t.Fatalf("an error that does not name the variable: %v", err)
		}
		s.Explain()
		if err == nil && o.memory < 0 {
			t.Fatalf("memory of %d bytes", o.memory)
		}
	})
}
