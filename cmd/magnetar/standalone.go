package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/internal/listen"
	"github.com/magnetar-io/magnetar/internal/process"
	"github.com/magnetar-io/magnetar/internal/standalone"
)

// stopTimeout bounds an orderly stop; what is not done by then is left to the
// next start to recover.
const stopTimeout = 60 * time.Second

// listeners are what a process serves on.
type listeners struct{ grpc, http, debug net.Listener }

// open opens the addresses of a role.
func (s *settings) open() (l listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.grpc, err = listen.TCP(net.JoinHostPort(s.listen, strconv.Itoa(s.grpcPort)), "grpc-port", s.insecureListen); err != nil {
		return l, err
	}
	web, err := s.openWeb()
	l.http, l.debug = web.http, web.debug
	return l, err
}

// openWeb opens the addresses that are not gRPC's.
func (s *settings) openWeb() (l listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.http, err = listen.TCP(net.JoinHostPort(s.listen, strconv.Itoa(s.httpPort)), "http-port", s.insecureListen); err != nil {
		return l, err
	}
	l.debug, err = process.DebugListener(s.debugPort)
	return l, err
}

func (l listeners) close() {
	for _, one := range []net.Listener{l.grpc, l.http, l.debug} {
		if one != nil {
			_ = one.Close() // nothing was served on it
		}
	}
}

// warn says loudly what was given up.
func (s *settings) warn(log interface{ Warn(string, ...any) }) {
	if s.noFsync {
		log.Warn("fsync is off: what is acknowledged may be lost in a power cut", "flag", "--no-fsync")
	}
	if s.insecureListen {
		log.Warn("anybody who reaches this address can read and write everything", "listen", s.listen, "flag", "--insecure-listen")
	}
}

func (a *app) standaloneCommand() *cobra.Command {
	s := standaloneSettings()
	return serving(s.command(&cobra.Command{
		Use:   "standalone",
		Short: "Run a whole node in one process",
		Long: `Run a whole node in one process: metadata, bookies, broker and discovery.

It listens on loopback and keeps its data in --data-dir. Every message is on disk
before it is acknowledged, unless --no-fsync. Ctrl-C stops it in order.

` + settingsHelp,
	}, a.runStandalone))
}

func (a *app) runStandalone(c *cobra.Command, s *settings) error {
	log := s.logger("magnetar", a)
	began := time.Now()
	dir, err := filepath.Abs(s.dataDir)
	if err != nil {
		return err
	}
	if s.bookies < 1 || s.bookies > 15 {
		return usagef(c, "--bookies %d: want 1 to 15", s.bookies)
	}
	o := standalone.Options{
		DataDir: dir, Bookies: s.bookies, MemoryBytes: memoryBudget(s.memory), MaxMessageBytes: s.maxMsg,
		LedgerBytes: s.ledgerBytes, DiskBytes: s.diskLimit, NoSync: s.noFsync, Version: version, Log: log,
	}
	if err := o.Validate(); err != nil {
		return usagef(c, "%v", err)
	}
	l, err := s.open()
	if err != nil {
		return refusedf("%w", err)
	}
	o.GRPC, o.HTTP, o.Debug = l.grpc, l.http, l.debug
	s.warn(log)
	starting, cancel := context.WithTimeout(c.Context(), stopTimeout)
	defer cancel()
	node, err := standalone.Start(starting, o)
	if err != nil {
		return err
	}
	q := standalone.Quorum(s.bookies)
	durability := "fsync on"
	if s.noFsync {
		durability = "fsync OFF"
	}
	fmt.Fprintf(a.out, `Magnetar %s is ready after %s.
  data      %s
  clients   %s   (gRPC)
  health    http://%s/healthz/ready   metrics at /metrics
  keeps     %d of %d copies, %s
  open to   %s; no authentication
Try:
  echo hello | magnetar produce greetings
  magnetar consume greetings -s me --from earliest -n 1
`, version, time.Since(began).Round(time.Millisecond), dir, l.grpc.Addr(), l.http.Addr(), q.Ack, q.Write, durability, s.listen)
	<-c.Context().Done()
	log.Info("stopping")
	stopping, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return node.Close(stopping)
}
