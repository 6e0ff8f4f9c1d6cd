package index

import "fmt"

// engineLog passes what the engine says to the index's logger. What the engine
// holds to be the end is the end: it goes on only in tests, whose Fatal returns.
type engineLog struct{ x *Index }

func (l engineLog) Infof(format string, args ...any) {
	if l.x.opts.Log.IsDebug() {
		l.x.opts.Log.Debug("index engine", "said", fmt.Sprintf(format, args...))
	}
}

func (l engineLog) Errorf(format string, args ...any) {
	l.x.opts.Log.Error("index engine", "said", fmt.Sprintf(format, args...))
}

func (l engineLog) Fatalf(format string, args ...any) {
	l.x.fatal(fmt.Errorf(format, args...))
}
