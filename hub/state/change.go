package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"causeway/protocol"
)

// Change is one step of a transaction. Changes are stored for good: fields are
// added, never renamed or given another meaning.
type Change interface {
	// apply changes s, which nobody else reads yet, or says which invariant
	// forbids it. t is the transaction's time. What an apply once accepted it
	// has to accept for ever, or old logs cannot be folded: a stricter rule
	// belongs into the decide functions.
	apply(s *State, t time.Time) error
	// Describe returns the change as one line for the audit.
	Describe() string
}

// kinds names the changes in the log.
var kinds = map[string]reflect.Type{
	"cluster_created":   reflect.TypeFor[ClusterCreated](),
	"restored":          reflect.TypeFor[Restored](),
	"settled":           reflect.TypeFor[Settled](),
	"numbers_passed":    reflect.TypeFor[NumbersPassed](),
	"hub_added":         reflect.TypeFor[HubAdded](),
	"hub_list_signed":   reflect.TypeFor[HubListSigned](),
	"site_created":      reflect.TypeFor[SiteCreated](),
	"site_ranges":       reflect.TypeFor[SiteRanges](),
	"overlay_widened":   reflect.TypeFor[OverlayWidened](),
	"site_max_age":      reflect.TypeFor[SiteMaxAge](),
	"site_deleted":      reflect.TypeFor[SiteDeleted](),
	"token_created":     reflect.TypeFor[TokenCreated](),
	"token_revoked":     reflect.TypeFor[TokenCancelled](),
	"join_refused":      reflect.TypeFor[JoinRefused](),
	"token_redeemed":    reflect.TypeFor[TokenRedeemed](),
	"node_joined":       reflect.TypeFor[NodeJoined](),
	"node_stated":       reflect.TypeFor[NodeStated](),
	"node_key_wanted":   reflect.TypeFor[NodeKeyWanted](),
	"site_rotate_keys":  reflect.TypeFor[SiteRotateKeys](),
	"node_labelled":     reflect.TypeFor[NodeLabelled](),
	"node_quarantined":  reflect.TypeFor[NodeQuarantined](),
	"node_released":     reflect.TypeFor[NodeReleased](),
	"node_drained":      reflect.TypeFor[NodeDrained](),
	"node_undrained":    reflect.TypeFor[NodeUndrained](),
	"node_renamed":      reflect.TypeFor[NodeRenamed](),
	"node_gone":         reflect.TypeFor[NodeGone](),
	"route_announced":   reflect.TypeFor[RouteAnnounced](),
	"route_withdrawn":   reflect.TypeFor[RouteWithdrawn](),
	"route_decided":     reflect.TypeFor[RouteDecided](),
	"admin_created":     reflect.TypeFor[AdminCreated](),
	"admin_revoked":     reflect.TypeFor[AdminRevoked](),
	"nats_user_created": reflect.TypeFor[NATSUserCreated](),
	"nats_user_revoked": reflect.TypeFor[NATSUserRevoked](),
	"object_put":        reflect.TypeFor[ObjectPut](),
	"object_deleted":    reflect.TypeFor[ObjectDeleted](),
	"claims_by_segment": reflect.TypeFor[ClaimsBySegment](),
	"upgrade_started":   reflect.TypeFor[UpgradeStarted](),
	"upgrade_advanced":  reflect.TypeFor[UpgradeAdvanced](),
	"upgrade_ended":     reflect.TypeFor[UpgradeEnded](),
}

var kindOf = func() map[reflect.Type]string {
	m := make(map[reflect.Type]string, len(kinds))
	for k, t := range kinds {
		m[t] = k
	}
	return m
}()

// envelope is a change in the log.
type envelope struct {
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body"`
}

func encodeChange(c Change) (envelope, error) {
	k, ok := kindOf[reflect.TypeOf(c)]
	if !ok {
		return envelope{}, fmt.Errorf("change %T has no kind", c)
	}
	b, err := json.Marshal(c)
	return envelope{k, b}, err
}

func (e envelope) decode() (Change, error) {
	t, ok := kinds[e.Kind]
	if !ok {
		return nil, fmt.Errorf("change kind %q is not known to this version of causeway-hub; run the version that wrote it, or a newer one", e.Kind)
	}
	v := reflect.New(t)
	if err := json.Unmarshal(e.Body, v.Interface()); err != nil {
		return nil, fmt.Errorf("change %s: %w", e.Kind, err)
	}
	return v.Elem().Interface().(Change), nil
}

