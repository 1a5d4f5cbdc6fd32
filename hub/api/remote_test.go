package api

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testContext makes the text of a context whose certificate lives from from for life.
func testContext(t testing.TB, hub string, from time.Time, life time.Duration) (text []byte, key string) {
	t.Helper()
	mine, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, mine.Public(), mine)
	require.NoError(t, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "eve"}, NotBefore: from, NotAfter: from.Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, mine.Public(), mine)
	require.NoError(t, err)
	kd, err := x509.MarshalPKCS8PrivateKey(mine)
	require.NoError(t, err)
	key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd}))
	var b bytes.Buffer
	require.NoError(t, pem.Encode(&b, &pem.Block{Type: contextBlock, Headers: map[string]string{"Hub": hub, "Role": "viewer"}}))
	require.NoError(t, pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}))
	require.NoError(t, pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: caDER}))
	b.WriteString(key)
	return b.Bytes(), key
}

func TestContextText(t *testing.T) {
	from := time.Now().Add(-time.Hour).Truncate(time.Second)
	text, key := testContext(t, "hub.example.net:7443", from, 80*time.Hour)
	c, err := ParseContext(append([]byte("written by hand\n"), text...))
	require.NoError(t, err)
	require.Equal(t, []string{"hub.example.net:7443", "eve", "viewer"}, []string{c.Hub, c.Admin, c.Role})
	require.True(t, c.Expires.Equal(from.Add(80*time.Hour)))
	require.False(t, c.ExpiresSoon(from.Add(59*time.Hour)))
	require.True(t, c.ExpiresSoon(from.Add(61*time.Hour)))
	secret := strings.Split(key, "\n")[1]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		require.NotContains(t, fmt.Sprintf(verb, c), secret, verb)
		require.NotContains(t, fmt.Sprintf(verb, &c), secret, verb)
	}
	c.Expires = time.Now().Add(-time.Minute)
	_, err = NewClient(ClientConfig{Context: &c})
	require.ErrorContains(t, err, "the certificate of admin eve expired on ")

	for name, tc := range map[string]struct {
		edit func(string) string
		want string
	}{
		"empty":    {func(string) string { return "" }, "names no hub"},
		"long":     {func(s string) string { return s + strings.Repeat(" ", MaxContext) }, "longer than"},
		"no port":  {func(s string) string { return strings.Replace(s, ":7443", "", 1) }, "names no hub"},
		"a page":   {func(s string) string { return strings.Replace(s, "hub.example", "http://hub.example", 1) }, "names no hub"},
		"cut":      {func(s string) string { return s[:len(s)-40] }, "two certificates and one private key"},
		"no CA":    {func(s string) string { return s[:strings.LastIndex(s, "-----BEGIN CERT")] + key }, "two certificates and one private key"},
		"two keys": {func(s string) string { return s + key }, "two certificates and one private key"},
		"two hubs": {func(s string) string { return s + s }, "names two hubs"},
		"another's key": {func(s string) string {
			_, k := testContext(t, "h:1", from, time.Hour)
			return strings.Replace(s, key, k, 1)
		}, "not the one of its certificate"},
		"another's CA":   {func(s string) string { return swapCA(t, s, from) }, "not from its CA"},
		"broken content": {func(s string) string { return strings.Replace(s, "CERTIFICATE-----\nM", "CERTIFICATE-----\nA", 1) }, "no context of a hub"},
	} {
		_, err := ParseContext([]byte(tc.edit(string(text))))
		require.ErrorContains(t, err, tc.want, name)
		require.NotContains(t, err.Error(), "\n", name)
		require.NotContains(t, err.Error(), secret, name)
	}
}

func swapCA(t *testing.T, s string, from time.Time) string {
	other, _ := testContext(t, "h:1", from, time.Hour)
	o := string(other)
	begin := "-----BEGIN CERT"
	ca := o[strings.LastIndex(o, begin):strings.Index(o, "-----BEGIN PRIVATE")]
	return s[:strings.LastIndex(s, begin)] + ca + s[strings.Index(s, "-----BEGIN PRIVATE"):]
}

// A context file may come from anywhere. Whatever is in it, reading it must neither
// panic nor quote its key, and what was read reads again alike.
func FuzzContext(f *testing.F) {
	text, _ := testContext(f, "hub.example.net:7443", time.Now().Add(-time.Hour), time.Hour)
	f.Add(text)
	f.Add([]byte("-----BEGIN CAUSEWAY CONTEXT-----\nHub: h:1\n\n-----END CAUSEWAY CONTEXT-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseContext(b)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			require.Less(t, len(err.Error()), 300)
			return
		}
		again, err := ParseContext(c.Secret())
		require.NoError(t, err)
		require.Equal(t, c.String(), again.String())
		require.NotContains(t, c.String(), "\n")
		_, err = NewClient(ClientConfig{Context: &c})
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
		}
	})
}
