package api

import (
	"context"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// FlowQuery says which flows are wanted; zero values want all.
type FlowQuery struct {
	From, To string // an address, a CIDR, a node or a site
	Rule     string // POLICY/RULE, or POLICY
	Denied   bool   // refused ones alone
	Since    time.Time
	Limit    int // the last so many; 0: the hub's default
}

// Matches reports whether a flow is wanted.
func (q FlowQuery) Matches(f Flow) bool {
	return isAt(q.From, f.From, f.FromNode, f.FromSite) && isAt(q.To, f.To, f.ToNode, f.ToSite) && !f.Last.Before(q.Since) &&
		(!q.Denied || f.Verdict == FlowRefused) && (q.Rule == "" || f.Rule == q.Rule || strings.HasPrefix(f.Rule, q.Rule+"/"))
}

// isAt reports whether an address is what somebody wrote.
func isAt(text string, a netip.Addr, node, site string) bool {
	if text == "" {
		return true
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Contains(a)
	}
	if x, err := netip.ParseAddr(text); err == nil {
		return x == a
	}
	return text == node || strings.TrimSuffix(text, "/*") == site
}

// Flows lists what nodes logged of flows, those that were seen last at the end.
func (c *Client) Flows(ctx context.Context, q FlowQuery) ([]Flow, error) {
	v := url.Values{}
	for k, s := range map[string]string{"from": q.From, "to": q.To, "rule": q.Rule} {
		if s != "" {
			v.Set(k, s)
		}
	}
	if q.Denied {
		v.Set("denied", "true")
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return get[[]Flow](ctx, c, "/v1/flows?"+v.Encode())
}

// SuggestPolicy makes a policy of the flows that were seen since a time; zero: all that are known.
func (c *Client) SuggestPolicy(ctx context.Context, since time.Time, name string) (PolicySuggestion, error) {
	v := url.Values{}
	if !since.IsZero() {
		v.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if name != "" {
		v.Set("name", name)
	}
	return get[PolicySuggestion](ctx, c, "/v1/policy/suggest?"+v.Encode())
}
