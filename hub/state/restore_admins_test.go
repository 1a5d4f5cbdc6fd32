package state

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An admin may have been revoked after the backup: none made before it gets in.
func TestRestoreRevokesAdmins(t *testing.T) {
	d := draft(t)
	cert := make([]byte, 32)
	cert[0] = 7
	add(t, d, AdminCreated{Name: "olga", Role: "operator", Hub: 1, Cert: cert, Expires: d.Now.Add(time.Hour)})
	require.Equal(t, AdminActive, d.Admins.Get("olga").State(d.Now))
	before := d.State.clone()
	add(t, d, Restored{Epoch: 2, NextNumber: d.NextNumber})
	require.Equal(t, AdminRevoke, d.Admins.Get("olga").State(d.Now))
	require.Equal(t, AdminActive, before.Admins.Get("olga").State(d.Now), "an earlier state is as it was")

	cert[0] = 8
	add(t, d, AdminCreated{Name: "olga", Role: "operator", Hub: 1, Cert: cert, Expires: d.Now.Add(time.Hour)})
	require.Equal(t, AdminActive, d.Admins.Get("olga").State(d.Now), "and is made anew")
}
