package hub

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// putRelease puts a release into a hub's packages. The hub checks no signature.
func putRelease(t *testing.T, dir, version string) {
	t.Helper()
	packages := filepath.Join(dir, "data", packagesDir)
	require.NoError(t, os.MkdirAll(packages, 0o755))
	for name, text := range map[string]string{
		"causeway-agent_" + version + "_amd64.bin": "bin",
		"causeway_" + version + ".json.sig":        "sig",
		"causeway_" + version + ".json": `{"version":"` + version + `","minimum":"0.0.0-0","files":[{"name":"causeway-agent_` + version + `_amd64.bin","program":"causeway-agent","arch":"amd64","size":3,"sha256":"` +
			strings.Repeat("0", 64) + `"}]}`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(packages, name), []byte(text), 0o644))
	}
}

// An upgrade goes from wave to wave, over a restart of the hub, and leaves the rest
// alone when a node fails.
func TestUpgradeInWaves(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := start(t, dir)
	w.site("s")
	hosts, agents := map[string]*host{}, map[string]*agent{}
	dial := func(name, version string, up *protocol.UpgradeStatus, features ...string) {
		if a := agents[name]; a != nil {
			a.m.Close()
		}
		a := w.dial(hosts[name], func(h *protocol.Hello) { h.AgentVersion, h.Features = version, features })
		a.send(protocol.KindStatus, protocol.Status{Conditions: []protocol.Condition{{Name: "tunnel", OK: true}}, Upgrade: up})
		agents[name] = a
	}
	names := []string{"n1", "n2", "n3", "n4"}
	for _, n := range names {
		hosts[n] = joined(t, w, n, api.TokenSpec{Site: "s"})
		dial(n, "1.2.0", nil, protocol.FeatureUpgrade)
	}
	spec := api.UpgradeSpec{Nodes: names, Waves: []string{"1", "50%", api.WaveRest}}
	refused := func(status int, want string) {
		t.Helper()
		require.Eventually(t, func() bool {
			code, detail := w.call("POST", "/v1/upgrade", spec, nil)
			return code == status && strings.Contains(detail, want)
		}, patience, 10*time.Millisecond, "%d %s", status, want)
	}
	shows := func(name string, cond func(api.Node) bool) {
		t.Helper()
		require.Eventually(t, func() bool {
			var n api.Node
			w.must("GET", "/v1/nodes/"+name, nil, &n)
			return cond(n)
		}, patience, 10*time.Millisecond, name)
	}
	upgrade := func(what string, cond func(api.Upgrade) bool) (u api.Upgrade) {
		t.Helper()
		require.Eventually(t, func() bool {
			w.must("GET", "/v1/upgrade", nil, &u)
			return cond(u)
		}, patience, 10*time.Millisecond, what)
		return u
	}
	wished := func(want ...string) (wish protocol.UpgradeWish) {
		t.Helper()
		for _, n := range names {
			asked := strings.Contains(" "+strings.Join(want, " ")+" ", " "+n+" ")
			m := agents[n].until(fmt.Sprintf("%s asked: %v", n, asked), func(m protocol.Netmap) bool { return (m.Self.Upgrade != nil) == asked })
			if asked {
				wish = *m.Self.Upgrade
			}
		}
		return wish
	}
	refused(404, "the hub has no release")
	code, _ := w.call("GET", "/v1/upgrade", nil, nil)
	require.Equal(t, 404, code)
	putRelease(t, dir, "1.3.0")
	var releases []api.Release
	w.must("GET", "/v1/releases", nil, &releases)
	require.Equal(t, []api.Release{{Version: "1.3.0", Minimum: "0.0.0-0", Archs: []string{"amd64"}}}, releases)
	dial("n4", "1.2.1", nil)
	shows("n4", func(n api.Node) bool { return n.AgentVersion == "1.2.1" })
	refused(403, "node n4 does not let its hub upgrade it")
	agents["n4"].m.Close()
	refused(409, "node n4 is not connected")
	dial("n4", "1.2.0", nil, protocol.FeatureUpgrade)
	agents["n4"].send(protocol.KindStatus, protocol.Status{Conditions: []protocol.Condition{{Name: "firewall", Cause: "docker drops"}}})
	shows("n4", func(n api.Node) bool { return n.AgentVersion == "1.2.0" && n.State == api.NodeDegraded })
	refused(409, "docker drops")
	agents["n4"].ready()
	code, _ = w.call("POST", "/v1/upgrade/stop", nil, nil)
	require.Equal(t, 409, code, "nothing to stop")

	require.Eventually(t, func() bool {
		code, _ := w.call("POST", "/v1/upgrade", spec, nil)
		return code == 200
	}, patience, 10*time.Millisecond)
	wish := wished("n1")
	require.Equal(t, "1.3.0", wish.Version)
	refused(409, "an upgrade to 1.3.0 is under way")
	done := &protocol.UpgradeStatus{UpgradeWish: wish, State: protocol.UpgradeDone}
	agents["n1"].send(protocol.KindStatus, protocol.Status{Conditions: []protocol.Condition{{Name: "tunnel", OK: true}}, Upgrade: done})
	u := upgrade("n1 does not run it yet", func(u api.Upgrade) bool { return strings.Contains(u.Nodes[0].Text, "still runs 1.2.0") })
	require.Equal(t, 1, u.Wave)
	dial("n1", "1.3.0", done)
	upgrade("the second wave", func(u api.Upgrade) bool { return u.Wave == 2 })
	wished("n1", "n2", "n3")

	w.stop()
	w = start(t, dir)
	for _, n := range names {
		agents[n] = nil
		v, up := "1.2.0", (*protocol.UpgradeStatus)(nil)
		if n == "n1" {
			v, up = "1.3.0", done
		}
		dial(n, v, up, protocol.FeatureUpgrade)
	}
	wished("n1", "n2", "n3")
	dial("n2", "1.3.0", done)
	u = upgrade("n2 is done", func(u api.Upgrade) bool { return u.Nodes[1].State == api.UpgradeNodeDone })
	require.Equal(t, 2, u.Wave, "n3 is not")
	failed := &protocol.UpgradeStatus{UpgradeWish: wish, State: protocol.UpgradeFailed, Error: "it ended 3 times; 1.2.0 is back"}
	dial("n3", "1.2.0", failed, protocol.FeatureUpgrade)
	u = upgrade("failed", func(u api.Upgrade) bool { return u.State == api.UpgradeFailed })
	require.Equal(t, "node n3: it ended 3 times; 1.2.0 is back", u.Why)
	require.Equal(t, api.UpgradeNode{Node: "n4", Wave: 3, State: api.UpgradeNodeWaiting, Version: "1.2.0", Text: "left alone"}, u.Nodes[3])
	wished()
	var n api.Node
	w.must("GET", "/v1/nodes/n3", nil, &n)
	require.Equal(t, &api.NodeUpgrade{Version: "1.3.0", State: protocol.UpgradeFailed, Error: failed.Error}, n.Upgrade)
	var events []api.Event
	w.must("GET", "/v1/events", nil, &events)
	kinds := map[string]int{}
	for _, e := range events {
		kinds[e.Kind+" "+e.Node]++
	}
	require.Equal(t, 1, kinds["upgrade_failed n3"], "%v", kinds)
	require.Equal(t, 1, kinds["node_upgraded n2"], "%v", kinds)
	var audit []api.AuditEntry
	w.must("GET", "/v1/audit", nil, &audit)
	var why []string
	for _, e := range audit {
		why = append(why, e.Why)
	}
	require.Subset(t, why, []string{"node upgrade to 1.3.0", "upgrade wave 1 done", "upgrade failed"})

	// Another try, which an admin stops.
	w.must("POST", "/v1/upgrade", api.UpgradeSpec{Nodes: names[2:]}, nil)
	again := wished("n3")
	require.NotEqual(t, wish.ID, again.ID)
	w.must("POST", "/v1/upgrade/stop", nil, nil)
	wished()
	require.Equal(t, api.UpgradeStopped, upgrade("stopped", func(u api.Upgrade) bool { return true }).State)
}
