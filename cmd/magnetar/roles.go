package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/metaserver"
	"github.com/magnetar-io/magnetar/internal/health"
	"github.com/magnetar-io/magnetar/internal/httpadmin"
	"github.com/magnetar-io/magnetar/internal/listen"
	"github.com/magnetar-io/magnetar/internal/process"
	"github.com/magnetar-io/magnetar/internal/roles"
	"github.com/magnetar-io/magnetar/internal/rpc"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/standalone"
)

// member is a process of a cluster: its servers and its connection to the
// metadata store.
type member struct {
	s       *settings
	log     hclog.Logger
	l       listeners
	servers *process.Servers
	store   meta.Store
	unwatch func() // ends the watch over the store's answers
	address string
}

// startMember opens the addresses and connects to the metadata store, which it
// waits for as long as ctx allows. Health is served over HTTP meanwhile, and says
// so. gRPC is for the role to start.
func (a *app) startMember(ctx context.Context, role string, s *settings, profile rpc.Profile, conditions ...string) (*member, error) {
	m := &member{s: s, log: s.logger(role, a)}
	var err error
	if m.l, err = s.open(); err != nil {
		return nil, refusedf("%w", err)
	}
	s.warn(m.log)
	m.servers = process.New(m.log, rpc.ServerOptions(rpc.Limits{Profile: profile}, rpcerr.ServerOptions()...), append(conditions, "metadata")...)
	m.address = s.advertise
	if m.address == "" {
		m.address = m.l.grpc.Addr().String()
	}
	if s.id == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("a name for this process: %w; pass --id", err)
		}
		s.id = strings.ToLower(fmt.Sprintf("%s-%d", host, m.l.grpc.Addr().(*net.TCPAddr).Port))
	}
	m.log = m.log.With("id", s.id)
	m.servers.StartHTTP(m.l.http, m.l.debug)
	m.log.Info("health is served", "address", m.l.http.Addr().String())
	for {
		trying, cancel := context.WithTimeout(ctx, 5*time.Second)
		m.store, err = meta.DialEtcd(trying, meta.EtcdOptions{Endpoints: s.metadata, Log: m.log})
		cancel()
		if err == nil {
			m.unwatch = roles.WatchMetadata(m.store, m.servers.Health)
			return m, nil
		}
		if ctx.Err() != nil {
			m.giveUp()
			return nil, fmt.Errorf("%w; is a metadata store running there? 'magnetar metadata start' starts one, --metadata names another", err)
		}
		m.log.Warn("metadata store does not answer, trying on", "endpoints", s.metadata, "error", err)
		m.servers.Health.Set("metadata", err.Error())
	}
}

// common is to be called once: it registers metrics.
func (m *member) common() roles.Common {
	return roles.Common{Cluster: m.s.cluster, Store: meta.Measured(m.store, m.servers.Registry), Lease: m.s.lease, Version: version, Log: m.log, Metrics: m.servers.Registry}
}

// serve serves until ctx ends or failed gives an error.
func (m *member) serve(ctx context.Context, failed <-chan error) error {
	select {
	case <-ctx.Done():
		m.log.Info("stopping")
		return nil
	case err := <-failed:
		return err
	}
}

// stop stops the servers; streams have a moment to end by themselves.
func (m *member) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	m.servers.Stop(ctx)
}

// giveUp ends the servers of a role that could not be started.
func (m *member) giveUp() {
	m.stop()
	m.l.close() // nobody served gRPC
}

// closeStore ends the connection to the metadata store.
func (m *member) closeStore() {
	m.unwatch()
	if err := m.store.Close(); err != nil {
		m.log.Debug("connection to the metadata store", "error", err)
	}
}

func role(name, short string, more ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short}
	cmd.AddCommand(more...)
	return cmd
}

func startCommand(what string) *cobra.Command {
	return &cobra.Command{
		Use:   "start",
		Short: "Run " + what + " until Ctrl-C",
		Long: "Run " + what + ` until Ctrl-C.

` + settingsHelp,
	}
}

func (a *app) metadataCommand() *cobra.Command {
	s := metadataSettings()
	return role("metadata", "The metadata store, an etcd in this binary", serving(s.command(startCommand("a metadata store"), a.runMetadata)))
}

func (a *app) runMetadata(c *cobra.Command, s *settings) error {
	log := s.logger("metadata", a)
	dir, err := filepath.Abs(s.dataDir)
	if err != nil {
		return err
	}
	if !s.insecureListen && !listen.Loopback(s.listen) {
		return refusedf("%w: %s; listen on 127.0.0.1, or pass --insecure-listen if the network is trusted", listen.ErrInsecure, s.listen)
	}
	l, err := s.openWeb()
	if err != nil {
		return refusedf("%w", err)
	}
	s.warn(log)
	servers := health.New("etcd")
	server, err := metaserver.Start(metaserver.Options{Dir: dir, ClientAddress: net.JoinHostPort(s.listen, fmt.Sprint(s.grpcPort)), Log: log})
	if err != nil {
		l.close()
		return err
	}
	web := process.ServeHTTP(log, servers, l.http, l.debug)
	defer web.Close()
	if err := server.Wait(c.Context()); err != nil {
		return errors.Join(err, server.Close())
	}
	servers.Set("etcd", "")
	fmt.Fprintf(a.out, "metadata store is ready at %s, data in %s\n", server.Endpoint(), dir)
	select {
	case <-c.Context().Done():
		log.Info("stopping")
	case <-server.Failed():
		err = fmt.Errorf("the etcd server in %s stopped by itself; see the log", dir)
	}
	return errors.Join(err, server.Close())
}

