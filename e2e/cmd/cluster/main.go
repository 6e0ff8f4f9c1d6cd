// Command cluster runs a cluster of processes on loopback, for `make cluster`.
//
//	cluster [-dir DIR] [-binary FILE] [-port-base N] up          until Ctrl-C
//	cluster [-dir DIR] start NAME                                one process again
//	cluster [-dir DIR] down                                      stop them all
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/magnetar-io/magnetar/e2e/cluster"
)

func main() {
	dir := flag.String("dir", ".run/cluster", "folder of the cluster")
	binary := flag.String("binary", "bin/magnetar", "what to run")
	portBase := flag.Int("port-base", 0, "first of the ports to use; 0 takes free ones")
	flag.Parse()
	var err error
	switch flag.Arg(0) {
	case "up":
		err = up(*dir, *binary, *portBase)
	case "start":
		err = cluster.Restart(*dir, flag.Arg(1))
	case "down":
		var stopped []string
		if stopped, err = cluster.Down(*dir); err == nil {
			fmt.Println("stopped:", strings.Join(stopped, " "))
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: cluster [flags] up | start NAME | down")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func up(dir, binary string, portBase int) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// What an earlier run left behind would hold the data folders.
	if _, err := cluster.Down(dir); err != nil {
		return err
	}
	shape := cluster.Default
	shape.PortBase = portBase
	c, err := cluster.New(dir, binary, shape)
	if err != nil {
		return err
	}
	if err := cluster.Supervise(dir); err != nil {
		return err
	}
	// Also what `cluster start` started meanwhile.
	defer func() {
		c.Stop()
		if _, err := cluster.Down(dir); err != nil {
			fmt.Fprintln(os.Stderr, "cluster:", err)
		}
	}()
	starting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.StartAll(starting); err != nil {
		return err
	}
	fmt.Printf("env: %s/env   (MAGNETAR_SERVER=%s)\n", dir, c.Server)
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println("stopping")
	return nil
}
