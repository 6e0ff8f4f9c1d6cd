package client

import (
	"time"
)

const (
	// watchEvery is how often the client looks for brokers that fell silent.
	watchEvery = time.Second
	// stallAfter is how long a producer waits for an answer, and idleAfter how long
	// a consumer hears nothing, before it is asked whether another broker owns the
	// topic by now. A broker that is cut off or stopped cannot say so itself.
	stallAfter = 2 * time.Second
	idleAfter  = 5 * time.Second
	// learnEvery is how often the addresses of brokers are asked for.
	learnEvery = time.Minute
)

// watch is the client's one timer: it follows topics away from silent brokers,
// closes connections that nobody uses, and keeps the list of addresses current.
func (c *Client) watch() {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	learned := time.Now()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		c.brokers.sweep()
		c.followMoves(now)
		if now.Sub(learned) >= learnEvery {
			learned = now
			if err := c.discovery.cluster(c.ctx); err != nil && c.ctx.Err() == nil {
				c.log.Debug("no discovery or broker answers", "error", err)
			}
		}
	}
}

// followMoves looks up the topics of endpoints whose broker is silent, and moves
// those that another broker owns.
func (c *Client) followMoves(now time.Time) {
	c.mu.Lock()
	var all []follower
	for o := range c.open {
		all = append(all, o.endpoints()...)
	}
	for a := range c.attempts {
		all = append(all, a)
	}
	c.mu.Unlock()
	var silent []follower
	var topics, addresses []string
	for _, e := range all {
		if a, ok := e.stalled(now); ok && len(topics) < maxTopicsPerLookup {
			silent = append(silent, e)
			topics, addresses = append(topics, e.topicName()), append(addresses, a)
		}
	}
	if len(topics) == 0 {
		return
	}
	owners, err := c.discovery.owners(c.ctx, topics)
	if err != nil {
		return
	}
	for i, e := range silent {
		if to, err := ownerOf(owners[i]); err == nil && to != addresses[i] {
			e.moveTo(addresses[i], to)
		}
	}
}
