package meta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/stats"
)

// EtcdOptions says how to reach an etcd.
type EtcdOptions struct {
	// Endpoints are host:port, http(s)://host:port or unix:path; at least one.
	Endpoints []string
	TLS       *tls.Config // nil: none
	Username  string
	Password  string
	// CallTimeout ends a call that its caller would wait for longer; 0: 5 s.
	CallTimeout time.Duration
	Log         hclog.Logger // nil: none
}

// Validate reports every fault of the options.
func (o EtcdOptions) Validate() error {
	var errs []error
	if len(o.Endpoints) == 0 {
		errs = append(errs, errors.New("meta: no etcd endpoint given"))
	}
	for _, e := range o.Endpoints {
		if strings.TrimSpace(e) == "" {
			errs = append(errs, errors.New("meta: empty etcd endpoint"))
		}
	}
	if o.CallTimeout < 0 {
		errs = append(errs, fmt.Errorf("meta: call timeout %v is negative", o.CallTimeout))
	}
	return errors.Join(errs...)
}

// Etcd is the store in an etcd of version 3.6 or later.
//
// One goroutine asks the server every second how far the watches have come, and
// each session has one that renews it; Close ends them all and waits.
type Etcd struct {
	client  *clientv3.Client
	direct  bool // the server is in this process: no gRPC tells what was sent
	timeout time.Duration
	log     hclog.Logger

	life     context.Context // ends with Close
	end      context.CancelFunc
	watching atomic.Int64 // watches running

	mu      sync.Mutex
	running sync.WaitGroup // goroutines; none is added once closed
	closed  bool
}

const (
	defaultCallTimeout = 5 * time.Second
	// etcdPage is how many keys one request of a Range reads.
	etcdPage = 4096
	// etcdProgress is how often the server is asked how far watches have come.
	etcdProgress = time.Second
)

var _ Store = (*Etcd)(nil)

// DialEtcd connects to an etcd and returns once it has answered a linearizable
// read, or with the reason why it did not before ctx ended.
func DialEtcd(ctx context.Context, o EtcdOptions) (*Etcd, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            o.Endpoints,
		TLS:                  o.TLS,
		Username:             o.Username,
		Password:             o.Password,
		DialTimeout:          defaultCallTimeout,
		DialKeepAliveTime:    5 * time.Second, // etcd cuts off who pings more often
		DialKeepAliveTimeout: 3 * time.Second,
		MaxUnaryRetries:      3,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithStatsHandler(sentMarker{}),
			grpc.WithChainUnaryInterceptor(failFast),
			grpc.WithConnectParams(grpc.ConnectParams{
				// The stock maximum of two minutes would outlast every outage.
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
				MinConnectTimeout: 2 * time.Second,
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w: %w", strings.Join(o.Endpoints, ","), ErrUnavailable, err)
	}
	e := newEtcd(client, false, o.CallTimeout, o.Log)
	var reason error // the last that is not the end of ctx
	for {
		_, err := e.Get(ctx, "/magnetar")
		if err == nil {
			return e, nil
		}
		if ctx.Err() == nil || reason == nil {
			reason = err
		}
		select {
		case <-ctx.Done():
			e.Close()
			return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(o.Endpoints, ","), reason)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// NewEtcd returns the store behind a client of an etcd server in this process
// and takes the client over. It does not ask whether the server is ready.
func NewEtcd(client *clientv3.Client, log hclog.Logger) *Etcd {
	return newEtcd(client, true, 0, log)
}

func newEtcd(client *clientv3.Client, direct bool, timeout time.Duration, log hclog.Logger) *Etcd {
	if timeout == 0 {
		timeout = defaultCallTimeout
	}
	if log == nil {
		log = hclog.NewNullLogger()
	}
	e := &Etcd{client: client, direct: direct, timeout: timeout, log: log}
	e.life, e.end = context.WithCancel(context.Background())
	e.start(e.askProgress)
	return e
}

// start runs f on a goroutine that Close waits for; false: it is closed.
func (e *Etcd) start(f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.running.Go(f)
	}
	return !e.closed
}

// Close ends watches and sessions for this process; keys of sessions that were
// not closed stay until their ttl has passed.
func (e *Etcd) Close() error {
	e.mu.Lock()
	again := e.closed
	e.closed = true
	e.mu.Unlock()
	e.end()
	e.running.Wait()
	if again {
		return nil
	}
	if err := e.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd client: %w", err)
	}
	return nil
}

// call bounds a call by the caller's context, the call timeout and Close, and
// notes whether anything was sent.
func (e *Etcd) call(ctx context.Context) (context.Context, *atomic.Bool, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	stop := context.AfterFunc(e.life, cancel)
	sent := new(atomic.Bool)
	return context.WithValue(ctx, sentKey{}, sent), sent, func() { stop(); cancel() }
}

// failFast lets a call fail with the reason when nothing is connected; the
// client's own choice is to wait for as long as the context allows.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// sentKey is the context key of a *atomic.Bool that sentMarker sets.
type sentKey struct{}

// sentMarker notes when the headers of a request leave: before that, nothing of
// it can have been done.
type sentMarker struct{}

func (sentMarker) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (sentMarker) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentMarker) HandleConn(context.Context, stats.ConnStats)                       {}
func (sentMarker) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, leaves := s.(*stats.OutHeader); leaves {
		if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
			sent.Store(true)
		}
	}
}

