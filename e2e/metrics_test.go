package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/internal/docpage"
	"causeway/netns/lab"
)

const monitoring = "../packaging/monitoring"

// prometheus is a real one on a host of the lab.
type prometheus struct {
	host   *lab.Host
	client http.Client
}

// series is one of an instant query's answer.
type series struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"` // time, and the figure as text
}

// get asks the API and reads the answer's data into v.
func (p *prometheus) get(ctx context.Context, path string, q url.Values, v any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9090/api/v1/"+path+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	a, err := p.client.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: v}
	if err := json.Unmarshal(b, &answer); err != nil {
		return fmt.Errorf("%s: %w\n%s", path, err, b)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s %s: %s", path, q, answer.Error)
	}
	return nil
}

// query is an instant query.
func (p *prometheus) query(ctx context.Context, expr string) ([]series, error) {
	var d struct{ Result []series }
	err := p.get(ctx, "query", url.Values{"query": {expr}}, &d)
	return d.Result, err
}

// up waits until these targets are all that there is, and up.
func (p *prometheus) up(ctx context.Context, want map[string]string) error {
	return lab.Wait(ctx, "all targets to be up", func(ctx context.Context) error {
		var d struct {
			ActiveTargets []struct {
				Labels            map[string]string
				Health, LastError string
			}
		}
		if err := p.get(ctx, "targets", url.Values{"state": {"active"}}, &d); err != nil {
			return err
		}
		left := map[string]string{}
		for k, v := range want {
			left[k] = v
		}
		for _, t := range d.ActiveTargets {
			at := t.Labels["instance"]
			if left[at] != t.Labels["job"] {
				return lab.Permanent(fmt.Errorf("%s of job %s is no target of this test", at, t.Labels["job"]))
			}
			if t.Health != "up" {
				return fmt.Errorf("%s is %s: %s", at, t.Health, t.LastError)
			}
			delete(left, at)
		}
		if len(left) > 0 {
			return fmt.Errorf("there are no targets %v", left)
		}
		return nil
	})
}

// promtool runs it on files and has it complain of nothing.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	c := exec.CommandContext(step(t), "promtool", args...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "promtool %s: %s", strings.Join(args, " "), out)
	if stdin != "" {
		require.Empty(t, string(out), "promtool %s", strings.Join(args, " "))
	}
}

// alert is one that is pending or firing.
type alert struct {
	Labels, Annotations map[string]string
	State               string
}

func (a alert) String() string {
	return a.State + " " + a.Labels["alertname"] + " " + fmt.Sprint(a.Labels)
}

// alerts waits until exactly these alerts fire, each with a label; others may be pending.
func (p *prometheus) alerts(ctx context.Context, want map[string]string) (all []alert, err error) {
	err = lab.Wait(ctx, fmt.Sprintf("alerts %v", want), func(ctx context.Context) error {
		var d struct{ Alerts []alert }
		if err := p.get(ctx, "alerts", nil, &d); err != nil {
			return err
		}
		all = d.Alerts
		fire := map[string]bool{}
		for _, a := range all {
			name := a.Labels["alertname"]
			if a.State != "firing" {
				continue
			}
			label, value, _ := strings.Cut(want[name], "=")
			if label == "" || a.Labels[label] != value {
				return fmt.Errorf("there is %v", a)
			}
			fire[name] = true
		}
		if len(fire) != len(want) {
			return fmt.Errorf("there are only %v", all)
		}
		return nil
	})
	return all, err
}

