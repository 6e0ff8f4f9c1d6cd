package sim

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// inspect looks at the metadata and at the bookies once all is drained: nothing
// that is kept is gone, nothing is left in the middle, and, once the cluster has
// had time to settle, nothing lies about that nobody refers to.
func (c *cluster) inspect(ctx context.Context) {
	// All of one revision: else what is trimmed meanwhile looks lost.
	all, _, err := c.store.Range(ctx, keys.Prefix(), "", 0)
	if err != nil {
		c.problem("the metadata cannot be listed: %v", err)
		return
	}
	named, trimmed := c.namedLedgers(all)
	records := make(map[ledger.ID]ledger.Metadata)
	each(all, keys.Ledgers(), func(kv meta.KV) {
		id, ok := keys.ParseLedger(kv.Key)
		if !ok {
			c.problem("key %s among the ledgers", kv.Key)
			return
		}
		md, err := ledger.Decode(ledger.ID(id), kv.Value)
		if err != nil {
			c.problem("record of ledger %d: %v", id, err)
			return
		}
		records[ledger.ID(id)] = md
	})
	for id, by := range named {
		if md, ok := records[id]; !ok || md.State == ledger.Deleted {
			c.problem("%s names ledger %d, which is deleted", by, id)
		}
	}
	for id, md := range records {
		by := named[id]
		switch {
		case md.State == ledger.Deleted && c.plan.Settle > 0:
			if owed := c.owedByLiving(md); len(owed) > 0 {
				c.problem("ledger %d was deleted long ago, and still owed by %v", id, owed)
			}
		case md.State == ledger.Deleted:
		case by == "" && (!trimmed[id] || c.plan.Settle > 0):
			c.problem("ledger %d is %v, and nobody names it", id, md.State)
		case md.State == ledger.InRecovery && c.plan.Settle > 0:
			c.problem("ledger %d of %s is still in recovery", id, by)
		}
	}
	c.counts.add("ledgers at the end", len(records))
	if c.plan.Settle > 0 {
		c.inspectBookies(ctx, records)
	}
}

// each calls f for every key under a prefix.
func each(kvs []meta.KV, prefix string, f func(meta.KV)) {
	for _, kv := range kvs {
		if strings.HasPrefix(kv.Key, prefix) {
			f(kv)
		}
	}
}

// namedLedgers are those that a topic's chain or a bundle's log keeps, with the
// key that says so, and those that a chain still names as trimmed, about to be
// deleted.
func (c *cluster) namedLedgers(all []meta.KV) (named map[ledger.ID]string, trimmed map[ledger.ID]bool) {
	named, trimmed = make(map[ledger.ID]string), make(map[ledger.ID]bool)
	name := func(id int64, key string) {
		if other, twice := named[ledger.ID(id)]; twice {
			c.problem("ledger %d is named by %s and by %s", id, other, key)
		}
		named[ledger.ID(id)] = key
	}
	each(all, strings.TrimSuffix(keys.Chain(0), "0000000000000000/"), func(kv meta.KV) {
		link := new(metav1.ChainLink)
		if err := proto.Unmarshal(kv.Value, link); err != nil {
			c.problem("chain link %s: %v", kv.Key, err)
		} else if link.GetTrimmed() {
			trimmed[ledger.ID(link.GetLedger())] = true
		} else {
			name(link.GetLedger(), kv.Key)
		}
	})
	each(all, keys.Bundles(""), func(kv meta.KV) {
		if !strings.HasSuffix(kv.Key, "/log") {
			return
		}
		log := new(metav1.BundleLog)
		if err := proto.Unmarshal(kv.Value, log); err != nil {
			c.problem("bundle log %s: %v", kv.Key, err)
		}
		for _, s := range log.GetSegments() {
			name(s.GetLedger(), kv.Key)
		}
	})
	return named, trimmed
}

// owedByLiving lists the bookies that have not confirmed a deletion and could.
func (c *cluster) owedByLiving(md ledger.Metadata) []string {
	var owed []string
	for _, m := range md.Owed {
		if c.host(m.Bookie) != nil {
			owed = append(owed, m.Bookie)
		}
	}
	return owed
}

// inspectBookies looks for ledgers that a bookie holds and nobody knows.
func (c *cluster) inspectBookies(ctx context.Context, records map[ledger.ID]ledger.Metadata) {
	for _, h := range c.of(bookieRole) {
		h.mu.Lock()
		p := h.process
		h.mu.Unlock()
		if p == nil {
			continue
		}
		ids, err := p.ledgers(ctx)
		if err != nil {
			c.problem("ledgers of %s: %v", h.name, err)
		}
		ids = slices.DeleteFunc(ids, func(id ledger.ID) bool { _, known := records[id]; return known })
		if len(ids) > 0 {
			c.problem("%s holds ledgers that nobody knows: %v", h.name, ids)
		}
	}
}
