package join

import (
	"cmp"
	"context"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"causeway/hub/state"
	"causeway/protocol"
)

// Validity of hub lists: a new one is signed when half of it is over. Agents
// without a hub for so long fall back on nothing worse than an old address.
const (
	listValidity = 365 * 24 * time.Hour
	listBackdate = 48 * time.Hour // hosts' clocks differ
)

// EnsureHub brings the cluster, this hub's number and the signed hub list into
// the state. hub has every field but the number, which is returned. overlay is
// for a new cluster; that of an existing one can only grow. A hub key that the cluster
// does not know becomes a further hub if the log is one that several hubs share;
// else it is the sign of a data directory put together from two.
func EnsureHub(ctx context.Context, store *state.Store, keys Keys, hub protocol.Hub, overlay []netip.Prefix, shared bool) (protocol.NodeNumber, error) {
	var number protocol.NodeNumber
	_, err := store.Update(ctx, "hub", "hub list", func(d *state.Draft) error {
		if d.Epoch == 0 {
			if err := d.Add(state.ClusterCreated{Cluster: keys.Cluster.Public(), Epoch: 1, Overlay: overlay}); err != nil {
				return err
			}
		}
		if d.Cluster != keys.Cluster.Public() {
			return state.Errorf(state.Conflict, "the cluster key is not the one of the state log; restore both from the same backup, or give a further hub the first one's "+ClusterKeyFile)
		}
		if !sameRanges(d.Overlay, overlay) {
			if err := d.Add(state.OverlayWidened{Overlay: overlay}); err != nil {
				return err
			}
		}
		number = 0
		for _, h := range d.Hubs.Hubs {
			if h.WireGuardKey == hub.WireGuardKey || keys.names(h.WireGuardKey) {
				number = h.Number
			}
		}
		if number == 0 {
			if d.HubNumbers.Len() > 0 && !shared {
				return state.Errorf(state.Conflict, "the hub key is not the one of the state log; restore both from the same backup")
			}
			next, err := state.NextFree(d)
			if err != nil {
				return err
			}
			number = next
			if err := d.Add(state.HubAdded{Number: number}); err != nil {
				return err
			}
		}
		h := hub
		h.Number = number
		return signList(d, keys.Cluster, h)
	})
	return number, err
}

// signList adds a new hub list if the present one does not say what h says, or
// half of its validity is over.
func signList(d *state.Draft, key protocol.ClusterPrivateKey, h protocol.Hub) error {
	hubs := slices.Clone(d.Hubs.Hubs)
	i := slices.IndexFunc(hubs, func(x protocol.Hub) bool { return x.Number == h.Number })
	same := i >= 0 && reflect.DeepEqual(hubs[i], h)
	if i < 0 {
		hubs = append(hubs, h)
	} else {
		hubs[i] = h
	}
	slices.SortFunc(hubs, func(a, b protocol.Hub) int { return cmp.Compare(a.Number, b.Number) })
	// A list that a restored hub signs goes before any that the lost one signed
	// after the backup: the netmaps' epoch counts restores.
	serial := max(d.Hubs.Serial+1, (d.Epoch-1)<<32)
	same = same && d.Hubs.Serial >= (d.Epoch-1)<<32 && sameRanges(d.Hubs.Overlay, d.Overlay)
	if same && d.Hubs.NotAfter.Sub(d.Now) > listValidity/2 {
		return nil
	}
	signed, err := protocol.HubList{
		Version: protocol.Version, Serial: serial, Hubs: hubs, Overlay: d.Overlay,
		NotBefore: d.Now.Add(-listBackdate).Truncate(time.Second), NotAfter: d.Now.Add(listValidity).Truncate(time.Second),
	}.Sign(key)
	if err != nil {
		return err
	}
	return d.Add(state.HubListSigned{List: signed})
}

func sameRanges(a, b []netip.Prefix) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Prefix.Compare)
	slices.SortFunc(b, netip.Prefix.Compare)
	return slices.Equal(a, b)
}
