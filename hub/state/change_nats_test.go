package state

import (
	"strings"
	"testing"

	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"
)

func userKey(t *testing.T) string {
	k, err := nkeys.CreateUser()
	require.NoError(t, err)
	pub, err := k.PublicKey()
	require.NoError(t, err)
	return pub
}

func TestNATSUsers(t *testing.T) {
	d := draft(t)
	first := userKey(t)
	account, err := nkeys.CreateAccount()
	require.NoError(t, err)
	notUser, err := account.PublicKey()
	require.NoError(t, err)
	refused := func(c Change, says string) {
		t.Helper()
		before := d.State.clone()
		err := d.Add(c)
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), "\n")
		d.State = before
	}
	for _, c := range []struct {
		name, role, key, says string
	}{
		{"Graf", "reader", first, "NATS user name"},
		{"a.>", "reader", first, "NATS user name"},
		{"graf", "writer", first, "is reader"},
		{"graf", "reader", "", "is no public nkey"},
		{"graf", "reader", notUser, "is no public nkey"},
		{"graf", "reader", strings.Repeat("U", 1<<16), "is no public nkey"},
	} {
		refused(NATSUserCreated{c.name, c.role, c.key}, c.says)
	}
	add(t, d, NATSUserCreated{"graf", "reader", first})
	refused(NATSUserCreated{"graf", "reader", userKey(t)}, "exists already")
	refused(NATSUserCreated{"other", "reader", first}, "that of NATS user graf")
	refused(NATSUserRevoked{"nobody"}, "there is no NATS user")
	u, ok := d.NATSUserByKey(first)
	require.True(t, ok)
	require.Equal(t, "graf", u.Name)

	add(t, d, NATSUserRevoked{"graf"})
	_, ok = d.NATSUserByKey(first)
	require.False(t, ok)
	second := userKey(t)
	refused(NATSUserCreated{"graf", "reader", first}, "that of NATS user graf")
	add(t, d, NATSUserCreated{"graf", "reader", second})

	// He may have been revoked after the backup.
	before := d.State.clone()
	add(t, d, Restored{Epoch: 2, NextNumber: d.NextNumber})
	_, ok = d.NATSUserByKey(second)
	require.False(t, ok)
	_, ok = before.NATSUserByKey(second)
	require.True(t, ok, "an earlier state is as it was")
}
