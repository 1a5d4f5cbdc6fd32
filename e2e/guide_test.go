package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// guidePages are the pages of docs/guide in the order in which they are lived through: one cluster
// goes through all of them.
var guidePages = []string{"start", "routes", "look", "policy", "overlap", "services", "files", "maintenance", "keys", "admins", "nats", "backup", "leave"}

// guide is the cluster of docs/guide.
type guide struct {
	t     *testing.T
	s     *System
	hosts map[string]*lab.Host
	token string // the one that was printed last
}

// What the guide's pages show is what the programs print: each block "```console HOST" is run, command
// by command, and its output compared but for times, sizes, random ports and keys: counts and addresses are
// the guide's own. With CAUSEWAY_UPDATE set the pages
// are written anew. The first command of a block "```console HOST until=REGEXP" is run until it prints that.
func TestGuide(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l := lab.New(t)
	inet := l.Switch("inet")
	g := &guide{t: t, hosts: map[string]*lab.Host{}}
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	g.hosts["hub"] = hub
	g.hosts["laptop"] = l.Host("laptop").Link("eth0", inet, "203.0.113.30/24")
	for i, name := range []string{"sh", "bj"} {
		h := l.Host(name+"-1").Link("eth0", inet, fmt.Sprintf("203.0.113.%d/24", 21+i))
		net := h.PodNet("pods0", fmt.Sprintf("10.20%d.1.1/24", i+1), fmt.Sprintf("fd10:20%d:1::1/64", i+1))
		g.hosts[name+"-1"] = h
		g.hosts[name+"-pod"] = net.Pod(name+"p", fmt.Sprintf("10.20%d.1.11/24", i+1), fmt.Sprintf("fd10:20%d:1::11/64", i+1))
	}
	var err error
	g.s, err = NewSystem(step(t), l, binaries(t), hub, HubAddr, "--listen-admin", ":7443", "--listen-nats", ":4222")
	require.NoError(t, err)
	left := map[string]bool{}
	pages, err := filepath.Glob("../docs/guide/*.md")
	require.NoError(t, err)
	for _, p := range pages {
		left[strings.TrimSuffix(filepath.Base(p), ".md")] = true
	}
	for _, name := range guidePages {
		g.page(name)
		delete(left, name)
	}
	require.Empty(t, left, "pages that nobody runs")
}

// page runs one page.
func (g *guide) page(name string) {
	g.t.Helper()
	path := filepath.Join("..", "docs", "guide", name+".md")
	b, err := os.ReadFile(path)
	require.NoError(g.t, err)
	var out []string
	host, until := "", ""
	lines := strings.Split(string(b), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		out = append(out, line)
		command, ok := strings.CutPrefix(line, "# ")
		switch {
		case strings.HasPrefix(line, "```console "):
			host, until, _ = strings.Cut(strings.TrimPrefix(line, "```console "), " until=")
			continue
		case host != "" && line == "```":
			host = ""
			continue
		case host == "" || !ok:
			continue
		}
		for strings.HasSuffix(command, "\\") || strings.Contains(command, "<<END") && !strings.HasSuffix(command, "\nEND") {
			i++
			require.Less(g.t, i, len(lines), "%s: %s does not end", name, command)
			out = append(out, lines[i])
			command += "\n" + lines[i]
		}
		var want []string
		for i+1 < len(lines) && lines[i+1] != "```" && !strings.HasPrefix(lines[i+1], "# ") {
			i++
			want = append(want, lines[i])
		}
		have := g.run(name, host, command, until)
		until = ""
		if os.Getenv("CAUSEWAY_UPDATE") == "" {
			require.Equal(g.t, normal(want), normal(have), "%s: on %s: %s\n\n%s", name, host, command, strings.Join(have, "\n"))
			have = want
		} else if strings.Join(normal(want), "\n") == strings.Join(normal(have), "\n") {
			have = want
		}
		out = append(out, have...)
	}
	if text := strings.Join(out, "\n"); text != string(b) {
		require.NoError(g.t, os.WriteFile(path, []byte(text), 0o644))
	}
}

// run runs a command on a host, if until is there again and again until it prints that, and returns the lines
// that it prints.
func (g *guide) run(page, host, command, until string) []string {
	g.t.Helper()
	h := g.hosts[host]
	require.NotNil(g.t, h, "%s: there is no host %s", page, host)
	if command == "systemctl enable --now causeway-agent" {
		_, err := h.Start(lab.Program{Name: "agent-" + host, Dir: "/", Args: g.in(h, "exec causeway-agent run")})
		require.NoError(g.t, err)
		return nil
	}
	text := strings.ReplaceAll(command, "TOKEN", g.token)
	done := regexp.MustCompile("(?s)" + until)
	var lines []string
	try := func(ctx context.Context) error {
		out, err := h.Run(ctx, g.in(h, "exec 2>&1\n"+text)...)
		if strings.HasSuffix(strings.TrimSpace(text), "; echo \"status $?\"") {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		lines = strings.Split(strings.TrimRight(out, "\n"), "\n")
		if !done.MatchString(out) {
			return fmt.Errorf("it does not print %q yet:\n%s", until, out)
		}
		return nil
	}
	var err error
	if until == "" {
		err = try(step(g.t))
	} else {
		err = lab.Wait(step(g.t), command, try)
	}
	require.NoError(g.t, err, "%s: on %s: %s", page, host, command)
	if len(lines) == 1 && lines[0] == "" {
		return nil
	}
	for i, line := range lines {
		line = guideToken.ReplaceAllStringFunc(line, func(s string) string {
			g.token = s
			return "TOKEN"
		})
		lines[i] = strings.TrimRight(line, " ")
	}
	return lines
}

// in is a shell on a host that has the product's directories, and its programs, where a package puts them.
func (g *guide) in(h *lab.Host, script string) []string {
	return []string{"unshare", "-m", "sh", "-ec", `d=$1; export PATH="$2:$PATH" CAUSEWAY_SOCKET="$3" HOME="$d/home" NO_COLOR=1
		mkdir -p "$d/lib/causeway-agent" "$d/run/causeway" "$d/home"; chmod 700 "$d/lib/causeway-agent"
		mount --bind "$d/lib" /var/lib; mount --bind "$d/run" /run; cd "$d/home"
		` + script, "sh", filepath.Join(h.Dir(), "guide"), g.s.Bin.Dir, g.s.Hub.Socket}
}

var (
	guideToken = regexp.MustCompile(`\bcw1\.\S+`)
	vague      = regexp.MustCompile(`wgpub:\S+|[0-9A-Za-z+/]{43}=|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?( ?UTC|Z)?|` + // keys and times
		`[0-9.]+ ?(ns|µs|ms|s|m|h|d|[KMG]?i?B|[kMG]?bit/s)\b(\d+[ms]\b)?|<1s\b|[0-9.]+(/[0-9.]+){3} ms|` + // measured
		`:\d{5}\b|0\.0\.0\+[0-9a-z.]+|\bdev\b|Linux \S+|\d+ datagrams|sequence \d+`) // of this machine and run
	spaces = regexp.MustCompile(`[ -]{2,}`)
)

// normal is what two runs of a command have in common.
func normal(lines []string) []string {
	out := []string{}
	for _, l := range lines {
		out = append(out, spaces.ReplaceAllString(vague.ReplaceAllString(l, "N"), " "))
	}
	return out
}
