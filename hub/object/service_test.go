package object

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

const web = `{"ports":[{"port":80,"target":8080}],"backends":[{"selector":{"app":"web"}},{"site":"a","addresses":["10.1.1.2"]}]`

func serviceOf(t testing.TB, st *state.State, name string) api.ServiceSpec {
	t.Helper()
	o, ok := st.Object(state.ObjectKey{Kind: ServiceKind, Name: name})
	require.True(t, ok)
	s, err := specOf[api.ServiceSpec](o)
	require.NoError(t, err)
	return s
}

func TestServiceKeepsItsAddresses(t *testing.T) {
	d := draft(t)
	d.Overlay = []netip.Prefix{netip.MustParsePrefix("198.16.0.0/15"), protocol.DefaultOverlay6}
	require.NoError(t, declare(d, ServiceKind, "web", web+`}`))
	first := serviceOf(t, d.State, "web")
	half4, half6 := netip.MustParsePrefix("198.17.0.0/16"), netip.MustParsePrefix("fd63:7761:7900::8000:0/97")
	require.True(t, half4.Contains(first.VIP4) && half6.Contains(first.VIP6), "%s %s", first.VIP4, first.VIP6)
	require.Equal(t, protocol.ServiceSpread, first.Mode, "it is normal")

	// Changed, declared as it is, and declared again it has the same ones.
	same := func() {
		t.Helper()
		s := serviceOf(t, d.State, "web")
		require.Equal(t, []netip.Addr{first.VIP4, first.VIP6}, []netip.Addr{s.VIP4, s.VIP6})
	}
	require.NoError(t, declare(d, ServiceKind, "web", web+`,"sticky":"client"}`))
	same()
	o, _ := d.Object(state.ObjectKey{Kind: ServiceKind, Name: "web"})
	require.NoError(t, declare(d, ServiceKind, "web", string(o.Spec)))
	again, _ := d.Object(o.Key())
	require.Equal(t, o, again, "nothing changes")
	require.NoError(t, d.Add(state.ObjectDeleted(o.Key())))
	require.NoError(t, declare(d, ServiceKind, "web", web+`}`))
	same()

	for spec, want := range map[string]string{
		web + `,"vip4":"198.19.0.1"}`:                             "service web: vip4: it has " + first.VIP4.String() + " and keeps it while it is declared, so that it cannot be 198.19.0.1; leave vip4 out",
		web + `,"headless":true,"vip6":"fd63:7761:7900::8000:1"}`: "service web: vip6: a headless service has no address of its own; leave it out",
		web + `,"epoch":7}`:                                       "service web: epoch: it is 0 by now and not 7: the writer was switched since; look at it again, or leave epoch out",
	} {
		require.EqualError(t, declare(d, ServiceKind, "web", spec), want)
	}
	require.NoError(t, declare(d, ServiceKind, "web", web+`,"headless":true}`))
	require.False(t, serviceOf(t, d.State, "web").VIP4.IsValid())
	require.NoError(t, declare(d, ServiceKind, "other", web+`,"vip4":"`+first.VIP4.String()+`"}`), "what is free may be asked for")
	require.NoError(t, declare(d, ServiceKind, "web", web+`}`))
	require.NotEqual(t, first.VIP4, serviceOf(t, d.State, "web").VIP4)
	for asked, why := range map[string]string{
		`"vip4":"198.16.0.9"`:               "it is not in the upper half of the overlay range 198.16.0.0/15, from 198.17.0.0 on",
		`"vip4":"10.0.0.1"`:                 "it is not in the overlay",
		`"vip4":"198.17.255.255"`:           "it is not in the upper half",
		`"vip4":"fd63:7761:7900::8000:1"`:   "it is of the other family, or has a zone",
		`"vip6":"198.17.0.1"`:               "it is of the other family, or has a zone",
		`"vip6":"fd63:7761:7900::8000:1%x"`: "it is of the other family, or has a zone",
	} {
		require.ErrorContains(t, declare(d, ServiceKind, "new", web+","+asked+"}"), why, asked)
	}
	require.NoError(t, declare(d, ServiceKind, "new", web+`,"vip4":"198.17.0.7"}`))
	require.ErrorContains(t, declare(d, ServiceKind, "newer", web+`,"vip4":"198.17.0.7"}`), "198.17.0.7 cannot be given: service new has it; leave vip4 out, and one is chosen")

	was := serviceOf(t, d.State, "new")
	require.NoError(t, d.Add(state.OverlayWidened{Overlay: []netip.Prefix{netip.MustParsePrefix("198.16.0.0/14"), protocol.DefaultOverlay6}}))
	require.NoError(t, declare(d, ServiceKind, "new", web+`,"sticky":"client"}`))
	require.Equal(t, was.VIP4, serviceOf(t, d.State, "new").VIP4, "it keeps what is no upper half any more")
}

