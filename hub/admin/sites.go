package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/declare"
	"causeway/hub/state"
	"causeway/protocol"
)

// Bounds of a token's life.
const (
	defaultTTL = time.Hour
	maxTTL     = 366 * 24 * time.Hour
)

func toSite(st *state.State, site state.Site) api.Site {
	f := site.Fields()
	out := api.Site{SiteSpec: api.SiteSpec{Name: site.Name, Ranges: f.Ranges, MaxAge: f.MaxAge}, Created: site.Created, ETag: tag(site)}
	if f.RotateKeys != api.Never {
		out.RotateKeys = f.RotateKeys
	}
	out.Nodes = len(st.LiveNodesOf(site.Name))
	return out
}

func (s *Server) sites() []api.Site {
	st := s.cfg.Store.State()
	out := []api.Site{}
	for _, site := range st.Sites.All() {
		out = append(out, toSite(st, site))
	}
	return out
}

func (s *Server) putSite(d *state.Draft, name string, p api.SitePatch) error {
	spec, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return declare.Put(d, state.ObjectKey{Kind: state.KindSite, Name: name}, spec, declare.Live{Announced: s.cfg.Fleet.Announced})
}

func (s *Server) tokens() []api.Token {
	st := s.cfg.Store.State()
	out := []api.Token{}
	for _, k := range st.Tokens.All() {
		out = append(out, toToken(st, k))
	}
	slices.SortFunc(out, func(a, b api.Token) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out
}

func (s *Server) registerSites(a huma.API) {
	huma.Get(a, "/v1/sites", func(context.Context, *struct{}) (*body[[]api.Site], error) { return answer(s.sites(), nil) })
	huma.Post(a, "/v1/sites", func(ctx context.Context, in *struct{ Body api.SiteSpec }) (*tagged[api.Site], error) {
		st, err := s.update(ctx, "site create "+in.Body.Name, func(d *state.Draft) error {
			if d.Sites.Has(in.Body.Name) {
				return state.Errorf(state.Conflict, "site %s exists already", in.Body.Name)
			}
			return s.putSite(d, in.Body.Name, api.SitePatch{Ranges: in.Body.Ranges, MaxAge: in.Body.MaxAge, RotateKeys: in.Body.RotateKeys})
		})
		if err != nil {
			return nil, err
		}
		out := toSite(st, st.Sites.Get(in.Body.Name))
		return withTag(out.ETag, out)
	})
	huma.Get(a, "/v1/sites/{name}", func(_ context.Context, in *named) (*tagged[api.Site], error) {
		st := s.cfg.Store.State()
		site, err := st.FindSite(in.Name)
		if err != nil {
			return nil, problem(err)
		}
		out := toSite(st, site)
		return withTag(out.ETag, out)
	})
	huma.Patch(a, "/v1/sites/{name}", func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"63"`
		IfMatch
		Body api.SitePatch
	}) (*tagged[api.Site], error) {
		st, err := s.change(ctx, in.IfMatch, "site set "+in.Name, "site "+in.Name, siteNow(in.Name), func(d *state.Draft) error {
			if in.Body.Ranges == nil && in.Body.MaxAge == 0 && in.Body.RotateKeys == 0 {
				return state.Errorf(state.Invalid, "nothing to change: ranges, max_age or rotate_keys is missing")
			}
			if _, err := d.FindSite(in.Name); err != nil {
				return err
			}
			if err := s.putSite(d, in.Name, in.Body); err != nil || in.Body.Ranges == nil {
				return err
			}
			return state.ApproveInRanges(d, in.Name) // they may be those of before, and routes that waited meet nothing by now
		})
		if err != nil {
			return nil, err
		}
		out := toSite(st, st.Sites.Get(in.Name))
		return withTag(out.ETag, out)
	}, changes)
	huma.Delete(a, "/v1/sites/{name}", func(ctx context.Context, in *namedChange) (*struct{}, error) {
		_, err := s.change(ctx, in.IfMatch, "site delete "+in.Name, "site "+in.Name, siteNow(in.Name), func(d *state.Draft) error { return d.Add(state.ObjectDeleted{Kind: state.KindSite, Name: in.Name}) })
		return nil, err
	}, changes)

	huma.Get(a, "/v1/tokens", func(context.Context, *struct{}) (*body[[]api.Token], error) { return answer(s.tokens(), nil) })
	huma.Post(a, "/v1/tokens", func(ctx context.Context, in *struct{ Body api.TokenSpec }) (*body[api.TokenCreated], error) {
		return answer(s.createToken(ctx, in.Body))
	})
	huma.Delete(a, "/v1/tokens/{id}", func(ctx context.Context, in *struct {
		ID string `path:"id" maxLength:"64"`
		IfMatch
	}) (*struct{}, error) {
		var id protocol.TokenID
		if err := id.UnmarshalText([]byte(in.ID)); err != nil {
			return nil, huma.Error404NotFound("there is no token " + in.ID + "; see 'causeway token list'")
		}
		current := func(st *state.State) (string, error) {
			k, ok := st.Tokens.Find(id)
			if !ok {
				return "", state.Errorf(state.NotFound, "there is no token %s; see 'causeway token list'", in.ID)
			}
			return tag(k), nil
		}
		_, err := s.change(ctx, in.IfMatch, "token revoke "+in.ID, "token "+in.ID, current, func(d *state.Draft) error { return d.Add(state.TokenCancelled{ID: id}) })
		return nil, err
	}, changes)
}

func toToken(st *state.State, k state.Token) api.Token {
	t := api.Token{
		TokenSpec: api.TokenSpec{Site: k.Site, TTL: api.Duration(k.Expires.Sub(k.Created)), Routes: k.Routes, Labels: k.Labels, Replace: k.Replace},
		ID:        k.ID.String(), Created: k.Created, Expires: k.Expires, State: string(k.State(time.Now())), ETag: tag(k),
	}
	if k.UsedBy != 0 {
		t.UsedBy = st.Nodes.Get(k.UsedBy).Name
	}
	return t
}

func (s *Server) createToken(ctx context.Context, spec api.TokenSpec) (api.TokenCreated, error) {
	ttl := time.Duration(spec.TTL)
	if ttl == 0 {
		ttl = defaultTTL
	}
	if ttl < time.Second || ttl > maxTTL {
		return api.TokenCreated{}, huma.Error422UnprocessableEntity("ttl " + ttl.String() + ": a token lives from 1s to 8784h")
	}
	for _, p := range spec.Routes {
		if p != p.Masked() {
			return api.TokenCreated{}, huma.Error422UnprocessableEntity(p.String() + " has host bits set; write " + p.Masked().String())
		}
	}
	now := s.cfg.Store.State()
	tok, err := protocol.NewToken(s.cfg.Pin, first(s.hub(now).HTTPS))
	if err != nil {
		return api.TokenCreated{}, problem(err)
	}
	tok.Require(now.Hubs.Serial)
	hash := tok.Secret.Hash()
	var met []string
	st, err := s.update(ctx, "token create --site "+spec.Site, func(d *state.Draft) error {
		routes := uniq(spec.Routes)
		over := d.Over(spec.Site, spec.Labels, routes, spec.Replace)
		met = met[:0]
		if claims := state.NewClaims(d.State).At(spec.Site, spec.Labels); len(over) > 0 {
			for _, p := range routes {
				if why := claims.Why(d.NumberOf(spec.Replace), p); why != "" {
					met = append(met, p.String()+": "+why)
				}
			}
		}
		return d.Add(state.TokenCreated{ID: tok.ID, Hash: hash[:], Site: spec.Site, Expires: d.Now.Add(ttl), Routes: routes, Labels: spec.Labels, Replace: spec.Replace, Over: over})
	})
	if err != nil {
		return api.TokenCreated{}, err
	}
	return api.TokenCreated{Text: tok.Text(), Token: toToken(st, st.Tokens.Get(tok.ID)), Meets: met}, nil
}

func uniq(ps []netip.Prefix) []netip.Prefix {
	out := slices.Clone(ps)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
