package history

import (
	"fmt"
	"time"
)

// describe gives each finding the operations around it: those on its messages and
// its position, and the few that were recorded beside it.
func (c *checker) describe() {
	of := map[int32][]int{} // findings by message
	at := map[int32][]int{} // by rank
	by := map[int32][]int{} // by event
	for n := range c.v.Findings {
		f := &c.v.Findings[n]
		for _, m := range f.messages {
			if m >= 0 {
				of[m] = append(of[m], n)
			}
		}
		if f.rank >= 0 {
			at[f.rank] = append(at[f.rank], n)
		}
		for i := f.event - 2; i <= f.event+2; i++ {
			by[i] = append(by[i], n)
		}
	}
	if len(c.v.Findings) == 0 {
		return
	}
	for i := range c.h.events {
		e := &c.h.events[i]
		tell := func(findings []int) {
			for _, n := range findings {
				f := &c.v.Findings[n]
				line := c.line(int32(i), e)
				if k := len(f.Operations); k < around && (k == 0 || f.Operations[k-1] != line) {
					f.Operations = append(f.Operations, line)
				}
			}
		}
		switch e.what {
		case publishing, published, delivered:
			tell(of[e.message])
		}
		if c.at[i] >= 0 {
			tell(at[c.at[i]])
		}
		tell(by[int32(i)])
	}
}

// line is an event in words.
func (c *checker) line(i int32, e *event) string {
	text := ""
	switch e.what {
	case publishing:
		text = fmt.Sprintf("publish of %s begins", c.h.messages[e.message])
	case published:
		text = fmt.Sprintf("publish of %s: %s", c.h.messages[e.message], e.outcome)
		if e.id.Known() {
			text += " at " + e.id.String()
		}
	case rested:
		text = "publishing rests"
	case ownerMoved:
		text = "served by " + c.h.owners[e.n]
	case deleted:
		text = "the topic is deleted"
	default:
		text = fmt.Sprintf("%s of %s %s", c.h.consumers[e.consumer].name, c.subName(e), c.deed(e))
	}
	return fmt.Sprintf("%7d %9s  %s", i, time.Duration(e.at-c.h.events[0].at).Round(100*time.Microsecond), text)
}

// deed is what a consumer did.
func (c *checker) deed(e *event) string {
	how := ""
	if e.all {
		how = " all up to"
	}
	answer := "unanswered"
	if e.ok {
		answer = "done"
	}
	switch e.what {
	case joined:
		return "joins"
	case opened:
		return fmt.Sprintf("opens its stream of partition %d", e.id.Partition)
	case delivered:
		return fmt.Sprintf("gets %s at %s, delivered %d times before", c.h.messages[e.message], e.id, e.n)
	case acking:
		return fmt.Sprintf("acknowledges%s %s", how, e.id)
	case ackEnded:
		return fmt.Sprintf("acknowledged%s %s: %s", how, e.id, answer)
	case nacked:
		return "gives back " + e.id.String()
	case seeking, seekEnded:
		where := map[place]string{toEarliest: "earliest", toLatest: "latest", toMessage: "at " + e.id.String(), toAfter: "after " + e.id.String(), toTime: time.Unix(0, e.time).String()}[e.to]
		if e.what == seeking {
			return "seeks " + where
		}
		return "sought " + where + ": " + answer
	}
	return "leaves"
}
