package state

import (
	"fmt"
	"slices"
	"time"

	"causeway/protocol"
)

// UpgradeState is how an upgrade of nodes stands.
type UpgradeState string

// States of an upgrade.
const (
	UpgradeRunning UpgradeState = "running"
	UpgradeDone    UpgradeState = "done"
	UpgradeFailed  UpgradeState = "failed"  // a node did not take the version; the rest was left alone
	UpgradeStopped UpgradeState = "stopped" // by an admin
)

// Upgrade brings nodes to a version, wave by wave. There is one at a time; the
// last one stays. It is replaced, never changed.
type Upgrade struct {
	ID      uint64
	Version string
	Waves   [][]protocol.NodeNumber
	Wave    int // the one under way
	Started time.Time
	Since   time.Time // of Wave
	State   UpgradeState
	Why     string // it failed
	Ended   time.Time
}

// Wish is what node n shall run by the upgrade now; nil: nothing.
func (u *Upgrade) Wish(n protocol.NodeNumber) *protocol.UpgradeWish {
	if u == nil || u.State != UpgradeRunning {
		return nil
	}
	for _, w := range u.Waves[:u.Wave+1] {
		if slices.Contains(w, n) {
			return &protocol.UpgradeWish{ID: u.ID, Version: u.Version}
		}
	}
	return nil
}

// UpgradeStarted begins an upgrade.
type UpgradeStarted struct {
	ID      uint64                  `json:"id"`
	Version string                  `json:"version"`
	Waves   [][]protocol.NodeNumber `json:"waves"`
}

func (c UpgradeStarted) apply(s *State, t time.Time) error {
	if u := s.Upgrade; u != nil && u.State == UpgradeRunning {
		return Errorf(Conflict, "an upgrade to %s is under way; 'causeway node upgrade --status' shows it, --stop ends it", u.Version)
	}
	if c.ID == 0 || c.Version == "" || len(c.Waves) == 0 {
		return Errorf(Invalid, "an upgrade without id, version or nodes")
	}
	s.Upgrade = &Upgrade{ID: c.ID, Version: c.Version, Waves: c.Waves, Started: t, Since: t, State: UpgradeRunning}
	return nil
}

// Describe returns one line.
func (c UpgradeStarted) Describe() string {
	n := 0
	for _, w := range c.Waves {
		n += len(w)
	}
	return fmt.Sprintf("upgrade of %d nodes to %s started, in %d waves", n, c.Version, len(c.Waves))
}

// UpgradeAdvanced begins the next wave.
type UpgradeAdvanced struct {
	ID   uint64 `json:"id"`
	Wave int    `json:"wave"`
}

func (c UpgradeAdvanced) apply(s *State, t time.Time) error {
	u, err := s.runningUpgrade(c.ID)
	if err != nil {
		return err
	}
	if c.Wave != u.Wave+1 || c.Wave >= len(u.Waves) {
		return Errorf(Conflict, "wave %d is not the next one of the upgrade to %s", c.Wave+1, u.Version)
	}
	u.Wave, u.Since = c.Wave, t
	s.Upgrade = &u
	return nil
}

// Describe returns one line.
func (c UpgradeAdvanced) Describe() string {
	return fmt.Sprintf("upgrade goes on with wave %d", c.Wave+1)
}

// UpgradeEnded ends an upgrade.
type UpgradeEnded struct {
	ID    uint64       `json:"id"`
	State UpgradeState `json:"state"`
	Why   string       `json:"why,omitempty"`
}

func (c UpgradeEnded) apply(s *State, t time.Time) error {
	u, err := s.runningUpgrade(c.ID)
	if err != nil {
		return err
	}
	u.State, u.Why, u.Ended = c.State, c.Why, t
	s.Upgrade = &u
	return nil
}

// Describe returns one line.
func (c UpgradeEnded) Describe() string {
	if c.Why != "" {
		return fmt.Sprintf("upgrade %s: %s", c.State, c.Why)
	}
	return fmt.Sprintf("upgrade %s", c.State)
}

func (s *State) runningUpgrade(id uint64) (Upgrade, error) {
	if s.Upgrade == nil || s.Upgrade.State != UpgradeRunning || id != 0 && s.Upgrade.ID != id {
		return Upgrade{}, Errorf(Conflict, "no upgrade is under way")
	}
	return *s.Upgrade, nil
}

// StartUpgrade begins to bring nodes to a version, in waves of these sizes; the
// last one takes what is left.
func StartUpgrade(d *Draft, version string, nodes []protocol.NodeNumber, sizes []int) error {
	if !protocol.ValidVersion(version) {
		return Errorf(Invalid, "%.80q is no version", version)
	}
	if len(nodes) == 0 {
		return Errorf(Invalid, "no node is to be upgraded")
	}
	for _, n := range nodes {
		if _, err := d.live(n); err != nil {
			return err
		}
	}
	var waves [][]protocol.NodeNumber
	rest := slices.Clone(nodes)
	for _, n := range sizes {
		if n < 1 {
			return Errorf(Invalid, "a wave of %d nodes", n)
		}
		if n = min(n, len(rest)); n > 0 {
			waves, rest = append(waves, rest[:n:n]), rest[n:]
		}
	}
	if len(rest) > 0 {
		waves = append(waves, rest)
	}
	return d.Add(UpgradeStarted{uint64(d.Now.UnixMilli()), version, waves})
}

// AdvanceUpgrade begins the wave behind wave, if that one is still under way.
func AdvanceUpgrade(d *Draft, id uint64, wave int) error {
	u, err := d.runningUpgrade(id)
	if err != nil {
		return err
	}
	if u.Wave != wave {
		return nil
	}
	if wave+1 == len(u.Waves) {
		return d.Add(UpgradeEnded{ID: id, State: UpgradeDone})
	}
	return d.Add(UpgradeAdvanced{id, wave + 1})
}

// EndUpgrade ends the upgrade under way, if it is still that one; 0 is any.
func EndUpgrade(d *Draft, id uint64, state UpgradeState, why string) error {
	u, err := d.runningUpgrade(id)
	if err != nil {
		return err
	}
	return d.Add(UpgradeEnded{u.ID, state, why})
}
