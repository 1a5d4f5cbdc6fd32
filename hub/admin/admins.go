package admin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"net"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/internal/cause"
)

// Bounds of an admin's certificate.
const (
	defaultAdminTTL = 90 * 24 * time.Hour
	maxAdminTTL     = 366 * 24 * time.Hour
)

func toAdmin(a state.Admin) api.Admin {
	return api.Admin{Name: a.Name, Role: a.Role, Hub: a.Hub, Created: a.Created, Expires: a.Expires, State: string(a.State(time.Now())), ETag: tag(a)}
}

func adminNow(name string) func(*state.State) (string, error) {
	return func(st *state.State) (string, error) {
		a, err := st.FindAdmin(name)
		return tag(a), err
	}
}

func (s *Server) admins() []api.Admin {
	out := []api.Admin{}
	for _, x := range s.cfg.Store.State().Admins.All() {
		out = append(out, toAdmin(x))
	}
	slices.SortFunc(out, func(a, b api.Admin) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (s *Server) registerAdmins(a huma.API) {
	huma.Get(a, "/v1/admins", func(context.Context, *struct{}) (*body[[]api.Admin], error) { return answer(s.admins(), nil) })
	huma.Post(a, "/v1/admins", func(ctx context.Context, in *struct{ Body api.AdminSpec }) (*body[api.AdminCreated], error) {
		return answer(s.createAdmin(ctx, in.Body))
	})
	huma.Delete(a, "/v1/admins/{name}", func(ctx context.Context, in *namedChange) (*struct{}, error) {
		_, err := s.change(ctx, in.IfMatch, "admin revoke "+in.Name, "admin "+in.Name, adminNow(in.Name), func(d *state.Draft) error {
			if a, err := d.FindAdmin(in.Name); err != nil || a.Revoked {
				return err
			}
			return d.Add(state.AdminRevoked{Name: in.Name})
		})
		return nil, err
	}, changes)
}

func (s *Server) createAdmin(ctx context.Context, spec api.AdminSpec) (out api.AdminCreated, err error) {
	if s.cfg.AdminPort == "" {
		return out, huma.Error409Conflict("this hub takes no admins from elsewhere; start it with --listen-admin")
	}
	ttl := cmp.Or(time.Duration(spec.TTL), defaultAdminTTL)
	if ttl < time.Minute || ttl > maxAdminTTL {
		return out, huma.Error422UnprocessableEntity("ttl " + ttl.String() + ": a certificate lives from 1m to 8784h")
	}
	pub, err := readCSR(spec.CSR)
	if err != nil {
		return out, huma.Error422UnprocessableEntity(err.Error())
	}
	var der []byte
	st, err := s.update(ctx, "admin create "+spec.Name+" --role "+spec.Role, func(d *state.Draft) error {
		expires := d.Now.Add(ttl).Truncate(time.Second) // as the certificate has it
		if der, err = s.cfg.CA.issue(spec.Name, pub, d.Now, expires); err != nil {
			return err
		}
		sum := sha256.Sum256(der)
		return d.Add(state.AdminCreated{Name: spec.Name, Role: spec.Role, Hub: s.cfg.Number, Cert: sum[:], Expires: expires})
	})
	if err != nil {
		return out, err
	}
	return api.AdminCreated{Admin: toAdmin(st.Admins.Get(spec.Name)), Address: net.JoinHostPort(s.cfg.PublicHost, s.cfg.AdminPort),
		CA: certPEM(s.cfg.CA.cert.Raw), Certificate: certPEM(der)}, nil
}

// refusedRemote notes that somebody showed a certificate that opens nothing.
func (s *Server) refusedRemote(from string, err error) {
	if s.refusals.Allow() {
		s.cfg.Events.Add(event.AdminRefused, "", "an admin certificate was refused (from "+from+"): "+cause.Innermost(err).Error())
	}
}
