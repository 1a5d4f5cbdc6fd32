package main

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/nats-io/nkeys"

	"causeway/hub/api"
)

// fakeNATS has two users of a NATS server that nobody serves.
func fakeNATS(m *http.ServeMux) {
	m.HandleFunc("POST /v1/nats/users", func(w http.ResponseWriter, r *http.Request) {
		var s api.NATSUserSpec
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil || !nkeys.IsValidPublicUserKey(s.Key) {
			problem(w, 422, "no key")
			return
		}
		answer(api.NATSUserCreated{NATSUser: api.NATSUser{Name: s.Name, Role: s.Role, Key: s.Key, Created: time.Now(), State: "active"},
			Address: "127.0.0.1:1", CA: "-----BEGIN CERTIFICATE-----\n", InboxPrefix: "_INBOX.user." + s.Name})(w, r)
	})
	m.HandleFunc("GET /v1/nats/users", answer([]api.NATSUser{
		{Name: "graf", Role: "reader", Key: "UA1", Created: time.Now().Add(-72 * time.Hour), State: "active"},
		{Name: "old", Role: "reader", Key: "UB2", Created: time.Now().Add(-72 * time.Hour), State: "revoked"},
	}))
	m.HandleFunc("DELETE /v1/nats/users/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "graf" {
			problem(w, 404, "there is no NATS user \""+r.PathValue("name")+"\"; see 'causeway nats user list'")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}
