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
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

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
// to say against names, units and texts of what they tell.
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
	p := startPrometheus(t, desk, HubAddr+":9465", agents)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	require.NoError(t, p.up(step(t), targets))

	c := http.Client{Transport: &http.Transport{DialContext: hostDialer{desk}.DialContext, DisableKeepAlives: true}}
	for at := range targets {
		r, err := c.Get("http://" + at + "/metrics")
		require.NoError(t, err)
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		require.NoError(t, err)
		promtool(t, string(b), "check", "metrics")
	}
	require.NoError(t, lab.Wait(step(t), "both nodes in Prometheus", func(ctx context.Context) error {
		l, err := p.query(ctx, "causeway_hub_node_up == 1")
		if err == nil && len(l) != 2 {
			err = fmt.Errorf("there are %d", len(l))
		}
		return err
	}))
}
