package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// What services' commands print fits a screen, however long names are.
func TestServiceTablesFit(t *testing.T) {
	long := strings.Repeat("n", 63)
	p := &frame.Page{}
	seenPage(p, api.Service{Name: "web"}, seenBy{Node: long, View: &protocol.ServicesView{Services: []protocol.ServiceView{{Endpoints: []protocol.ServiceEndpointView{
		{ServiceEndpoint: protocol.ServiceEndpoint{Addr: netip.MustParseAddr("203.113.100.100"), Site: long}, Node: long, Reach: "suspect", Ready: "not ready", Answered: 120 * time.Millisecond, Of: 256, Open: 20000, Why: "its node is suspect"}}}}}})
	p.Table(loadHeader[:len(loadHeader)-1], [][]any{serviceLoad{Service: long, Site: long, Share: 100, Open: 20000, RTT: 0.123}.row()[:len(loadHeader)-1]})
	p.Table([]string{"FROM", "TO"}, [][]any{{switchSites([]string{long, long}), switchSites([]string{long, long, long, long})}})
	for line := range strings.Lines(p.String()) {
		require.LessOrEqual(t, len([]rune(strings.TrimRight(line, "\n"))), 120, line)
	}
}
