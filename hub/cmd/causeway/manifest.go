package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"causeway/hub/api"
	"causeway/protocol"
)

// maxManifest bounds what 'apply -f' reads, in bytes.
const maxManifest = 8 << 20

// manifest is one document of a file for apply and diff.
type manifest struct {
	at   string // file:line
	what string // for example site idc-sh
	want any    // api.SiteDocument, api.NodeDocument or api.RouteDocument
}

// readManifests reads files ('-' is standard input) of one or more YAML documents.
func (c *cli) readManifests(files []string) ([]manifest, error) {
	var out []manifest
	seen := map[string]string{}
	for _, name := range files {
		var r io.Reader = c.in
		shown := "standard input"
		if name != "-" {
			f, err := os.Open(name)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			r, shown = f, name
		}
		b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", shown, err)
		}
		if len(b) > maxManifest {
			return nil, fmt.Errorf("%s is larger than %d MiB", shown, maxManifest>>20)
		}
		docs, err := parseManifests(shown, b)
		if err != nil {
			return nil, err
		}
		for _, m := range docs {
			if before, twice := seen[m.what]; twice {
				return nil, fmt.Errorf("%s: %s is there twice, first at %s", m.at, m.what, before)
			}
			seen[m.what] = m.at
		}
		out = append(out, docs...)
	}
	if len(out) == 0 {
		return nil, errors.New("no document is there; see 'causeway explain site-file', node-file, route-file")
	}
	return out, nil
}