func TestWriterIsCounted(t *testing.T) {
	d := draft(t)
	put := func(more string) uint64 {
		t.Helper()
		d.Seq++
		require.NoError(t, declare(d, ServiceKind, "db", web+more+`}`))
		return serviceOf(t, d.State, "db").Epoch
	}
	require.Zero(t, put(``))
	first := put(`,"mode":"single-writer","writer":"a"`)
	require.Equal(t, d.Seq+1, first)
	require.Equal(t, first, put(`,"mode":"single-writer","writer":"a","sticky":"client"`))
	second := put(`,"mode":"single-writer","writer":"b"`)
	require.Equal(t, d.Seq+1, second)
	require.ErrorContains(t, declare(d, ServiceKind, "db", fmt.Sprintf(web+`,"mode":"single-writer","writer":"a","epoch":%d}`, first)), "the writer was switched since")
	require.Equal(t, second, put(fmt.Sprintf(`,"mode":"single-writer","writer":"b","epoch":%d`, second)))
	require.Zero(t, put(``))
}

// Nodes get no number whose address is a service's: they pass over it.
func TestNodesPassOverServices(t *testing.T) {
	d := draft(t)
	d.Overlay = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/28")}
	for i, n := range []protocol.NodeNumber{5, 6, 7} {
		b := byte(i + 10)
		if n == 7 { // so are 8 and 9 then
			for _, a := range []string{"8", "9"} {
				require.NoError(t, declare(d, ServiceKind, "s"+a, web+`,"vip4":"198.18.0.`+a+`"}`))
			}
		}
		join(t, d, b)
	}
	require.ErrorContains(t, d.Add(state.HubAdded{Number: 8}), "the address of number 8 is that of service s8")
	join(t, d, 20)
	require.Equal(t, protocol.NodeNumber(10), d.NumberOf("n20"))
	require.ErrorContains(t, declare(d, ServiceKind, "new", web+`,"vip4":"198.18.0.10"}`), "a node or hub has it, or had it")
	// 11 to 14 are left.
	for i := range 4 {
		require.NoError(t, declare(d, ServiceKind, fmt.Sprintf("x%d", i), web+`}`))
	}
	require.ErrorContains(t, declare(d, ServiceKind, "full", web+`}`), "service full: the upper half of the overlay range 198.18.0.0/28 has no address left; delete what has some, or start the hub with a wider --overlay")
	join(t, d, 21) // the last one, 15, is no service's
	require.ErrorContains(t, redeem(d, 22), "has no address for node number 16")
}

func join(t testing.TB, d *state.Draft, b byte) {
	t.Helper()
	require.NoError(t, redeem(d, b))
}

func redeem(d *state.Draft, b byte) error {
	hash := protocol.TokenSecret{b}.Hash()
	if err := d.Add(state.TokenCreated{ID: protocol.TokenID{b}, Hash: hash[:], Site: "a", Expires: d.Now.Add(time.Hour)}); err != nil {
		return err
	}
	return state.Redeem(d, state.RedeemRequest{Token: protocol.TokenID{b}, Secret: protocol.TokenSecret{b}, WireGuardKey: protocol.WireGuardPublicKey{b}, IdentityKey: protocol.IdentityPublicKey{b}, Name: fmt.Sprintf("n%d", b)})
}

