package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// The zone of publicNames, and where its sites are met.
const (
	publicZone = "lb.example.com"
	publicName = "web." + publicZone
	publicTwo  = "198.51.100.2"
	publicOne  = "198.51.100.1"
)

// startPublicNames starts a hub with a DNS server, and two sites that serve one service with a public name.
func startPublicNames(t *testing.T) (s *System, nodes []*smallNode, outside *lab.Host) {
	t.Helper()
	l, hub, nodes := smallHosts(t, 2)
	outside = l.Host("outside").Link("eth0", nodes[0].Inet, "203.0.113.99/24")
	s = startSmall(t, l, hub, nodes, "--listen-dns", ":53", "--dns-zone", publicZone, "--dns-ns", "ns1."+publicZone+"="+HubAddr, "--listen-metrics", "127.0.0.1:9465")
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	for _, n := range nodes {
		startServer(t, s, n.Pod)
	}
	declarePublic(t, s, nodes, "")
	return s, nodes, outside
}

func declarePublic(t *testing.T, s *System, nodes []*smallNode, more string) {
	t.Helper()
	applyText(t, s, fmt.Sprintf(`kind: service
name: web
ports: [{port: 80, target: 7005}]
backends:
- {site: s1, addresses: [%s]}
- {site: s2, addresses: [%s]}
public: {addresses: {s1: [%s, "2001:db8::1"], s2: [%s]}, ttl: 5s}
%s`, nodes[0].Pod.V4, nodes[1].Pod.V4, publicOne, publicTwo, more))
}

// dig asks the hub, or whoever is named.
func dig(t *testing.T, from *lab.Host, args ...string) (string, error) {
	t.Helper()
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "@") }) {
		args = append([]string{"@" + HubAddr}, args...)
	}
	return from.Run(step(t), append([]string{"dig", "+time=3", "+tries=2"}, args...)...)
}

// answered are the addresses that a name has by 40 questions, in order.
func answered(t *testing.T, from *lab.Host, args ...string) []string {
	t.Helper()
	return slices.Sorted(maps.Keys(countAnswers(t, from, 40, args...)))
}

// countAnswers counts the addresses that a name has by n questions over TCP, which is not limited as UDP is.
func countAnswers(t *testing.T, from *lab.Host, n int, args ...string) map[string]int {
	t.Helper()
	file := filepath.Join(t.TempDir(), "questions")
	require.NoError(t, os.WriteFile(file, []byte(strings.Repeat(publicName+"\n", n)), 0o644))
	out, err := dig(t, from, append([]string{"+short", "+tcp", "-f", file}, args...)...)
	if err != nil {
		return map[string]int{err.Error(): 1}
	}
	m := map[string]int{}
	for _, l := range strings.Fields(out) {
		m[l]++
	}
	return m
}

// waitAnswered waits until a name has these addresses alone, and says for how long.
func waitAnswered(t *testing.T, from *lab.Host, want ...string) time.Duration {
	t.Helper()
	begun := time.Now()
	require.NoError(t, Wait(t, func() error {
		if got := answered(t, from); !slices.Equal(got, want) {
			return fmt.Errorf("%s has %v, want %v", publicName, got, want)
		}
		return nil
	}))
	return time.Since(begun)
}

