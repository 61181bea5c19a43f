package etcdtest

import (
	"bytes"
	"os"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const tailBytes = 256 << 10

// tail keeps the end of what the members log, for the test that fails.
type tail struct {
	mu    sync.Mutex // guards lines
	lines []byte
}

// Write implements [io.Writer].
func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, p...)
	if len(l.lines) > 2*tailBytes {
		l.lines = append([]byte(nil), l.lines[len(l.lines)-tailBytes:]...)
	}
	return len(p), nil
}

// text returns whole lines.
func (l *tail) text() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	if len(lines) > tailBytes {
		lines = lines[len(lines)-tailBytes:]
		lines = lines[bytes.IndexByte(lines, '\n')+1:]
	}
	return bytes.Clone(lines)
}

// logger writes into the tail, and to stderr what is said before etcd ends the
// process, since no test is left then to show the tail.
func (l *tail) logger() *zap.Logger {
	encoding := zap.NewDevelopmentEncoderConfig()
	encoder := zapcore.NewConsoleEncoder(encoding)
	return zap.New(zapcore.NewTee(
		zapcore.NewCore(encoder, zapcore.AddSync(l), zapcore.InfoLevel),
		zapcore.NewCore(encoder, zapcore.Lock(os.Stderr), zapcore.DPanicLevel),
	))
}
