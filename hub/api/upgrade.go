package api

import (
	"context"
	"net/http"
	"time"

	"causeway/protocol"
)

// UpgradeSpec asks for an upgrade of agents, wave by wave. A wave is a number of nodes,
// a share such as 10%, or rest; what the waves leave is one more. An empty version
// is the newest release that the hub has.
type UpgradeSpec struct {
	Nodes   []string `json:"nodes"`
	Version string   `json:"version,omitempty"`
	Waves   []string `json:"waves,omitempty"` // default: DefaultWaves
}

// DefaultWaves are a node to try, a tenth, and all others.
var DefaultWaves = []string{"1", "10%", WaveRest}

// WaveRest is a wave of all that is left.
const WaveRest = "rest"

// States of an upgrade.
const (
	UpgradeRunning = "running"
	UpgradeDone    = "done"
	UpgradeFailed  = "failed"  // a node failed, and the waves behind it were left alone
	UpgradeStopped = "stopped" // by an admin
)

// How far a node is with an upgrade.
const (
	UpgradeNodeWaiting = "waiting" // for its wave
	UpgradeNodeWorking = "working"
	UpgradeNodeDone    = "done"
	UpgradeNodeFailed  = "failed"
	UpgradeNodeGone    = "gone" // left or revoked
)

// Upgrade is how an upgrade stands: the last one.
type Upgrade struct {
	ID      uint64        `json:"id"`
	Version string        `json:"version"`
	State   string        `json:"state"`
	Why     string        `json:"why,omitempty"` // it failed
	Started time.Time     `json:"started"`
	Ended   time.Time     `json:"ended,omitzero"`
	Wave    int           `json:"wave"` // the one under way, from 1
	Waves   int           `json:"waves"`
	Nodes   []UpgradeNode `json:"nodes"`
}

// UpgradeNode is how one node stands in an upgrade.
type UpgradeNode struct {
	Node    string `json:"node"`
	Wave    int    `json:"wave"`
	State   string `json:"state"`
	Version string `json:"version,omitempty"` // that runs
	Text    string `json:"text,omitempty"`
}

// NodeUpgrade is what a node's agent tells of the last upgrade that it was asked for.
type NodeUpgrade struct {
	Version string                `json:"version"`
	State   protocol.UpgradeState `json:"state"`
	Error   string                `json:"error,omitempty"`
}

// Release is a release that the hub can have agents upgraded to.
type Release struct {
	Version string   `json:"version"`
	Minimum string   `json:"minimum"` // hosts that had it go back to nothing older
	Archs   []string `json:"archs"`
}

// StartUpgrade begins an upgrade.
func (c *Client) StartUpgrade(ctx context.Context, s UpgradeSpec) (Upgrade, error) {
	return send[Upgrade](ctx, c, http.MethodPost, "/v1/upgrade", s)
}

// StopUpgrade ends the upgrade under way: nodes that were asked already finish.
func (c *Client) StopUpgrade(ctx context.Context) (Upgrade, error) {
	return send[Upgrade](ctx, c, http.MethodPost, "/v1/upgrade/stop", nil)
}

// Upgrade returns the last upgrade.
func (c *Client) Upgrade(ctx context.Context) (Upgrade, error) {
	return get[Upgrade](ctx, c, "/v1/upgrade")
}

// Releases lists the releases that the hub has, the newest first.
func (c *Client) Releases(ctx context.Context) ([]Release, error) {
	return get[[]Release](ctx, c, "/v1/releases")
}
