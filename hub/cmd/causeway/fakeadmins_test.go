package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"time"

	"causeway/hub/api"
)

// fakeAdmins issues certificates from a CA that nobody serves.
func fakeAdmins(m *http.ServeMux) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	pemOf := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fake"}, NotBefore: at, NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	m.HandleFunc("POST /v1/admins", func(w http.ResponseWriter, r *http.Request) {
		var s api.AdminSpec
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			problem(w, 400, err.Error())
			return
		}
		block, _ := pem.Decode([]byte(s.CSR))
		req, err := x509.ParseCertificateRequest(block.Bytes)
		must(err)
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: s.Name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Duration(s.TTL))}
		if s.TTL == 0 {
			leaf.NotAfter = time.Now().Add(90 * 24 * time.Hour)
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, req.PublicKey, caKey)
		must(err)
		answer(api.AdminCreated{Admin: api.Admin{Name: s.Name, Role: s.Role, Hub: 1, Created: at, Expires: leaf.NotAfter, State: "active"},
			Address: "127.0.0.1:1", CA: pemOf(caDER), Certificate: pemOf(der)})(w, r)
	})
	m.HandleFunc("GET /v1/admins", answer([]api.Admin{
		{Name: "olga", Role: "operator", Hub: 1, Created: time.Now().Add(-72 * time.Hour), Expires: at, State: "active"},
		{Name: "rita", Role: "viewer", Hub: 1, Created: time.Now().Add(-72 * time.Hour), Expires: at, State: "revoked"},
	}))
	m.HandleFunc("DELETE /v1/admins/{name}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "olga" {
			problem(w, 404, "there is no admin \""+r.PathValue("name")+"\"; see 'causeway admin list'")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}
