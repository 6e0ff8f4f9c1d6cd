package main

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/magnetar-io/magnetar/internal/config"
)

const (
	// leastLease is the shortest that the metadata store keeps.
	leastLease = time.Second
	// leastDisk and leastMemory are what one bookie needs, leastMemory also a broker.
	leastDisk   = 128 << 20
	leastMemory = 16 << 20
	// mostMessage fits into one request of a client, 16 MiB, with all that goes with it.
	mostMessage = 15 << 20
)

// memberName is what ids and clusters may be called: they are parts of keys in the
// metadata store.
var memberName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// checkMember says what is wrong with how a process joins a cluster. Without it a
// process would wait for a store that is nowhere, or be told to others as being
// there.
func (s *settings) checkMember() error {
	if len(s.metadata) == 0 {
		return fmt.Errorf("--metadata is empty; want HOST:PORT[,...] of the metadata store")
	}
	for _, m := range s.metadata {
		if !hostPort(m) {
			return fmt.Errorf("--metadata %q: want HOST:PORT[,...] of the metadata store", m)
		}
	}
	if s.advertise != "" && !hostPort(s.advertise) {
		return fmt.Errorf("--advertise %q: want HOST:PORT that others reach this process at", s.advertise)
	}
	if s.lease < leastLease {
		return fmt.Errorf("--session-lease %s: want at least %s", s.lease, leastLease)
	}
	if !memberName.MatchString(s.cluster) {
		return fmt.Errorf("--cluster %q: want 1 to 64 letters, digits, '.', '_' or '-'", s.cluster)
	}
	if s.id != "" && !memberName.MatchString(s.id) {
		return fmt.Errorf("--id %q: want 1 to 64 letters, digits, '.', '_' or '-'", s.id)
	}
	return nil
}

// checkSizes says which size is not one to work with. Those that a role does not
// have are zero.
func (s *settings) checkSizes() error {
	bookies := int64(max(1, s.bookies))
	memory := leastMemory * bookies
	if s.bookies > 0 { // standalone: its broker has the other half
		memory *= 2
	}
	for _, size := range []struct {
		flag     string
		is, from int64
	}{{"memory", s.memory, memory}, {"disk-limit", s.diskLimit, leastDisk * bookies}} {
		if size.is != 0 && size.is < size.from {
			is, from := config.ByteSize(size.is), config.ByteSize(size.from)
			return fmt.Errorf("--%s %v: want at least %v, or 0 for the default", size.flag, &is, &from)
		}
	}
	return nil
}

// checkMessages says which bound on what a broker takes is none.
func (s *settings) checkMessages() error {
	if s.maxMsg < 1 || s.maxMsg > mostMessage {
		is := config.ByteSize(s.maxMsg)
		return fmt.Errorf("--max-message-bytes %v: want 1 to 15MiB", &is)
	}
	if s.ledgerBytes < 1 {
		return fmt.Errorf("--ledger-bytes 0: want at least 1")
	}
	return nil
}

// hostPort reports whether text names a host and a port to connect to.
func hostPort(text string) bool {
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && n > 0 && n <= 65535
}
