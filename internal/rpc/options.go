package rpc

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

// Profile is what a connection is for.
type Profile int

const (
	// ClientFacing connections are many and often idle: small read buffers, windows
	// that bound what one peer can make us hold. Write buffers are held only while
	// something is written, as gRPC has it by default.
	ClientFacing Profile = iota
	// BookieLink connections, between brokers and bookies, are few and busy.
	BookieLink
)

// Limits of a server. Zero fields have the documented default.
type Limits struct {
	Profile          Profile
	MaxMessageBytes  int           // of one gRPC message; 16 MiB, 64 MiB for BookieLink
	MaxStreams       uint32        // at a time on one connection; 1,024
	HandshakeTimeout time.Duration // 10 s
	MaxHeaderBytes   uint32        // of a call's HTTP headers; 64 KiB
}

const (
	clientMessageBytes = 16 << 20
	bookieMessageBytes = 68 << 20 // one largest entry with its envelope and head

	// A client pings an idle connection every pingEvery and gives it up when
	// nothing came back for pingTimeout. Servers allow twice as many.
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// settings are what both ends of a connection agree on.
type settings struct {
	messageBytes             int
	readBuffer               int
	writeBuffer              int
	streamWindow, connWindow int32
}

func (p Profile) settings() settings {
	if p == BookieLink {
		return settings{bookieMessageBytes, 128 << 10, 128 << 10, 4 << 20, 16 << 20}
	}
	return settings{clientMessageBytes, 16 << 10, 64 << 10, 1 << 20, 4 << 20}
}

// ServerOptions returns the settings of a server: our codec, limits on
// everything a peer can make it hold, keepalive, buffers and windows. extra
// follows and may override.
func ServerOptions(l Limits, extra ...grpc.ServerOption) []grpc.ServerOption {
	s := l.Profile.settings()
	message := orDefault(l.MaxMessageBytes, s.messageBytes)
	return append([]grpc.ServerOption{
		grpc.ForceServerCodecV2(serverCodec()),
		grpc.MaxRecvMsgSize(message),
		grpc.MaxSendMsgSize(max(message, bookieMessageBytes)),
		grpc.MaxConcurrentStreams(orDefault(l.MaxStreams, 1024)),
		grpc.MaxHeaderListSize(orDefault(l.MaxHeaderBytes, 64<<10)),
		grpc.ConnectionTimeout(orDefault(l.HandshakeTimeout, 10*time.Second)),
		grpc.ReadBufferSize(s.readBuffer),
		grpc.WriteBufferSize(s.writeBuffer),
		grpc.InitialWindowSize(s.streamWindow),
		grpc.InitialConnWindowSize(s.connWindow),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery / 2, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 3 * pingEvery, Timeout: 2 * pingTimeout}),
	}, extra...)
}

// DialOptions returns the settings of a connection to a server with the same
// profile. Credentials and dialer are the caller's to add.
func DialOptions(p Profile, extra ...grpc.DialOption) []grpc.DialOption {
	s := p.settings()
	return append([]grpc.DialOption{
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(Codec()),
			grpc.MaxCallRecvMsgSize(bookieMessageBytes),
			grpc.MaxCallSendMsgSize(bookieMessageBytes),
		),
		// A retried stream would hold every payload for replay, and our streams
		// cannot be replayed by anyone but their owners.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithReadBufferSize(s.readBuffer),
		grpc.WithWriteBufferSize(s.writeBuffer),
		grpc.WithInitialWindowSize(s.streamWindow),
		grpc.WithInitialConnWindowSize(s.connWindow),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
	}, extra...)
}

func orDefault[T int | uint32 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
