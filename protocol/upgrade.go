package protocol

// PackagePort is where a hub serves releases inside the tunnel, from its overlay
// address: HTTP/1.1, GET ReleasePath + a file's name.
const (
	PackagePort = 4712
	ReleasePath = "/v1/releases/"
)

// FeatureUpgrade in a Hello says that the host lets its hub upgrade the agent, to
// what a key that the host trusts has signed.
const FeatureUpgrade = "upgrade"

// UpgradeWish is the version that a node shall run, in its netmap while an upgrade
// has come to it. ID tells one upgrade from another to the same version.
type UpgradeWish struct {
	ID      uint64 `json:"id"`
	Version string `json:"version"`
}

// UpgradeState is how far an agent is with an upgrade.
type UpgradeState string

// States of an upgrade at an agent.
const (
	UpgradeFetching   UpgradeState = "fetching"
	UpgradeInstalling UpgradeState = "installing" // from the hand-over to root until the new version has proven itself
	UpgradeDone       UpgradeState = "done"
	UpgradeFailed     UpgradeState = "failed" // the version before runs on, or again
)

// UpgradeStatus is how far an agent is with the last upgrade that it was asked for.
type UpgradeStatus struct {
	UpgradeWish
	State UpgradeState `json:"state"`
	Error string       `json:"error,omitempty"` // why it failed
}
