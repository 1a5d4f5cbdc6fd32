package explain

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"

	"causeway/protocol"
)

// maxText bounds a text of an agent's.
const maxText = 300

// ParseEvidence reads what an agent answered, bounded and in plain text: an agent that was
// taken over shall not write on an admin's terminal.
func ParseEvidence(b []byte) (protocol.Evidence, error) {
	var e protocol.Evidence
	if len(b) > protocol.MaxEvidence {
		return e, fmt.Errorf("evidence of %d bytes, limit %d", len(b), protocol.MaxEvidence)
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return protocol.Evidence{}, fmt.Errorf("read evidence: %w", err)
	}
	text := func(l ...*string) {
		for _, s := range l {
			*s = protocol.OneLine(*s, maxText)
		}
	}
	lines := func(l *[]string) {
		cut(l)
		for i := range *l {
			text(&(*l)[i])
		}
	}
	cut(&e.Conditions)
	for i := range e.Conditions {
		text(&e.Conditions[i].Name, &e.Conditions[i].Cause, &e.Conditions[i].Note)
		lines(&e.Conditions[i].DependsOn)
	}
	cut(&e.Refused)
	for i := range e.Refused {
		text(&e.Refused[i].Prefix, &e.Refused[i].Kind, &e.Refused[i].Name, &e.Refused[i].Reason)
	}
	lines(&e.Errors)
	own := func(l ...*protocol.Own) {
		for _, o := range l {
			text(&o.Link)
			o.Via = o.Via.WithZone("")
			lines(&o.Needs)
		}
	}
	cut(&e.Takes)
	for i := range e.Takes {
		own(&e.Takes[i])
	}
	if e.Stays != nil {
		own(e.Stays)
	}
	pings := func(l ...*protocol.TunnelPing) {
		for _, p := range l {
			if p != nil {
				text(&p.Error)
			}
		}
	}
	pings(e.Reach)
	cut(&e.Probes)
	for i := range e.Probes {
		pings(&e.Probes[i])
	}
	for _, l := range []*[]protocol.Way{&e.Ways, &e.Underlay.Hub} {
		cut(l)
		for i := range *l {
			w := &(*l)[i]
			w.Kind = protocol.PathKind(protocol.OneLine(string(w.Kind), 16))
			w.Addr = plain(w.Addr)
			text(&w.Suspect)
		}
	}
	if e.Path != nil {
		e.Path.Name, e.Path.Path, e.Path.Addr = protocol.OneLine(e.Path.Name, 64), protocol.PathKind(protocol.OneLine(string(e.Path.Path), 16)), plain(e.Path.Addr)
	}
	w := &e.Flow
	text(&w.Interface, &w.Error, &w.Out.From, &w.Out.To, &w.Out.Error, &w.In.From, &w.In.To, &w.In.Error)
	for _, l := range []*[]protocol.PolicyRule{&w.Out.Stolen, &w.In.Stolen} {
		cut(l)
		for i := range *l {
			text(&(*l)[i].Text)
			cut(&(*l)[i].Own)
		}
	}
	lines(&w.Rules)
	lines(&w.Missing)
	lines(&w.Settings)
	cut(&w.Drops)
	for i := range w.Drops {
		d := &w.Drops[i]
		text(&d.Way, &d.Hook, &d.Chain, &d.Rule)
	}
	connects := func(l ...*protocol.Connect) {
		for _, c := range l {
			if c != nil {
				text(&c.Result)
				c.From = c.From.WithZone("")
			}
		}
	}
	connects(e.Connect)
	if p := e.Pod; p != nil {
		text(&p.Interface, &p.Neighbour, &p.MAC)
		p.Beside = p.Beside.WithZone("")
		lines(&p.MACs)
		pings(p.Near, p.Far)
		connects(p.Connect)
		cut(&p.Spaces)
		for i := range p.Spaces {
			text(&p.Spaces[i].Command)
			p.Spaces[i].Gateway = p.Spaces[i].Gateway.WithZone("")
			lines(&p.Spaces[i].Listeners)
		}
	}
	cut(&e.Names)
	for i := range e.Names {
		n := &e.Names[i]
		text(&n.Name, &n.Error)
		for _, l := range []*[]netip.Addr{&n.Addrs, &n.Used} {
			cut(l)
			for i := range *l {
				(*l)[i] = (*l)[i].WithZone("")
			}
		}
	}
	maps.DeleteFunc(e.Drops, func(r protocol.DropReason, _ uint64) bool { return !r.Known() })
	if e.Disk != nil {
		text(&e.Disk.Path)
	}
	pings(e.Underlay.PeerHost)
	text(&e.Underlay.PeerPort)
	return e, nil
}

func cut[T any](l *[]T) { *l = (*l)[:min(len(*l), protocol.MaxEvidenceLines)] }

// plain is an address without its zone, which may be any text.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
