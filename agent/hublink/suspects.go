package hublink

import (
	"fmt"
	"strings"

	"causeway/protocol"
)

// suspectsTold bounds how many paths the condition names.
const suspectsTold = 3

// suspectText says for a person which paths are left alone although probes are answered
// over them; empty: none.
func suspectText(l []protocol.SuspectPath) string {
	var out []string
	for _, s := range l[:min(len(l), suspectsTold)] {
		to := s.Name
		if to == "" {
			to = fmt.Sprintf("hub %d", s.Peer)
		}
		at := ""
		if s.Addr.IsValid() {
			at = " by " + s.Addr.String()
		}
		way := string(s.Path)
		if s.Name == "" {
			way = "UDP"
		}
		instead := map[protocol.PathKind]string{protocol.PathRelay: "the relay carries instead", protocol.PathStream: "a stream over TCP carries instead",
			protocol.PathDirect: "another direct path carries instead"}[s.Instead]
		if instead == "" {
			instead = "nothing else carries"
		}
		out = append(out, fmt.Sprintf("the %s path to %s%s is left alone: %s; %s, and it is tried again", way, to, at, s.Why, instead))
	}
	if more := len(l) - len(out); more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return strings.Join(out, "; ")
}