// Whatever is declared, changed, deleted and joined: addresses are unlike each other and those of all nodes, in the overlay, and
// stay as long as the service does.
func TestAddressesOfServices(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := draft(t)
		bits := rapid.IntRange(24, 27).Draw(rt, "bits")
		d.Overlay = []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("198.18.0.0"), bits), netip.MustParsePrefix("fd63::/120")}
		had := map[string]api.ServiceSpec{}
		b := byte(9)
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			name := fmt.Sprintf("s%d", rapid.IntRange(0, 30).Draw(rt, "name"))
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0:
				b++
				if err := redeem(d, b); err != nil {
					require.ErrorContains(rt, err, "no address for node number")
				}
			case 1:
				if _, is := had[name]; is {
					require.NoError(rt, d.Add(state.ObjectDeleted{Kind: ServiceKind, Name: name}))
					delete(had, name)
				}
			default:
				err := declare(d, ServiceKind, name, fmt.Sprintf(web+`,"slow_start":"%ds"}`, rapid.IntRange(0, 9).Draw(rt, "slow")))
				if err != nil {
					require.ErrorContains(rt, err, "no address left")
					continue
				}
				s := serviceOf(t, d.State, name)
				if was, is := had[name]; is {
					require.Equal(rt, was.VIP4, s.VIP4)
					require.Equal(rt, was.VIP6, s.VIP6)
				}
				had[name] = s
			}
			owner := map[netip.Addr]string{}
			for name, s := range had {
				for i, a := range []netip.Addr{s.VIP4, s.VIP6} {
					require.Empty(rt, owner[a])
					require.True(rt, d.Overlay[i].Contains(a))
					owner[a] = name
				}
			}
			for _, n := range d.LiveNodes() {
				l, err := d.OverlayOf(n.Number)
				require.NoError(rt, err)
				for _, a := range l {
					require.Empty(rt, owner[a], "node %d", n.Number)
				}
			}
		}
	})
}

func TestServicesAreRefused(t *testing.T) {
	for spec, want := range map[string]string{
		``:                              "EOF",
		`{"ports":[{"port":80}],"x":1}`: `unknown field "x"`,
		`{"ports":[{"port":65536}]}`:    "cannot unmarshal number 65536",
		`{"ports":[]}`:                  "a service has at least one",
		`{"ports":[{"port":80}],"backends":[{"site":"z","addresses":["10.1.1.1"]}]}`: `there is no site "z"`,
		`{"ports":[{"port":80}],"stay":["z"]}`:                                       `there is no site "z"`,
		`{"ports":[{"port":80}],"prefer":"weights","weights":{"z":1}}`:               `there is no site "z"`,
		`{"ports":[{"port":80}],"mode":"single-writer","writer":"z"}`:                `there is no site "z"`,
		`{"ports":[{"port":80}],"backends":[{"node":"z9"}]}`:                         `there is no node "z9"`,
		`{"ports":[{"port":80}],"segment":"prod"}`:                                   `there is no segment "prod"; see 'causeway get segment'`,
		`{"ports":[{"port":80}]} {}`:                                                 "something follows the document",
	} {
		err := declare(draft(t), ServiceKind, "web", spec)
		require.ErrorContains(t, err, want, spec)
		require.NotContains(t, err.Error(), "\n")
	}
	d := draft(t)
	require.NoError(t, declare(d, SegmentKind, "prod", `{"sites":["b"]}`))
	require.NoError(t, declare(d, ServiceKind, "web", `{"ports":[{"port":80}],"segment":"prod","stay":["a"],"backends":[{"node":"b1"}]}`))
	require.ErrorContains(t, d.Add(state.ObjectDeleted{Kind: SegmentKind, Name: "prod"}), "service web names segment prod")
	require.ErrorContains(t, state.Rename(d, "b1", "b2"), "service web names node b1")
	require.ErrorContains(t, d.Add(state.ObjectPut{Kind: ServiceKind, Name: "big", Shape: 1, Spec: json.RawMessage(strings.Repeat(" ", 1<<20))}), "at most 65536")
	o, _ := d.Object(state.ObjectKey{Kind: ServiceKind, Name: "web"})
	require.Equal(t, []protocol.NodeNumber{4}, o.Told(d.State))
}