// ClusterCreated is the first change of a log.
type ClusterCreated struct {
	Cluster protocol.ClusterPublicKey `json:"cluster_key"`
	Epoch   uint64                    `json:"epoch"`
	Overlay []netip.Prefix            `json:"overlay"`
}

func (c ClusterCreated) apply(s *State, _ time.Time) error {
	if s.Epoch != 0 {
		return Errorf(Conflict, "the cluster exists already")
	}
	if c.Epoch == 0 || c.Cluster == (protocol.ClusterPublicKey{}) {
		return Errorf(Invalid, "cluster without key or epoch")
	}
	if err := ValidOverlay(c.Overlay); err != nil {
		return err
	}
	s.Cluster, s.Epoch, s.Overlay = c.Cluster, c.Epoch, c.Overlay
	return nil
}

// Describe returns one line.
func (c ClusterCreated) Describe() string {
	return fmt.Sprintf("cluster created, overlay %s", join(c.Overlay))
}

// OverlayWidened makes room for more nodes: ranges that begin where those before did,
// so that every node and hub keeps its addresses.
type OverlayWidened struct {
	Overlay []netip.Prefix `json:"overlay"`
}

func (c OverlayWidened) apply(s *State, _ time.Time) error {
	if err := ValidOverlay(c.Overlay); err != nil {
		return err
	}
	if !widens(s.Overlay, c.Overlay) {
		return Errorf(Conflict, "the overlay cannot be changed from %s to %s: nodes keep their addresses, so each range has to begin at the same address and may only grow", join(s.Overlay), join(c.Overlay))
	}
	for _, site := range s.Sites.All() {
		for _, p := range site.Ranges {
			if inOverlay(p, c.Overlay) != nil {
				return Errorf(Conflict, "range %s of site %s is in the way of the overlay %s; take it away first", p, site.Name, join(c.Overlay))
			}
		}
	}
	for _, r := range s.Routes.All() {
		if inOverlay(r.Prefix, c.Overlay) != nil && r.State == protocol.RouteApproved {
			return Errorf(Conflict, "route %s of node %s is in the way of the overlay %s; reject it first", r.Prefix, s.Nodes.Get(r.Node).Name, join(c.Overlay))
		}
	}
	s.Overlay = c.Overlay
	return nil
}

// widens reports whether each range of old has one in new that begins with it, and the
// other way round.
func widens(old, new []netip.Prefix) bool {
	if len(old) != len(new) {
		return false
	}
	for _, o := range old {
		if !slices.ContainsFunc(new, func(n netip.Prefix) bool { return n.Addr() == o.Addr() && n.Bits() <= o.Bits() }) {
			return false
		}
	}
	return true
}

// Describe returns one line.
func (c OverlayWidened) Describe() string { return "overlay widened to " + join(c.Overlay) }

// HubAdded gives a hub its number.
type HubAdded struct {
	Number protocol.NodeNumber `json:"number"`
}

func (c HubAdded) apply(s *State, _ time.Time) error {
	if err := s.takeNumber(c.Number); err != nil {
		return err
	}
	s.HubNumbers.Set(c.Number, true)
	return nil
}

// Describe returns one line.
func (c HubAdded) Describe() string { return fmt.Sprintf("hub %d added", c.Number) }

// takeNumber gives away the next number.
func (s *State) takeNumber(n protocol.NodeNumber) error {
	if s.Epoch == 0 {
		return Errorf(Conflict, "there is no cluster yet")
	}
	if n != s.NextNumber {
		return Errorf(Conflict, "number %d is not the next one, %d", n, s.NextNumber)
	}
	if !n.Valid() {
		return Errorf(Full, "the node numbers are used up")
	}
	if _, err := s.OverlayOf(n); err != nil {
		return Errorf(Full, "the overlay is used up: %v", err)
	}
	// A hub that does not know the object's kind may have given it.
	if by := s.heldNumber(n); by != (ObjectKey{}) && !s.folding {
		return Errorf(Conflict, "the address of number %d is that of %s", n, by)
	}
	s.NextNumber++
	return nil
}

