package service

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// roomEvery is how often it is looked whether the host has room for connections.
	roomEvery = 5 * time.Second
	// It has none from the first on, and has some again below the second, in percent of what the kernel tracks at most.
	roomFull, roomAgain = 95, 90
)

// Tracked is how many connections the kernel tracks of this host's namespace, and how many it tracks at most; ok is false where it does not say.
func Tracked() (n, most int, ok bool) {
	read := func(name string) int {
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
		v, err2 := strconv.Atoi(strings.TrimSpace(string(b)))
		ok = ok && err == nil && err2 == nil
		return v
	}
	ok = true
	n, most = read("count"), read("max")
	return n, most, ok && most > 0
}

// room says that the host has no room for connections: what begins then is lost, to services and all else. before is what it said last.
func room(before error, n, most int) error {
	least := most / 100 * roomFull
	if before != nil {
		least = most / 100 * roomAgain
	}
	if n < least {
		return nil
	}
	return fmt.Errorf("conntrack is full: %d of %d connections, and the host drops new ones; find who opens so many (conntrack -L), or set net.netfilter.nf_conntrack_max higher", n, most)
}

// lookForRoom looks for it from time to time, and says when to do so next.
func (e *Engine) lookForRoom(now time.Time) (next time.Time) {
	if at := e.roomAt.Add(roomEvery); now.Before(at) {
		return at
	}
	e.roomAt = now
	var full error
	if n, most, ok := e.cfg.Tracked(); ok && len(e.placed) > 0 {
		full = room(e.faults[2], n, most)
	}
	if full != nil || e.faults[2] != nil {
		if (full == nil) != (e.faults[2] == nil) {
			e.cfg.Log.Warn().Bool("full", full != nil).Msg("whether conntrack has room for connections")
		}
		e.faults[2] = full
		e.tellFaults()
	}
	return now.Add(roomEvery)
}
