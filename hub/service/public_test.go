package service

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func TestAnswered(t *testing.T) {
	at := func(site, addr string) Endpoint {
		return Endpoint{ServiceEndpoint: protocol.ServiceEndpoint{Addr: netip.MustParseAddr(addr), Site: site}}
	}
	s, err := protocol.Service{Ports: []protocol.ServicePort{{Port: 80}}}.Normal()
	require.NoError(t, err)
	a1, a2, b1, c1 := at("a", "10.1.0.1"), at("a", "10.1.0.2"), at("b", "10.2.0.1"), at("c", "10.3.0.1")
	public, err := protocol.ServicePublic{Addresses: map[string][]netip.Addr{
		"a": {netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")},
		"b": {netip.MustParseAddr("203.0.113.2")},
		"d": {netip.MustParseAddr("203.0.113.4")}, // has no backend
	}}.Normal("web")
	require.NoError(t, err)
	type words map[netip.Addr]Word
	percents := func(r *Result, v6 bool, w words) map[string]int {
		p := r.Answered(v6, func(e Endpoint) Word { return w[e.Addr] })
		out := map[string]int{}
		for i, x := range p.Sites {
			require.NotEmpty(t, x.Addrs)
			out[x.Site] = p.Percent(i)
		}
		return out
	}
	well := words{a1.Addr: SaysWell, a2.Addr: SaysWell, b1.Addr: SaysWell, c1.Addr: SaysWell}
	but := func(e Endpoint, w Word) words {
		out := words{}
		for k, v := range well {
			out[k] = v
		}
		out[e.Addr] = w
		return out
	}
	all := func(w Word) words { return words{a1.Addr: w, a2.Addr: w, b1.Addr: w, c1.Addr: w} }
	for name, x := range map[string]struct {
		change func(r *Result)
		words  words
		four   map[string]int
		six    map[string]int
	}{
		"all are well":              {nil, well, map[string]int{"a": 50, "b": 50}, map[string]int{"a": 100}},
		"one of two is away":        {nil, but(a1, Away), map[string]int{"a": 41, "b": 59}, map[string]int{"a": 100}},
		"a site said no":            {nil, but(b1, SaidNo), map[string]int{"a": 100}, map[string]int{"a": 100}},
		"a site is away":            {nil, but(b1, Away), map[string]int{"a": 100}, map[string]int{"a": 100}},
		"a site has not told yet":   {nil, but(b1, Silent), map[string]int{"a": 100}, map[string]int{"a": 100}},
		"nobody is heard":           {nil, all(Away), map[string]int{"a": 50, "b": 50}, map[string]int{"a": 100}},
		"not heard, but who no":     {nil, words{a1.Addr: SaidNo, a2.Addr: SaidNo, b1.Addr: Away}, map[string]int{"b": 100}, map[string]int{"a": 100}},
		"heard is better than not":  {nil, words{a1.Addr: Silent, a2.Addr: SaidNo, b1.Addr: Away}, map[string]int{"a": 100}, map[string]int{"a": 100}},
		"all said no":               {nil, all(SaidNo), map[string]int{"a": 33, "b": 33, "d": 34}, map[string]int{"a": 100}},
		"no backend":                {func(r *Result) { r.Endpoints = nil }, nil, map[string]int{"a": 33, "b": 33, "d": 34}, map[string]int{"a": 100}},
		"excluded":                  {func(r *Result) { r.Exclude = []string{"a"} }, well, map[string]int{"b": 100}, map[string]int{}},
		"excluded, the other no":    {func(r *Result) { r.Exclude = []string{"a"} }, but(b1, SaidNo), map[string]int{"b": 50, "d": 50}, map[string]int{}},
		"all excluded":              {func(r *Result) { r.Exclude = []string{"a", "b", "d"} }, well, map[string]int{}, map[string]int{}},
		"weights":                   {func(r *Result) { r.Prefer, r.Weights = protocol.PreferWeights, map[string]int{"a": 10, "b": 90} }, well, map[string]int{"a": 10, "b": 90}, map[string]int{"a": 100}},
		"order":                     {func(r *Result) { r.Prefer, r.Order = protocol.PreferOrder, []string{"b", "a"} }, well, map[string]int{"b": 100}, map[string]int{"a": 100}},
		"order, the first is gone":  {func(r *Result) { r.Prefer, r.Order = protocol.PreferOrder, []string{"b", "a"} }, but(b1, Away), map[string]int{"a": 100}, map[string]int{"a": 100}},
		"kept away by single-write": {func(r *Result) { r.Mode, r.Writer = protocol.ServiceSingleWriter, "b" }, well, map[string]int{"b": 100}, map[string]int{}},
		"no public name":            {func(r *Result) { r.Public = protocol.ServicePublic{} }, well, map[string]int{}, map[string]int{}},
	} {
		r := &Result{Declared: Declared{Name: "web", Service: s, Public: public}, Endpoints: []Endpoint{a1, a2, b1, c1}}
		if x.change != nil {
			x.change(r)
		}
		for i, v6 := range []bool{false, true} {
			got, want := percents(r, v6, x.words), []map[string]int{x.four, x.six}[i]
			require.Len(t, got, len(want), "%s: %v", name, got)
			for site, p := range want {
				require.InDelta(t, p, got[site], 2, "%s: %v", name, got)
			}
		}
	}
}
