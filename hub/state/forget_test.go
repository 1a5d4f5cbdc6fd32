package state

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// ledger is a log in memory.
type ledger struct {
	txs   [][]byte
	state *State
	now   time.Time
}

func newLedger(t *testing.T) *ledger {
	l := &ledger{state: New(), now: epoch0}
	l.add(t, ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4}}, HubAdded{Number: 1}, SiteCreated{Name: "a"})
	return l
}

// add appends a transaction of these changes as a store does.
func (l *ledger) add(t *testing.T, changes ...Change) {
	t.Helper()
	tx := Transaction{Sequence: l.state.Seq + 1, Prev: l.state.hash, ID: "x", Time: l.now, Who: "test", Changes: changes}
	b, err := tx.encode()
	require.NoError(t, err)
	l.txs = append(l.txs, b)
	l.state = l.fold(t, l.state, tx.Sequence)
}

// fold folds the transactions up to last into a copy of s.
func (l *ledger) fold(t *testing.T, s *State, last uint64) *State {
	t.Helper()
	for s.Seq < last {
		tx, err := decodeTransaction(s.Seq+1, l.txs[s.Seq])
		require.NoError(t, err)
		next := s.clone()
		require.NoError(t, next.apply(tx))
		s = next
	}
	return s
}

func (l *ledger) token(t *testing.T, n int, life time.Duration) (protocol.TokenID, protocol.TokenSecret) {
	id, secret := protocol.TokenID{byte(n), byte(n >> 8)}, protocol.TokenSecret{byte(n), byte(n >> 8), 1}
	hash := secret.Hash()
	l.add(t, TokenCreated{ID: id, Hash: hash[:], Site: "a", Expires: l.now.Add(life)})
	return id, secret
}

func (l *ledger) redeem(id protocol.TokenID, secret protocol.TokenSecret, n int) (*Draft, error) {
	d := &Draft{State: l.state.clone(), Now: l.now}
	identity := protocol.IdentityPrivateKey{byte(n), byte(n >> 8), 2}
	return d, Redeem(d, RedeemRequest{Token: id, Secret: secret, Name: fmt.Sprintf("n%d", n), WireGuardKey: protocol.WireGuardPublicKey{byte(n), byte(n >> 8), 2}, IdentityKey: identity.Public(), Proves: true})
}

// From whichever snapshot a hub begins, and whatever was forgotten before or after, it comes to the state that the whole log
// makes.
func TestForgettingFollowsFromTheLog(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	l := newLedger(t)
	var snapshots []*State
	forgot := map[string]int{}
	for n := range 1200 {
		l.now = l.now.Add(time.Duration(r.IntN(int(20 * time.Hour))))
		switch r.IntN(4) {
		case 0:
			id, secret := l.token(t, n+10, time.Duration(1+r.IntN(200))*time.Hour)
			if d, err := l.redeem(id, secret, n+10); r.IntN(2) == 0 {
				require.NoError(t, err)
				l.add(t, d.changes...)
			} else if r.IntN(2) == 0 {
				l.add(t, TokenCancelled{id})
			}
		case 1:
			l.add(t, AdminCreated{Name: fmt.Sprintf("admin-%d", n), Role: "viewer", Cert: make([]byte, 32), Expires: l.now.Add(time.Duration(1+r.IntN(500)) * time.Hour)})
		case 2:
			l.add(t, AdminRevoked{Name: fmt.Sprintf("admin-%d", r.IntN(n+1))}) // that is there no more, maybe
		case 3:
			l.add(t, someGone(l.state, r)...)
		}
		for _, x := range l.state.forgot {
			forgot[x.Kind]++
		}
		if n%300 == 50 {
			b, err := EncodeSnapshot(l.state)
			require.NoError(t, err)
			s, err := DecodeSnapshot(b)
			require.NoError(t, err)
			require.Empty(t, same(l.state, s))
			snapshots = append(snapshots, s)
		}
	}
	require.Greater(t, forgot[ThingToken], 100)
	require.Greater(t, forgot[ThingAdmin], 100)
	require.Less(t, l.state.Tokens.Len(), 150)
	require.Less(t, l.state.Admins.Len(), 250)
	whole := l.fold(t, New(), l.state.Seq)
	require.Empty(t, same(l.state, whole))
	for _, s := range snapshots {
		require.Empty(t, same(whole, l.fold(t, s, whole.Seq)))
	}
}

