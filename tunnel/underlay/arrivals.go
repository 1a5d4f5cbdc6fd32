package underlay

import "causeway/protocol"

// arrivals counts what a reader received, in few steps: datagrams of one length from one
// source mostly come together. The zero value has counted nothing.
type arrivals struct {
	from        source
	who         *remote
	kind        protocol.MessageType
	size, count int
}

// add counts one message of who, that came from a source. who is nil where nobody here is known
// by its number: the other end of the way counts it as sent all the same.
func (a *arrivals) add(from source, who *remote, kind protocol.MessageType, size int) {
	if a.count > 0 && (a.from != from || a.who != who || a.kind != kind || a.size != size) {
		a.flush()
	}
	a.from, a.who, a.kind, a.size = from, who, kind, size
	a.count++
}

// flush makes what was counted visible.
func (a *arrivals) flush() {
	if a.count == 0 {
		return
	}
	n := a.count * a.size
	a.from.tally.Received(a.kind, n, a.size)
	if a.who != nil && a.from.hub && a.who != a.from.remote {
		for _, r := range a.who.route.Load().Relays {
			if r.Hub == a.from.number {
				r.Tally.Received(a.kind, n, a.size)
			}
		}
	}
	*a = arrivals{}
}
