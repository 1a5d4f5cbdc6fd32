package fleet

import (
	"maps"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// Bounds of what agents report, beyond the size of a message.
const (
	MaxText       = 300 // of one text
	maxConditions = 64
	maxPaths      = 10000
	maxAddrs      = 64
	maxParts      = 256
)

// CleanHello makes what a hello says fit for a terminal and bounds it. The rules of the state hold for the rest.
func CleanHello(h *protocol.Hello) {
	h.AgentVersion, h.Engine = protocol.OneLine(h.AgentVersion, 64), protocol.OneLine(h.Engine, 32)
	h.Features = h.Features[:min(len(h.Features), maxParts)]
	for i := range h.Features {
		h.Features[i] = protocol.OneLine(h.Features[i], 64)
	}
	maps.DeleteFunc(h.Labels, func(k, v string) bool { return protocol.CheckLabel(k, v) != nil })
	if len(h.Labels) > protocol.MaxNodeLabels {
		h.Labels = nil
	}
}

// CleanStatus is as CleanHello.
func CleanStatus(st *protocol.Status) {
	st.Candidates = st.Candidates[:min(len(st.Candidates), maxAddrs)]
	st.Paths = st.Paths[:min(len(st.Paths), maxPaths)]
	for i := range st.Paths {
		st.Paths[i].Name = protocol.OneLine(st.Paths[i].Name, 64)
		at := st.Paths[i].Addr
		st.Paths[i].Addr = netip.AddrPortFrom(at.Addr().WithZone(""), at.Port()) // a zone may be any text
		st.Paths[i].Path = protocol.PathKind(protocol.OneLine(string(st.Paths[i].Path), 16))
	}
	st.Conditions = st.Conditions[:min(len(st.Conditions), maxConditions)]
	for i := range st.Conditions {
		c := &st.Conditions[i]
		c.Name, c.Cause = protocol.OneLine(c.Name, 64), protocol.OneLine(c.Cause, MaxText)
		c.Note = protocol.OneLine(c.Note, MaxText)
		c.DependsOn = c.DependsOn[:min(len(c.DependsOn), maxConditions)]
		for j := range c.DependsOn {
			c.DependsOn[j] = protocol.OneLine(c.DependsOn[j], 64)
		}
	}
	st.Services = slices.DeleteFunc(st.Services[:min(len(st.Services), protocol.MaxServiceReadiness)], func(r protocol.ServiceReadiness) bool {
		return !protocol.ValidName(r.Service) || !r.Addr.IsValid() || r.Ready > protocol.NotReady
	})
	for i := range st.Services {
		r := &st.Services[i]
		r.Addr, r.Cause = r.Addr.Unmap().WithZone(""), protocol.OneLine(r.Cause, protocol.MaxReadinessCause)
	}
	st.Fences = slices.DeleteFunc(st.Fences[:min(len(st.Fences), protocol.MaxServiceFences)], func(f protocol.ServiceFence) bool { return !protocol.ValidName(f.Service) })
	st.Upgrade = cleanUpgrade(st.Upgrade)
}

// CleanAck is as CleanHello.
func CleanAck(a *protocol.NetmapAck) {
	a.Refused = a.Refused[:min(len(a.Refused), maxParts)]
	for i := range a.Refused {
		a.Refused[i].Prefix, a.Refused[i].Reason = protocol.OneLine(a.Refused[i].Prefix, 64), protocol.OneLine(a.Refused[i].Reason, MaxText)
		a.Refused[i].Kind, a.Refused[i].Name = protocol.OneLine(a.Refused[i].Kind, 64), protocol.OneLine(a.Refused[i].Name, 64)
	}
	a.Lost = a.Lost[:min(len(a.Lost), maxParts)]
	for i := range a.Lost {
		a.Lost[i].Name, a.Lost[i].Site = protocol.OneLine(a.Lost[i].Name, 64), protocol.OneLine(a.Lost[i].Site, 64)
	}
	a.Errors = a.Errors[:min(len(a.Errors), maxConditions)]
	for i := range a.Errors {
		a.Errors[i] = protocol.OneLine(a.Errors[i], MaxText)
	}
}

func cleanUpgrade(u *protocol.UpgradeStatus) *protocol.UpgradeStatus {
	if u == nil || u.ID == 0 {
		return nil
	}
	return &protocol.UpgradeStatus{UpgradeWish: protocol.UpgradeWish{ID: u.ID, Version: protocol.OneLine(u.Version, 64)},
		State: protocol.UpgradeState(protocol.OneLine(string(u.State), 16)), Error: protocol.OneLine(u.Error, MaxText)}
}
