package debug

import (
	"io"
	"sync"

	"github.com/rs/zerolog"
)

// logQueue is how many lines wait for a reader; more are dropped and counted.
const logQueue = 512

// Logs writes the process's log and lets others follow it for a while, at a
// lower level too if they wish. Below its level nothing is formatted while
// nobody follows. It sets zerolog's global level, so a process has one.
type Logs struct {
	out   io.Writer
	level zerolog.Level

	mu   sync.Mutex
	subs map[*follower]struct{}
}

type follower struct {
	level   zerolog.Level
	lines   chan []byte
	dropped int
}

// NewLogs writes to out from level on.
func NewLogs(out io.Writer, level zerolog.Level) *Logs {
	zerolog.SetGlobalLevel(level)
	return &Logs{out: out, level: level, subs: map[*follower]struct{}{}}
}

// Logger is the process's logger.
func (l *Logs) Logger() zerolog.Logger {
	return zerolog.New(l).Level(zerolog.TraceLevel).With().Timestamp().Logger()
}

// Write implements io.Writer, for lines without a level.
func (l *Logs) Write(p []byte) (int, error) { return l.WriteLevel(zerolog.NoLevel, p) }

// WriteLevel implements zerolog.LevelWriter. It never waits for a follower.
func (l *Logs) WriteLevel(level zerolog.Level, p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f := range l.subs {
		if level < f.level {
			continue
		}
		select {
		case f.lines <- append([]byte(nil), p...):
		default:
			f.dropped++
		}
	}
	if level < l.level {
		return len(p), nil
	}
	return l.out.Write(p)
}

// follow gives lines from level on until stop is called, which says how many
// were dropped.
func (l *Logs) follow(level zerolog.Level) (lines <-chan []byte, stop func() int) {
	f := &follower{level: level, lines: make(chan []byte, logQueue)}
	l.mu.Lock()
	l.subs[f] = struct{}{}
	l.setGlobal()
	l.mu.Unlock()
	return f.lines, func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.subs, f)
		l.setGlobal()
		return f.dropped
	}
}

// setGlobal makes zerolog format what somebody wants. l.mu is held.
func (l *Logs) setGlobal() {
	level := l.level
	for f := range l.subs {
		level = min(level, f.level)
	}
	zerolog.SetGlobalLevel(level)
}
