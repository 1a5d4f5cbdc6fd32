package session

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// closes notes that it was closed.
type closes struct {
	net.Conn
	closed bool
}

func (c *closes) Close() error { c.closed = true; return nil }

func knocked(d *door, n int) (conns []*closes, knocks []*knock) {
	for range n {
		c := &closes{}
		conns, knocks = append(conns, c), append(knocks, d.knock(2, c))
	}
	return conns, knocks
}

func shut(l []*closes) (n int) {
	for _, c := range l {
		if c.closed {
			n++
		}
	}
	return n
}

// Strangers push each other out, never one that vouched, nor another node's.
func TestDoor(t *testing.T) {
	var d door
	own, ownKnock := knocked(&d, 1)
	ownKnock[0].vouch()
	other := &closes{}
	d.knock(3, other)
	strangers, knocks := knocked(&d, maxUnproven+5)
	require.Equal(t, 5, shut(strangers))
	require.Equal(t, 5, shut(strangers[:5]), "not the oldest")
	require.Zero(t, shut(own))
	require.False(t, other.closed)
	require.False(t, knocks[0].end(), "it waited no more")
	require.True(t, ownKnock[0].end())

	vouched, l := knocked(&d, maxVouched+1)
	for _, k := range l {
		k.vouch()
	}
	require.Equal(t, 1, shut(vouched))
	require.True(t, vouched[0].closed)
	for _, k := range append(knocks, l...) {
		k.end()
	}
	require.Len(t, d.nodes, 1, "the other node's is left")
}

// What strangers send before their proof is bounded, for each and for all of a node.
func TestDoorBytes(t *testing.T) {
	var d door
	c, k := knocked(&d, 12)
	k[0].took(maxUnprovenRead)
	require.False(t, c[0].closed)
	k[0].took(1)
	require.True(t, c[0].closed)
	require.Zero(t, shut(c[1:]))
	for _, k := range k[1:] {
		k.took(maxUnprovenNode / 12)
	}
	require.Zero(t, shut(c[1:]))
	k[1].took(maxUnprovenNode / 6)
	require.True(t, c[1].closed, "the oldest")
	require.Zero(t, shut(c[2:]))
	k[2].end()
	k[2].took(maxUnprovenNode)
	require.False(t, c[2].closed, "proven")
}

// Strangers do not end the agent's long hello by many of their own that are a little shorter each.
func TestDoorLongHello(t *testing.T) {
	var d door
	strangers, knocks := knocked(&d, maxUnproven-1)
	for _, k := range knocks {
		k.took(maxUnprovenNode / maxUnproven)
	}
	require.Zero(t, shut(strangers))
	agent, k := knocked(&d, 1)
	for range 10 {
		k[0].took(16 << 10)
	}
	require.False(t, agent[0].closed)
	require.Equal(t, 4, shut(strangers))
	require.Equal(t, 4, shut(strangers[:4]))
	last, l := knocked(&d, 1)
	l[0].took(1 << 10)
	require.Zero(t, shut(last), "it sent little")
	require.Zero(t, shut(agent))
	k[0].vouch()
	for _, k := range knocks {
		k.took(maxUnprovenNode / maxUnproven)
	}
	require.Zero(t, shut(agent), "it vouched")
}
