package debug

import (
	"encoding/json"
	"net/http"
	"net/netip"

	"github.com/vishvananda/netlink"

	"causeway/protocol"
)

func (s *Server) trace(w http.ResponseWriter, r *http.Request) {
	release, ok := take(w, s.pings)
	if !ok {
		return
	}
	defer release()
	var q protocol.TraceQuestion
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&q); err != nil {
		fail(w, http.StatusBadRequest, "body is no trace request: "+err.Error())
		return
	}
	if q.Count == 0 {
		q.Count = 3
	}
	if q.Count < 1 || q.Count > protocol.MaxTracePings || !q.Peer.Valid() || q.From.Zone() != "" || q.To.Zone() != "" {
		fail(w, http.StatusBadRequest, "peer has to be a node's number, from and to addresses, count 1 to 10")
		return
	}
	reply(w, http.StatusOK, s.cfg.Trace(r.Context(), q))
}

// RouteTo asks the kernel where a packet to dst goes: the host's own, or one that
// came from the pod from if that is valid. It works in the namespace of the
// calling thread.
func RouteTo(from, dst netip.Addr) (h protocol.HostRoute) {
	o := &netlink.RouteGetOptions{}
	if from.IsValid() {
		behind, err := netlink.RouteGet(from.AsSlice())
		if err != nil || len(behind) == 0 {
			h.Error = "no route to " + from.String()
			return h
		}
		if l, err := netlink.LinkByIndex(behind[0].LinkIndex); err == nil && behind[0].Type == 1 && l.Attrs().Name != "lo" {
			o.Iif, o.SrcAddr = l.Attrs().Name, from.AsSlice()
		}
	}
	found, err := netlink.RouteGetWithOptions(dst.AsSlice(), o)
	if err != nil || len(found) == 0 {
		h.Error = "no route to " + dst.String()
		if err != nil {
			h.Error += ": " + err.Error()
		}
		return h
	}
	f := found[0]
	h.Table, h.MTU = f.Table, f.MTU
	h.Source, h.Gateway = addrOf(f.Src), addrOf(f.Gw)
	if l, err := netlink.LinkByIndex(f.LinkIndex); err == nil {
		h.Interface = l.Attrs().Name
		if h.MTU == 0 {
			h.MTU = l.Attrs().MTU
		}
	}
	return h
}