// someGone has some node leave.
func someGone(s *State, r *rand.Rand) []Change {
	if l := s.LiveNodes(); len(l) > 0 {
		return []Change{NodeGone{l[r.IntN(len(l))].Number, GoneLeft}}
	}
	return []Change{SiteMaxAge{Name: "a"}}
}

// Nothing opens by being forgotten: neither a token that was used, revoked or expired, nor an admin's certificate, nor a NATS
// user's key. A node that is gone stays, with its keys.
func TestWhatIsForgottenStaysShut(t *testing.T) {
	l := newLedger(t)
	used, usedSecret := l.token(t, 10, time.Hour)
	revoked, revokedSecret := l.token(t, 11, time.Hour)
	expired, expiredSecret := l.token(t, 12, time.Hour)
	lasting, lastingSecret := l.token(t, 13, 366*24*time.Hour)
	d, err := l.redeem(used, usedSecret, 10)
	require.NoError(t, err)
	l.add(t, d.changes...)
	l.add(t, NodeGone{2, GoneRevoked})
	d, err = l.redeem(lasting, lastingSecret, 13)
	require.NoError(t, err)
	l.add(t, d.changes...)
	l.add(t, TokenCancelled{revoked})
	cert := [32]byte{7}
	l.add(t, AdminCreated{Name: "vera", Role: "admin", Cert: cert[:], Expires: l.now.Add(time.Hour)})
	_, ok := l.state.AdminByCert(cert)
	require.True(t, ok)

	l.now = l.now.Add(ForgetAfter) // not yet
	l.add(t, SiteMaxAge{Name: "a"})
	require.Equal(t, 4, l.state.Tokens.Len())
	require.True(t, l.state.Admins.Has("vera"))
	l.now = l.now.Add(25 * time.Hour)
	l.add(t, SiteMaxAge{Name: "a"})
	require.Equal(t, 1, l.state.Tokens.Len(), "the one that has not expired")
	require.False(t, l.state.Admins.Has("vera"))
	require.Len(t, l.state.forgot, 4)

	for id, secret := range map[protocol.TokenID]protocol.TokenSecret{used: usedSecret, revoked: revokedSecret, expired: expiredSecret, lasting: lastingSecret} {
		_, err := l.redeem(id, secret, 20)
		require.Error(t, err)
		require.False(t, l.state.ShowsTicket(protocol.Ticket{ID: id}, l.now))
	}
	_, ok = l.state.AdminByCert(cert)
	require.False(t, ok)
	_, err = l.redeem(protocol.TokenID{}, protocol.TokenSecret{}, 20)
	require.Error(t, err, "no token at all")
	require.Equal(t, GoneRevoked, l.state.Nodes.Get(2).Gone)
	id, secret := l.token(t, 14, time.Hour)
	_, err = l.redeem(id, secret, 10)
	require.ErrorContains(t, err, "the host's keys belong to node n10")
	l.add(t, AdminRevoked{Name: "vera"}) // as a hub of the version before may have stored it
}

// Of those that do not expire the newest are kept.
func TestOldestAreForgotten(t *testing.T) {
	l := newLedger(t)
	var keys []string
	for n := range keptDead + 3 {
		k, err := nkeys.CreateUser()
		require.NoError(t, err)
		key, err := k.PublicKey()
		require.NoError(t, err)
		keys = append(keys, key)
		l.state.NATSUsers.Set(fmt.Sprint("u", n), NATSUser{Name: fmt.Sprint("u", n), Key: key, Created: epoch0.Add(time.Duration(n)), Revoked: n != 1})
	}
	l.now = l.now.Add(25 * time.Hour)
	l.add(t, SiteMaxAge{Name: "a"})
	require.Equal(t, keptDead+1, l.state.NATSUsers.Len())
	for n, there := range map[int]bool{0: false, 1: true, 2: false, 3: true} {
		require.Equal(t, there, l.state.NATSUsers.Has(fmt.Sprint("u", n)), n)
		_, opens := l.state.NATSUserByKey(keys[n])
		require.Equal(t, n == 1, opens)
	}
}
