package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Options of a Bookie. Member and Address are required; the zero value of all else
// is the default named.
type Options struct {
	Member  ledger.Member // whose requests these are; another incarnation refuses them
	Address string
	// Dial opens a connection. nil: TCP, or a unix socket for unix:PATH.
	Dial        func(ctx context.Context, address string) (net.Conn, error)
	Credentials credentials.TransportCredentials // none

	// QueueBytes bounds the entries of one stream that wait for their answer, sent or
	// not: 64 MiB.
	QueueBytes int64
	// AddTimeout is how long an entry waits for its answer: 5 s.
	AddTimeout time.Duration

	Metrics *Metrics // shared by all bookies of a process; not counted
	Log     hclog.Logger
	Rand    func() uint64 // safe for concurrent use; math/rand/v2
}

func (o Options) withDefaults() Options {
	if o.Credentials == nil {
		o.Credentials = insecure.NewCredentials()
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 64 << 20
	}
	if o.AddTimeout == 0 {
		o.AddTimeout = 5 * time.Second
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	return o
}

// Validate reports all faults at once.
func (o Options) Validate() error {
	var errs []error
	if o.Member.Vacant() || o.Member.Incarnation == "" {
		errs = append(errs, fmt.Errorf("remote: bookie %q with incarnation %q: want both", o.Member.Bookie, o.Member.Incarnation))
	}
	if o.Address == "" {
		errs = append(errs, fmt.Errorf("remote: bookie %q has no address", o.Member.Bookie))
	}
	if o.QueueBytes < 0 {
		errs = append(errs, fmt.Errorf("remote: queue of %d bytes", o.QueueBytes))
	}
	if o.AddTimeout < 0 {
		errs = append(errs, fmt.Errorf("remote: add timeout of %v", o.AddTimeout))
	}
	return errors.Join(errs...)
}