// dashboardQueries are the dashboard's, with its variables as Grafana fills them in. It checks
// on the way what Grafana is strict with.
func dashboardQueries(t *testing.T) (out []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(monitoring, "dashboard.json"))
	require.NoError(t, err)
	type source struct{ Type, UID string }
	var d struct {
		Title, UID string
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
		Panels []struct {
			ID         int
			Title      string
			Datasource source
			GridPos    struct{ X, Y, W, H int }
			Targets    []struct {
				Datasource source
				Expr       string
			}
		}
	}
	require.NoError(t, json.Unmarshal(b, &d))
	require.NotEmpty(t, d.UID)
	require.Equal(t, "datasource", d.Templating.List[0].Type)
	fill := strings.NewReplacer("$__rate_interval", "10s", "$site", ".*")
	ids, cells, last := map[int]bool{}, map[[2]int]string{}, 0
	for _, p := range d.Panels {
		require.False(t, ids[p.ID], p.Title)
		ids[p.ID] = true
		require.Equal(t, source{"prometheus", "${datasource}"}, p.Datasource, p.Title)
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				require.Empty(t, cells[[2]int{x, y}], "%s lies over another panel", p.Title)
				require.Less(t, x, 24, p.Title)
				cells[[2]int{x, y}], last = p.Title, max(last, y)
			}
		}
		require.NotEmpty(t, p.Targets, p.Title)
		for _, x := range p.Targets {
			require.Equal(t, p.Datasource, x.Datasource, p.Title)
			expr := fill.Replace(x.Expr)
			require.NotContains(t, expr, "$", p.Title)
			out = append(out, expr)
		}
	}
	require.LessOrEqual(t, last, 24, "it does not fit a screen: a row has 38 points")
	for _, v := range d.Templating.List[1:] {
		m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(v.Definition)
		require.NotNil(t, m, v.Definition)
		out = append(out, fmt.Sprintf(`%s{%s!=""}`, m[1], m[2]))
	}
	return out
}

// none says why a selector has no series while all is well.
var none = map[string]string{
	`causeway_hub_condition{condition="nats"}`: "only a hub with an external NATS has it; TestExternalNATS of package hub sees it",
}

// A selector of a query, and what makes a condition of its value.
var (
	selector  = regexp.MustCompile(`\b(?:causeway|process|go)_\w+(?:\{[^}]*\})?|\bup\b(?:\{[^}]*\})?|\{__name__[^}]*\}`)
	threshold = regexp.MustCompile(` (?:==|!=|<=|>=|<|>) (?:bool )?[0-9.]+(?: \* [0-9.]+)?`)
)

// answered waits until every query is answered: as it is without an error; without its thresholds,
// so that a name misspelt is not taken for a fault that is not there, with a series; and every
// selector in it too.
func (p *prometheus) answered(ctx context.Context, t *testing.T, queries []string) error {
	var all []string
	seen := map[string]bool{}
	for _, q := range queries {
		require.True(t, selector.MatchString(q), q)
		bare := threshold.ReplaceAllString(q, "")
		require.NotRegexp(t, `[^{\w"]\s*[<>]|==`, bare, "a threshold is left")
		for _, x := range append(selector.FindAllString(q, -1), bare) {
			if !seen[x] && none[x] == "" {
				all = append(all, x)
			}
			seen[x] = true
		}
		if _, err := p.query(ctx, q); err != nil {
			return err
		}
	}
	for x := range none {
		require.True(t, seen[x], "no query has %s", x)
	}
	t.Logf("%d queries; %d selectors and queries without thresholds", len(queries), len(all))
	return lab.Wait(ctx, "series", func(ctx context.Context) error {
		for len(all) > 0 {
			l, err := p.query(ctx, all[0])
			if err != nil {
				return lab.Permanent(err)
			}
			if len(l) == 0 {
				return fmt.Errorf("there are none of %s", all[0])
			}
			all = all[1:]
		}
		return nil
	})
}

// firing are the alerts that a stopped agent has fire, without the time for which they wait.
var firing = []string{"CausewayAgentDown", "CausewayNodeUnreachable", "CausewaySiteDown"}

// startPrometheus starts one on host as an ordinary user, with the configuration that operators
// get, edited: its targets are hub and agents, and it scrapes and judges every half second.
func startPrometheus(t *testing.T, host *lab.Host, hub string, agents []string) *prometheus {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(monitoring, "prometheus.yaml"))
	require.NoError(t, err)
	text := string(b)
	replace := func(old, now string, n int) {
		require.Equal(t, n, strings.Count(text, old), old)
		text = strings.ReplaceAll(text, old, now)
	}
	replace("_interval: 15s", "_interval: 500ms", 2)
	replace(`"127.0.0.1:9465"`, strconv.Quote(hub), 1)
	replace(`"127.0.0.1:9464"`, `"`+strings.Join(agents, `", "`)+`"`, 1)
	dir := filepath.Join(host.Dir(), "prometheus")
	data := filepath.Join(dir, "data")
	require.NoError(t, os.MkdirAll(data, 0o755))
	require.NoError(t, os.Chown(data, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	rules, err := os.ReadFile(filepath.Join(monitoring, "alerts.yaml"))
	require.NoError(t, err)
	promtool(t, "", "check", "rules", filepath.Join(monitoring, "alerts.yaml"))
	for _, a := range firing {
		wait := regexp.MustCompile(`(- alert: ` + a + `\n +expr: .*\n +for: )\w+`)
		require.True(t, wait.Match(rules), a)
		rules = wait.ReplaceAll(rules, []byte("${1}1s"))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "alerts.yaml"), rules, 0o644))
	config := filepath.Join(dir, "prometheus.yaml")
	require.NoError(t, os.WriteFile(config, []byte(text), 0o644))
	promtool(t, "", "check", "config", config)
	_, err = host.Start(lab.Program{Name: "prometheus", User: lab.Nobody, Dir: "/", Args: []string{"prometheus", "--config.file=" + config,
		"--storage.tsdb.path=" + data, "--web.listen-address=127.0.0.1:9090"}})
	require.NoError(t, err)
	tr := &http.Transport{DialContext: hostDialer{host}.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return &prometheus{host: host, client: http.Client{Transport: tr}}
}

