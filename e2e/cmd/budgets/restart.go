package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"
)

// fullHotBytes is what a bookie's hot store holds when its restart is measured.
const fullHotBytes = 8e9

// restarts fills a bookie's hot store, kills the bookie and takes the time until
// it is ready again.
func (p *plan) restarts(ctx context.Context, s settings) error {
	dir, err := os.MkdirTemp(s.dir, "restart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := oneCopy(ctx, s, dir)
	if err != nil {
		return err
	}
	defer c.Stop()
	for logged := 0.0; logged < fullHotBytes; {
		if _, err := bench(ctx, s, c.Server, "produce", "--keep"); err != nil {
			return err
		}
		m, err := readCounters(ctx, c.HTTP("bookie-1"))
		if err != nil {
			return err
		}
		if logged = m[loggedBytes]; logged == 0 {
			return fmt.Errorf("no metric %s", loggedBytes)
		}
		p.restart.detail = fmt.Sprintf("%.1f GB in the log", logged/1e9)
	}
	for range s.rounds {
		if err := c.Signal("bookie-1", syscall.SIGKILL); err != nil {
			return err
		}
		began := time.Now()
		if err := c.Start("bookie-1"); err != nil {
			return err
		}
		if err := c.WaitReady(ctx, "bookie-1"); err != nil {
			return err
		}
		p.restart.add(time.Since(began).Seconds())
	}
	return nil
}
