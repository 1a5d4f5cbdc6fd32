package agent

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"causeway/agent/config"
	"causeway/agent/desired"
	"causeway/agent/flows"
	"causeway/agent/health"
	"causeway/agent/hublink"
	"causeway/agent/identity"
	"causeway/agent/onhost"
	"causeway/protocol"
)

// answers is what the agent answers to whoever asks on the host, and to its hub: what it holds,
// what it sees, and what it is asked to try. Its methods may be called concurrently.
type answers struct {
	log     zerolog.Logger
	dir     string // of the state
	version string
	boot    protocol.BootID
	started time.Time

	own    *identity.Own
	live   *config.Live
	board  *health.Board
	want   *desired.Desired
	host   *onhost.Keeper
	link   *hublink.Link
	tunnel Tunnel
	net    Host // for what is found there
	look   Look
	flows  *flows.Watcher

	measuring chan struct{} // holds one while a measurement goes on
	// life is that of the agent, for what outlives the request that began it; stop ends it.
	life context.Context
	stop context.CancelCauseFunc
}
