package main

import (
	"fmt"
	"slices"
	"strings"

	"causeway/hub/api"
)

// publicFacts say how the outside finds a service.
func publicFacts(s api.Service) (out []string) {
	if s.PublicName == "" {
		return nil
	}
	out = append(out, "Public name", fmt.Sprintf("%s, kept %s", s.PublicName, s.Public.TTL))
	var l []string
	for _, a := range s.Answers {
		var addrs []string
		for _, x := range a.Addresses {
			addrs = append(addrs, x.String())
		}
		l = append(l, fmt.Sprintf("%s (%s %d %%)", strings.Join(addrs, ", "), a.Site, a.Percent))
	}
	return slices.Concat(out, []string{"Answered", strings.Join(l, "; ")})
}
