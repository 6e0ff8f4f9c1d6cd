package bookie

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Errors that keep a data directory from being opened. Their text says what is
// wrong, where, and what to do next.
var (
	// ErrForeign reports a directory that belongs to another bookie or cluster, or
	// holds something else.
	ErrForeign = errors.New("bookie: data directory is not this bookie's")
	// ErrDataDir reports a directory that cannot be made or written. Nothing was
	// changed.
	ErrDataDir = errors.New("bookie: data directory cannot be used")
	// ErrNewer reports a directory written by a newer build.
	ErrNewer = errors.New("bookie: data directory was written by a newer version")
	// ErrLocked reports a directory that another process has open.
	ErrLocked = errors.New("bookie: data directory is in use")
)

// Identity says whose storage a directory is. It is written once, when the
// directory is formatted, and never altered: storage that was lost or wiped comes
// back under another incarnation, so that nobody takes what it forgot for a "no"
// (B4, B5).
type Identity struct {
	Cluster      string // id of the cluster
	Bookie       string
	Incarnation  string // minted at format
	ReserveBytes int64  // disk kept back for control (M28), sized at format
}

// Member is the bookie as ensembles name it.
func (i Identity) Member() ledger.Member {
	return ledger.Member{Bookie: i.Bookie, Incarnation: i.Incarnation}
}

// The identity file and the file of starts are text, so that a person can read
// what a disk is; their last line is the CRC-32C of the lines before it:
//
//	magnetar-bookie-identity 1
//	cluster 6f1d…
//	bookie bookie-1
//	incarnation 09ab…
//	reserve-bytes 268435456
//	crc 1a2b3c4d
//
// The number in the first line is the version, of the file and of everything
// beside it. Both files are replaced whole: written aside, synced, renamed, the
// folder synced. The identity comes last of all when a directory is formatted:
// its rename is the commit point, and a directory without it may hold nothing
// but what a format leaves when it is cut off.
const (
	identityFile = "identity"
	startsFile   = "starts"
	lockFile     = "lock"
	asideSuffix  = ".new"

	identityMagic = "magnetar-bookie-identity"
	startsMagic   = "magnetar-bookie-starts"
	formatVersion = 1
	maxTextBytes  = 4096
)

// openIdentity reads the identity of dir, or formats dir if it is empty, and
// refuses a directory that is not id's in cluster. The caller holds the lock.
func openIdentity(files vfs.FS, dir string, want Identity) (Identity, error) {
	name := filepath.Join(dir, identityFile)
	got, err := ReadIdentity(files, dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return format(files, dir, want)
	case err != nil:
		return Identity{}, err
	case got.Cluster != want.Cluster:
		return Identity{}, fmt.Errorf("%w: %s says cluster %s, this bookie is started for cluster %s; start it with that cluster's metadata, or with an empty directory",
			ErrForeign, name, got.Cluster, want.Cluster)
	case got.Bookie != want.Bookie:
		return Identity{}, fmt.Errorf("%w: %s says bookie %s, this one is started as %s; start it with that id, or with an empty directory",
			ErrForeign, name, got.Bookie, want.Bookie)
	}
	return got, nil
}

// ReadIdentity reads whose storage dir is. fs.ErrNotExist: it is nobody's.
func ReadIdentity(files vfs.FS, dir string) (Identity, error) {
	var id Identity
	err := readText(files, filepath.Join(dir, identityFile), identityMagic, func(key, value string) error {
		switch key {
		case "cluster":
			id.Cluster = value
		case "bookie":
			id.Bookie = value
		case "incarnation":
			id.Incarnation = value
		case "reserve-bytes":
			_, err := fmt.Sscan(value, &id.ReserveBytes)
			return err
		}
		return nil
	})
	if err == nil && (id.Cluster == "" || id.Bookie == "" || id.Incarnation == "" || id.ReserveBytes < 0) {
		err = fmt.Errorf("%s: a field is missing: %w", filepath.Join(dir, identityFile), ledger.ErrCorrupt)
	}
	return id, err
}

