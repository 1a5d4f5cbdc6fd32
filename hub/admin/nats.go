package admin

import (
	"cmp"
	"context"
	"net"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

func toNATSUser(u state.NATSUser) api.NATSUser {
	out := api.NATSUser{Name: u.Name, Role: u.Role, Key: u.Key, Created: u.Created, State: "active", ETag: tag(u)}
	if u.Revoked {
		out.State = "revoked"
	}
	return out
}

func natsUserNow(name string) func(*state.State) (string, error) {
	return func(st *state.State) (string, error) {
		u, err := st.FindNATSUser(name)
		return tag(u), err
	}
}

func (s *Server) natsUsers() []api.NATSUser {
	out := []api.NATSUser{}
	for _, u := range s.cfg.Store.State().NATSUsers.All() {
		out = append(out, toNATSUser(u))
	}
	slices.SortFunc(out, func(a, b api.NATSUser) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (s *Server) registerNATS(a huma.API) {
	huma.Get(a, "/v1/nats/users", func(context.Context, *struct{}) (*body[[]api.NATSUser], error) { return answer(s.natsUsers(), nil) })
	huma.Post(a, "/v1/nats/users", func(ctx context.Context, in *struct{ Body api.NATSUserSpec }) (*body[api.NATSUserCreated], error) {
		return answer(s.createNATSUser(ctx, in.Body))
	})
	huma.Delete(a, "/v1/nats/users/{name}", func(ctx context.Context, in *namedChange) (*struct{}, error) {
		_, err := s.change(ctx, in.IfMatch, "nats user revoke "+in.Name, "NATS user "+in.Name, natsUserNow(in.Name), func(d *state.Draft) error {
			if u, err := d.FindNATSUser(in.Name); err != nil || u.Revoked {
				return err
			}
			return d.Add(state.NATSUserRevoked{Name: in.Name})
		})
		return nil, err
	}, changes)
}

func (s *Server) createNATSUser(ctx context.Context, spec api.NATSUserSpec) (out api.NATSUserCreated, err error) {
	if s.cfg.NATSPort == "" {
		return out, huma.Error409Conflict("this hub takes no NATS users; start it with --listen-nats (with --nats-url users are made in that cluster, see docs/NATS.md)")
	}
	st, err := s.update(ctx, "nats user create "+spec.Name+" --role "+spec.Role, func(d *state.Draft) error {
		return d.Add(state.NATSUserCreated{Name: spec.Name, Role: spec.Role, Key: spec.Key})
	})
	if err != nil {
		return out, err
	}
	return api.NATSUserCreated{NATSUser: toNATSUser(st.NATSUsers.Get(spec.Name)), Address: net.JoinHostPort(s.cfg.PublicHost, s.cfg.NATSPort),
		CA: certPEM(s.cfg.CA.cert.Raw), InboxPrefix: protocol.UserInboxPrefix(spec.Name)}, nil
}

// RefusedNATS notes that somebody showed credentials for NATS that open nothing.
func (s *Server) RefusedNATS(from string) {
	if s.refusals.Allow() {
		s.cfg.Events.Add(event.NATSRefused, "", "credentials for NATS were refused (from "+from+"): no user of this hub has them, or he was revoked")
	}
}