func (e *Etcd) Get(ctx context.Context, key string) (KV, error) {
	ctx, _, done := e.call(ctx)
	defer done()
	r, err := e.client.KV.Get(ctx, key)
	if err != nil {
		return KV{}, fmt.Errorf("get %s: %w", key, readError(err))
	}
	if len(r.Kvs) == 0 {
		return KV{Key: key}, nil
	}
	return fromEtcd(r.Kvs[0]), nil
}

// Range reads page by page, all pages at the revision of the first.
func (e *Etcd) Range(ctx context.Context, start, end string, limit int) ([]KV, Revision, error) {
	if end == "" {
		if end = prefixEnd(start); end == "" {
			end = "\x00" // etcd's word for: to the last key
		}
	}
	if start == "" {
		start = "\x00"
	}
	for {
		kvs, at, err := e.rangeOnce(ctx, start, end, limit)
		if errors.Is(err, ErrCompacted) {
			continue // compacted between two pages
		}
		if err != nil {
			return nil, 0, fmt.Errorf("range from %s: %w", start, err)
		}
		return kvs, at, nil
	}
}

func (e *Etcd) rangeOnce(ctx context.Context, start, end string, limit int) ([]KV, Revision, error) {
	var kvs []KV
	var at int64
	for {
		page := etcdPage
		if limit > 0 {
			page = min(page, limit-len(kvs))
		}
		r, err := e.page(ctx, start, end, page, at)
		if err != nil {
			return nil, 0, err
		}
		at = r.Header.Revision
		if kvs == nil {
			kvs = make([]KV, 0, len(r.Kvs))
		}
		for _, kv := range r.Kvs {
			kvs = append(kvs, fromEtcd(kv))
		}
		if !r.More || len(kvs) == limit {
			return kvs, Revision(at), nil
		}
		start = kvs[len(kvs)-1].Key + "\x00"
	}
}

func (e *Etcd) page(ctx context.Context, start, end string, limit int, at int64) (*clientv3.GetResponse, error) {
	ctx, _, done := e.call(ctx)
	defer done()
	r, err := e.client.KV.Get(ctx, start, clientv3.WithRange(end), clientv3.WithLimit(int64(limit)), clientv3.WithRev(at))
	if err != nil {
		return nil, readError(err)
	}
	if at != 0 {
		r.Header.Revision = at
	}
	return r, nil
}

func (e *Etcd) Txn(ctx context.Context, t Txn) (TxnResult, error) {
	if err := t.check(); err != nil {
		return TxnResult{}, err
	}
	conds := make([]clientv3.Cmp, len(t.Conds))
	for i, c := range t.Conds {
		if c.AnyRevision {
			conds[i] = clientv3.Compare(clientv3.CreateRevision(c.Key), ">", 0)
		} else {
			conds[i] = clientv3.Compare(clientv3.ModRevision(c.Key), "=", int64(c.Revision))
		}
	}
	ops := make([]clientv3.Op, len(t.Ops))
	for i, op := range t.Ops {
		switch {
		case op.Delete:
			ops[i] = clientv3.OpDelete(op.Key)
		case op.Session != nil:
			lease, err := parseLease(op.Session.ID())
			if err != nil {
				return TxnResult{}, fmt.Errorf("put %s: %w", op.Key, err)
			}
			ops[i] = clientv3.OpPut(op.Key, string(op.Value), clientv3.WithLease(lease))
		default:
			ops[i] = clientv3.OpPut(op.Key, string(op.Value))
		}
	}
	if err := ctx.Err(); err != nil {
		return TxnResult{}, fmt.Errorf("txn on %s: %w: %w", t.firstKey(), ErrUnavailable, err)
	}
	if e.life.Err() != nil {
		return TxnResult{}, fmt.Errorf("txn on %s: %w", t.firstKey(), errClosed)
	}
	ctx, sent, done := e.call(ctx)
	defer done()
	r, err := e.client.KV.Txn(ctx).If(conds...).Then(ops...).Commit()
	if err != nil {
		return TxnResult{}, fmt.Errorf("txn on %s: %w", t.firstKey(), txnError(err, e.direct || sent.Load()))
	}
	return TxnResult{Done: r.Succeeded, Revision: Revision(r.Header.Revision)}, nil
}