// parseManifests parses the documents of one file. Every error names the line.
func parseManifests(name string, b []byte) (out []manifest, err error) {
	// go-yaml panics on some malformed values.
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, fmt.Errorf("%s: a value is malformed; write plain YAML", name)
		}
	}()
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return nil, yamlError(name, 0, err)
	}
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.NullType {
			continue
		}
		line := doc.Body.GetToken().Position.Line
		if m, ok := doc.Body.(*ast.MappingNode); ok && len(m.Values) > 0 {
			line = m.Values[0].Key.GetToken().Position.Line
		} else if m, ok := doc.Body.(*ast.MappingValueNode); ok {
			line = m.Key.GetToken().Position.Line
		}
		at := fmt.Sprintf("%s:%d", name, line)
		var kind struct {
			Kind string `yaml:"kind"`
		}
		if err := yaml.NodeToValue(doc.Body, &kind); err != nil {
			return nil, yamlError(name, line, err)
		}
		m := manifest{at: at}
		read := func(v any) error {
			if err := yaml.NodeToValue(doc.Body, v, yaml.Strict(), yaml.UseJSONUnmarshaler()); err != nil {
				return yamlError(name, line, err)
			}
			return nil
		}
		switch strings.ToLower(kind.Kind) {
		case "site":
			var d api.SiteDocument
			err = read(&d)
			if err == nil && !protocol.ValidName(d.Name) {
				err = fmt.Errorf("%s: name: %.80q cannot name a site", at, d.Name)
			}
			for _, p := range d.Ranges {
				if err == nil {
					err = checkPrefix(at, "ranges", p)
				}
			}
			m.what, m.want = "site "+d.Name, d
		case "node":
			var d api.NodeDocument
			err = read(&d)
			if err == nil && !protocol.ValidName(d.Name) {
				err = fmt.Errorf("%s: name: %.80q cannot name a node", at, d.Name)
			}
			for k, v := range d.Labels {
				if err == nil {
					if err = protocol.CheckLabel(k, v); err != nil {
						err = fmt.Errorf("%s: labels: %w", at, err)
					}
				}
			}
			m.what, m.want = "node "+d.Name, d
		case "route":
			var d api.RouteDocument
			err = read(&d)
			if err == nil && !protocol.ValidName(d.Node) {
				err = fmt.Errorf("%s: node: %.80q cannot name a node", at, d.Node)
			}
			if err == nil {
				err = checkPrefix(at, "prefix", d.Prefix)
			}
			if err == nil && d.State != protocol.RouteApproved && d.State != protocol.RouteRejected {
				err = fmt.Errorf("%s: state: %.40q; use approved or rejected", at, d.State)
			}
			m.what, m.want = fmt.Sprintf("route %s of %s", d.Prefix, d.Node), d
		case "":
			err = fmt.Errorf("%s: kind is missing; use site, node or route", at)
		default:
			err = fmt.Errorf("%s: kind %.40q is not known; use site, node or route", at, kind.Kind)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func checkPrefix(at, field string, p netip.Prefix) error {
	if !p.IsValid() {
		return fmt.Errorf("%s: %s: not a CIDR such as 10.1.0.0/16", at, field)
	}
	if p != p.Masked() {
		return fmt.Errorf("%s: %s: %s has host bits set, write %s", at, field, p, p.Masked())
	}
	return nil
}

// yamlError makes one line of go-yaml's errors, which draw the file.
func yamlError(name string, line int, err error) error {
	msg, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	var ye yaml.Error
	if errors.As(err, &ye) {
		msg, _, _ = strings.Cut(strings.TrimSpace(ye.GetMessage()), "\n")
		if t := ye.GetToken(); t != nil && t.Position != nil {
			return fmt.Errorf("%s:%d:%d: %s", name, t.Position.Line, t.Position.Column, msg)
		}
	}
	if line > 0 {
		return fmt.Errorf("%s:%d: %s", name, line, msg)
	}
	return fmt.Errorf("%s: %s", name, msg)
}

// step is one change that a manifest asks for.
type step struct {
	At     string   `json:"at"`
	Object string   `json:"object"`
	Action string   `json:"action"` // none, create or change
	Diff   []string `json:"diff,omitempty"`
	Result string   `json:"result,omitempty"` // done, failed or not tried
	Error  string   `json:"error,omitempty"`

	do func(context.Context) error
}

// planner compares documents with what the hub has.
type planner struct {
	hub    *api.Client
	sites  map[string]api.Site
	nodes  map[string]api.Node
	routes map[string]api.Route
}

func newPlanner(ctx context.Context, hub *api.Client) (*planner, error) {
	p := &planner{hub: hub, sites: map[string]api.Site{}, nodes: map[string]api.Node{}, routes: map[string]api.Route{}}
	sites, err := hub.Sites(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := hub.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	routes, err := hub.Routes(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range sites {
		p.sites[s.Name] = s
	}
	for _, n := range nodes {
		if n.State != api.NodeLeft && n.State != api.NodeRevoked {
			p.nodes[n.Name] = n
		}
	}
	for _, r := range routes {
		p.routes[r.Node+" "+r.Prefix.String()] = r
	}
	return p, nil
}

// plan makes the steps; nothing is changed. An error names the document.
func (p *planner) plan(ms []manifest) ([]step, error) {
	var out []step
	for _, m := range ms {
		s := step{At: m.at, Object: m.what, Action: "none"}
		var err error
		switch d := m.want.(type) {
		case api.SiteDocument:
			err = p.site(&s, d)
		case api.NodeDocument:
			err = p.node(&s, d)
		case api.RouteDocument:
			err = p.route(&s, d)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.at, err)
		}
		if len(s.Diff) > 0 && s.Action == "none" {
			s.Action = "change"
		}
		out = append(out, s)
	}
	return out, nil
}

func (s *step) differs(field, have, want string) {
	if have != want {
		s.Diff = append(s.Diff, "- "+field+": "+have, "+ "+field+": "+want)
	}
}

func (p *planner) site(s *step, d api.SiteDocument) error {
	have, ok := p.sites[d.Name]
	if !ok {
		s.Action = "create"
		s.Diff = []string{"+ name: " + d.Name}
		if len(d.Ranges) > 0 {
			s.Diff = append(s.Diff, "+ ranges: "+join(d.Ranges))
		}
		if d.MaxAge != 0 {
			s.Diff = append(s.Diff, "+ max_age: "+ageText(d.MaxAge))
		}
		if d.RotateKeys != 0 {
			s.Diff = append(s.Diff, "+ rotate_keys: "+d.RotateKeys.String())
		}
		s.do = func(ctx context.Context) error {
			_, err := p.hub.CreateSite(ctx, api.SiteSpec{Name: d.Name, Ranges: d.Ranges, MaxAge: d.MaxAge, RotateKeys: d.RotateKeys})
			return err
		}
		return nil
	}
	patch := api.SitePatch{MaxAge: d.MaxAge, RotateKeys: d.RotateKeys}
	if d.Ranges != nil && !samePrefixes(d.Ranges, have.Ranges) {
		s.differs("ranges", join(have.Ranges), join(d.Ranges))
		patch.Ranges = d.Ranges
	}
	if d.MaxAge != 0 {
		s.differs("max_age", ageText(have.MaxAge), ageText(d.MaxAge))
	}
	if d.RotateKeys != 0 {
		s.differs("rotate_keys", cmp.Or(have.RotateKeys, api.Never).String(), d.RotateKeys.String())
	}
	s.do = func(ctx context.Context) error {
		_, err := p.hub.PatchSite(ctx, d.Name, patch, api.IfMatch(have.ETag))
		return err
	}
	return nil
}

func samePrefixes(a, b []netip.Prefix) bool {
	sorted := func(p []netip.Prefix) []netip.Prefix {
		return slices.SortedFunc(slices.Values(p), netip.Prefix.Compare)
	}
	return slices.Equal(sorted(a), sorted(b))
}

func (p *planner) node(s *step, d api.NodeDocument) error {
	have, ok := p.nodes[d.Name]
	if !ok {
		return fmt.Errorf("there is no node %s; a host becomes one by 'causeway-agent join'", d.Name)
	}
	patch := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(d.Labels)) {
		v, old := d.Labels[k], have.Labels[k]
		if v == old {
			continue
		}
		patch[k] = v
		if old != "" {
			s.Diff = append(s.Diff, "- labels."+k+": "+old)
		}
		if v != "" {
			s.Diff = append(s.Diff, "+ labels."+k+": "+v)
		}
	}
	drain := d.Drained != nil && *d.Drained == have.Drained.IsZero()
	if drain {
		s.differs("drained", fmt.Sprint(!*d.Drained), fmt.Sprint(*d.Drained))
	}
	s.do = func(ctx context.Context) error {
		if len(patch) > 0 {
			if _, err := p.hub.PatchNode(ctx, d.Name, api.NodePatch{Labels: patch}, api.IfMatch(have.ETag)); err != nil {
				return err
			}
		}
		if !drain {
			return nil
		}
		f := p.hub.UndrainNode
		if *d.Drained {
			f = p.hub.DrainNode
		}
		_, err := f(ctx, d.Name)
		return err
	}
	return nil
}

func (p *planner) route(s *step, d api.RouteDocument) error {
	have, ok := p.routes[d.Node+" "+d.Prefix.String()]
	if !ok {
		if _, known := p.nodes[d.Node]; !known {
			return fmt.Errorf("there is no node %s", d.Node)
		}
		return fmt.Errorf("node %s does not announce %s; routes: in its agent.yaml or 'token create --route' do that", d.Node, d.Prefix)
	}
	s.differs("state", string(have.State), string(d.State))
	s.do = func(ctx context.Context) error {
		_, err := p.hub.DecideRoute(ctx, api.RouteDecision{Node: d.Node, Prefix: d.Prefix, Approve: d.State == protocol.RouteApproved}, api.IfMatch(have.ETag))
		return err
	}
	return nil
}
