package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
)

// contextFile stores a context whose certificate is good from and until these times, as no hub makes one now.
func contextFile(t *testing.T, from, until time.Time) string {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	require.NoError(t, err)
	csr, key, err := newKey()
	require.NoError(t, err)
	block, _ := pem.Decode([]byte(csr))
	req, err := x509.ParseCertificateRequest(block.Bytes)
	require.NoError(t, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kim"}, NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, req.PublicKey, caKey)
	require.NoError(t, err)
	text := func(b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b}))
	}
	c, err := api.NewContext(api.AdminCreated{Admin: api.Admin{Name: "kim", Role: "viewer"}, Address: "127.0.0.1:1", CA: text(caDER), Certificate: text(der)}, key)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "kim.pem")
	require.NoError(t, os.WriteFile(file, c.Secret(), 0o600))
	return file
}

// A certificate that ends soon is warned about, one that has ended is of no use.
func TestContextThatEnds(t *testing.T) {
	day := 24 * time.Hour
	for _, c := range []struct {
		left        time.Duration
		warns, ends bool
	}{{30 * day, false, false}, {3 * day, true, false}, {-day, false, true}} {
		file := contextFile(t, time.Now().Add(-90*day), time.Now().Add(c.left))
		var out, errw strings.Builder
		require.Equal(t, frame.ExitFailed, run(context.Background(), []string{"--context", file, "status"}, strings.NewReader(""), &out, &errw))
		require.Equal(t, c.warns, strings.Contains(errw.String(), "causeway: the certificate of kim at 127.0.0.1:1 expires in "), errw.String())
		require.Equal(t, c.ends, strings.Contains(errw.String(), "causeway: the certificate of admin kim expired on "), errw.String())
		require.Equal(t, !c.ends, strings.Contains(errw.String(), "causeway: no hub at 127.0.0.1:1: "), errw.String())
	}
}
