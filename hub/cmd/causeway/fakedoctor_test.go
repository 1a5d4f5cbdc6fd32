package main

import (
	"net/http"
	"sync/atomic"
	"time"

	"causeway/hub/api"
)

// fakeDoctor finds nothing, then what nobody has to mend, then all the rest.
func fakeDoctor(m *http.ServeMux) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	info := api.Finding{Severity: api.SeverityInfo, Check: "path-relayed", Where: "sh-1 eu-1", Since: at, Summary: "they reach each other through the hub (relay)", Mend: "causeway diag path sh-1 eu-1"}
	checkups := []api.Checkup{
		{Findings: []api.Finding{}, Nodes: 2, Pairs: 1},
		{Findings: []api.Finding{info}, Nodes: 2, Pairs: 1},
		{Findings: []api.Finding{
			{Severity: api.SeverityCritical, Check: "node-unreachable", Where: "eu-1", Since: at, Summary: "no control channel\x1b[2J", Mend: "on eu-1: systemctl status causeway-agent"},
			{Severity: api.SeverityWarning, Check: "route-not-approved", Where: "eu-1", Summary: "route 10.202.1.0/24 waits for an admin's approval", Mend: "causeway route approve eu-1 10.202.1.0/24"},
			info,
		}, LeftOut: 3, Nodes: 2, Pairs: 1},
	}
	var asked atomic.Int64
	m.HandleFunc("GET /v1/doctor", func(w http.ResponseWriter, r *http.Request) {
		answer(checkups[min(int(asked.Add(1)), len(checkups))-1])(w, r)
	})
}