// format makes dir, which must be empty, the storage of a new incarnation.
func format(files vfs.FS, dir string, id Identity) (Identity, error) {
	names, err := files.ReadDir(dir)
	if err != nil {
		return Identity{}, fmt.Errorf("read data directory %s: %w", dir, err)
	}
	for _, name := range names {
		switch strings.TrimSuffix(name, asideSuffix) {
		case identityFile, startsFile, lockFile: // left by a format that was cut off
		default:
			return Identity{}, fmt.Errorf("%w: %s holds %q but no file %q; if its storage was lost, empty it so that it starts as a new incarnation, else name the right directory",
				ErrForeign, dir, name, identityFile)
		}
	}
	if err := writeStarts(files, dir, starts{}); err != nil {
		return Identity{}, err
	}
	text := fmt.Sprintf("%s %d\ncluster %s\nbookie %s\nincarnation %s\nreserve-bytes %d\n",
		identityMagic, formatVersion, id.Cluster, id.Bookie, id.Incarnation, id.ReserveBytes)
	return id, writeText(files, dir, identityFile, text)
}

// starts counts the starts of a node, so that a metadata store that was rolled
// back is noticed (M7).
//
// Invariant: registered <= count.
type starts struct {
	count      uint64 // raised, and synced, at every start and hourly
	registered uint64 // the highest count that the metadata store is known to have
}

func readStarts(files vfs.FS, dir string) (starts, error) {
	var s starts
	err := readText(files, filepath.Join(dir, startsFile), startsMagic, func(key, value string) error {
		switch key {
		case "count":
			_, err := fmt.Sscan(value, &s.count)
			return err
		case "registered":
			_, err := fmt.Sscan(value, &s.registered)
			return err
		}
		return nil
	})
	if err == nil && s.registered > s.count {
		err = fmt.Errorf("%s: start %d is registered, of %d: %w", filepath.Join(dir, startsFile), s.registered, s.count, ledger.ErrCorrupt)
	}
	return s, err
}

// CheckStarts says what is wrong with the file of starts in dir, without which a bookie
// does not start.
func CheckStarts(files vfs.FS, dir string) error {
	_, err := readStarts(files, dir)
	return err
}

func writeStarts(files vfs.FS, dir string, s starts) error {
	return writeText(files, dir, startsFile,
		fmt.Sprintf("%s %d\ncount %d\nregistered %d\n", startsMagic, formatVersion, s.count, s.registered))
}

// readText reads a file of the form above and gives its fields to field.
func readText(files vfs.FS, name, magic string, field func(key, value string) error) error {
	f, err := files.Open(name)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("size of %s: %w", name, err)
	}
	if size > maxTextBytes {
		return fmt.Errorf("%s has %d bytes, want at most %d: %w", name, size, maxTextBytes, ledger.ErrCorrupt)
	}
	text := make([]byte, size)
	if n, err := f.ReadAt(text, 0); n < len(text) {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := parseText(text, magic, field); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func parseText(text []byte, magic string, field func(key, value string) error) error {
	lines := strings.Split(string(text), "\n")
	var version int
	word, number, _ := strings.Cut(lines[0], " ")
	if _, err := fmt.Sscanf(number, "%d", &version); word != magic || err != nil {
		return fmt.Errorf("does not begin with %q: %w", magic, ErrForeign)
	}
	if version > formatVersion {
		return fmt.Errorf("version %d, this build reads up to %d; start it with the newer build: %w", version, formatVersion, ErrNewer)
	}
	body, sum, ok := bytes.Cut(text, []byte("\ncrc "))
	want := fmt.Sprintf("%08x\n", crc32.Checksum(append(body[:len(body):len(body)], '\n'), ledger.Castagnoli))
	if !ok || string(sum) != want {
		return fmt.Errorf("checksum does not match: %w", ledger.ErrCorrupt)
	}
	for _, line := range strings.Split(string(body), "\n")[1:] {
		key, value, _ := strings.Cut(line, " ")
		if err := field(key, value); err != nil {
			return fmt.Errorf("field %q: %w: %w", key, err, ledger.ErrCorrupt)
		}
	}
	return nil
}

// writeText replaces name in dir by text and its checksum, durably.
func writeText(files vfs.FS, dir, name, text string) error {
	text += fmt.Sprintf("crc %08x\n", crc32.Checksum([]byte(text), ledger.Castagnoli))
	aside := filepath.Join(dir, name+asideSuffix)
	if err := writeFile(files, aside, []byte(text)); err != nil {
		return err
	}
	if err := files.Rename(aside, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("rename %s: %w", aside, err)
	}
	if err := files.SyncDir(dir); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

func writeFile(files vfs.FS, name string, data []byte) error {
	f, err := files.Create(name)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
