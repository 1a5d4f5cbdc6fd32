package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/protocol"
)

func flatten(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, s := range c.Commands() {
		all = append(all, flatten(s)...)
	}
	return all
}

// fakeToken is well formed: zeros for id, secret and pin.
var fakeToken = protocol.Token{Addr: "hub.example.net:443"}

// fakeHubList is signed by a key of no hub, and has one hub.
func fakeHubList() protocol.SignedHubList {
	l, err := protocol.HubList{Version: 1, Serial: 7, NotAfter: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC), Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{9},
		UDP: []string{"hub.example.net:51820"}, HTTPS: []string{"hub.example.net:443"}}}}.Sign(protocol.ClusterPrivateKey{1})
	if err != nil {
		panic(err)
	}
	return l
}

// newFakeHub serves two nodes in two sites and refuses what a hub would.
func newFakeHub() http.Handler {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	px := netip.MustParsePrefix
	conditions := []protocol.Condition{
		{Name: "state", OK: true, Since: ago(3 * time.Hour)},
		{Name: "inventory", OK: false, Since: ago(10 * time.Minute), Cause: "stream is full", DependsOn: []string{"disk"}},
	}
	route := api.Route{Node: "sh-1", Site: "idc-sh", Prefix: px("10.201.1.0/24"), State: protocol.RouteApproved, By: "token", Owner: true}
	pending := api.Route{Node: "eu-1", Site: "cloud-eu", Prefix: px("10.202.1.0/24"), State: protocol.RoutePending}
	sites := []api.Site{
		{SiteSpec: api.SiteSpec{Name: "idc-sh", Ranges: []netip.Prefix{px("10.201.0.0/16")}, MaxAge: api.MaxAge(72 * time.Hour)}, Created: ago(72 * time.Hour), Nodes: 1},
		{SiteSpec: api.SiteSpec{Name: "cloud-eu"}, Created: ago(71 * time.Hour), Nodes: 1},
	}
	nodes := []api.Node{{
		Name: "sh-1", Site: "idc-sh", Number: 2, State: api.NodeReady, StateSince: ago(3 * time.Hour), Connected: ago(3 * time.Hour),
		Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd63:7761:7900::2")},
		Paths: []protocol.PathStatus{
			{Peer: 1, Name: "hub", Path: protocol.PathDirect, Addr: netip.MustParseAddrPort("203.0.113.10:51820"), RTT: 21340 * time.Microsecond, Since: ago(3 * time.Hour), RxBytes: 4096, TxBytes: 2048},
			{Peer: 3, Name: "eu-1", Path: protocol.PathRelay, Addr: netip.MustParseAddrPort("203.0.113.10:51820"), RTT: 43 * time.Millisecond, Loss: 0.04, MTU: 1440, Since: ago(5 * time.Minute), RxBytes: 3 << 30, TxBytes: 1 << 20},
		},
		Routes: []api.Route{route}, Labels: map[string]string{"rack": "r12"}, AgentVersion: "v0.1.0", Engine: "inline",
		Underlay: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:40112")}, Joined: ago(72 * time.Hour),
		Netmap: protocol.NetmapVersion{Epoch: 1, Version: 42}, Conditions: []protocol.Condition{{Name: "tunnel", OK: true, Since: ago(3 * time.Hour)}},
		WireGuardKey: "cwwg:AAAA",
	}, {
		Name: "eu-1", Site: "cloud-eu", Number: 3, State: api.NodeUnreachable, StateSince: ago(10 * time.Minute),
		Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.3")}, Reasons: []string{"no control channel\x1b[2J"}, Joined: ago(71 * time.Hour),
		Routes: []api.Route{pending},
	}}
	facts := api.Inventory{Node: "sh-1", Site: "idc-sh", Number: 2, Received: ago(4 * time.Minute), Inventory: protocol.Inventory{
		Version: 1, Sequence: 7, Hostname: "sh-1.example.net", OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-18-amd64", Arch: "amd64",
		CPUModel: "AMD EPYC 7313", CPUs: 2, MemoryTotal: 8 << 30, MemoryUsed: 3 << 30, HostBootTime: ago(50 * time.Hour), AgentVersion: "v0.1.0", Engine: "inline",
		PodCIDRs:   []netip.Prefix{px("10.201.1.0/24")},
		Interfaces: []protocol.Interface{{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1500, Up: true, SpeedMbit: 25000, Addresses: []netip.Prefix{px("192.168.1.10/24")}}, {Name: "eth1", MTU: 9000}},
		Virtual:    "kvm", Cores: 1, Load: &protocol.Load{One: 0.52, Five: 0.4, Fifteen: 0.31},
		Disks:    map[string]protocol.Disk{"/": {Device: "/dev/vda1", Type: "ext4", Total: 40 << 30, Used: 12 << 30}},
		Paths:    map[string]protocol.Path{"3": {Peer: "eu-1", Path: protocol.PathDirect, RTT: 31.2, Loss: 0.02, RxRate: 1 << 20, TxRate: 2048}},
		Runtimes: map[string]protocol.Runtime{"podman": {Kind: "podman", Version: "4.3.1", From: "/run/podman/podman.sock"}, "docker": {Kind: "docker", From: "/run/docker.sock", Error: "ask docker: connection refused"}},
		Containers: map[string]protocol.Container{
			"podman/1": {ID: "1", Runtime: "podman", Name: "web", Image: "example.net/web:1", State: protocol.ContainerRunning, Addresses: []netip.Addr{netip.MustParseAddr("10.201.1.2")},
				CPURequested: 1500, CPUUsed: 240, MemoryRequested: 512 << 20, MemoryUsed: 64 << 20},
			"podman/2": {ID: "2", Runtime: "podman", Name: "batch", Image: "example.net/batch:1", State: protocol.ContainerExited, Addresses: []netip.Addr{}},
		},
		Capacity: &protocol.Capacity{CPU: protocol.AmountOf(2000, 500), Memory: protocol.AmountOf(8<<30, 3<<30), Pods: protocol.AmountOf(253, 1)},
	}}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

	m := http.NewServeMux()
	m.HandleFunc("GET /v1/status", answer(api.Status{
		Hub: api.HubStatus{Version: "v0.1.0", Number: 1, Started: ago(3 * time.Hour), PublicUDP: "203.0.113.10:51820", PublicHTTP: "hub.example.net:443",
			Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}, LogLength: 42},
		Sites:      []api.SiteStatus{{Name: "idc-sh", Nodes: 1, Ready: 1}, {Name: "cloud-eu", Nodes: 1, Unreachable: 1}},
		Conditions: conditions,
		Relay:      api.RelayStatus{Bound: 2, ForwardedBytes: 5 << 30, Forwarded: 4000000, Dropped: map[string]uint64{"unbound": 10, "policy": 2, "malformed": 0}},
	}))
	m.HandleFunc("GET /v1/version", answer(api.Version{Version: "v0.1.0", Protocol: 1}))
	m.HandleFunc("GET /v1/sites", answer(sites))
	m.HandleFunc("GET /v1/sites/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, s := range sites {
			if s.Name == r.PathValue("name") {
				answer(s)(w, r)
				return
			}
		}
		problem(w, 404, "there is no site "+r.PathValue("name"))
	})
	m.HandleFunc("POST /v1/sites", func(w http.ResponseWriter, r *http.Request) {
		var s api.SiteSpec
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			problem(w, 400, err.Error())
		} else if s.Name == "refused" {
			problem(w, 409, "no")
		} else if s.Name == "idc-sh" {
			problem(w, 409, "site idc-sh exists already")
		} else {
			answer(api.Site{SiteSpec: s, Created: now})(w, r)
		}
	})
	m.HandleFunc("PATCH /v1/sites/{name}", func(w http.ResponseWriter, r *http.Request) {
		var p api.SitePatch
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			problem(w, 400, err.Error())
			return
		}
		s := sites[0]
		s.MaxAge, s.RotateKeys = cmp.Or(p.MaxAge, s.MaxAge), cmp.Or(p.RotateKeys, s.RotateKeys)
		if p.Ranges != nil {
			s.Ranges = p.Ranges
		}
		answer(s)(w, r)
	})
	m.HandleFunc("DELETE /v1/sites/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") == "idc-sh" {
			problem(w, 409, "site idc-sh has 1 node: revoke it first")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	m.HandleFunc("POST /v1/apply", fakeApply)
	m.HandleFunc("GET /v1/objects/{kind}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("kind") != "limit" {
			problem(w, 404, "there is no kind "+r.PathValue("kind")+" of objects; there are limit")
			return
		}
		answer([]api.Object{fakeLimit(now), {Kind: "limit", Name: "strange", Spec: json.RawMessage(`{"by":"moon"}`), Created: ago(2 * time.Hour)}})(w, r)
	})
	m.HandleFunc("GET /v1/objects/limit/{name}", answer(fakeLimit(now)))
	m.HandleFunc("DELETE /v1/objects/limit/{name}", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	m.HandleFunc("GET /v1/tokens", answer([]api.Token{
		{TokenSpec: api.TokenSpec{Site: "idc-sh", Routes: []netip.Prefix{px("10.201.1.0/24")}}, ID: "AAAAAAAAAAAAAAAA", Created: ago(72 * time.Hour), Expires: ago(71 * time.Hour), State: "used", UsedBy: "sh-1"},
		{TokenSpec: api.TokenSpec{Site: "cloud-eu"}, ID: "AAAAAAAAAAAAAAAB", Created: ago(5 * time.Minute), Expires: now.Add(55*time.Minute + 30*time.Second), State: "open"},
	}))
	m.HandleFunc("POST /v1/tokens", func(w http.ResponseWriter, r *http.Request) {
		var s api.TokenSpec
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			problem(w, 400, err.Error())
		} else if s.Site != "idc-sh" {
			problem(w, 404, "there is no site "+s.Site)
		} else {
			answer(api.TokenCreated{Text: fakeToken.Text(), Token: api.Token{TokenSpec: s, ID: fakeToken.ID.String(), Created: now, Expires: now.Add(time.Duration(s.TTL)), State: "open"}})(w, r)
		}
	})
	m.HandleFunc("DELETE /v1/tokens/{id}", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	m.HandleFunc("GET /v1/nodes", answer(nodes))
	m.HandleFunc("GET /v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, n := range nodes {
			if n.Name == r.PathValue("name") {
				answer(n)(w, r)
				return
			}
		}
		problem(w, 404, "there is no node "+r.PathValue("name"))
	})
	m.HandleFunc("PATCH /v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		var p api.NodePatch
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			problem(w, 400, err.Error())
			return
		}
		n := nodes[0]
		n.Labels = map[string]string{"rack": "r12"}
		for k, v := range p.Labels {
			if n.Labels[k] = v; v == "" {
				delete(n.Labels, k)
			}
		}
		answer(n)(w, r)
	})
	m.HandleFunc("DELETE /v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	m.HandleFunc("POST /v1/nodes/{name}/release", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "sh-1" {
			problem(w, 409, "node "+r.PathValue("name")+" is not in quarantine")
			return
		}
		answer(nodes[0])(w, r)
	})
	m.HandleFunc("GET /v1/nodes/{name}/revocation", func(w http.ResponseWriter, r *http.Request) {
		rev := api.Revocation{Node: r.PathValue("name"), Number: 2, Revoked: at, Cut: true, CutAfter: api.Duration(510 * time.Millisecond),
			Confirmed: []api.Confirmed{{Node: "bj-1", After: api.Duration(140 * time.Millisecond)}}, Waiting: []api.Unconfirmed{}}
		if rev.Node == "eu-1" {
			rev.Waiting = append(rev.Waiting, api.Unconfirmed{Node: "sh-1", Why: "it is not connected"})
		}
		answer(rev)(w, r)
	})
	m.HandleFunc("GET /v1/routes", answer([]api.Route{route, pending}))
	m.HandleFunc("POST /v1/routes/decide", func(w http.ResponseWriter, r *http.Request) {
		var d api.RouteDecision
		if err := json.NewDecoder(r.Body).Decode(&d); err != nil {
			problem(w, 400, err.Error())
			return
		}
		state := protocol.RouteRejected
		if d.Approve {
			state = protocol.RouteApproved
		}
		answer(api.Route{Node: d.Node, Site: "cloud-eu", Prefix: d.Prefix, State: state, By: "unix:root", Owner: d.Approve})(w, r)
	})
	m.HandleFunc("GET /v1/inventory", answer([]api.Inventory{facts}))
	m.HandleFunc("GET /v1/inventory/watch", func(w http.ResponseWriter, r *http.Request) {
		b, _ := json.Marshal(api.InventoryChange{Node: "sh-1", Site: "idc-sh", Number: 2, Time: at, Received: at, Sequence: 8,
			Lines: []string{"container web running at 10.201.1.2 (i, podman/1)"}, Changes: json.RawMessage(`{"cpus":2}`)})
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, ": watching\n\nevent: inventory\ndata: %s\n\n", b)
	})
	m.HandleFunc("GET /v1/inventory/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "sh-1" {
			problem(w, 404, "node "+r.PathValue("name")+" has not reported any facts yet")
			return
		}
		answer(facts)(w, r)
	})
	fakeAdmins(m)
	fakeNATS(m)
	fakeUpgrades(m)
	fakeDoctor(m)
	m.HandleFunc("GET /v1/audit", answer([]api.AuditEntry{{Sequence: 42, Time: at, Who: "unix:root", Why: "route approve", Changes: []string{"route 10.201.1.0/24 of sh-1 approved"}}}))
	m.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("limit") == "1" {
			answer([]api.Event(nil))(w, r)
			return
		}
		answer([]api.Event{{Time: at, Kind: "join_refused", Message: "token AAAAAAAAAAAAAAAA was used already"}})(w, r)
	})
	m.HandleFunc("POST /v1/diag/explain", func(w http.ResponseWriter, r *http.Request) {
		var q api.ExplainRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			problem(w, 400, err.Error())
			return
		}
		x := api.Explanation{From: api.ExplainEnd{Name: q.From, Kind: "node", Node: q.From, Addr: netip.MustParseAddr("198.18.0.2")},
			To:    api.ExplainEnd{Name: q.To, Kind: "address", Node: "eu-1", Addr: netip.MustParseAddr("10.202.1.7")},
			Proto: "tcp", Port: q.Port, Verdict: api.VerdictHealthy, Faults: []api.Fault{}, Took: api.Duration(1200 * time.Millisecond),
			Hops: []api.ExplainHop{{Name: "name", State: api.HopOK, Note: "sh-1 to eu-1"}, {Name: "approval", State: api.HopOK}}}
		if q.Port == 443 {
			x.Verdict, x.Hops[1].State = api.VerdictBroken, api.HopFailed
			x.Faults = []api.Fault{{Cause: "route-not-approved", Hop: "approval", Node: "eu-1", Blocks: true, Summary: "route 10.202.1.0/24 of eu-1 waits for an admin's approval",
				Evidence: []string{"route 10.202.1.0/24 of eu-1 is pending"}, Mend: "causeway route approve eu-1 10.202.1.0/24"}}
		}
		answer(x)(w, r)
	})
	incident := api.Incident{ID: "2-1", Node: "sh-1", Site: "idc-sh", Received: at, Incident: protocol.Incident{Version: 1, Number: 1, Revision: 2, Subject: "nftables",
		State: protocol.IncidentOver, Since: at, Until: at.Add(time.Second), Found: []string{"- nft 'add table inet causeway'"}, Reason: "changed by nft (process 7)",
		Action: "put back as planned", Repairs: 1, Seconds: 0.31, Felt: "for 0.31 s: it mattered"}}
	m.HandleFunc("GET /v1/incidents", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("node") == "sh-2" || r.FormValue("site") == "idc-bj" {
			answer([]api.Incident(nil))(w, r)
			return
		}
		if since, err := time.Parse(time.RFC3339, r.FormValue("since")); r.FormValue("since") != "" && (err != nil || since.Year() > 2100) {
			problem(w, 422, "since")
			return
		}
		answer([]api.Incident{incident})(w, r)
	})
	m.HandleFunc("GET /v1/incidents/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != "2-1" {
			problem(w, 404, "no incident "+r.PathValue("id")+" is known")
			return
		}
		answer(incident)(w, r)
	})
	m.HandleFunc("POST /v1/diag/ping", func(w http.ResponseWriter, r *http.Request) {
		var p api.PingRequest
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			problem(w, 400, err.Error())
			return
		}
		res := api.PingResult{From: p.From, To: p.To, Addr: netip.MustParseAddr("198.18.0.3"), Sent: p.Count}
		if p.To != "198.18.0.99" {
			res.Received, res.Path = p.Count, "relay"
			res.MinRTT, res.AvgRTT, res.MaxRTT = api.Duration(41*time.Millisecond), api.Duration(42500*time.Microsecond), api.Duration(45*time.Millisecond)
		}
		answer(res)(w, r)
	})
	m.HandleFunc("POST /v1/diag/trace", func(w http.ResponseWriter, r *http.Request) {
		var q api.TraceRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			problem(w, 400, err.Error())
			return
		}
		answer(fakeTrace(q))(w, r)
	})
	a, b := api.DiagEnd{Text: "sh-1", Node: "sh-1", Site: "idc-sh", Addr: netip.MustParseAddr("198.18.0.2")}, api.DiagEnd{Text: "eu-1", Node: "eu-1", Site: "cloud-eu", Addr: netip.MustParseAddr("198.18.0.3")}
	m.HandleFunc("GET /v1/hubs", answer(fakeHubList()))
	m.HandleFunc("GET /v1/settings", answer([]api.Setting{{Name: "listen-udp", Value: ":51820"}}))
	m.HandleFunc("GET /v1/nodes/{name}/debug/{path...}", func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("path") {
		case "v1/health": // a secret that has no business there
			answer(map[string]string{"cause": "wgkey:" + strings.Repeat("A", 43)})(w, r)
		case "v1/paths": // not the paths' format: as a netmap has it
			w.Write([]byte(`{"peers":[{"statement":{"number":3,"signature":"Qm9ndXM="}},{"statement":{"\u0073ignature":"Qm9ndXM="},"n":18446744073709551615}]}`))
		case "v1/routes":
			problem(w, 502, "node does not\x1b[2J answer")
		case "v1/peers":
			w.Write([]byte("\x1b[2J no JSON"))
		case "v1/netmap":
			w.Write(bytes.Repeat([]byte(" "), bundleEach+1))
		default:
			answer(map[string]string{"path": r.PathValue("path")})(w, r)
		}
	})
	m.HandleFunc("GET /v1/diag/capture", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", api.CaptureType)
		switch r.FormValue("on") {
		case "evil":
			w.Write([]byte("\x1b[2Jno capture"))
		case "bare":
			problem(w, 409, "node bare: captures take CAP_NET_RAW")
		default:
			w.Write([]byte("\n\r\r\n" + r.FormValue("filter") + " for " + r.FormValue("for")))
		}
	})
	m.HandleFunc("POST /v1/diag/mtu", answer(api.MTU{From: a, To: b,
		Forward: api.MTUDirection{Node: "sh-1", Path: protocol.PathDirect, Underlay: 1500, Known: 1440, Measured: 1440, Route: 1440, Device: 8920, OK: true, Verdict: "what is set is what arrives"},
		Back:    api.MTUDirection{Node: "eu-1", Path: protocol.PathDirect, Underlay: 1500, Known: 1440, Measured: 1300, Route: 1440, Device: 8920, Verdict: "packets of 1301 to 1440 bytes are sent and do not arrive"}}))
	m.HandleFunc("POST /v1/diag/bench", func(w http.ResponseWriter, r *http.Request) {
		var q api.BenchRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			problem(w, 400, err.Error())
			return
		}
		answer(api.Bench{From: a, To: b, Proto: q.Proto, Limit: q.Rate, Rate: 95_000_000, Sent: 60 << 20, Received: 59 << 20, Took: q.Time, Datagrams: 50000, Lost: 25, Reordered: 3, Jitter: api.Duration(120 * time.Microsecond)})(w, r)
	})
	return m
}

