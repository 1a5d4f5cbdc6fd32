package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"causeway/hub/api"
	"causeway/hub/object"
	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

// haveWait is how long nodes may take to have the policies before packets are sent all the same.
const haveWait = 10 * time.Second

// provePolicies tries with packets what policies close. It answers lines of JSON: api.ProveLine.
func (s *Server) provePolicies(w http.ResponseWriter, r *http.Request) {
	var in api.ProveRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		writeProblem(w, huma.Error422UnprocessableEntity("body is no request to prove policies: "+protocol.OneLine(err.Error(), 200)))
		return
	}
	if err := in.Check(); err != nil {
		writeProblem(w, huma.Error422UnprocessableEntity(err.Error()))
		return
	}
	select {
	case s.proving <- struct{}{}:
		defer func() { <-s.proving }()
	default:
		writeProblem(w, huma.Error409Conflict("policies are being proven already; try again when that is done"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(in.Time))
	defer cancel()
	go func() {
		select {
		case <-s.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	p, err := s.newProver(ctx, in)
	if err != nil {
		writeProblem(w, err)
		return
	}
	w.Header().Set("Content-Type", api.ProveType)
	rc, enc := http.NewResponseController(w), json.NewEncoder(w)
	say := func(l api.ProveLine) {
		rc.SetWriteDeadline(time.Now().Add(captureStall))
		if enc.Encode(l) != nil || rc.Flush() != nil {
			cancel()
		}
	}
	p.run(ctx, func(done, of int) { say(api.ProveLine{Done: done, Of: of}) })
	signed, err := p.finish(context.WithoutCancel(ctx), r.Context().Err())
	if err != nil {
		say(api.ProveLine{Error: err.Error()})
		return
	}
	say(api.ProveLine{Proof: &signed})
}

// newProver prepares a trial by what is declared now.
func (s *Server) newProver(ctx context.Context, in api.ProveRequest) (*prover, error) {
	st := s.cfg.Store.State()
	c, err := s.inForce(ctx)
	if err != nil {
		return nil, huma.Error409Conflict(err.Error())
	}
	if c.Open {
		return nil, huma.Error409Conflict("no policy and no segment is declared: nothing is closed")
	}
	pin := st.Cluster.Pin()
	p := &prover{s: s, in: in, st: st, c: c, proof: protocol.PolicyProof{Version: protocol.PolicyProofVersion, Cluster: hex.EncodeToString(pin[:]), Hub: s.cfg.Number,
		HubVersion: s.cfg.Version, Mark: st.Mark(s.cfg.ClusterKey), Digest: policyDigest(st), Who: who(ctx), Begun: time.Now().UTC().Truncate(time.Second)}}
	p.proof.Behind = s.awaitPolicies(ctx, st)
	p.plan()
	return p, nil
}

// policyDigest is the hash of all segments and policies.
func policyDigest(st *state.State) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, kind := range []string{object.SegmentKind, object.PolicyKind} {
		for _, o := range st.ObjectsOf(kind) {
			enc.Encode([]any{o.Kind, o.Name, o.Generation, o.Spec})
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// awaitPolicies waits a while until all connected nodes have the policies, and names those that have not.
func (s *Server) awaitPolicies(ctx context.Context, st *state.State) []string {
	ctx, cancel := context.WithTimeout(ctx, haveWait)
	defer cancel()
	for t := time.NewTicker(100 * time.Millisecond); ; {
		snap := s.cfg.Fleet.Snapshot()
		lack := map[string]bool{}
		for _, kind := range []string{object.SegmentKind, object.PolicyKind} {
			for _, o := range st.ObjectsOf(kind) {
				_, l := snap.Has(st, o)
				for _, n := range l {
					if snap.Node(n).Session != nil {
						lack[st.Nodes.Get(n).Name] = true
					}
				}
			}
		}
		if len(lack) > 0 {
			select {
			case <-t.C:
				continue
			case <-ctx.Done():
			}
		}
		t.Stop()
		return slices.Sorted(maps.Keys(lack))
	}
}

// finish concludes, signs, and has the log say that it was done.
func (p *prover) finish(ctx context.Context, gone error) (protocol.SignedPolicyProof, error) {
	now := time.Now().UTC()
	p.proof.Ended = now.Truncate(time.Second)
	st := p.s.cfg.Store.State()
	c, err := p.s.inForce(ctx)
	p.proof.Changed = err != nil || policyDigest(st) != p.proof.Digest || !p.c.Next.IsZero() && !now.Before(p.c.Next) || p.moved(c)
	if gone != nil {
		p.proof.Broken = "whoever asked for it went away"
	}
	p.proof.Summary = p.proof.Conclude()
	signed, err := protocol.SignPolicyProof(p.proof, p.s.cfg.ClusterKey)
	if err != nil {
		return signed, err
	}
	sum := p.proof.Summary
	verdict := "proven"
	if !sum.Proven {
		verdict = "not proven"
	}
	why := fmt.Sprintf("policy prove: %s; %d closed, %d arrived, %d not tried, %d open; SHA-256 %s", verdict, sum.Closed, sum.Arrived, sum.NotTried, sum.Open, signed.SHA256())
	_, err = p.s.cfg.Store.Update(ctx, p.proof.Who, why, func(d *state.Draft) error { d.Note(); return nil })
	if err != nil {
		return signed, problem(err)
	}
	return signed, nil
}

// moved reports whether an address that was tried is of another class now.
func (p *prover) moved(c *policy.Compiled) bool {
	was := func(id uint32, now *policy.Compiled, x protocol.ProofPair, from bool) bool {
		a, node := x.Tried.To, x.Tried.ToNode
		if from {
			a, node = x.Tried.From, x.Tried.FromNode
		}
		n := p.st.NumberOf(node)
		before, ok1 := p.c.UnitAt(n, a)
		after, ok2 := now.UnitAt(n, a)
		return ok1 == ok2 && p.words(before.Class) == wordsOf(now, after.Class) && uint32(before.Class) == id
	}
	for _, x := range p.proof.Pairs {
		if x.Tried.From.IsValid() && (c.Open || !was(x.From, c, x, true) || !was(x.To, c, x, false)) {
			return true
		}
	}
	return false
}

func (p *prover) words(id policy.ClassID) string { return wordsOf(p.c, id) }

// wordsOf is what a class is, whatever its number.
func wordsOf(c *policy.Compiled, id policy.ClassID) string {
	for _, k := range c.Classes {
		if k.ID == id {
			return fmt.Sprintf("%q %q", k.Segment, k.Sides)
		}
	}
	return ""
}
