package netns

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// reflecting is a part that leads addresses back to themselves, and has no table.
type reflecting struct{ addrs []netip.Addr }

func (reflecting) Table() string                     { return PartPrefix + "reflecting" }
func (reflecting) Lines() []string                   { return nil }
func (reflecting) Apply(context.Context, Part) error { return nil }
func (reflecting) Drift(context.Context) (missing, extra []string, err error) {
	return nil, nil, nil
}
func (reflecting) Close() error             { return nil }
func (r reflecting) Reflects() []netip.Addr { return r.addrs }

// A port behind which somebody reaches himself by a service is in hairpin mode where bridges hand frames to netfilter, and there alone; a
// container that comes anew has it again, what others set stays theirs, and leave takes back ours.
func TestHairpin(t *testing.T) {
	h := host(t)
	ctx := context.Background()
	sh(t, `ip link add br0 address 02:00:00:00:00:01 type bridge; ip addr add 10.1.2.1/24 dev br0; ip link set br0 up
		for n in 1 2 3 4; do ip link add p$n type veth peer name q$n; ip link set p$n master br0 up; ip link set q$n up; done
		ip link add nic0 type vxlan id 7 dstport 4789; ip link set nic0 master br0 up
		bridge link set dev p3 hairpin on`)
	learn := func(addr, mac, port string) {
		sh(t, "bridge fdb replace "+mac+" dev "+port+" master static; ip neigh replace "+addr+" lladdr "+mac+" dev br0 nud permanent")
	}
	for n := range 4 {
		learn("10.1.2.1"+string(rune('1'+n)), "02:00:00:00:00:1"+string(rune('1'+n)), "p"+string(rune('1'+n)))
	}
	learn("10.1.2.19", "02:00:00:00:00:19", "nic0")
	modes := func() string { return sh(t, `bridge -d link | grep -oE 'p[0-9]|nic0|hairpin o[nf]*' | paste -sd' '`) }
	before := modes()
	c := testConfig()
	c.Parts = []Part{reflecting{[]netip.Addr{netip.MustParseAddr("10.1.2.11"), netip.MustParseAddr("10.1.2.13"), netip.MustParseAddr("10.1.2.19"), netip.MustParseAddr("10.1.2.77")}}}
	call := func(v string) { sh(t, "echo "+v+" >/proc/sys/net/bridge/bridge-nf-call-iptables") }
	apply := func(want string) {
		t.Helper()
		p := used(t, h, plan(t, c))
		require.NoError(t, h.Apply(ctx, p))
		require.Equal(t, want, modes())
		requireFound(t, h, p)
		require.True(t, used(t, h, p).Uses.Equal(p.Uses), "and it stays so")
	}
	call("0")
	apply(before)
	call("1")
	apply("p1 hairpin on p2 hairpin off p3 hairpin on p4 hairpin off nic0 hairpin off\n")
	// The container anew, and a restart of the agent.
	sh(t, "ip link del p1; ip link add p1 type veth peer name q1; ip link set p1 master br0 up; ip link set q1 up")
	learn("10.1.2.11", "02:00:00:00:00:11", "p1")
	h = NewHost(h.stateDir, zerolog.New(zerolog.NewTestWriter(t)))
	apply("p2 hairpin off p3 hairpin on p4 hairpin off nic0 hairpin off p1 hairpin on\n")
	// Its neighbor is forgotten.
	sh(t, "ip neigh flush dev br0 nud all")
	apply("p2 hairpin off p3 hairpin on p4 hairpin off nic0 hairpin off p1 hairpin on\n")
	learn("10.1.2.14", "02:00:00:00:00:14", "p4")
	// Another one is a backend.
	c.Parts = []Part{reflecting{[]netip.Addr{netip.MustParseAddr("10.1.2.14")}}}
	apply("p2 hairpin off p3 hairpin on p4 hairpin on nic0 hairpin off p1 hairpin off\n")
	require.NoError(t, h.Remove(ctx, c))
	require.Equal(t, "p2 hairpin off p3 hairpin on p4 hairpin off nic0 hairpin off p1 hairpin off\n", modes())
	require.NoFileExists(t, filepath.Join(h.stateDir, recordName))
}
