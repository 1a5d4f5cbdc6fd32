package config

import "sync/atomic"

// Live is the configuration of a running agent, of which a part may change. Its methods may be
// called concurrently.
type Live struct{ now atomic.Pointer[Config] }

// NewLive begins with c.
func NewLive(c Config) *Live {
	l := &Live{}
	l.now.Store(&c)
	return l
}

// Now is what holds now. What it points to is never changed.
func (l *Live) Now() Config { return *l.now.Load() }

// Reload takes of c what a running agent can, and names what needs a restart.
func (l *Live) Reload(c Config) (later []string) {
	now := l.Now()
	later = now.NeedsRestart(c)
	now.Routes, now.Accept, now.Named, now.Release, now.Labels, now.Upgrade, now.Shields, now.DNS, now.Expose = c.Routes, c.Accept, c.Named, c.Release, c.Labels, c.Upgrade, c.Shields, c.DNS, c.Expose
	l.now.Store(&now)
	return later
}
