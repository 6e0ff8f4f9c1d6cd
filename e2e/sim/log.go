package sim

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// journal is what happened, in order, with virtual time. Safe for concurrent use.
type journal struct {
	start time.Time
	level hclog.Level

	mu    sync.Mutex
	lines []string
}

// maxLines bounds the journal; older lines go.
const maxLines = 20_000

func newJournal(level hclog.Level) *journal { return &journal{start: time.Now(), level: level} }

func (j *journal) note(who, format string, args ...any) {
	j.line(fmt.Sprintf("%-12s %s", who, fmt.Sprintf(format, args...)))
}

func (j *journal) line(text string) {
	at := time.Since(j.start)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.lines) >= maxLines {
		j.lines = append(j.lines[:0], j.lines[maxLines/2:]...)
	}
	j.lines = append(j.lines, fmt.Sprintf("%10.4f  %s", at.Seconds(), text))
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, "\n")
}

// logger is what a node of that name logs to until mute is set.
func (j *journal) logger(name string, mute *atomic.Bool) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: j.level, Output: journalWriter{j, name, mute}, DisableTime: true})
}

// journalWriter takes the lines of one logger.
type journalWriter struct {
	j    *journal
	name string
	mute *atomic.Bool // nil: never
}

func (w journalWriter) Write(p []byte) (int, error) {
	if w.mute != nil && w.mute.Load() {
		return len(p), nil
	}
	for _, l := range bytes.Split(bytes.TrimSpace(p), []byte("\n")) {
		w.j.line(fmt.Sprintf("%-12s %s", w.name, l))
	}
	return len(p), nil
}
