// Package listen opens the addresses a node serves on, and refuses those that
// would be open to a network without protection.
package listen

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// ErrInsecure reports an address beyond loopback for a node without TLS and
// authentication.
var ErrInsecure = errors.New("refusing to listen beyond loopback without TLS and authentication")

// TCP listens on address ("host:port"; port 0 takes a free one). flag names the
// option that sets the port, for the error that says what to do. An address
// that is not loopback needs insecure.
func TCP(address, flag string, insecure bool) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: want HOST:PORT: %w", address, err)
	}
	if !insecure && !Loopback(host) {
		return nil, fmt.Errorf("%w: %s; listen on 127.0.0.1, or pass --insecure-listen if the network is trusted", ErrInsecure, address)
	}
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %s on %s is taken by another process; stop it, or choose another with --%s (0 takes a free one): %w", port, host, flag, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// Loopback reports whether host can only be reached from this machine.
func Loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
