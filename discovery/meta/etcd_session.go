package meta

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdSession is a lease that one goroutine renews. etcd counts leases in whole
// seconds, so the lease may outlive the ttl that was asked for; this process
// goes by the ttl.
type etcdSession struct {
	e     *Etcd
	lease clientv3.LeaseID
	ttl   time.Duration

	ctx   context.Context // ends with Close of the session or the store
	stop  context.CancelFunc
	ended chan struct{} // closed when the goroutine is over
}

func parseLease(id string) (clientv3.LeaseID, error) {
	n, err := strconv.ParseInt(id, 16, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("meta: %q is not a session of this store", id)
	}
	return clientv3.LeaseID(n), nil
}

func (e *Etcd) NewSession(ctx context.Context, ttl time.Duration) (Session, error) {
	if ttl <= 0 {
		return nil, fmt.Errorf("meta: session with a ttl of %v", ttl)
	}
	asked := time.Now()
	ctx, _, done := e.call(ctx)
	defer done()
	seconds := int64((ttl + time.Second - 1) / time.Second)
	r, err := e.client.Grant(ctx, seconds)
	if err != nil {
		return nil, fmt.Errorf("new session: %w", readError(err))
	}
	s := &etcdSession{e: e, lease: r.ID, ttl: ttl, ended: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(e.life)
	if !e.start(func() { s.keepAlive(asked) }) {
		s.stop()
		return nil, fmt.Errorf("new session: %w", errClosed) // the lease lapses
	}
	return s, nil
}

func (s *etcdSession) ID() string             { return strconv.FormatInt(int64(s.lease), 16) }
func (s *etcdSession) Ended() <-chan struct{} { return s.ended }

// keepAlive renews the lease until it is over: stopped, gone in the store, or
// not renewed within ttl. The ttl counts from when the last renewal that
// succeeded was sent, so that it ends here no later than there.
func (s *etcdSession) keepAlive(renewed time.Time) {
	defer close(s.ended)
	defer s.stop()
	next := renewed.Add(s.ttl / 3)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		deadline := renewed.Add(s.ttl)
		if deadline.Before(next) {
			next = deadline
		}
		timer.Reset(time.Until(next))
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			return
		}
		now := time.Now()
		if !now.Before(deadline) {
			s.e.log.Warn("session not renewed in time", "session", s.ID(), "ttl", s.ttl)
			return
		}
		err := s.renew(deadline)
		switch {
		case err == nil:
			renewed, next = now, now.Add(s.ttl/3)
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.e.log.Warn("session is gone from the metadata store", "session", s.ID())
			return
		default:
			next = time.Now().Add(s.ttl / 10)
		}
	}
}

// renew makes one attempt, of a third of the ttl at most.
func (s *etcdSession) renew(deadline time.Time) error {
	ctx, cancel := context.WithDeadline(clientv3.WithRequireLeader(s.ctx), deadline)
	defer cancel()
	ctx, cancelAttempt := context.WithTimeout(ctx, s.ttl/3)
	defer cancelAttempt()
	_, err := s.e.client.KeepAliveOnce(ctx, s.lease)
	return err
}

func (s *etcdSession) Close(ctx context.Context) error {
	s.stop()
	<-s.ended
	ctx, _, done := s.e.call(ctx)
	defer done()
	_, err := s.e.client.Revoke(ctx, s.lease)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("close session %s: %w", s.ID(), readError(err))
	}
	return nil
}
