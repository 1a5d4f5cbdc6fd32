package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"

	"causeway/internal/docpage"
)

// Series of a hub, an agent and what the hub says of a node, for promtool.
const (
	ofHub   = `{job="causeway-hub",instance="HERE"`
	ofAgent = `{job="causeway-agent",instance="HERE"`
	info    = "causeway_agent_info" + ofAgent + `,node="n1",site="s1"}`
)

// backends are those of a service at a site that an agent uses.
func backends(service, site string) string {
	return "causeway_agent_service_backends" + ofAgent + fmt.Sprintf(`,service=%q,site=%q,which="used"}`, service, site)
}

// Which alerts fire when series go so, for two hours from 1970 on with a value a minute, and no
// others. 'a+bxn' is promtool's: n more values, each b higher (https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/).
var situations = []struct {
	fire   string // nothing: none does
	series map[string]string
}{
	{"", map[string]string{
		"up" + ofHub + "}": "1x120", "up" + ofAgent + "}": "1x120", info: "1x120", "causeway_hub_ready" + ofHub + "}": "1x120",
		"causeway_hub_condition" + ofHub + `,condition="disk"}`: "1x120", "causeway_hub_condition" + ofHub + `,condition="nats"}`: "1x120", "causeway_hub_condition" + ofHub + `,condition="keys"}`: "1x120",
		"causeway_hub_disk_free_bytes" + ofHub + "}": "1000000000-1000x120", "causeway_hub_certificate_expiry_timestamp_seconds" + ofHub + `,certificate="https"}`: "5000000x120",
		"causeway_hub_doctor_findings" + ofHub + `,severity="critical"}`: "0x120", "causeway_hub_relay_datagrams_total" + ofHub + "}": "0+60000x120",
		"causeway_hub_relay_dropped_datagrams_total" + ofHub + `,reason="limit_pair"}`: "0+500x120", "causeway_hub_relay_dropped_datagrams_total" + ofHub + `,reason="malformed"}`: "0+50000x120",
		"causeway_hub_joins_total" + ofHub + `,result="refused"}`: "0+1x120", "causeway_hub_events_total" + ofHub + `,kind="admin_refused"}`: "0+1x120", "causeway_hub_events_total" + ofHub + `,kind="upgrade_failed"}`: "7x120",
		"causeway_hub_inventory_messages_total" + ofHub + `,result="malformed"}`: "3x120", "causeway_hub_node_up" + ofHub + `,node="n1",site="s1"}`: "1x30 0 1x30 0 1x60",
		"causeway_hub_nodes" + ofHub + `,site="s1",state="degraded"}`: "0x110 1x2 0x10", "causeway_hub_nodes" + ofHub + `,site="s1",state="quarantined"}`: "0x120",
		"causeway_hub_netmap_lag_seconds" + ofHub + "}": "20x120", "causeway_hub_netmap_refused_nodes" + ofHub + "}": "0x120", "causeway_hub_routes" + ofHub + `,state="pending"}`: "0x70 1x50",
		"causeway_agent_condition" + ofAgent + `,condition="hub"}`: "1x120", "causeway_agent_condition" + ofAgent + `,condition="control"}`: "1x120", "causeway_agent_condition" + ofAgent + `,condition="nats"}`: "1x120",
		"causeway_agent_condition" + ofAgent + `,condition="routes"}`: "0x4 1x116", "causeway_agent_condition" + ofAgent + `,condition="repair"}`: "1x120",
		"causeway_agent_path_loss_max_ratio" + ofAgent + `,path="direct"}`: "0.04x117 0.3x3", "causeway_agent_path_rtt_max_seconds" + ofAgent + `,path="direct"}`: "0.3x120",
		"causeway_agent_peers" + ofAgent + `,path="stream"}`: "0x115 2x5", "causeway_agent_repairs_total" + ofAgent + `,kind="routes"}`: "0x100 3x20", "causeway_agent_control_sessions_total" + ofAgent + "}": "0x100 3x20",
		backends("calm", "s1"): "2x120", backends("calm", "s2"): "1x30 0x3 1x87", backends("calm", "s3"): "1x116 0x4", "causeway_agent_service_switches_total" + ofAgent + `,service="calm"}`: "0x100 8x20",
		"process_start_time_seconds" + ofHub + "}": "5x60 4000x60", "causeway_agent_time_seconds" + ofAgent + "}": "7+60x120", "causeway_hub_time_seconds" + ofHub + "}": "0+60x120",
		"process_open_fds" + ofHub + "}": "70x120", "process_max_fds" + ofHub + "}": "100x120",
	}},
	{"CausewayHubDown", map[string]string{"up" + ofHub + "}": "1x110 0x10"}},
	{"CausewayHubNotReady", map[string]string{"causeway_hub_ready" + ofHub + "}": "1x110 0x10"}},
	{"CausewayHubDiskFull", map[string]string{"causeway_hub_condition" + ofHub + `,condition="disk"}`: "1x110 0x10"}},
	{"CausewayHubDiskFilling", map[string]string{"causeway_hub_disk_free_bytes" + ofHub + "}": "1000000000-1000000x120"}},
	{"CausewayHubNATSAway", map[string]string{"causeway_hub_condition" + ofHub + `,condition="nats"}`: "1x110 0x10"}},
	{"CausewayHubCondition", map[string]string{"causeway_hub_condition" + ofHub + `,condition="hub_list"}`: "1x110 0x10"}},
	{"CausewayCertificateExpires", map[string]string{"causeway_hub_certificate_expiry_timestamp_seconds" + ofHub + `,certificate="https"}`: "1000000x120"}},
	{"CausewayCertificateExpires CausewayCertificateExpired", map[string]string{"causeway_hub_certificate_expiry_timestamp_seconds" + ofHub + `,certificate="admin-ca"}`: "9000x120"}},
	{"CausewayDoctorFinds", map[string]string{"causeway_hub_doctor_findings" + ofHub + `,severity="critical"}`: "0x100 1x20"}},
	{"CausewayRelayOverloaded", map[string]string{"causeway_hub_relay_datagrams_total" + ofHub + "}": "0+60000x120", "causeway_hub_relay_dropped_datagrams_total" + ofHub + `,reason="limit_pair"}`: "0+700x120"}},
	{"CausewayJoinsRefused", map[string]string{"causeway_hub_joins_total" + ofHub + `,result="refused"}`: "0+2x120"}},
	{"CausewayAccessRefused", map[string]string{"causeway_hub_events_total" + ofHub + `,kind="nats_refused"}`: "0+2x120"}},
	{"CausewayInventoryMalformed", map[string]string{"causeway_hub_inventory_messages_total" + ofHub + `,result="malformed"}`: "0x110 1x10"}},
	{"CausewaySiteDown CausewayNodeUnreachable CausewayNodeUnreachable", map[string]string{
		"causeway_hub_node_up" + ofHub + `,node="n1",site="s1"}`: "1x110 0x10", "causeway_hub_node_up" + ofHub + `,node="n2",site="s1"}`: "1x110 0x10", "causeway_hub_node_up" + ofHub + `,node="n3",site="s3"}`: "1x120"}},
	{"CausewayNodeUnreachable", map[string]string{"causeway_hub_node_up" + ofHub + `,node="n1",site="s1"}`: "1x110 0x10", "causeway_hub_node_up" + ofHub + `,node="n2",site="s1"}`: "1x120"}},
	{"CausewayNodeFlaps", map[string]string{"causeway_hub_node_up" + ofHub + `,node="n1",site="s1"}`: "1x100 0 1 0 1 0 1 0 1x10"}},
	{"CausewayNodesDegraded", map[string]string{"causeway_hub_nodes" + ofHub + `,site="s1",state="degraded"}`: "0x110 1x10"}},
	{"CausewayNodesQuarantined", map[string]string{"causeway_hub_nodes" + ofHub + `,site="s1",state="quarantined"}`: "1x120"}},
	{"CausewayNetmapLag", map[string]string{"causeway_hub_netmap_lag_seconds" + ofHub + "}": "0x110 70+60x10"}},
	{"CausewayNetmapRefused", map[string]string{"causeway_hub_netmap_refused_nodes" + ofHub + "}": "0x100 1x20"}},
	{"CausewayRoutesPending", map[string]string{"causeway_hub_routes" + ofHub + `,state="pending"}`: "2x120"}},
	{"CausewayUpgradeFailed", map[string]string{"causeway_hub_events_total" + ofHub + `,kind="upgrade_failed"}`: "0x80 1x40"}},
	{"CausewayAgentDown", map[string]string{"up" + ofAgent + "}": "1x110 0x10"}},
	// What follows from a cause that has its own alert is quiet.
	{"CausewayAgentWithoutHub", map[string]string{info: "1x120", "causeway_agent_condition" + ofAgent + `,condition="hub"}`: "1x110 0x10",
		"causeway_agent_peers" + ofAgent + `,path="none"}`: "0x110 1x10", "causeway_agent_condition" + ofAgent + `,condition="control"}`: "1x110 0x10", "causeway_agent_condition" + ofAgent + `,condition="nats"}`: "1x110 0x10"}},
	{"CausewayAgentCondition", map[string]string{info: "1x120", "causeway_agent_condition" + ofAgent + `,condition="hub"}`: "1x120",
		"causeway_agent_condition" + ofAgent + `,condition="control"}`: "1x110 0x10", "causeway_agent_condition" + ofAgent + `,condition="nats"}`: "1x110 0x10"}},
	{"CausewayAgentNATSAway", map[string]string{info: "1x120", "causeway_agent_condition" + ofAgent + `,condition="control"}`: "1x120", "causeway_agent_condition" + ofAgent + `,condition="nats"}`: "1x110 0x10"}},
	{"CausewayPathDown CausewayPathLoss", map[string]string{info: "1x120", "causeway_agent_condition" + ofAgent + `,condition="hub"}`: "1x120", "causeway_agent_path_loss_max_ratio" + ofAgent + `,path="relay"}`: "0x110 1x10"}},
	{"CausewayPathDown", map[string]string{info: "1x120", "causeway_agent_condition" + ofAgent + `,condition="hub"}`: "1x120", "causeway_agent_peers" + ofAgent + `,path="none"}`: "0x110 1x10", "causeway_agent_peers" + ofAgent + `,path="idle"}`: "9x120"}},
	{"CausewayPathLoss", map[string]string{info: "1x120", "causeway_agent_path_loss_max_ratio" + ofAgent + `,path="direct"}`: "0x110 0.06x10"}},
	{"CausewayPathSlow", map[string]string{info: "1x120", "causeway_agent_path_rtt_max_seconds" + ofAgent + `,path="direct"}`: "0.05x100 0.5x20"}},
	{"CausewayTCPOnly", map[string]string{info: "1x120", "causeway_agent_peers" + ofAgent + `,path="stream"}`: "0x100 1x20"}},
	{"CausewayRepairFight", map[string]string{info: "1x120", "causeway_agent_repairs_total" + ofAgent + `,kind="routes"}`: "0x110 0+2x10"}},
	{"CausewayRepairGivenUp", map[string]string{info: "1x120", "causeway_agent_condition" + ofAgent + `,condition="repair"}`: "1x119 0"}},
	{"CausewaySessionFlaps", map[string]string{info: "1x120", "causeway_agent_control_sessions_total" + ofAgent + "}": "0x110 0+1x10"}},
	{"CausewayServiceRefused", map[string]string{info: "1x120", backends("refused", "s1"): "2x110 0x10", backends("refused", "s2"): "0x120"}},
	{"CausewayServiceSiteLost", map[string]string{info: "1x120", backends("lost", "s1"): "2x110 0x10", backends("lost", "s2"): "1x120"}},
	{"CausewayServiceDisagree", map[string]string{info: "1x120", backends("split", "s1"): "2x110 0x10", backends("split", "s2"): "1x120",
		strings.Replace(backends("split", "s1"), "HERE", "elsewhere", 1): "2x120"}},
	{"CausewayServiceFlaps", map[string]string{info: "1x120", "causeway_agent_service_switches_total" + ofAgent + `,service="web"}`: "0x110 0+1x10"}},
	{"CausewayRestarts", map[string]string{"process_start_time_seconds" + ofAgent + "}": "5x100 6000 6060 6120x20"}},
	{"CausewayClockWrong CausewayClockWrong", map[string]string{"causeway_agent_time_seconds" + ofAgent + "}": "90+60x120", "causeway_hub_time_seconds" + ofHub + "}": "-45+60x120"}},
	{"CausewayDescriptors", map[string]string{"process_open_fds" + ofAgent + "}": "90x120", "process_max_fds" + ofAgent + "}": "100x120"}},
}

