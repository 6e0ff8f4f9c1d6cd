package remote

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// DirectoryOptions say where the bookies of a cluster are listed and how they are
// reached.
type DirectoryOptions struct {
	Store  meta.Store
	Layout layout.Layout
	// Local gives bookies that run in this process, which are called directly.
	// nil: none do.
	Local func(ledger.Member) (ensemble.Bookie, bool)
	// Client is what connections are made with; Member and Address are filled in.
	Client Options
	Log    hclog.Logger
}

// Directory is the bookies that the metadata store lists as live, kept current by
// a watch, each with its connection. It implements ensemble.Directory.
//
// With the store gone it stays at what was last known: bookies serve on without
// their sessions, and so must those who write to them. A bookie that is no longer
// listed is no candidate, but it can still be reached where it was.
type Directory struct {
	opts DirectoryOptions
	log  hclog.Logger

	once  sync.Once
	ready chan struct{}

	mu      sync.Mutex
	bookies map[string]*listed // by id; at most one incarnation each
	changed chan struct{}      // closed when candidates change
	closed  bool
}

// listed is a bookie as it was last listed.
type listed struct {
	candidate ensemble.Candidate
	address   string
	live      bool
	client    *Bookie // nil until it is asked for
}

var _ ensemble.Directory = (*Directory)(nil)

// NewDirectory returns a directory that knows nobody before Run.
func NewDirectory(opts DirectoryOptions) *Directory {
	if opts.Log == nil {
		opts.Log = hclog.NewNullLogger()
	}
	return &Directory{
		opts:    opts,
		log:     opts.Log.Named("bookies"),
		ready:   make(chan struct{}),
		bookies: make(map[string]*listed),
		changed: make(chan struct{}),
	}
}

// Ready is closed once the bookies were listed for the first time.
func (d *Directory) Ready() <-chan struct{} { return d.ready }

// Run keeps the directory current until ctx ends, then closes all connections.
func (d *Directory) Run(ctx context.Context) {
	defer d.close()
	for wait := minRetry; ctx.Err() == nil; wait = min(2*wait, maxRetry) {
		began := time.Now()
		err := d.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxRetry {
			wait = minRetry
		}
		d.log.Debug("listing bookies again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

// follow lists the bookies and watches them until that breaks off.
func (d *Directory) follow(ctx context.Context) error {
	kvs, revision, err := d.opts.Store.Range(ctx, d.opts.Layout.Bookies(), "", 0)
	if err != nil {
		return fmt.Errorf("list bookies: %w", err)
	}
	d.replace(kvs)
	d.once.Do(func() { close(d.ready) })
	w := d.opts.Store.Watch(ctx, d.opts.Layout.Bookies(), revision)
	for {
		batch, err := w.Next()
		if err != nil {
			return fmt.Errorf("watch bookies: %w", err)
		}
		for _, e := range batch.Events {
			d.update(e.KV)
		}
	}
}

// replace takes in a whole listing.
func (d *Directory) replace(kvs []meta.KV) {
	seen := make(map[string]bool)
	for _, kv := range kvs {
		seen[strings.TrimPrefix(kv.Key, d.opts.Layout.Bookies())] = true
		d.update(kv)
	}
	d.mu.Lock()
	ids := slices.Collect(maps.Keys(d.bookies))
	d.mu.Unlock()
	for _, id := range ids {
		if !seen[id] {
			d.update(meta.KV{Key: d.opts.Layout.Bookie(id)})
		}
	}
}

// update takes in one record, or that it is gone.
func (d *Directory) update(kv meta.KV) {
	id := strings.TrimPrefix(kv.Key, d.opts.Layout.Bookies())
	var record metav1.Bookie
	err := proto.Unmarshal(kv.Value, &record)
	if err == nil && kv.Exists() && (id == "" || record.GetIncarnation() == "" || record.GetAddress() == "") {
		err = fmt.Errorf("incarnation %q at address %q: %w", record.GetIncarnation(), record.GetAddress(), ledger.ErrCorrupt)
	}
	if err != nil {
		d.log.Error("record of a bookie cannot be read, passed over", "bookie", id, "error", err)
		return
	}
	d.mu.Lock()
	old := d.bookies[id]
	next := &listed{live: kv.Exists()}
	switch {
	case next.live:
		next.address = record.GetAddress()
		next.candidate = ensemble.Candidate{
			Member:   ledger.Member{Bookie: id, Incarnation: record.GetIncarnation()},
			Rack:     record.GetRack(),
			ReadOnly: record.GetReadOnly(),
			// No ledger asks for more than there can be, whatever a bookie says.
			MaxBodyBytes: int64(min(record.GetMaxEntryBytes(), ledger.MaxBodyBytes)),
		}
	case old == nil:
		d.mu.Unlock()
		return
	default:
		next.candidate, next.address = old.candidate, old.address
	}
	var replaced *Bookie
	if old != nil {
		if old.address == next.address && old.candidate.Member == next.candidate.Member {
			next.client = old.client
		} else {
			replaced = old.client
		}
	}
	d.bookies[id] = next
	if old == nil || old.live != next.live || old.candidate != next.candidate {
		close(d.changed)
		d.changed = make(chan struct{})
	}
	d.mu.Unlock()
	if replaced != nil {
		d.closeClient(replaced)
	}
}

func (d *Directory) closeClient(b *Bookie) {
	if err := b.Close(); err != nil {
		d.log.Debug("connection did not close cleanly", "bookie", b.Member().Bookie, "error", err)
	}
}

// close closes all connections; the directory gives no more.
func (d *Directory) close() {
	d.mu.Lock()
	d.closed = true
	var clients []*Bookie
	for _, l := range d.bookies {
		if l.client != nil {
			clients = append(clients, l.client)
		}
	}
	d.mu.Unlock()
	for _, c := range clients {
		d.closeClient(c)
	}
}

// errUnlisted reports a bookie, or an incarnation of it, that nobody has listed.
var errUnlisted = errors.New("remote: bookie is not listed")

// Bookie returns the connection to m; see ensemble.Directory.
func (d *Directory) Bookie(m ledger.Member) (ensemble.Bookie, error) {
	if d.opts.Local != nil {
		if b, ok := d.opts.Local(m); ok {
			return b, nil
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.bookies[m.Bookie]
	switch {
	case d.closed:
		return nil, fmt.Errorf("bookie %s: %w", m.Bookie, ledger.ErrStopping)
	case l == nil:
		return nil, fmt.Errorf("bookie %s: %w", m.Bookie, errUnlisted)
	case l.candidate.Member != m:
		return nil, fmt.Errorf("bookie %s has incarnation %s, wanted %s: %w", m.Bookie, l.candidate.Member.Incarnation, m.Incarnation, ledger.ErrIncarnation)
	case l.client != nil:
		return l.client, nil
	}
	o := d.opts.Client
	o.Member, o.Address = m, l.address
	client, err := New(o) // dials nobody yet
	if err != nil {
		return nil, err
	}
	l.client = client
	return client, nil
}

// Candidates returns the live bookies, by id.
func (d *Directory) Candidates() []ensemble.Candidate {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []ensemble.Candidate
	for _, l := range d.bookies {
		if l.live {
			list = append(list, l.candidate)
		}
	}
	slices.SortFunc(list, func(a, b ensemble.Candidate) int { return strings.Compare(a.Member.Bookie, b.Member.Bookie) })
	return list
}

// Changed returns a channel that is closed at the next change of Candidates.
func (d *Directory) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}
