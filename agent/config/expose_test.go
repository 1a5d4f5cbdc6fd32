package config

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExpose(t *testing.T) {
	c, err := Parse("f", []byte(`expose: ["0.0.0.0:8000-8010", "203.0.113.5:443", "[2001:db8::1]:443", "[::]:53"]`))
	require.NoError(t, err)
	allows := func(at string) bool {
		for _, e := range c.Expose {
			if e.Allows(netip.MustParseAddrPort(at)) {
				return true
			}
		}
		return false
	}
	for at, want := range map[string]bool{"0.0.0.0:8000": true, "192.0.2.1:8010": true, "192.0.2.1:8011": false, "[::]:8000": false, "203.0.113.5:443": true, "0.0.0.0:443": false,
		"[2001:db8::1]:443": true, "[::]:443": false, "[2001:db8::2]:53": true} {
		require.Equal(t, want, allows(at), at)
	}
	for text, want := range map[string]string{`[8080]`: "no ADDRESS:PORTS", `["localhost:80"]`: "no ADDRESS:PORTS", `["127.0.0.1:80"]`: "no ADDRESS:PORTS", `["::1:80"]`: "no ADDRESS:PORTS", `["[0.0.0.0]:80"]`: "no ADDRESS:PORTS",
		`["0.0.0.0:0"]`: "no ADDRESS:PORTS", `["0.0.0.0:9-8"]`: "no ADDRESS:PORTS", `["0.0.0.0:1-70000"]`: "no ADDRESS:PORTS", `["0.0.0.0:1","0.0.0.0:1"]`: "twice"} {
		_, err := Parse("f", []byte("expose: "+text))
		require.ErrorContains(t, err, want, text)
	}
}