// Public names lead to the sites that serve, for dig and for a resolver that others ask.
func TestPublicNames(t *testing.T) {
	t.Parallel()
	s, nodes, outside := startPublicNames(t)
	waitAnswered(t, outside, publicOne, publicTwo)

	for _, x := range []struct {
		args []string
		want []string
		not  string
	}{
		{[]string{publicName, "A"}, []string{"status: NOERROR", "flags: qr aa rd;", publicName + ".\t5\tIN\tA\t198.51.100."}, "flags: qr aa rd ra"},
		{[]string{"+tcp", publicName, "AAAA"}, []string{publicName + ".\t5\tIN\tAAAA\t2001:db8::1", "(TCP)"}, ""},
		{[]string{strings.ToUpper(publicName), "A"}, []string{"status: NOERROR", strings.ToUpper(publicName) + ".\t5\tIN\tA"}, ""},
		{[]string{publicName, "TXT"}, []string{"status: NOERROR", "ANSWER: 0", "SOA\tns1." + publicZone}, ""},
		{[]string{"x." + publicZone, "A"}, []string{"status: NXDOMAIN", "SOA\tns1." + publicZone}, ""},
		{[]string{publicZone, "SOA"}, []string{"IN\tSOA\tns1." + publicZone + ". hostmaster." + publicZone + "."}, ""},
		{[]string{publicZone, "NS"}, []string{"IN\tNS\tns1." + publicZone}, ""},
		{[]string{"ns1." + publicZone, "A"}, []string{"IN\tA\t" + HubAddr}, ""},
		{[]string{publicName, "ANY", "+notcp"}, []string{`HINFO`, "RFC8482"}, "198.51.100"},
		{[]string{publicZone, "AXFR"}, []string{"Transfer failed"}, "198.51.100"},
		{[]string{"www.example.org", "A"}, []string{"status: REFUSED"}, "198.51.100"},
		{[]string{"example.com", "SOA"}, []string{"status: REFUSED"}, ""},
		{[]string{publicName, "A", "+opcode=notify"}, []string{"status: NOTIMP"}, "198.51.100"},
		{[]string{publicName, "A", "+bufsize=4096"}, []string{"udp: 1232"}, ""},
		{[]string{publicName, "A", "+edns=1", "+noednsneg"}, []string{"status: BADVERS"}, "198.51.100"},
		{[]string{publicName, "A", "+subnet=192.0.2.0/24"}, []string{"status: NOERROR"}, "CLIENT-SUBNET"},
	} {
		out, err := dig(t, outside, x.args...)
		require.NoError(t, err, x.args)
		for _, w := range x.want {
			require.Contains(t, out, w, x.args)
		}
		if x.not != "" {
			require.NotContains(t, out, x.not, x.args)
		}
	}

	// A resolver before it, which knows the zone's server as it would from the zone above.
	dir := t.TempDir()
	conf := filepath.Join(dir, "unbound.conf")
	require.NoError(t, os.WriteFile(conf, []byte(fmt.Sprintf(`server:
    interface: 127.0.0.1
    username: ""
    chroot: ""
    directory: %q
    pidfile: ""
    use-syslog: no
    module-config: "iterator"
    use-caps-for-id: yes
    prefetch: no
stub-zone:
    name: %q
    stub-addr: %s
`, dir, publicZone, HubAddr)), 0o644))
	p, err := outside.Start(lab.Program{Name: "unbound", Args: []string{"unbound", "-d", "-c", conf}})
	require.NoError(t, err)
	byResolver := func() (string, error) {
		if !p.Running() {
			return "", lab.Permanent(errors.New(p.Output()))
		}
		out, err := dig(t, outside, "@127.0.0.1", "+short", publicName)
		return strings.TrimSpace(out), err
	}
	require.NoError(t, Wait(t, func() error {
		out, err := byResolver()
		if err != nil || !strings.HasPrefix(out, "198.51.100.") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))

	// A site that falls silent is answered no more, also by the resolver once what it has is old; and comes back.
	undo := cutUntil(t, nodes[0].Host, "in", "out")
	gone := waitAnswered(t, outside, publicTwo)
	measured(t, "public name leaves a silent site", gone.Seconds(), promised(13))
	require.NoError(t, Wait(t, func() error {
		if out, err := byResolver(); err != nil || out != publicTwo {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
	var shown api.Service
	require.NoError(t, s.Ask(step(t), &shown, "service", "show", "web"))
	require.Equal(t, publicName, shown.PublicName)
	require.Equal(t, "s2", shown.Answers[0].Site)
	require.Equal(t, 100, shown.Answers[0].Percent)
	undo()
	measured(t, "public name returns to a site", waitAnswered(t, outside, publicOne, publicTwo).Seconds(), promised(20))

	// A backend that is not ready, while its node is.
	nodes[1].Pod.Host.Sh("ip link set eth0 down")
	measured(t, "public name leaves a site that is not ready", waitAnswered(t, outside, publicOne).Seconds(), promised(12))
	// Everybody says no, or is not heard: all are answered.
	undo = cutUntil(t, nodes[0].Host, "in", "out")
	nodes[1].Pod.Host.Sh("ip link set eth0 up")
	waitAnswered(t, outside, publicTwo)
	undo()
	waitAnswered(t, outside, publicOne, publicTwo)

	// A hub that starts anew does not send everybody to whoever comes back first.
	s.Hub.Proc.Kill()
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, Wait(t, func() error { // until it knows who is declared it has everybody ask again
		if len(answered(t, outside)) == 0 {
			return errors.New("no answer")
		}
		return nil
	}))
	for range 5 {
		require.Equal(t, []string{publicOne, publicTwo}, answered(t, outside))
	}

	// Weights.
	declarePublic(t, s, nodes, "prefer: weights\nweights: {s1: 80, s2: 20}\n")
	require.NoError(t, Wait(t, func() error {
		if m := countAnswers(t, outside, 100); m[publicOne] < 60 {
			return fmt.Errorf("%v", m)
		}
		return nil
	}))
	m := countAnswers(t, outside, 2000)
	t.Logf("weights 80 and 20: %v of 2000", m)
	require.Equal(t, 2000, m[publicOne]+m[publicTwo])
	require.InDelta(t, 1600, m[publicOne], 80)

	// An excluded site is never answered.
	_, err = s.CLI(step(t), "service", "exclude", "web", "s1")
	require.NoError(t, err)
	waitAnswered(t, outside, publicTwo)

	metrics, err := s.Hub.Host.Run(step(t), "curl", "-s", "http://127.0.0.1:9465/metrics")
	require.NoError(t, err)
	require.Contains(t, metrics, `causeway_hub_dns_questions_total{code="noerror",kind="A"}`)
}