// HubListSigned is a new hub list.
type HubListSigned struct {
	List protocol.SignedHubList `json:"list"`
}

func (c HubListSigned) apply(s *State, _ time.Time) error {
	l, err := c.List.Open(s.Cluster.Pin())
	if err != nil {
		return fmt.Errorf("hub list: %w", err)
	}
	if l.Serial <= s.Hubs.Serial {
		return Errorf(Conflict, "hub list %d does not follow %d", l.Serial, s.Hubs.Serial)
	}
	for _, h := range l.Hubs {
		if !s.HubNumbers.Get(h.Number) {
			return Errorf(Conflict, "hub list names number %d, which is no hub", h.Number)
		}
	}
	s.HubList, s.Hubs = &c.List, l
	return nil
}

// Describe returns one line.
func (c HubListSigned) Describe() string {
	var l protocol.HubList
	if err := json.Unmarshal(c.List.Payload, &l); err != nil {
		return "hub list signed"
	}
	var at []string
	for _, h := range l.Hubs {
		at = append(at, fmt.Sprintf("%d at udp %s, https %s", h.Number, strings.Join(h.UDP, " "), strings.Join(h.HTTPS, " ")))
	}
	return fmt.Sprintf("hub list %d signed: hub %s", l.Serial, strings.Join(at, "; "))
}

// NodeJoined is a new node.
type NodeJoined struct {
	Number       protocol.NodeNumber         `json:"number"`
	Name         string                      `json:"name"`
	Site         string                      `json:"site"`
	WireGuardKey protocol.WireGuardPublicKey `json:"wireguard_key"`
	IdentityKey  protocol.IdentityPublicKey  `json:"identity_key"`
	Labels       map[string]string           `json:"labels,omitempty"`
	Token        protocol.TokenID            `json:"token"`
	Proves       bool                        `json:"proves,omitempty"` // its agent proves the identity key: see Node.Proven
}

func (c NodeJoined) apply(s *State, t time.Time) error {
	if !protocol.ValidName(c.Name) {
		return Errorf(Invalid, "%q is no node name", c.Name)
	}
	if _, ok := s.Sites.Find(c.Site); !ok {
		return Errorf(Conflict, "there is no site %s", c.Site)
	}
	if _, ok := s.names.Find(c.Name); ok {
		return Errorf(Conflict, "the name %s is taken", c.Name)
	}
	if _, ok := s.keys.Find(c.WireGuardKey); ok || c.WireGuardKey.IsZero() {
		return Errorf(Conflict, "the WireGuard key is in use")
	}
	if _, ok := s.identities.Find(c.IdentityKey); ok || c.IdentityKey.IsZero() {
		return Errorf(Conflict, "the identity key is in use")
	}
	if tok, ok := s.Tokens.Find(c.Token); !ok || tok.UsedBy != c.Number || tok.Site != c.Site {
		return Errorf(Conflict, "node %d did not redeem token %s", c.Number, c.Token)
	}
	if err := s.takeNumber(c.Number); err != nil {
		return err
	}
	n := Node{Number: c.Number, Name: c.Name, Site: c.Site, WireGuardKey: c.WireGuardKey,
		IdentityKey: c.IdentityKey, Labels: c.Labels, Token: c.Token, Joined: t, KeySince: t}
	if c.Proves {
		n.Proven = t
	}
	s.Nodes.Set(c.Number, n)
	s.names.Set(c.Name, c.Number)
	s.keys.Set(c.WireGuardKey, c.Number)
	s.identities.Set(c.IdentityKey, c.Number)
	return nil
}

// Describe returns one line.
func (c NodeJoined) Describe() string {
	return fmt.Sprintf("node %s joined site %s as number %d", c.Name, c.Site, c.Number)
}

func (s *State) live(n protocol.NodeNumber) (Node, error) {
	node, ok := s.Nodes.Find(n)
	if !ok || !node.Live() {
		return node, Errorf(NotFound, "there is no node with number %d", n)
	}
	return node, nil
}

