package service

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"causeway/protocol"
)

// judge is one service under work.
type judge struct {
	t     *Table
	d     *Declared
	realm string
	at    *places
	found map[netip.Addr]*Endpoint
	by    map[netip.Addr]protocol.NodeNumber // who says that it has a container's address; 0: two do
	out   []Finding
	more  int // findings that are left out
}

func (j *judge) find(check, format string, args ...any) {
	if len(j.out) == maxFindings {
		j.more++
		return
	}
	j.out = append(j.out, Finding{check, protocol.OneLine(fmt.Sprintf(format, args...), 300)})
}

// work works a service out. before is what it came to before; nil: nothing yet. What is the same is that.
func (t *Table) work(d *Declared, before *Result) *Result {
	segment := t.world.segment(d)
	realm := t.world.realmOf(segment)
	j := &judge{t: t, d: d, realm: realm, at: t.world.places[realm], found: map[netip.Addr]*Endpoint{}, by: map[netip.Addr]protocol.NodeNumber{}}
	for _, b := range d.Backends {
		switch {
		case b.Node != "":
			j.node(b)
		case len(b.Addresses) > 0:
			j.addresses(b)
		default:
			j.containers(b)
		}
	}
	r := &Result{Declared: *d, at: segment}
	for _, e := range j.found {
		r.Endpoints = append(r.Endpoints, *e)
	}
	slices.SortFunc(r.Endpoints, compareEndpoints)
	j.keepAway(r)
	clients := t.world.clients[segment]
	extra := map[protocol.NodeNumber]bool{}
	for _, e := range r.Endpoints {
		for _, n := range e.Nodes {
			if _, is := slices.BinarySearch(clients, n); !is {
				extra[n] = true
			}
		}
	}
	r.extra = slices.Sorted(maps.Keys(extra))
	same := before != nil && before.Generation == d.Generation
	switch {
	case same && sameTold(before.Endpoints, r.Endpoints):
		r.item = before.item
	default:
		if r.item = j.item(r); same && bytes.Equal(r.item.Body, before.item.Body) {
			r.item = before.item
		}
	}
	j.surplus(r)
	j.empty(r)
	j.public(r)
	if j.more > 0 {
		j.out = append(j.out, Finding{j.out[len(j.out)-1].Check, fmt.Sprintf("and %d findings more", j.more)})
	}
	r.Findings = j.out
	if same && before.item == r.item && before.at == r.at && slices.Equal(before.extra, r.extra) &&
		slices.Equal(before.Findings, r.Findings) && slices.EqualFunc(before.Endpoints, r.Endpoints, sameEndpoint) {
		return before
	}
	return r
}

// sameTold reports whether nodes are told of the same endpoints.
func sameTold(a, b []Endpoint) bool {
	return slices.EqualFunc(a, b, func(a, b Endpoint) bool {
		return a.ServiceEndpoint == b.ServiceEndpoint && (a.Away == "") == (b.Away == "")
	})
}

// add notes an endpoint that nodes carry.
func (j *judge) add(a netip.Addr, site, name string, nodes ...*Node) {
	if j.found[a] != nil {
		return // another backend means it, too
	}
	if name == "" {
		name = addrLabel(a)
	}
	e := &Endpoint{ServiceEndpoint: protocol.ServiceEndpoint{Addr: a, Site: site, Name: name}}
	for _, n := range nodes {
		e.Nodes = append(e.Nodes, n.Number)
	}
	slices.Sort(e.Nodes)
	j.found[a] = e
}

// node adds a node itself.
func (j *judge) node(b protocol.ServiceBackend) {
	n := j.t.world.names[b.Node]
	switch {
	case n == nil:
		j.find(CheckNobody, "node %s is gone", b.Node)
	case n.Away:
		j.find(CheckNobody, "node %s is in quarantine, or was never seen", b.Node)
	case j.t.world.realm[n] != j.realm:
		j.find(CheckNoRoute, "node %s is of another segment than its clients, and no rule joins the two", b.Node)
	default:
		for _, a := range n.Own {
			j.add(a, n.Site, n.Name, n)
		}
	}
}

// addresses adds those that are carried at their site.
func (j *judge) addresses(b protocol.ServiceBackend) {
	for _, a := range b.Addresses {
		if own := j.at.ownerOf(a); own != nil {
			j.find(CheckNoRoute, "%s is node %s itself; say node: %s", a, own.Name, own.Name)
			continue
		}
		l := j.at.carriers(a)
		switch at := slices.DeleteFunc(slices.Clone(l), func(n *Node) bool { return n.Site != b.Site }); {
		case len(l) == 0:
			j.find(CheckNoRoute, "%s: no node of %s carries it", a, b.Site)
		case len(at) == 0:
			j.find(CheckNoRoute, "%s: no node of %s carries it, but %s of %s does", a, b.Site, l[0].Name, l[0].Site)
		default:
			j.add(a, b.Site, "", at...)
		}
	}
}

