package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

type options struct {
	dir     string
	memory  int64
	fsync   bool
	bookies int
	lease   time.Duration
	servers []string
}

func declared() (*options, *Set, *pflag.FlagSet) {
	o, s := &options{}, New()
	s.String(&o.dir, "data-dir", "./magnetar-data", "where data lies")
	s.Bytes(&o.memory, "memory", 64<<20, "budget")
	s.Bool(&o.fsync, "no-fsync", false, "unsafe")
	s.Int(&o.bookies, "bookies", 1, "how many")
	s.Duration(&o.lease, "session-lease", 5*time.Second, "lease")
	s.Strings(&o.servers, "metadata", []string{"a:1"}, "endpoints")
	flags := pflag.NewFlagSet("t", pflag.ContinueOnError)
	s.AddFlags(flags)
	return o, s, flags
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "m.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestStrongerPlaceWins shows the order of the four places, and that Explain
// tells which one won.
func TestStrongerPlaceWins(t *testing.T) {
	o, s, flags := declared()
	file := write(t, "dataDir: /file\nmemory: 1GiB\nbookies: 2\nmetadata: [x:1, y:2]\n")
	if err := flags.Parse([]string{"--bookies", "3", "--no-fsync"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Load(file, []string{"MAGNETAR_MEMORY=2GiB", "MAGNETAR_BOOKIES=9", "MAGNETAR_SERVER=other"}, flags); err != nil {
		t.Fatal(err)
	}
	if o.dir != "/file" || o.memory != 2<<30 || o.bookies != 3 || !o.fsync || o.lease != 5*time.Second ||
		strings.Join(o.servers, " ") != "x:1 y:2" {
		t.Fatalf("got %+v", *o)
	}
	want := map[string]string{
		"dataDir": file + ":1", "memory": "environment MAGNETAR_MEMORY", "bookies": "flag",
		"noFsync": "flag", "sessionLease": "default", "metadata": file + ":4",
	}
	for _, e := range s.Explain() {
		if e.Origin != want[e.Name] {
			t.Errorf("%s came from %q, want %q", e.Name, e.Origin, want[e.Name])
		}
	}
}

// TestFaultsNameThePlace shows that every fault of a file is reported with its
// line, all at once.
func TestFaultsNameThePlace(t *testing.T) {
	_, s, flags := declared()
	file := write(t, "dataDir: /d\nmemmory: 1GiB\nbookies: many\ndata-dir: /e\nmemory: 12 parsecs\n")
	err := s.Load(file, []string{"MAGNETAR_SESSION_LEASE=soon"}, flags)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		file + `:2: unknown key "memmory"`, file + ":3: bookies:", file + `:4: unknown key "data-dir"; did you mean dataDir?`,
		file + ":5: memory:", "environment variable MAGNETAR_SESSION_LEASE",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

// TestByteSize shows what sizes read as, and that a printed size reads back.
func TestByteSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "17": 17, "1KiB": 1024, "1.5GiB": 3 << 29, "2MB": 2e6, "64 MiB": 64 << 20} {
		got, err := ParseByteSize(text)
		if err != nil || int64(got) != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
		back, err := ParseByteSize(got.String())
		if err != nil || back != got {
			t.Errorf("%d prints as %q, which reads as %d, %v", got, got.String(), back, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "1PiBs", "NaN", "1e40"} {
		if v, err := ParseByteSize(text); err == nil {
			t.Errorf("%q reads as %d, want an error", text, v)
		}
	}
}
