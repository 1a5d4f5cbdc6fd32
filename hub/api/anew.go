package api

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"causeway/protocol"
)

// mostAnew bounds the routes and labels that stand in a command line.
const mostAnew = 12

var plainLabel = regexp.MustCompile(`^[A-Za-z0-9._:/+@=-]+$`)

// TokenAnew is the command line that makes a token by which a host takes the place of n: with the
// routes and labels that n has, since the new node begins with the token's alone.
func TokenAnew(n Node) string {
	l := []string{"causeway token create --site", n.Site, "--replace", n.Name}
	for _, r := range n.Routes {
		if r.State == protocol.RouteApproved {
			l = append(l, "--route", r.Prefix.String())
		}
	}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		label := k + "=" + n.Labels[k]
		if !plainLabel.MatchString(label) {
			label = "'" + strings.ReplaceAll(label, "'", `'\''`) + "'"
		}
		l = append(l, "--label", label)
	}
	if more := (len(l)-4)/2 - mostAnew; more > 0 {
		return strings.Join(l[:4+2*mostAnew], " ") + fmt.Sprintf(" and %d more routes and labels of 'causeway node show %s'", more, n.Name)
	}
	return strings.Join(l, " ")
}

// JoinAnew is the command line by which a host takes the place of a node, or joins again as it, with a token.
func JoinAnew(node string) string { return "causeway-agent join --replace TOKEN --name " + node }