// docs/METRICS.md has all alerts.
func TestAlertsTable(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(monitoring, "alerts.yaml"))
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, For          string
				Labels, Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(b, &file))
	var out strings.Builder
	out.WriteString("| alert | severity | after | summary |\n|---|---|---|---|\n")
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			require.Contains(t, []string{"critical", "warning", "info"}, r.Labels["severity"], r.Alert)
			require.NotEmpty(t, r.Annotations["description"], r.Alert)
			fmt.Fprintf(&out, "| `%s` | %s | %s | %s |\n", r.Alert, r.Labels["severity"], cmp.Or(r.For, "at once"), regexp.MustCompile(`\{\{[^}]*\}\}`).ReplaceAllString(r.Annotations["summary"], "…"))
		}
	}
	docpage.Check(t, "../docs/METRICS.md", "alerts", out.String())
}

// Each alert fires in its situation, alone, and none where all is as it may be.
func TestAlerts(t *testing.T) {
	t.Parallel()
	rules, err := filepath.Abs(filepath.Join(monitoring, "alerts.yaml"))
	require.NoError(t, err)
	b, err := os.ReadFile(rules)
	require.NoError(t, err)
	fired := map[string]bool{}
	var series, samples []any
	for i, s := range situations { // all at once, each an instance
		here := fmt.Sprint("situation-", i)
		for k, v := range s.series {
			series = append(series, map[string]string{"series": strings.Replace(k, "HERE", here, 1), "values": v})
		}
		count := map[string]int{}
		for _, a := range strings.Fields(s.fire) {
			count[a]++
			fired[a] = true
		}
		for a, n := range count {
			samples = append(samples, map[string]any{"labels": fmt.Sprintf("{alertname=%q, instance=%q}", a, here), "value": n})
		}
	}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(b), -1) {
		require.True(t, fired[m[1]], "%s fires in no situation", m[1])
	}
	text, err := yaml.Marshal(map[string]any{"rule_files": []string{rules}, "evaluation_interval": "1m", "tests": []any{
		map[string]any{"interval": "1m", "input_series": series, "promql_expr_test": []any{
			map[string]any{"expr": `count by (alertname, instance) (ALERTS{alertstate="firing"})`, "eval_time": "120m", "exp_samples": samples}}}}})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "test.yaml")
	require.NoError(t, os.WriteFile(file, text, 0o644))
	promtool(t, "", "test", "rules", file)
}