// containers adds those that a selector means.
func (j *judge) containers(b protocol.ServiceBackend) {
	where := ""
	if b.Site != "" {
		where = " at " + b.Site
	}
	matched, astray, apart := 0, 0, 0
	var first string
	var twice []netip.Addr
	for n, l := range j.t.having(b.Selector) {
		node := j.t.world.nodes[n]
		if node == nil || node.Away || b.Site != "" && node.Site != b.Site {
			continue
		}
		for _, c := range l {
			if !c.has(b.Selector) {
				continue
			}
			matched++
			if j.t.world.realm[node] != j.realm {
				apart++
				continue
			}
			for _, a := range c.Addrs {
				a = a.Unmap().WithZone("")
				if !a.IsGlobalUnicast() || j.at.ownerOf(a) != nil {
					continue
				}
				if !slices.Contains(j.at.carriers(a), node) {
					if what := fmt.Sprintf("container %s of %s has %s", protocol.OneLine(c.Name, 64), node.Name, a); first == "" || what < first {
						first = what
					}
					astray++
					continue
				}
				switch by, said := j.by[a]; {
				case said && by == 0:
				case said && by != n:
					delete(j.found, a)
					j.by[a] = 0
					twice = append(twice, a)
				default:
					j.by[a] = n
					j.add(a, node.Site, c.label(), node)
				}
			}
		}
	}
	slices.SortFunc(twice, netip.Addr.Compare)
	for _, a := range twice {
		j.find(CheckNoRoute, "%s is said to be of containers at two nodes", a)
	}
	text := labelsText(b.Selector)
	if matched == 0 {
		j.find(CheckNobody, "no running container%s has %s", where, text)
	}
	if astray > 0 {
		j.find(CheckNoRoute, "%s, which that node does not carry (%d addresses of containers with %s)", first, astray, text)
	}
	if apart > 0 {
		j.find(CheckNoRoute, "%d containers with %s are at nodes of another segment than its clients, and no rule joins the two", apart, text)
	}
}

func labelsText(m map[string]string) string {
	var l []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		l = append(l, k+"="+m[k])
	}
	return strings.Join(l, ", ")
}

// keepAway says which endpoints nodes are not told of.
func (j *judge) keepAway(r *Result) {
	n := 0
	for i := range r.Endpoints {
		e := &r.Endpoints[i]
		switch {
		case len(j.d.Stay) > 0 && !slices.Contains(j.d.Stay, e.Site):
			e.Away = "it may not leave " + strings.Join(j.d.Stay, ", ")
		case j.d.Mode == protocol.ServiceSingleWriter && e.Site != j.d.Writer && e.Site != j.d.To && !slices.Contains(j.d.Fenced, e.Site): // those are told so that flows to them end
			e.Away = "the writer is " + j.d.Writer
		case n >= protocol.MaxServiceEndpoints:
			e.Away = surplus
		default:
			n++
		}
	}
}

const surplus = "surplus"

func (j *judge) surplus(r *Result) {
	n := 0
	for _, e := range r.Endpoints {
		if e.Away == surplus {
			n++
		}
	}
	if n > 0 {
		j.find(CheckSurplus, "%d endpoints are more than %d, and nodes are not told of them", n, len(r.Endpoints)-n)
	}
}

// empty says that nobody serves it, and why.
func (j *judge) empty(r *Result) {
	if slices.ContainsFunc(r.Endpoints, r.Used) {
		return
	}
	why := "it has no backends"
	switch i := slices.IndexFunc(r.Endpoints, func(e Endpoint) bool { return e.Away == "" }); {
	case i >= 0:
		if why = "every site with backends is excluded"; j.d.To != "" {
			why = "it is being switched from " + j.d.Writer + " to " + j.d.To
		} else if j.d.Mode == protocol.ServiceSingleWriter && !slices.Contains(j.d.Exclude, j.d.Writer) {
			why = "no backend is at the writer, " + j.d.Writer
		}
	case len(r.Endpoints) > 0:
		why = fmt.Sprintf("none of its %d backends is used: %s", len(r.Endpoints), r.Endpoints[0].Away)
	case len(j.out) > 0:
		why = j.out[0].Text
	}
	f := Finding{CheckEmpty, protocol.OneLine("nobody takes its connections: "+why, 300)}
	j.out = append([]Finding{f}, j.out...)
}

// item is what nodes are told of a service. Endpoints that it has no room for are a surplus.
func (j *judge) item(r *Result) *protocol.Item {
	i := protocol.ServiceItem{Service: j.d.Service, Epoch: j.d.Epoch}
	i.Backends = nil
	for _, e := range r.Endpoints {
		if e.Away == "" {
			i.Endpoints = append(i.Endpoints, e.ServiceEndpoint)
		}
	}
	for {
		body, err := json.Marshal(i)
		if err != nil { // it holds nothing that does not encode
			panic(fmt.Sprintf("encode service %s: %v", j.d.Name, err))
		}
		if len(body) <= protocol.MaxItemBody || len(i.Endpoints) == 0 {
			return &protocol.Item{Kind: protocol.ItemService, Name: j.d.Name, Generation: j.d.Generation, Body: body}
		}
		i.Endpoints = i.Endpoints[:len(i.Endpoints)*9/10]
		n := len(i.Endpoints)
		for k := range r.Endpoints {
			if e := &r.Endpoints[k]; e.Away == "" {
				if n--; n < 0 {
					e.Away = surplus
				}
			}
		}
	}
}