// NodeStated records what a node's identity key signed about itself. Another
// WireGuard key than before, with a higher epoch, is a rotation; the one before
// is nobody's again.
type NodeStated struct {
	Statement protocol.SignedNodeStatement `json:"statement"`
	// Proven says that the node's sessions prove the identity key from now on. (No change of
	// its own kind: hubs of the version before read this log, too.)
	Proven bool `json:"proven,omitempty"`
}

func (c NodeStated) apply(s *State, t time.Time) error {
	n, err := s.live(c.Statement.Number)
	if err != nil {
		return err
	}
	st := c.Statement
	switch {
	case st.IdentityKey != n.IdentityKey || !st.Valid():
		return Errorf(Refused, "the statement of node %s is not signed by the identity key that it joined with", n.Name)
	case st.WireGuardKey != n.WireGuardKey && st.Epoch <= n.KeyEpoch():
		return Errorf(Refused, "the statement of node %s names another WireGuard key with epoch %d, which is not above %d", n.Name, st.Epoch, n.KeyEpoch())
	case n.Statement != nil && st.Epoch < n.Statement.Epoch:
		return Errorf(Refused, "the statement of node %s has key epoch %d, older than %d", n.Name, st.Epoch, n.Statement.Epoch)
	}
	if st.WireGuardKey != n.WireGuardKey {
		if _, ok := s.keys.Find(st.WireGuardKey); ok || st.WireGuardKey.IsZero() {
			return Errorf(Refused, "the new WireGuard key of node %s is or was in use", n.Name)
		}
		for _, h := range s.Hubs.Hubs {
			if h.WireGuardKey == st.WireGuardKey {
				return Errorf(Refused, "the new WireGuard key of node %s is hub %d's", n.Name, h.Number)
			}
		}
		s.keys.Set(st.WireGuardKey, n.Number)
		n.WireGuardKey, n.KeySince = st.WireGuardKey, t
	}
	n.Statement = &st
	if c.Proven && n.Proven.IsZero() {
		n.Proven = t
	}
	s.Nodes.Set(n.Number, n)
	return nil
}

// Describe returns one line.
func (c NodeStated) Describe() string {
	if c.Proven {
		return fmt.Sprintf("node %d proved its identity, and always has to from now on", c.Statement.Number)
	}
	return fmt.Sprintf("node %d stated its key, epoch %d", c.Statement.Number, c.Statement.Epoch)
}

// NodeLabelled replaces a node's labels.
type NodeLabelled struct {
	Number protocol.NodeNumber `json:"number"`
	Labels map[string]string   `json:"labels"`
}

func (c NodeLabelled) apply(s *State, _ time.Time) error {
	n, err := s.live(c.Number)
	if err != nil {
		return err
	}
	if err := s.checkLabels(c.Labels); err != nil {
		return err
	}
	n.Labels = c.Labels
	s.Nodes.Set(c.Number, n)
	return nil
}

// Describe returns one line.
func (c NodeLabelled) Describe() string {
	var kv []string
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		kv = append(kv, k+"="+c.Labels[k])
	}
	return fmt.Sprintf("labels of node %d: %s", c.Number, strings.Join(kv, " "))
}

// checkLabels bounds labels where something is decided; what a log holds folds.
func (s *State) checkLabels(l map[string]string) error {
	if err := protocol.CheckLabels(l); err != nil && !s.folding {
		return Errorf(Invalid, "%v", err)
	}
	return nil
}

// NodeGone takes a node out of the cluster, with its routes. Its name is free
// again; its number and keys are not.
type NodeGone struct {
	Number protocol.NodeNumber `json:"number"`
	How    Gone                `json:"how"`
}

func (c NodeGone) apply(s *State, t time.Time) error {
	n, err := s.live(c.Number)
	if err != nil {
		return err
	}
	if c.How != GoneLeft && c.How != GoneRevoked {
		return Errorf(Invalid, "node gone: %q", c.How)
	}
	n.Gone, n.GoneTime = c.How, t
	s.Nodes.Set(c.Number, n)
	s.names.Delete(n.Name)
	for _, r := range s.NodeRoutes(c.Number) {
		s.Routes.Delete(r.RouteKey)
	}
	return nil
}

// Describe returns one line.
func (c NodeGone) Describe() string { return fmt.Sprintf("node %d %s", c.Number, c.How) }

func join(ps []netip.Prefix) string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return strings.Join(out, " ")
}
