package broker

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/magnetar-io/magnetar/broker/internal/position"
)

const (
	// maxNamespaces bounds the series of one broker: namespaces beyond it are
	// counted together under otherNamespaces, which is no namespace's name.
	maxNamespaces   = 500
	otherNamespaces = "other"
	// scrapeReads and scrapeTime bound what a scrape reads from bookies.
	scrapeReads = 256
	scrapeTime  = time.Second
)

// collector walks what the broker has open when metrics are gathered, so that
// nothing is counted twice or forgotten when topics come and go.
//
// The lag of a subscription needs the publish time of its oldest entry, which
// may be on a bookie. It is remembered while the subscription stands still: one
// that is stuck, whose lag matters most, costs one read.
type collector struct {
	b *Broker

	mu    sync.Mutex // held while metrics are gathered
	known map[subscriptionKey]oldest

	bundles, topics, producers, consumers, backlog, lag *prometheus.Desc
}

type subscriptionKey struct {
	topic uint64
	name  string
}

// oldest is when the first entry from a position on was published.
type oldest struct {
	from position.Position
	at   time.Time
}

// namespaceLoad is the sum over the open topics of a namespace.
type namespaceLoad struct {
	topics, producers, consumers int
	backlog                      int64
	lag                          time.Duration // highest
}

func newCollector(b *Broker) *collector {
	perNamespace := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"namespace"}, nil)
	}
	return &collector{
		b:         b,
		bundles:   prometheus.NewDesc("magnetar_bundles_owned", "Bundles open on this broker.", nil, nil),
		topics:    perNamespace("magnetar_topics_open", "Topic partitions open on this broker."),
		producers: perNamespace("magnetar_producers", "Producers connected."),
		consumers: perNamespace("magnetar_consumers", "Consumers and readers connected."),
		backlog:   perNamespace("magnetar_subscription_backlog_messages", "Messages not acknowledged, over all durable subscriptions."),
		lag:       perNamespace("magnetar_subscription_lag_seconds_max", "Age of the oldest message that a durable subscription has not acknowledged."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.bundles, c.topics, c.producers, c.consumers, c.backlog, c.lag} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(c.b.ctx, scrapeTime)
	defer cancel()
	owned := c.b.owned()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.bundles, float64(len(owned)))
	for namespace, l := range c.loads(ctx, owned) {
		gauge(c.topics, float64(l.topics), namespace)
		gauge(c.producers, float64(l.producers), namespace)
		gauge(c.consumers, float64(l.consumers), namespace)
		gauge(c.backlog, float64(l.backlog), namespace)
		gauge(c.lag, l.lag.Seconds(), namespace)
	}
}

// loads sums up the open topics by namespace. c.mu is held.
func (c *collector) loads(ctx context.Context, owned []*ownedBundle) map[string]*namespaceLoad {
	sums := map[string]*namespaceLoad{}
	still := map[subscriptionKey]oldest{}
	now, reads := c.b.opts.Now(), 0
	for _, o := range owned {
		open := o.openTopics()
		if len(open) == 0 {
			continue
		}
		namespace := o.bundle.Namespace
		if sums[namespace] == nil && len(sums) >= maxNamespaces {
			namespace = otherNamespaces
		}
		sum := sums[namespace]
		if sum == nil {
			sum = &namespaceLoad{}
			sums[namespace] = sum
		}
		for _, t := range open {
			l := t.Load()
			sum.topics++
			sum.producers += l.Producers
			sum.consumers += l.Consumers
			for _, s := range l.Behind {
				sum.backlog += s.Messages
				key := subscriptionKey{t.ID(), s.Name}
				first, ok := c.known[key]
				if !ok || first.from != s.From {
					if reads++; reads > scrapeReads {
						continue
					}
					first.from = s.From
					if first.at, ok = t.PublishedAt(ctx, s.From); !ok {
						continue
					}
				}
				still[key] = first
				sum.lag = max(sum.lag, now.Sub(first.at))
			}
		}
	}
	c.known = still
	return sums
}