// fakeTrace is a pod that is reached over the relay; of node down nothing is heard, and what
// its site says would move a cursor.
func fakeTrace(q api.TraceRequest) api.Trace {
	hub, direct := netip.MustParseAddrPort("203.0.113.1:51820"), netip.MustParseAddrPort("192.0.2.7:51820")
	pod := netip.MustParseAddr("10.202.1.11")
	view := func(number protocol.NodeNumber) *protocol.TraceView {
		return &protocol.TraceView{Number: number, Peer: protocol.PathView{
			PathStatus: protocol.PathStatus{Path: protocol.PathRelay, Addr: hub, RTT: 42 * time.Millisecond, Loss: 0.01, MTU: 1408, Since: time.Now().Add(-3 * time.Hour)},
			Size:       1468, Why: "none of the peer's 1 addresses answers\x1b[2J",
			Candidates: []protocol.PathCandidate{
				{Path: protocol.PathRelay, Addr: hub, Hub: 1, Chosen: true, State: protocol.PathAnswers, RTT: 42 * time.Millisecond, Size: 1468, Answered: time.Now().Add(-3 * time.Hour)},
				{Path: protocol.PathDirect, Addr: direct, State: protocol.PathNever}}}}
	}
	t := api.Trace{From: api.DiagEnd{Text: q.From, Node: "sh-1", Site: "idc-sh", Addr: netip.MustParseAddr("198.18.0.2")}, To: api.DiagEnd{Text: q.To, Node: "eu-1", Site: "cloud-eu", Pod: "web-1", Addr: pod},
		Forward: view(2), Back: view(3)}
	t.Hops = []api.TraceHop{{Kind: api.HopHost, Name: "sh-1", OK: true, Note: "route: dev cw0 table 51820 mtu 1408"}, {Kind: api.HopTunnel, Name: "relay", Addr: hub.Addr(), OK: true, Note: t.Forward.Peer.Why},
		{Kind: api.HopHub, Name: "hub 1", RTT: api.Duration(20 * time.Millisecond), OK: true}, {Kind: api.HopHost, Name: "eu-1", RTT: api.Duration(22 * time.Millisecond), Total: api.Duration(43 * time.Millisecond), OK: true},
		{Kind: api.HopPod, Name: "web-1", Addr: pod, RTT: api.Duration(time.Millisecond), Total: api.Duration(44 * time.Millisecond), OK: true}}
	if q.To == "down" {
		t.Back, t.BackError = nil, "node eu-1 does not answer"
		t.Hops[3].OK, t.Hops[3].Note = false, t.BackError
	}
	return t
}

func answer(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": strings.TrimSpace(detail)})
}
