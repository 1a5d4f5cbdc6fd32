package service

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func good() Config {
	return Config{Interface: "cw0", Range: prefixesOf("198.19.0.0/16", "fd63:7761:7900::8:0/112"), Own: []netip.Addr{netip.MustParseAddr("198.18.0.1")},
		Local: prefixesOf("10.1.0.0/24"), Services: services(64, "a"), Dead: backends("b")}
}

// check is what Set refuses before it asks the kernel.
func check(c Config) error {
	h, err := c.host()
	if err != nil {
		return err
	}
	l, err := newLive(c.Services, c.Dead, live{})
	if err != nil {
		return err
	}
	return h.checkRange(l, live{})
}

func TestRefusedConfigs(t *testing.T) {
	require.NoError(t, check(good()))
	a := netip.MustParseAddr
	for want, spoil := range map[string]func(*Config){
		`interface name ""`:                         func(c *Config) { c.Interface = "" },
		"interface name \"a23456789012345":          func(c *Config) { c.Interface = "a234567890123456" },
		"range of services 0.0.0.0/0":               func(c *Config) { c.Range = prefixesOf("0.0.0.0/0") },
		"local prefix ::/0":                         func(c *Config) { c.Local = prefixesOf("::/0") },
		"range of services invalid Prefix":          func(c *Config) { c.Range = []netip.Prefix{{}} },
		"own address 127.0.0.1 is no plain":         func(c *Config) { c.Own = []netip.Addr{a("127.0.0.1")} },
		"own address ::ffff:10.0.0.1 is":            func(c *Config) { c.Own = []netip.Addr{a("::ffff:10.0.0.1")} },
		"own address fe80::1%eth0 is":               func(c *Config) { c.Own = []netip.Addr{a("fe80::1%eth0")} },
		"more than 4096 prefixes":                   func(c *Config) { c.Local = make([]netip.Prefix, MaxPrefixes+1) },
		"is in no range of services":                func(c *Config) { c.Services[0].VIP = a("198.20.0.1") },
		"0.0.0.0:80, protocol 6: is no plain":       func(c *Config) { c.Services[0].VIP = a("0.0.0.0") },
		"protocol 1: is neither TCP (6)":            func(c *Config) { c.Services[0].Proto = 1 },
		"has no port":                               func(c *Config) { c.Services[0].Port = 0 },
		"has 63 slots: want none, 64 or 256":        func(c *Config) { c.Services[0].Slots = c.Services[0].Slots[:63] },
		"slot 5: [fd10:2::11]:8080 is of another":   func(c *Config) { c.Services[0].Slots[5] = backend("a", true) },
		"slot 63: 10.2.0.11:0 is of another":        func(c *Config) { c.Services[0].Slots[63] = netip.AddrPortFrom(a("10.2.0.11"), 0) },
		"slot 0: invalid IP is no plain":            func(c *Config) { c.Services[0].Slots[0] = netip.AddrPort{} },
		"slot 1: 224.0.0.1 is no plain":             func(c *Config) { c.Services[0].Slots[1] = netip.MustParseAddrPort("224.0.0.1:1") },
		"198.19.9.9:80 is the address of a service": func(c *Config) { c.Services[0].Slots[1] = netip.MustParseAddrPort("198.19.9.9:80") },
		"198.19.0.1:80, protocol 6 is there twice":  func(c *Config) { c.Services = append(c.Services, c.Services[0]) },
		"backend 10.3.0.11:0 is neither":            func(c *Config) { c.Dead[0].Addr = netip.MustParseAddrPort("10.3.0.11:0") },
		"backend 10.3.0.11:8080 is neither":         func(c *Config) { c.Dead[0].Proto = 47 },
		"backend invalid AddrPort is no plain":      func(c *Config) { c.Dead[0].Addr = netip.AddrPort{} },
		"at most 65536 and 65536":                   func(c *Config) { c.Dead = make([]Backend, MaxDead+1) },
		"more than 1048576 slots": func(c *Config) {
			c.Range = prefixesOf("198.0.0.0/8")
			c.Services = nil
			slots := slots(256, false, "a")
			for i := range MaxSlots/256 + 1 {
				c.Services = append(c.Services, Service{netip.AddrFrom4([4]byte{198, 1, byte(i >> 8), byte(i)}), tcp, 80, false, slots, nil})
			}
		},
	} {
		c := good()
		for i := range c.Services {
			c.Services[i].Slots = slices.Clone(c.Services[i].Slots)
		}
		spoil(&c)
		err := check(c)
		require.ErrorContains(t, err, want, want)
		require.NotContains(t, err.Error(), "\n")
		require.True(t, strings.HasPrefix(err.Error(), "service: "))
	}
	c := good()
	_, err := NewPart(c, NewTable())
	require.ErrorContains(t, err, "see Table.Switch")
	c.Services, c.Dead = nil, nil
	p, err := NewPart(c, NewTable())
	require.NoError(t, err)
	require.Equal(t, []string{
		"# nftables table causeway-service: services' addresses are translated, but for what comes out of cw0",
		"# 10.1.0.0/24 is here, for services",
		"# 198.18.0.1 is this node's own, for services",
		"# 198.19.0.0/16 is of services",
		"# fd63:7761:7900::8:0/112 is of services"}, p.Lines())
}

// A part whose range no longer has the services that are live is refused, and a Switch that is refused changes nothing.
func TestRefusedChangesNothing(t *testing.T) {
	b := NewTable()
	require.NoError(t, b.Switch(services(64, "a"), nil))
	before := b.Config()
	require.Error(t, b.Switch(append(services(64, "b"), Service{}), nil))
	require.Equal(t, before, b.Config())
	h, err := Config{Interface: "cw0", Range: prefixesOf("10.0.0.0/8")}.host()
	require.NoError(t, err)
	require.ErrorContains(t, b.setHost(h), "is in no range of services")
	require.Equal(t, before, b.Config())
}

// Whatever a service says, it is refused in one line or kept as it is.
func FuzzService(f *testing.F) {
	f.Add([]byte{198, 19, 0, 1}, uint8(6), uint16(80), 64, []byte{10, 2, 0, 11}, uint16(8080), uint16(3))
	f.Add([]byte{0xfd, 0x63, 15: 1}, uint8(17), uint16(53), 256, []byte{0xfd, 1, 15: 9}, uint16(53), uint16(0))
	f.Add([]byte{10: 0xff, 11: 0xff, 15: 1}, uint8(6), uint16(80), 64, []byte{}, uint16(0), uint16(1))
	f.Add([]byte{198, 19, 0, 1}, uint8(6), uint16(80), 64, []byte{}, uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, vip []byte, proto uint8, port uint16, n int, backend []byte, first, step uint16) {
		s := Service{Proto: proto, Port: port}
		s.VIP, _ = netip.AddrFromSlice(vip)
		b, _ := netip.AddrFromSlice(backend)
		for i := range max(0, min(n, 300)) {
			s.Slots = append(s.Slots, netip.AddrPortFrom(b, first+uint16(i)*step))
		}
		l, err := newLive([]Service{s}, []Backend{{proto, netip.AddrPortFrom(b, first)}}, live{})
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		got := l.config(Config{})
		require.Equal(t, []Service{s}, got.Services)
		again, err := newLive(got.Services, got.Dead, l)
		require.NoError(t, err)
		require.Equal(t, l.services[s.key()], again.services[s.key()])
	})
}
