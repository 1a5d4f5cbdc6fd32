package join

import (
	"strings"

	"causeway/protocol"
)

// DefaultName makes a node name of a host name: its first label in lower case,
// anything that a DNS label cannot hold replaced by '-'. It returns "" if
// nothing is left.
func DefaultName(hostname string) string {
	label, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	label = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, label)
	if len(label) > 63 {
		label = label[:63]
	}
	label = strings.Trim(label, "-")
	if !protocol.ValidName(label) {
		return ""
	}
	return label
}
