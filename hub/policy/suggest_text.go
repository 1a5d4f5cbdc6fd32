package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// suggestionText is a suggestion as a file for 'causeway apply', with what each rule stands on.
func suggestionText(s api.PolicySuggestion, rules []*suggested, beside bool, since, now time.Time) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	seen := "that are known"
	if !since.IsZero() {
		seen = "since " + since.UTC().Format(time.RFC3339)
	}
	line("# Made of %s %s, at %s. Read it first: once a policy is declared, what no rule opens is closed.", counted(s.Flows), seen, now.UTC().Format(time.RFC3339))
	if beside {
		line("# Policies are declared already; this one opens beside them.")
	}
	for _, l := range s.LeftOut {
		line("# Not in it: %s.", protocol.Printable(l))
	}
	line("kind: policy")
	line("name: %s", s.Document.Name)
	line("rules:")
	for _, r := range rules {
		line("# %s, such as %s to %s, %s", counted(r.count()), r.such.From, r.such.To, protocol.PortText(r.such.Proto, r.such.Port))
		across := ""
		if len(r.Across) > 0 {
			across = fmt.Sprintf("across: [%s], ", strings.Join(r.Across, ", "))
		}
		line("- {name: %s, %sfrom: %s, to: %s, allow: [%s]}", r.Name, across, endpointText(r.From), endpointText(r.To), strings.Join(r.Allow, ", "))
	}
	if len(s.Document.Tests) > 0 {
		line("tests:")
	}
	for _, t := range s.Document.Tests {
		line("- {from: %s, to: %s, port: %s, want: open}", quoted(t.From), quoted(t.To), t.Port)
	}
	return b.String()
}

// endpointText is a side in YAML's flow style.
func endpointText(e api.PolicyEndpoint) string {
	var l []string
	if e.Site != "" {
		l = append(l, "site: "+quoted(e.Site))
	}
	if e.Node != "" {
		l = append(l, "node: "+quoted(e.Node))
	}
	for _, k := range slices.Sorted(maps.Keys(e.Labels)) {
		l = append(l, fmt.Sprintf("labels: {%s: %s}", quoted(k), quoted(e.Labels[k])))
	}
	if e.CIDR.IsValid() {
		l = append(l, "cidr: "+quoted(e.CIDR.String()))
	}
	return "{" + strings.Join(l, ", ") + "}"
}

// quoted is text as YAML takes it for text and nothing else.
func quoted(s string) string {
	plain := s != "" && s[0] >= 'a' && s[0] <= 'z' && protocol.ValidName(s) && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, s)
	if plain || strings.Count(s, ".") == 3 && !strings.ContainsAny(s, ": ") {
		return s
	}
	return strconv.Quote(s)
}
