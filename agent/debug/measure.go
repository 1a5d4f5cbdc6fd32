package debug

import (
	"encoding/json"
	"net/http"
	"slices"

	"causeway/protocol"
)

// What a node's config may deny the hub (debug: {deny: …}).
const (
	DenyBench   = "bench"
	DenyCapture = "capture"
)

// Deniable are the words of debug: {deny: …}.
func Deniable() []string { return []string{DenyBench, DenyCapture, DenyProve} }

// unlessDenied refuses the hub what the node's config denies it.
func (s *Server) unlessDenied(what string, h http.HandlerFunc) http.HandlerFunc {
	if slices.Contains(s.cfg.Deny, what) {
		return func(w http.ResponseWriter, _ *http.Request) { refuseDenied(w, what) }
	}
	return h
}

func refuseDenied(w http.ResponseWriter, what string) {
	fail(w, http.StatusForbidden, "this node's config denies the hub '"+what+"' (debug: {deny: ["+what+"]})")
}

// measurements serves both ends of one. What loads the network may be denied; finding an
// MTU takes some dozen packets.
func (s *Server) measurements(m *http.ServeMux, deny bool) {
	denied := func(k protocol.MeasureKind) bool {
		return deny && k != protocol.MeasureMTU && slices.Contains(s.cfg.Deny, DenyBench)
	}
	read := func(w http.ResponseWriter, r *http.Request, q any, kind *protocol.MeasureKind) bool {
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(q); err != nil {
			fail(w, http.StatusBadRequest, "body is no measurement: "+err.Error())
			return false
		}
		if denied(*kind) {
			refuseDenied(w, DenyBench)
			return false
		}
		return true
	}
	m.HandleFunc("POST "+protocol.DebugMeasureOffer, func(w http.ResponseWriter, r *http.Request) {
		var o protocol.MeasureOffer
		if read(w, r, &o, &o.Kind) {
			reply(w, http.StatusOK, s.cfg.MeasureOffer(r.Context(), o))
		}
	})
	m.HandleFunc("POST "+protocol.DebugMeasureRun, func(w http.ResponseWriter, r *http.Request) {
		var q protocol.MeasureRun
		if read(w, r, &q, &q.Kind) {
			reply(w, http.StatusOK, s.cfg.MeasureRun(r.Context(), q))
		}
	})
}
