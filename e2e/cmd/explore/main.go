// Command explore tries the ledger protocol in every order of events, in worlds
// small enough for that: first with each of some rules broken, where it must find
// the loss and tells it step by step, then as it is, where it must find nothing. It
// exits with 1 if either fails. See package e2e/explore.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/magnetar-io/magnetar/e2e/explore"
)

// memoryBytes is where the heap begins to be collected more often.
const memoryBytes = 5 << 30

func main() {
	only := flag.String("only", "", "explore only worlds whose name has this in it")
	limit := flag.Int("limit", 0, "states to see of each large world; 0: as set for each")
	workers := flag.Int("workers", 2, "worlds explored at once")
	flag.Parse()
	debug.SetGCPercent(400) // a search makes little but garbage
	debug.SetMemoryLimit(memoryBytes)
	if !run(*only, *limit, *workers) {
		os.Exit(1)
	}
}

func run(only string, limit, workers int) bool {
	ok := true
	fmt.Println("Rules broken on purpose, and what is lost for it:")
	each(choose(explore.Flawed(), only), workers, func(r explore.Result) {
		fmt.Printf("\n%s\n%s\n", r.Config.Flaw, r)
		if r.Fault == "" {
			fmt.Println("    NOTHING FOUND: the search does not notice that this rule is broken")
			ok = false
		}
	})
	fmt.Println("\nThe protocol as it is:")
	worlds := choose(append(explore.Small(), explore.Large()...), only)
	for i := range worlds {
		if limit > 0 && worlds[i].Limit > 0 {
			worlds[i].Limit = limit
		}
	}
	states, transitions := 0, 0
	each(worlds, workers, func(r explore.Result) {
		fmt.Println(r)
		states, transitions = states+r.States, transitions+r.Transitions
		ok = ok && r.Fault == ""
	})
	verdict := "no invariant is broken"
	if !ok {
		verdict = "FAILED"
	}
	fmt.Printf("%d distinct states and %d transitions in %d worlds: %s\n", states, transitions, len(worlds), verdict)
	return ok
}

func choose(all []explore.Config, only string) []explore.Config {
	var chosen []explore.Config
	for _, c := range all {
		if strings.Contains(c.Name, only) {
			chosen = append(chosen, c)
		}
	}
	return chosen
}

// each explores the worlds, some at once, and shows the results in their order.
func each(worlds []explore.Config, workers int, show func(explore.Result)) {
	turns := make(chan struct{}, max(workers, 1))
	results := make([]chan explore.Result, len(worlds))
	for i := range worlds {
		results[i] = make(chan explore.Result, 1)
	}
	go func() {
		for i, c := range worlds {
			turns <- struct{}{}
			go func() {
				results[i] <- explore.Explore(c)
				<-turns
			}()
		}
	}()
	for _, r := range results {
		show(<-r)
	}
}
