package service

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"causeway/protocol"
)

// CheckPublic is the check of what keeps a public name from leading to a service.
const CheckPublic = "service-public"

// Word is what the hub knows of an endpoint, the better the greater.
type Word uint8

// Words on endpoints.
const (
	SaidNo   Word = iota // a node that carries it says that it is not ready, or said so last
	Away                 // none that carries it is heard, and none had said no
	Silent               // one is heard, and has not told of it yet
	SaysWell             // one finds it ready
)

// PublicAddresses are what a public name has of one family: the addresses of the site of one of the slots. Without slots there is
// nothing to answer.
type PublicAddresses struct {
	Sites []PublicSite
	Slots []uint8 // each a place in Sites
}

// PublicSite is a site that is answered.
type PublicSite struct {
	Site  string
	Addrs []netip.Addr
}

// Percent is the share of a site among the answers.
func (p PublicAddresses) Percent(site int) int {
	n := 0
	for _, s := range p.Slots {
		if int(s) == site {
			n++
		}
	}
	return (100*n + len(p.Slots)/2) / max(1, len(p.Slots))
}

// Answered is what the public name of a service has: addresses of sites with a backend that serves, by the service's own order and
// weights. Of the backends of all sites those count of which the word is best, so that nobody is left without an answer because
// nobody knows; where all said no all sites are answered, as if none had been asked: what is there may still say so by itself, and
// is back without waiting for a resolver. Excluded sites are never answered.
func (r *Result) Answered(v6 bool, word func(Endpoint) Word) (out PublicAddresses) {
	if !r.Public.Said() {
		return out
	}
	at := map[string][]netip.Addr{}
	for site, l := range r.Public.Addresses {
		if of := slices.DeleteFunc(slices.Clone(l), func(a netip.Addr) bool { return a.Is6() != v6 }); len(of) > 0 {
			at[site] = of
		}
	}
	var l []protocol.Candidate
	var words []Word
	best := SaidNo
	for _, e := range r.Endpoints {
		if e.Away == "" && at[e.Site] != nil {
			w := word(e)
			l, words = append(l, protocol.Candidate{Addr: e.Addr, Site: e.Site, Ramp: 100}), append(words, w)
			if r.Used(e) {
				best = max(best, w)
			}
		}
	}
	for i := range l {
		l[i].Use = words[i] == best
	}
	if best == SaidNo {
		l = nil
		for _, site := range slices.Sorted(maps.Keys(at)) {
			l = append(l, protocol.Candidate{Addr: at[site][0], Site: site, Use: true, Ramp: 100})
		}
	}
	place := map[string]uint8{}
	for _, i := range r.Distribute("", l) {
		site := l[i].Site
		n, known := place[site]
		if !known {
			n = uint8(len(out.Sites)) // at most MaxServiceSites
			place[site] = n
			out.Sites = append(out.Sites, PublicSite{site, at[site]})
		}
		out.Slots = append(out.Slots, n)
	}
	return out
}

// public says what is wrong with the public name.
func (j *judge) public(r *Result) {
	if !j.d.Public.Said() {
		return
	}
	var without []string
	for site := range j.d.Public.Addresses {
		if !slices.ContainsFunc(r.Endpoints, func(e Endpoint) bool { return e.Site == site && e.Away == "" }) {
			without = append(without, site)
		}
	}
	if len(without) > 0 && len(r.Endpoints) > 0 {
		slices.Sort(without)
		j.find(CheckPublic, "public name %s: no backend serves at %s, whose addresses are answered only while nobody else serves", j.d.Public.Name, strings.Join(without, ", "))
	}
}

// comparePublic says which of two services has a public name that both declare: who was there first.
func comparePublic(a, b *Result) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
}

// PublicNames are the services that have a public name, by it.
func (t *Told) PublicNames() map[string]*Result {
	out := map[string]*Result{}
	for _, r := range t.Services {
		if p := r.Public; p.Said() && (out[p.Name] == nil || comparePublic(r, out[p.Name]) < 0) {
			out[p.Name] = r
		}
	}
	return out
}
