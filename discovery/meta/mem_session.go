package meta

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// memSession is a process's side of a lease. It has no goroutine of its own:
// renewal runs on a timer.
type memSession struct {
	c   *MemClient
	id  string
	ttl time.Duration

	ended  chan struct{}
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	once   sync.Once

	mu       sync.Mutex
	renewal  *time.Timer
	deadline *time.Timer // ttl after the last renewal that succeeded was sent
}

func (c *MemClient) NewSession(ctx context.Context, ttl time.Duration) (Session, error) {
	if ttl <= 0 {
		return nil, fmt.Errorf("meta: session with a ttl of %v", ttl)
	}
	asked := time.Now()
	id, err := do(ctx, c, Call{Kind: CallSession}, ErrUnavailable, func() (string, error) {
		return c.m.grantLocked(ttl)
	})
	if err != nil {
		return nil, fmt.Errorf("new session: %w", err)
	}
	s := &memSession{c: c, id: id, ttl: ttl, ended: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(c.life)
	context.AfterFunc(s.ctx, s.end)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = time.AfterFunc(time.Until(asked.Add(ttl)), s.end)
	s.renewal = time.AfterFunc(ttl/3, s.renew)
	return s, nil
}

func (s *memSession) ID() string             { return s.id }
func (s *memSession) Ended() <-chan struct{} { return s.ended }

// end makes the session over for this process.
func (s *memSession) end() {
	s.once.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.renewal.Stop()
		s.deadline.Stop()
		s.cancel()
		close(s.ended)
	})
}

func (s *memSession) renew() {
	asked := time.Now()
	alive, err := do(s.ctx, s.c, Call{Kind: CallRenew, Key: s.id}, ErrUnavailable, func() (bool, error) {
		return s.c.m.renewLocked(s.id), nil
	})
	if err == nil && !alive {
		s.end()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		return
	default:
	}
	if err != nil {
		s.renewal.Reset(s.ttl / 10)
		return
	}
	s.deadline.Reset(time.Until(asked.Add(s.ttl)))
	s.renewal.Reset(s.ttl / 3)
}

func (s *memSession) Close(ctx context.Context) error {
	s.end()
	_, err := do(ctx, s.c, Call{Kind: CallEnd, Key: s.id}, ErrUnavailable, func() (struct{}, error) {
		s.c.m.expireLocked(s.id)
		return struct{}{}, nil
	})
	if err != nil {
		return fmt.Errorf("close session %s: %w", s.id, err)
	}
	return nil
}
