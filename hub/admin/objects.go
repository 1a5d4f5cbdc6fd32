package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/declare"
	"causeway/hub/object"
	"causeway/hub/state"
	"causeway/protocol"
)

// objectView shows objects of one state, with what is known live of them.
func (s *Server) objectView(st *state.State) func(state.Object) api.Object {
	fleet := sync.OnceValue(s.cfg.Fleet.Snapshot)
	return func(o state.Object) api.Object {
		out := api.Object{Kind: o.Kind, Name: o.Name, Spec: o.Spec, Generation: o.Generation, Created: o.Created, Changed: o.Changed, Known: o.Known(), ETag: tag(o)}
		if s.cfg.ObjectStatus != nil {
			out.Status = s.cfg.ObjectStatus(o.Key())
		}
		have, lack := fleet().Has(st, o)
		out.Have, out.Lack = len(have), names(st, lack)
		return out
	}
}

// objects lists those of a kind.
func (s *Server) objects(kind string) []api.Object {
	st, out := s.cfg.Store.State(), []api.Object{}
	show := s.objectView(st)
	for _, o := range st.ObjectsOf(kind) {
		out = append(out, show(o))
	}
	return out
}

// strangeCondition says that a newer hub declared what this one does not know.
func strangeCondition(l []state.ObjectKey, essential bool, since time.Time) protocol.Condition {
	c := protocol.Condition{Name: "objects", Since: since}
	c.Cause = fmt.Sprintf("a newer causeway-hub declared %s", l[0])
	if len(l) > 1 {
		c.Cause += fmt.Sprintf(" and %d more objects", len(l)-1)
	}
	if c.Cause += ", which this version does not know and keeps as it is"; essential {
		c.Cause += "; agents get no new netmap until a hub runs that does"
	}
	c.Cause += ": upgrade this hub"
	return c
}

// objectOf names an object of a request.
type objectOf struct {
	Kind string `path:"kind" maxLength:"63"`
	Name string `path:"name" maxLength:"63"`
}

// registerObjects has what is the same for all declared objects, whatever their kind.
func (s *Server) registerObjects(a huma.API) {
	huma.Get(a, "/v1/objects/{kind}", func(_ context.Context, in *struct {
		Kind string `path:"kind" maxLength:"63"`
	}) (*body[[]api.Object], error) {
		out := s.objects(in.Kind)
		if len(out) > 0 { // of a newer hub, perhaps
			return answer(out, nil)
		}
		if _, err := state.FindKind(in.Kind); err != nil {
			return nil, problem(err)
		}
		return answer(out, nil)
	})
	huma.Get(a, "/v1/objects/{kind}/{name}", func(_ context.Context, in *objectOf) (*tagged[api.Object], error) {
		st := s.cfg.Store.State()
		o, err := st.FindObject(state.ObjectKey{Kind: in.Kind, Name: in.Name})
		if err != nil {
			return nil, problem(err)
		}
		out := s.objectView(st)(o)
		return withTag(out.ETag, out)
	})
	huma.Delete(a, "/v1/objects/{kind}/{name}", func(ctx context.Context, in *struct {
		Kind string `path:"kind" maxLength:"63"`
		Name string `path:"name" maxLength:"63"`
		IfMatch
	}) (*struct{}, error) {
		key := state.ObjectKey{Kind: in.Kind, Name: in.Name}
		if state.Hidden(in.Kind) {
			return nil, huma.Error404NotFound(fmt.Sprintf("a %s is not declared, and goes by itself", in.Kind))
		}
		current := func(st *state.State) (string, error) {
			o, err := st.FindObject(key)
			return tag(o), err
		}
		_, err := s.change(ctx, in.IfMatch, "delete "+key.String(), key.String(), current, func(d *state.Draft) error { return state.DeleteObject(d, key) })
		return nil, err
	}, changes)
	huma.Post(a, "/v1/apply", func(ctx context.Context, in *struct{ Body api.Apply }) (*body[api.Applied], error) {
		return answer(s.apply(ctx, in.Body))
	})
}

// errDry ends a decision that shall change nothing.
var errDry = errors.New("nothing is to be changed")

// apply makes all that documents ask for in one transaction, or says what that would be.
func (s *Server) apply(ctx context.Context, in api.Apply) (out api.Applied, err error) {
	if len(in.Documents) == 0 { // with prune, too: a directory that is not mounted shall not take everything away
		return out, huma.Error422UnprocessableEntity("no document is there")
	}
	live := declare.Live{Who: who(ctx), Announced: s.cfg.Fleet.Announced}
	var draft *state.State
	decide := func(d *state.Draft) error {
		if in.Sequence != 0 && in.Sequence != d.Seq {
			return state.Errorf(state.Conflict, "the state was changed since you read it: it is at transaction %d by now", d.Seq)
		}
		if in.Tag != "" && in.Tag != policyDigest(d.State) {
			return state.Errorf(state.Conflict, "segments or policies were changed since you looked at them; look again")
		}
		out.Sequence, draft = d.Seq, d.State
		was := object.Talk(d.State)
		out.Steps, err = declare.Apply(d, in.Documents, in.Prune, live)
		if err == nil && in.Confirm != 0 {
			err = object.AskToConfirm(d, was, live.Who, time.Duration(in.Confirm))
		}
		if err == nil && in.DryRun {
			err = errDry
		}
		return err
	}
	if in.DryRun {
		base, err := s.cfg.Store.Update(ctx, who(ctx), "", decide)
		if !errors.Is(err, errDry) {
			return api.Applied{}, problem(err)
		}
		if in.Preview {
			out.Policy, err = s.policyChange(ctx, base, draft, in.Connections)
			return out, err
		}
		return out, nil
	}
	reason := fmt.Sprintf("apply of %d documents", len(in.Documents))
	if len(in.Prune) > 0 {
		reason += ", prune " + protocol.OneLine(strings.Join(in.Prune, ", "), 256)
	}
	st, err := s.update(ctx, reason, decide)
	if err != nil {
		return api.Applied{}, err
	}
	out.Sequence = st.Seq
	if in.Confirm != 0 {
		out.Confirm = pending(st)
	}
	return out, nil
}
