// Package dns answers public names: of a zone of the operator's, for anybody, with the addresses of sites where services are
// served now.
//
//	s := dns.New(dns.Config{Zone: zone})
//	s.Set(view) // as often as something changes; before the first time everybody is told to ask again
//	err = s.Serve(ctx, udp, tcp) // until ctx ends
//
// It is authoritative and nothing else: it asks nobody, and refuses what is outside its zone. What it answers is a pure function
// of view, message and a number (answer.go); sockets and their bounds are in server.go, and who asks too much in limit.go.
package dns

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"causeway/protocol"
)

// Bounds of a zone.
const (
	maxZone        = 120 // bytes of its name: a public name below it fits into DNS
	maxNameServers = 8
)

// Zone is a zone that is answered.
type Zone struct {
	Name    string // with a dot at its end, in small letters
	Servers []NameServer
}

// NameServer is where a zone is asked for.
type NameServer struct {
	Name  string       // with a dot at its end
	Addrs []netip.Addr // of one within the zone, which nobody else would know
}

// ParseZone reads a zone's name and its name servers, NAME or NAME=ADDRESS for each, separated by commas.
func ParseZone(name, servers string) (Zone, error) {
	z := Zone{Name: strings.ToLower(dns.Fqdn(name))}
	if !hostName(z.Name) || len(z.Name) > maxZone || strings.Count(z.Name, ".") < 2 {
		return z, fmt.Errorf("dns-zone %.140q: give a zone of yours of at most %d bytes, such as lb.example.com", name, maxZone)
	}
	at := map[string]int{}
	for text := range strings.SplitSeq(servers, ",") {
		text = strings.TrimSpace(text)
		server, addr, given := strings.Cut(text, "=")
		x := NameServer{Name: strings.ToLower(dns.Fqdn(server))}
		inside := strings.HasSuffix(x.Name, "."+z.Name)
		switch {
		case !hostName(x.Name) || x.Name == z.Name:
			return z, fmt.Errorf("dns-ns %.80q: give the name of a name server, such as ns1.example.com", text)
		case inside && !given:
			return z, fmt.Errorf("dns-ns %.80q: it is within %s, so say its address: %s=ADDRESS", text, z.Name, strings.TrimSuffix(x.Name, "."))
		}
		if given {
			a, err := netip.ParseAddr(addr)
			if err != nil || a.Zone() != "" || !a.IsGlobalUnicast() || !inside {
				return z, fmt.Errorf("dns-ns %.120q: NAME=ADDRESS is for a name within %s, with an address that the outside reaches", text, z.Name)
			}
			x.Addrs = []netip.Addr{a.Unmap()}
		}
		if i, twice := at[x.Name]; twice {
			z.Servers[i].Addrs = append(z.Servers[i].Addrs, x.Addrs...)
		} else {
			at[x.Name] = len(z.Servers)
			z.Servers = append(z.Servers, x)
		}
		if len(z.Servers) > maxNameServers || len(z.Servers[at[x.Name]].Addrs) > maxNameServers {
			return z, fmt.Errorf("dns-ns: more than %d", maxNameServers)
		}
	}
	return z, nil
}

// hostName reports whether a name, with a dot at its end, is made of labels as hosts have them.
func hostName(s string) bool {
	s, ok := strings.CutSuffix(s, ".")
	if !ok || len(s) > 250 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !protocol.ValidName(label) {
			return false
		}
	}
	return true
}

// View is what is answered now. Nothing that it points to is changed once it was set.
type View struct {
	Serial uint32 // of the zone; grows with what is declared
	Names  map[string]Name
}

// Name is a public name, found in a View by its part below the zone.
type Name struct {
	TTL       uint32 // seconds
	Four, Six Addresses
}

// Addresses are what a name has of one family: the addresses of the site of one of the slots.
type Addresses struct {
	Sites [][]netip.Addr
	Slots []uint8 // each a place in Sites; without any there is nothing
}

// zone is a view that can be asked.
type zone struct {
	Zone
	view   View
	within map[string]bool // names that only have others below them
	own    map[string][]netip.Addr
}

func newZone(z Zone, v View) *zone {
	out := &zone{Zone: z, view: v, within: map[string]bool{}, own: map[string][]netip.Addr{}}
	above := func(name string) {
		for {
			_, rest, more := strings.Cut(name, ".")
			if !more {
				return
			}
			out.within[rest] = true
			name = rest
		}
	}
	for name := range v.Names {
		above(name)
	}
	for _, s := range z.Servers {
		if name, inside := strings.CutSuffix(s.Name, "."+z.Name); inside {
			out.own[name] = s.Addrs
			above(name)
		}
	}
	return out
}
