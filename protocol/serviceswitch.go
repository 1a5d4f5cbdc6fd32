package protocol

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Bounds of reports of switches. Agents keep to them, hubs drop what does not.
const (
	MaxSwitchReport = 32 << 10 // bytes of a payload
	MaxSwitches     = 16       // of one report
	MaxSwitchSites  = 8        // that a switch names on each side
)

// SwitchWhy says why a node moved a service, or reset connections to it.
type SwitchWhy string

// Values of SwitchWhy.
const (
	SwitchSuspect   SwitchWhy = "suspect"   // the backend's node does not answer
	SwitchDead      SwitchWhy = "dead"      // it is silent: connections to it are reset
	SwitchBack      SwitchWhy = "back"      // it answers again, for long enough
	SwitchNotReady  SwitchWhy = "not-ready" // the backend's node said so
	SwitchReady     SwitchWhy = "ready"     // likewise
	SwitchEjected   SwitchWhy = "ejected"   // it refused connections, or left them without an answer
	SwitchLease     SwitchWhy = "lease"     // no hub has heard this node for longer than the service's lease
	SwitchDeclared  SwitchWhy = "declared"  // the service was declared otherwise
	SwitchEndpoints SwitchWhy = "endpoints" // backends came or went, or routes to them
	SwitchShare     SwitchWhy = "share"     // a site's share grew or shrank to nothing
)

var switchWhys = []SwitchWhy{SwitchSuspect, SwitchDead, SwitchBack, SwitchNotReady, SwitchReady, SwitchEjected, SwitchLease, SwitchDeclared, SwitchEndpoints, SwitchShare}

// Who decided on a switch, where it was no backend's node, which is named then.
const (
	SwitchByClient   = "client"   // the node that reports it
	SwitchByOperator = "operator" // who declared the service
	SwitchByHub      = "hub"      // which works out who serves
)

// ServiceSwitch is that a client's node moved a service's new connections between sites, or (dead) reset its open ones.
type ServiceSwitch struct {
	Number   uint64     `json:"switch"` // of the node's since its agent runs, from 1 on
	Service  string     `json:"service"`
	Time     time.Time  `json:"time"` // when it was done
	From     []string   `json:"from"` // sites that took new connections before; none: nobody did
	To       []string   `json:"to"`   // that take them since
	Site     string     `json:"site"` // that it is about
	Why      SwitchWhy  `json:"why"`
	By       string     `json:"by"`                 // who decided: client, operator, hub, or node NAME
	Addr     netip.Addr `json:"addr,omitzero"`      // a backend that it is about
	Answered time.Time  `json:"answered,omitzero"`  // when its node answered last
	Gap      Duration   `json:"gap,omitempty"`      // from then until it was done
	Released Duration   `json:"released,omitempty"` // from then until connections that had only begun were free to go elsewhere
	Flows    int        `json:"flows,omitempty"`    // so many of them, of all services that moved with it
	Reset    int        `json:"reset,omitempty"`    // open connections that were prodded to find that they are reset, likewise
	Doubts   bool       `json:"doubts,omitempty"`   // the node doubted itself, and reset nothing
}

// SwitchReport is what a node switched since it told of it last.
type SwitchReport struct {
	Version  int             `json:"v"`
	BootID   BootID          `json:"boot_id"` // of the agent's run: numbers begin anew with each
	Switches []ServiceSwitch `json:"switches"`
	LeftOut  uint64          `json:"left_out,omitempty"` // switches that were too many to keep until a hub was there
}

// SwitchesSubject is where node n of site tells of its switches.
func SwitchesSubject(site string, n NodeNumber) string {
	return FactOrigin{site, n, FactSwitches}.String()
}

// Clean checks a report that came from elsewhere.
func (r *SwitchReport) Clean() error {
	if r.Version < 1 || r.Version > Version+1 {
		return errors.New("switches without a version that is known")
	}
	if len(r.Switches) > MaxSwitches {
		return fmt.Errorf("more than %d switches", MaxSwitches)
	}
	for i := range r.Switches {
		if err := r.Switches[i].clean(); err != nil {
			return err
		}
	}
	return nil
}

func (s *ServiceSwitch) clean() error {
	sites := func(l []string) bool {
		return len(l) <= MaxSwitchSites && !slices.ContainsFunc(l, func(s string) bool { return !ValidName(s) })
	}
	sane := func(t time.Time) bool { return t.Year() >= 1970 && t.Year() <= 9999 }
	switch {
	case s.Number == 0 || !ValidName(s.Service):
		return errors.New("a switch without a number or service")
	case !slices.Contains(switchWhys, s.Why): // a newer agent's
		s.Why = SwitchWhy(OneLine(string(s.Why), 32))
	}
	switch {
	case !sites(s.From) || !sites(s.To) || s.Site != "" && !ValidName(s.Site):
		return errors.New("a switch between what is no site")
	case !sane(s.Time) || !s.Answered.IsZero() && !sane(s.Answered):
		return errors.New("a switch at no time")
	case s.Gap < 0 || s.Released < 0 || s.Flows < 0 || s.Reset < 0:
		return errors.New("a switch with a negative length")
	case s.Addr.IsValid() && !plainAddr(s.Addr):
		return errors.New("a switch of what is no address")
	}
	s.By = OneLine(s.By, 80)
	return nil
}