// A real Prometheus scrapes the hub and two agents over the network, and promtool has nothing
// to say against names, units and texts of what they tell. Every query of alerts and dashboard has
// an answer; no alert fires while all is well, and those of a stopped agent do.
func TestMetrics(t *testing.T) {
	t.Parallel()
	l, hub, nodes := smallHosts(t, 2)
	desk := l.Host("desk").Link("eth0", nodes[0].Inet, "203.0.113.30/24")
	s := startSmall(t, l, hub, nodes, "--listen-metrics", HubAddr+":9465")
	require.NoError(t, desk.Settle(step(t)))
	targets := map[string]string{HubAddr + ":9465": "causeway-hub"}
	var agents []string
	for i, n := range nodes {
		at := n.LAN + ":9464"
		agents, targets[at] = append(agents, at), "causeway-agent"
		var err error
		n.Node, err = s.Join(step(t), NodeSpec{Name: fmt.Sprintf("n%d", i+1), Site: fmt.Sprintf("s%d", i+1), Host: n.Host, TokenRoutes: PodRoutes(i+1, 1), Debug: "metrics: " + at})
		require.NoError(t, err)
	}
	applyText(t, s, fmt.Sprintf("kind: service\nname: web\nports: [{port: 80}]\nhealth: {type: none}\nbackends: [{site: s1, addresses: [%s]}]\n", nodes[0].Pod.V4))
	p := startPrometheus(t, desk, HubAddr+":9465", agents)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	require.NoError(t, p.up(step(t), targets))

	page, err := os.ReadFile("../docs/METRICS.md")
	require.NoError(t, err)
	c := http.Client{Transport: &http.Transport{DialContext: hostDialer{desk}.DialContext, DisableKeepAlives: true}}
	for at := range targets {
		r, err := c.Get("http://" + at + "/metrics")
		require.NoError(t, err)
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		require.NoError(t, err)
		promtool(t, string(b), "check", "metrics")
		for row := range strings.Lines(docpage.Metrics(t, string(b))) {
			require.Contains(t, string(page), row, at)
		}
	}

	var d struct {
		Groups []struct {
			Rules []struct{ Name, Query, Health, LastError string }
		}
	}
	require.NoError(t, p.get(step(t), "rules", nil, &d))
	queries := dashboardQueries(t)
	var rules []string
	for _, g := range d.Groups {
		for _, r := range g.Rules {
			queries, rules = append(queries, r.Query), append(rules, r.Name)
		}
	}
	require.Greater(t, len(rules), 30)
	require.NoError(t, p.answered(step(t), t, queries))
	_, err = p.alerts(step(t), nil)
	require.NoError(t, err)

	require.NoError(t, nodes[1].Proc.Stop(step(t)))
	all, err := p.alerts(step(t), map[string]string{"CausewayAgentDown": "instance=" + agents[1], "CausewayNodeUnreachable": "node=n2", "CausewaySiteDown": "site=s2"})
	require.NoError(t, err)
	for _, a := range all {
		for k, v := range a.Annotations {
			require.NotRegexp(t, `<no value>|<error|\{\{`, v, "%v %s", a, k)
		}
	}
	require.NoError(t, p.get(step(t), "rules", nil, &d))
	for _, g := range d.Groups {
		for _, r := range g.Rules {
			require.Equal(t, "ok", r.Health, "%s: %s", r.Name, r.LastError)
		}
	}
	t.Logf("alerts: %v", all)
	require.True(t, slices.ContainsFunc(all, func(a alert) bool { return a.Annotations["summary"] == "the hub hears nothing of node n2 (s2)" }), "%v", all)
}
