package ensemble

import (
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// CreateRequest says what kind of ledger to create.
type CreateRequest struct {
	Quorum ledger.Quorum
	Class  ledger.Class
	Parent ledger.Parent
	// MinID: the new ledger's id is at least this.
	MinID ledger.ID
	// Guard must hold in the transaction that creates the ledger.
	Guard []meta.Cond
	// Extra returns further conditions and operations of the same transaction,
	// such as the key that links the ledger into its chain. It is called once for
	// each id tried; nil: none.
	Extra func(id ledger.ID) ([]meta.Cond, []meta.Op)
}

// Create makes a ledger and returns its writer. The record and what Extra asks
// for are written in one transaction (M4). It waits for an ack quorum of
// writable bookies until ctx ends, then fails with ErrNotEnoughBookies.
// ErrConflict: a guard or extra condition did not hold.
//
// meta.ErrUncertain: ctx ended while it was open whether the ledger was made. If
// it was, it is linked where Extra put it, and is recovered like any other.
func (c *Client) Create(ctx context.Context, r CreateRequest) (*Writer, error) {
	if err := r.Quorum.Validate(); err != nil {
		return nil, err
	}
	nonce := c.opts.Rand()
	for min := r.MinID; ; {
		ensemble, err := c.chooseEnsemble(ctx, r.Quorum, r.Class)
		if err != nil {
			return nil, fmt.Errorf("create a ledger: %w", err)
		}
		drawn, err := c.opts.IDs.Next(ctx, uint64(max(min, 1)-1))
		if err != nil {
			return nil, fmt.Errorf("create a ledger: %w", err)
		}
		md := ledger.Metadata{
			ID: ledger.ID(drawn), Quorum: r.Quorum, State: ledger.Open, Term: 1, LastEntry: ledger.NoEntry,
			Fragments: []ledger.Fragment{{First: 0, Ensemble: ensemble}},
			Class:     r.Class, Parent: r.Parent, Session: c.opts.Session(), Nonce: nonce, Created: c.stamp(),
		}
		conds, ops := append([]meta.Cond(nil), r.Guard...), []meta.Op(nil)
		if r.Extra != nil {
			extraConds, extraOps := r.Extra(md.ID)
			conds, ops = append(conds, extraConds...), extraOps
		}
		rev, err := c.putRecord(ctx, 0, &md, conds, ops)
		var taken *movedError
		switch {
		case errors.As(err, &taken): // somebody has this id (C2): draw another
			c.log.Warn("ledger id was taken", "ledger", md.ID)
			min = md.ID + 1
			continue
		case err != nil:
			return nil, fmt.Errorf("create ledger %d: %w", md.ID, err)
		}
		return c.newWriter(md, rev)
	}
}

// chooseEnsemble picks bookies for a new ledger, with vacant slots when there
// are fewer than the write quorum (M12). Below the ack quorum it waits.
func (c *Client) chooseEnsemble(ctx context.Context, q ledger.Quorum, class ledger.Class) ([]ledger.Member, error) {
	for {
		changed := c.opts.Directory.Changed()
		p := c.placer(class)
		f := ledger.Fragment{Ensemble: make([]ledger.Member, q.Write)}
		p.fill(f.Ensemble)
		if f.Live() >= q.Ack {
			return f.Ensemble, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", p.missing(q), ctx.Err())
		case <-c.ctx.Done():
			return nil, fmt.Errorf("client closed: %w", ledger.ErrStopping)
		}
	}
}
