package debug

import (
	"context"
	"encoding/json"
	"net/http"

	"causeway/protocol"
)

// DenyProve denies the hub trials of policies.
const DenyProve = "prove"

// proofs serves a trial of policies. The request for it holds it: when that ends, nothing of it is left.
func (s *Server) proofs(m *http.ServeMux, deny bool) {
	wrap := func(h http.HandlerFunc) http.HandlerFunc {
		if deny {
			return s.unlessDenied(DenyProve, h)
		}
		return h
	}
	m.HandleFunc("POST "+protocol.DebugProve, wrap(s.prove))
	m.HandleFunc("POST "+protocol.DebugProveSend, wrap(now(func(r *http.Request, q protocol.ProveNow) (any, error) { return s.cfg.ProveSend(r.Context(), q) })))
	m.HandleFunc("POST "+protocol.DebugProveSeen, wrap(now(func(r *http.Request, q protocol.ProveNow) (any, error) { return s.cfg.ProveSeen(r.Context(), q) })))
}

func (s *Server) prove(w http.ResponseWriter, r *http.Request) {
	var q protocol.ProveWatch
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, protocol.MaxProveBody)).Decode(&q)
	if err == nil {
		err = q.Check()
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "body is no trial of policies: "+err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), protocol.MaxProveTime)
	defer cancel()
	begun := false
	err = s.cfg.Prove(ctx, q, func() {
		begun = true
		reply(w, http.StatusOK, protocol.ProveReady{Ready: true})
		http.NewResponseController(w).Flush()
	})
	switch {
	case err != nil && begun:
		reply(w, http.StatusOK, protocol.ProveReady{Error: err.Error()})
	case err != nil:
		fail(w, http.StatusConflict, err.Error())
	}
}

// now answers a ProveNow.
func now(f func(*http.Request, protocol.ProveNow) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q protocol.ProveNow
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&q); err != nil {
			fail(w, http.StatusBadRequest, "body names no trial: "+err.Error())
			return
		}
		out, err := f(r, q)
		if err != nil {
			fail(w, http.StatusConflict, err.Error())
			return
		}
		reply(w, http.StatusOK, out)
	}
}
