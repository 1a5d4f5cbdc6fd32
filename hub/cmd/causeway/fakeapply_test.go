package main

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"time"

	"causeway/hub/api"
	"causeway/hub/declare"
	_ "causeway/hub/object" // the kinds
	"causeway/hub/state"
	"causeway/protocol"
)

// fakeApply decides as a hub does, on a draft that is the same each time.
func fakeApply(w http.ResponseWriter, r *http.Request) {
	var in api.Apply
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		problem(w, 400, err.Error())
		return
	}
	d, err := applyDraft()
	if err != nil {
		problem(w, 500, err.Error())
		return
	}
	waiting := func(n protocol.NodeNumber) []netip.Prefix {
		if n == 3 {
			return []netip.Prefix{netip.MustParsePrefix("10.202.1.0/24")}
		}
		return nil
	}
	steps, err := declare.Apply(d, in.Documents, in.Prune, declare.Live{Who: "unix:root", Announced: waiting})
	switch {
	case state.IsKind(err, state.NotFound):
		problem(w, 404, err.Error())
	case err != nil:
		problem(w, 409, err.Error())
	default:
		answer(api.Applied{Sequence: 42, Steps: steps})(w, r)
	}
}

// applyDraft has the sites and nodes of the fake hub.
func applyDraft() (*state.Draft, error) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	d := &state.Draft{State: state.New(), Now: now}
	changes := []state.Change{
		state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}},
		state.HubAdded{Number: 1},
		state.SiteCreated{Name: "idc-sh", Ranges: []netip.Prefix{netip.MustParsePrefix("10.201.0.0/16")}},
		state.SiteMaxAge{Name: "idc-sh", MaxAge: 72 * time.Hour},
		state.SiteCreated{Name: "cloud-eu"},
	}
	for i, site := range []string{"idc-sh", "cloud-eu"} {
		secret := protocol.TokenSecret{byte(i + 1)}
		hash := secret.Hash()
		changes = append(changes, state.TokenCreated{ID: protocol.TokenID{byte(i + 1)}, Hash: hash[:], Site: site, Expires: now.Add(time.Hour)})
	}
	for _, c := range changes {
		if err := d.Add(c); err != nil {
			return nil, err
		}
	}
	for i, name := range []string{"sh-1", "eu-1"} {
		b := byte(i + 1)
		err := state.Redeem(d, state.RedeemRequest{Token: protocol.TokenID{b}, Secret: protocol.TokenSecret{b}, WireGuardKey: protocol.WireGuardPublicKey{b}, IdentityKey: protocol.IdentityPublicKey{b}, Name: name})
		if err != nil {
			return nil, err
		}
	}
	return d, state.Label(d, "sh-1", map[string]string{"rack": "r12"})
}

func fakeLimit(now time.Time) api.Object {
	return api.Object{Kind: "limit", Name: "branch", Spec: json.RawMessage(`{"site":"idc-sh","bytes":12500000}`), Generation: 7, Created: now.Add(-3 * time.Hour), Changed: now, Known: true, Have: 1, Lack: []string{"sh-2"},
		Status: map[string]string{"dropped": "12"}}
}
