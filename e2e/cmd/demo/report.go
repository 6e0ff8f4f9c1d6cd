package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// report is what a run found.
type report struct {
	lines, files int
	stored       int // by the word of `magnetar produce`
	verdicts     []named
	took         time.Duration // publishing
	kills        []kill
	afterKills   time.Duration // from the last kill until the last message was published
	gap          time.Duration // without a publish on any partition
	gapBegin     time.Duration // after the start of publishing
	partitionGap time.Duration // the longest on one partition
	peakBytes    int64         // resident, of the demo itself
}

type named struct {
	subscription string
	verdict
}

// kill is a process that was killed while lines were being published.
type kill struct {
	process   string
	remark    string
	at        time.Duration // after the start of publishing
	sent      int64         // lines given to the producer so far
	producing bool          // the producer had not ended
}

// kills of a run: a broker and a bookie.
const wantKills = 2

// fault says what was wrong; nil if nothing was.
func (r report) fault() error {
	var faults []error
	if r.stored != r.lines {
		faults = append(faults, fmt.Errorf("%d lines were sent, the producer says %d are stored", r.lines, r.stored))
	}
	if len(r.verdicts) == 0 || r.lines == 0 {
		faults = append(faults, errors.New("nothing was sent or consumed"))
	}
	for _, v := range r.verdicts {
		if !v.good() {
			faults = append(faults, fmt.Errorf("subscription %s did not get what was sent", v.subscription))
		}
	}
	if len(r.kills) != wantKills {
		faults = append(faults, fmt.Errorf("%d processes were killed, want %d", len(r.kills), wantKills))
	}
	for _, k := range r.kills {
		if !k.producing {
			faults = append(faults, fmt.Errorf("publishing had ended before %s was killed: take a lower -rate", k.process))
		}
	}
	if r.afterKills <= 0 {
		faults = append(faults, errors.New("nothing was published after the last kill: take a lower -rate"))
	}
	return errors.Join(faults...)
}

func (r report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d lines of %d files sent and stored in %s (%.0f a second)\n", r.lines, r.files,
		r.took.Round(100*time.Millisecond), float64(r.stored)/r.took.Seconds())
	for _, k := range r.kills {
		fmt.Fprintf(w, "kill -9 %s after %.1fs, %d lines sent%s\n", k.process, k.at.Seconds(), k.sent, k.remark)
	}
	fmt.Fprintf(w, "publishing went on for %.1fs after the last kill\n\n", r.afterKills.Seconds())

	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name string, figure func(verdict) int) {
		fmt.Fprintf(t, "%s\t", name)
		for _, v := range r.verdicts {
			fmt.Fprintf(t, "%d\t", figure(v.verdict))
		}
		fmt.Fprintln(t)
	}
	fmt.Fprint(t, "subscription\t")
	for _, v := range r.verdicts {
		fmt.Fprintf(t, "%s\t", v.subscription)
	}
	fmt.Fprintln(t)
	row("lines sent", func(verdict) int { return r.lines })
	row("delivered", func(v verdict) int { return v.delivered })
	row("lost", func(v verdict) int { return v.lost })
	row("duplicated", func(v verdict) int { return v.duplicated })
	row("out of order", func(v verdict) int { return v.outOfOrder })
	row("never sent", func(v verdict) int { return v.invented })
	row("files with another SHA-256", func(v verdict) int { return v.differ })
	row("redelivered before an acknowledgement", func(v verdict) int { return v.redelivered })
	t.Flush() // its errors are those of w, where nothing can be said

	fmt.Fprintf(w, "\nlongest publish gap: %.2fs on all partitions at once, begun at %.1fs; %.2fs on one\n",
		r.gap.Seconds(), r.gapBegin.Seconds(), r.partitionGap.Seconds())
	fmt.Fprintln(w, "(between broker times of messages that were delivered)")
	fmt.Fprintf(w, "this program held %d MB at most\n", r.peakBytes/1e6)
}
