package relay

import (
	"causeway/protocol"
	"causeway/tunnel/underlay/probe"
)

// arrivals counts what a reader received, in few steps: datagrams of one length from one
// address mostly come together. The zero value has counted nothing.
type arrivals struct {
	tally       *probe.Tally
	kind        protocol.MessageType
	size, count int
}

func (a *arrivals) add(tally *probe.Tally, kind protocol.MessageType, size int) {
	if a.count > 0 && (a.tally != tally || a.kind != kind || a.size != size) {
		a.flush()
	}
	a.tally, a.kind, a.size = tally, kind, size
	a.count++
}

// flush makes what was counted visible.
func (a *arrivals) flush() {
	if a.count > 0 {
		a.tally.Received(a.kind, a.count*a.size, a.size)
		a.count = 0
	}
}
