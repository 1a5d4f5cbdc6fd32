package admin

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// maxWaves bounds the waves of an upgrade.
const maxWaves = 100

// registerUpgrade has upgrades of agents.
func (s *Server) registerUpgrade(a huma.API) {
	huma.Get(a, "/v1/releases", func(context.Context, *struct{}) (*body[[]api.Release], error) {
		all, problems := s.cfg.Releases.List()
		out := []api.Release{}
		for _, r := range all {
			v := api.Release{Version: r.Version, Minimum: r.Minimum, Archs: []string{}}
			for _, f := range r.Files {
				v.Archs = append(v.Archs, f.Arch)
			}
			out = append(out, v)
		}
		if len(out) == 0 && len(problems) > 0 {
			return nil, huma.Error422UnprocessableEntity(problems[0].Error())
		}
		return answer(out, nil)
	})
	huma.Get(a, "/v1/upgrade", func(context.Context, *struct{}) (*body[api.Upgrade], error) {
		return answer(s.upgradeNow())
	})
	huma.Post(a, "/v1/upgrade", func(ctx context.Context, in *struct{ Body api.UpgradeSpec }) (*body[api.Upgrade], error) {
		r, err := s.cfg.Releases.Find(in.Body.Version)
		if err != nil {
			return nil, huma.Error404NotFound(err.Error())
		}
		why := fmt.Sprintf("node upgrade to %s", r.Version)
		if _, err := s.update(ctx, why, func(d *state.Draft) error {
			nodes, err := s.upgradable(d.State, in.Body.Nodes, r.Version)
			if err != nil {
				return err
			}
			sizes, err := waveSizes(in.Body.Waves, len(nodes))
			if err != nil {
				return err
			}
			return state.StartUpgrade(d, r.Version, nodes, sizes)
		}); err != nil {
			return nil, err
		}
		return answer(s.upgradeNow())
	})
	huma.Post(a, "/v1/upgrade/stop", func(ctx context.Context, _ *struct{}) (*body[api.Upgrade], error) {
		if _, err := s.update(ctx, "node upgrade stop", func(d *state.Draft) error {
			return state.EndUpgrade(d, 0, state.UpgradeStopped, "")
		}); err != nil {
			return nil, err
		}
		return answer(s.upgradeNow())
	})
}

// upgradable finds the nodes of these names that are to be upgraded; those that run
// the version already are left out. One that cannot be is an error: it would stop the
// upgrade later.
func (s *Server) upgradable(st *state.State, names []string, version string) ([]protocol.NodeNumber, error) {
	var out []protocol.NodeNumber
	for _, name := range names {
		n, err := st.FindNode(name)
		if err != nil {
			return nil, err
		}
		i := s.cfg.Fleet.Info(n)
		switch {
		case i.Connected.IsZero():
			return nil, state.Errorf(state.Conflict, "node %s is not connected; leave it out, or wait for it", name)
		case i.Hello.AgentVersion == version:
			continue
		case !slices.Contains(i.Hello.Features, protocol.FeatureUpgrade):
			return nil, state.Errorf(state.Refused, "node %s does not let its hub upgrade it: 'upgrade: {allow: true, keys: [ssh-ed25519 …]}' in its /etc/causeway/agent.yaml does; or leave it out", name)
		case i.State != api.NodeReady:
			return nil, state.Errorf(state.Conflict, "node %s is %s (%s); mend that first, or leave it out", name, i.State, strings.Join(i.Reasons, "; "))
		}
		if !slices.Contains(out, n.Number) {
			out = append(out, n.Number)
		}
	}
	if len(out) == 0 && len(names) > 0 {
		return nil, state.Errorf(state.Conflict, "all of these nodes run %s already", version)
	}
	return out, nil
}

// waveSizes are the numbers of nodes of waves, of n nodes in all.
func waveSizes(waves []string, n int) ([]int, error) {
	if len(waves) == 0 {
		waves = api.DefaultWaves
	}
	if len(waves) > maxWaves {
		return nil, state.Errorf(state.Invalid, "%d waves are more than %d", len(waves), maxWaves)
	}
	var out []int
	for _, w := range waves {
		text, share := strings.CutSuffix(w, "%")
		v, err := strconv.ParseUint(text, 10, 24)
		switch {
		case w == api.WaveRest:
			out = append(out, max(n, 1))
		case err != nil || v == 0 || share && v > 100:
			return nil, state.Errorf(state.Invalid, "wave %.20q is no number of nodes, share such as 10%%, or rest", w)
		case share:
			out = append(out, max(1, int(v)*n/100))
		default:
			out = append(out, int(v))
		}
	}
	return out, nil
}

func (s *Server) upgradeNow() (api.Upgrade, error) {
	st := s.cfg.Store.State()
	u := st.Upgrade
	if u == nil {
		return api.Upgrade{}, huma.Error404NotFound("there was no upgrade yet: 'causeway node upgrade' begins one")
	}
	out := api.Upgrade{ID: u.ID, Version: u.Version, State: string(u.State), Why: u.Why, Started: u.Started, Ended: u.Ended, Wave: u.Wave + 1, Waves: len(u.Waves), Nodes: []api.UpgradeNode{}}
	for w, nodes := range u.Waves {
		for _, number := range nodes {
			n := st.Nodes.Get(number)
			v := api.UpgradeNode{Node: n.Name, Wave: w + 1, Version: s.cfg.Fleet.Info(n).Hello.AgentVersion}
			v.State, v.Text = s.cfg.Reconcile.UpgradeOf(u, n)
			if u.State != state.UpgradeRunning && v.State == api.UpgradeNodeWaiting {
				v.Text = "left alone"
			}
			out.Nodes = append(out.Nodes, v)
		}
	}
	return out, nil
}