func (a *app) bookieCommand() *cobra.Command {
	s := bookieSettings()
	cmd := role("bookie", "Storage nodes", serving(s.command(startCommand("a bookie"), a.runBookie)))
	cmd.AddCommand(a.bookieClientCommands()...)
	cmd.AddCommand(a.bookieInspect())
	return cmd
}

func (a *app) runBookie(c *cobra.Command, s *settings) error {
	dir, err := filepath.Abs(s.dataDir)
	if err != nil {
		return err
	}
	m, err := a.startMember(c.Context(), "bookie", s, rpc.BookieLink, "storage")
	if err != nil {
		return err
	}
	defer m.closeStore()
	b, err := roles.StartBookie(c.Context(), roles.BookieOptions{
		Common: m.common(), Dir: dir, ID: s.id, Rack: s.rack, Address: m.address, HTTPAddress: m.l.http.Addr().String(),
		MemoryBytes: memoryBudget(s.memory), DiskBytes: s.diskLimit, NoSync: s.noFsync,
	})
	if err != nil {
		m.giveUp()
		return err
	}
	b.Register(m.servers.GRPC)
	m.servers.StartGRPC(m.l.grpc)
	select {
	case <-b.Registration.Registered():
		m.servers.Health.Set("storage", "")
		fmt.Fprintf(a.out, "bookie %s is ready at %s, data in %s\n", s.id, m.address, dir)
		err = m.serve(c.Context(), b.Failed())
	case err = <-b.Failed():
	case <-c.Context().Done():
	}
	m.servers.Health.Set("storage", "stopping")
	m.stop()
	return errors.Join(err, b.Close())
}

func (a *app) brokerCommand() *cobra.Command {
	s := brokerSettings()
	cmd := role("broker", "Brokers, which own topics and serve clients", serving(s.command(startCommand("a broker"), a.runBroker)))
	cmd.AddCommand(a.brokerClientCommands()...)
	return cmd
}

func (a *app) runBroker(c *cobra.Command, s *settings) error {
	if s.copies < 1 || s.copies > 3 {
		return usagef(c, "--copies %d: want 1 to 3", s.copies)
	}
	m, err := a.startMember(c.Context(), "broker", s, rpc.ClientFacing, "broker")
	if err != nil {
		return err
	}
	defer m.closeStore()
	b, err := roles.NewBroker(c.Context(), roles.BrokerOptions{
		Common: m.common(), ID: s.id, Address: m.address, HTTPAddress: m.l.http.Addr().String(),
		MemoryBytes: memoryBudget(s.memory), MaxMessageBytes: s.maxMsg, LedgerBytes: s.ledgerBytes,
		Quorum: standalone.Quorum(s.copies),
	})
	if err != nil {
		m.giveUp()
		return err
	}
	b.Register(m.servers.GRPC)
	m.servers.HandleHTTP(httpadmin.Pattern, b.HTTPAdmin())
	m.servers.StartGRPC(m.l.grpc)
	if err = b.Start(c.Context()); err == nil {
		m.servers.Health.Set("broker", "")
		fmt.Fprintf(a.out, "broker %s is ready at %s\n", s.id, m.address)
		err = m.serve(c.Context(), nil)
	}
	m.servers.Health.Set("broker", "stopping")
	stopping, cancel := secondSignal(stopTimeout)
	defer cancel()
	err = errors.Join(err, b.Close(stopping)) // clients are told while the server still serves
	m.stop()
	return err
}

// secondSignal returns a context for an orderly stop that a further signal cuts
// short.
func secondSignal(limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	return ctx, func() { stop(); cancel() }
}

func (a *app) discoveryCommand() *cobra.Command {
	s := discoverySettings()
	return role("discovery", "Processes that tell clients who owns what", serving(s.command(startCommand("a discovery process"), a.runDiscovery)))
}

func (a *app) runDiscovery(c *cobra.Command, s *settings) error {
	m, err := a.startMember(c.Context(), "discovery", s, rpc.ClientFacing, "view")
	if err != nil {
		return err
	}
	defer m.closeStore()
	d, err := roles.NewDiscovery(c.Context(), roles.DiscoveryOptions{Common: m.common()})
	if err != nil {
		m.giveUp()
		return err
	}
	d.Register(m.servers.GRPC)
	m.servers.HandleHTTP(httpadmin.Pattern, d.HTTPAdmin())
	m.servers.StartGRPC(m.l.grpc)
	m.servers.Health.Set("view", "")
	fmt.Fprintf(a.out, "discovery is ready at %s\n", m.address)
	err = m.serve(c.Context(), nil)
	d.EndWatches()
	m.stop()
	d.Close()
	return err
}
