package object

import (
	"encoding/json"
	"slices"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// A single-writer's site changes in two transactions, see protocol.Service.To: whoever declares another writer, by whatever command or
// file, gets the first one. The second one is the hub's own (EndSwitch), once the old site is fenced. Whoever declares the old writer
// meanwhile takes the first one back.

// switched is what becomes of a service's To, Fenced and Epoch when s is declared in place of had by a transaction.
func switched(s *api.ServiceSpec, had api.ServiceSpec, transaction uint64) error {
	if s.Mode != protocol.ServiceSingleWriter {
		s.Epoch, s.To, s.Fenced = 0, "", nil
		return nil
	}
	was := had.Mode == protocol.ServiceSingleWriter
	if s.To != "" && (!was || s.To != had.To) {
		return state.Errorf(state.Conflict, "to: the hub says it while a service is switched; leave it out, and say the new site as writer")
	}
	if len(s.Fenced) > 0 && (!was || !slices.Equal(s.Fenced, had.Fenced)) {
		return state.Errorf(state.Conflict, "fenced: the hub says it; leave it out")
	}
	s.Epoch, s.Fenced = had.Epoch, slices.Clone(had.Fenced)
	switch {
	case !was || s.Headless || had.Headless:
		if !was || s.Writer != had.Writer {
			s.Epoch = transaction // the object's generation
		}
		s.To, s.Fenced = "", nil
	case s.To != "" && s.Writer == had.Writer: // a document that says how far the switch is
	case s.Writer == had.To: // and one of behind it
		s.Writer, s.To = had.Writer, had.To
	case s.Writer != had.Writer: // it begins, or goes elsewhere
		begin(s, had.Writer, s.Writer, transaction)
	case had.To != "": // back
		s.To, s.Epoch, s.Fenced = "", transaction, without(s.Fenced, s.Writer)
	}
	return nil
}

func begin(s *api.ServiceSpec, from, to string, transaction uint64) {
	s.Writer, s.To, s.Epoch = from, to, transaction
	if !slices.Contains(s.Fenced, from) {
		s.Fenced = append(s.Fenced, from)
		slices.Sort(s.Fenced)
	}
}

func without(l []string, site string) []string {
	return slices.DeleteFunc(slices.Clone(l), func(s string) bool { return s == site })
}

// EndSwitch is the second transaction: the service is served at its To from now on. epoch is that of the first one; a switch
// that is another by now, or none, is a conflict.
func EndSwitch(d *state.Draft, name string, epoch uint64) error {
	return amend(d, name, func(s *api.ServiceSpec) error {
		if s.To == "" || s.Epoch != epoch {
			return state.Errorf(state.Conflict, "service %s is not being switched as it was", name)
		}
		s.Writer, s.To, s.Epoch, s.Fenced = s.To, "", d.Seq+1, without(s.Fenced, s.To)
		return nil
	})
}

// LiftFence lets what comes to the sites that a service was switched away from through again: all nodes have heard of the switch with an epoch.
func LiftFence(d *state.Draft, name string, epoch uint64) error {
	return amend(d, name, func(s *api.ServiceSpec) error {
		if s.To != "" || s.Epoch != epoch || len(s.Fenced) == 0 {
			return state.Errorf(state.Conflict, "service %s is not as it was", name)
		}
		s.Fenced = nil
		return nil
	})
}

// ForceSwitch makes a site the writer whoever may go on at the old one, which stays fenced as far as its nodes hear of it.
func ForceSwitch(d *state.Draft, name, to string) error {
	return amend(d, name, func(s *api.ServiceSpec) error {
		if s.Mode != protocol.ServiceSingleWriter {
			return state.Errorf(state.Invalid, "service %s has mode %s; only a service of mode single-writer is switched", name, s.Mode)
		}
		if s.Writer == to && s.To == "" {
			return nil
		}
		if s.Writer != to {
			begin(s, s.Writer, to, d.Seq+1)
		}
		s.Writer, s.To, s.Epoch, s.Fenced = to, "", d.Seq+1, without(s.Fenced, to)
		if s.Headless {
			s.Fenced = nil
		}
		return nil
	})
}

func amend(d *state.Draft, name string, f func(*api.ServiceSpec) error) error {
	o, err := d.FindObject(state.ObjectKey{Kind: ServiceKind, Name: name})
	if err != nil {
		return err
	}
	if !o.Known() {
		return state.Errorf(state.Conflict, "%s: a newer causeway-hub wrote it; change it there", o.Key())
	}
	s, err := specOf[api.ServiceSpec](o)
	if err != nil {
		return err
	}
	if err := f(&s); err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return state.PutGiven(d, ServiceKind, name, b)
}
