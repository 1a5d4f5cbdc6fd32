package main

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"

	"causeway/hub/api"
)

// fakeUpgrades has an upgrade to 1.3.0 that is done when it is looked at, one to 1.4.0
// that has failed then, and no other release.
func fakeUpgrades(m *http.ServeMux) {
	var last atomic.Pointer[api.Upgrade]
	m.HandleFunc("POST /v1/upgrade", func(w http.ResponseWriter, r *http.Request) {
		var s api.UpgradeSpec
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			problem(w, 400, err.Error())
			return
		}
		if s.Version != "1.3.0" && s.Version != "1.4.0" {
			problem(w, 404, "the hub has no release "+s.Version)
			return
		}
		u := api.Upgrade{ID: 1, Version: s.Version, State: api.UpgradeRunning, Started: time.Now(), Wave: 1, Waves: len(s.Waves)}
		for _, n := range s.Nodes {
			u.Nodes = append(u.Nodes, api.UpgradeNode{Node: n, Wave: 1, State: api.UpgradeNodeWorking, Version: "1.2.0", Text: "fetching"})
		}
		last.Store(&u)
		answer(u)(w, r)
	})
	m.HandleFunc("GET /v1/upgrade", func(w http.ResponseWriter, r *http.Request) {
		u := api.Upgrade{Version: "1.4.0", State: api.UpgradeFailed}
		if l := last.Load(); l != nil {
			u = *l
		}
		if u.State == api.UpgradeRunning {
			n := &u.Nodes[0]
			if u.Version == "1.3.0" {
				u.State, n.State, n.Version, n.Text = api.UpgradeDone, api.UpgradeNodeDone, u.Version, ""
			} else {
				n.State, n.Text = api.UpgradeNodeFailed, "version 1.4.0 was not well within 1m0s"
				u.State, u.Why = api.UpgradeFailed, "node sh-1: "+n.Text
			}
		}
		answer(u)(w, r)
	})
	m.HandleFunc("POST /v1/upgrade/stop", answer(api.Upgrade{Version: "1.3.0", State: api.UpgradeStopped}))
}
