package metaserver

import (
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/zap/zapcore"
)

// bridge carries etcd's log over to ours. What etcd calls Info is Debug here: it
// reports each of its files and goroutines. Once closing is set everything is
// Debug, because a server that is told to stop reports each broken stream as an
// error.
type bridge struct {
	log     hclog.Logger
	fields  []zapcore.Field
	closing *atomic.Bool
}

func newBridge(log hclog.Logger) *bridge { return &bridge{log: log, closing: new(atomic.Bool)} }

// harmless are messages of etcd, by their beginning, that come with every start
// of a lone member, or with every busy moment, and ask nothing of anybody.
var harmless = []string{
	"Running http and grpc server on single port",
	"check file permission",
	"simple token is not cryptographically signed",
	"Failed to detect schema version",
	"failed to update storage version",
	"apply request took too long",
	"waiting for ReadIndex response took too long",
}

func (b *bridge) level(l zapcore.Level, message string) hclog.Level {
	for _, h := range harmless {
		if strings.HasPrefix(message, h) {
			return hclog.Debug
		}
	}
	switch {
	case b.closing.Load() || l < zapcore.WarnLevel:
		return hclog.Debug
	case l == zapcore.WarnLevel:
		return hclog.Warn
	}
	return hclog.Error
}

func (b *bridge) enabled(l hclog.Level) bool {
	switch l {
	case hclog.Debug:
		return b.log.IsDebug()
	case hclog.Warn:
		return b.log.IsWarn()
	}
	return b.log.IsError()
}

func (b *bridge) Enabled(l zapcore.Level) bool { return b.enabled(b.level(l, "")) }

func (b *bridge) With(fields []zapcore.Field) zapcore.Core {
	return &bridge{log: b.log, fields: append(b.fields[:len(b.fields):len(b.fields)], fields...), closing: b.closing}
}

func (b *bridge) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.enabled(b.level(e.Level, e.Message)) {
		return c.AddCore(e, b)
	}
	return c
}

func (b *bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range b.fields {
		f.AddTo(m)
	}
	for _, f := range fields {
		f.AddTo(m)
	}
	args := make([]any, 0, 2*len(m.Fields))
	for k, v := range m.Fields {
		args = append(args, k, v)
	}
	b.log.Log(b.level(e.Level, e.Message), e.Message, args...)
	return nil
}

func (b *bridge) Sync() error { return nil }
