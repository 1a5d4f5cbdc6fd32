package admin

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"time"

	"causeway/hub/api"
	"causeway/internal/cause"
	"causeway/internal/durable"
)

// CAFile is where a hub's data directory has the key and certificate of its CA.
const CAFile = "admin-ca.pem"

const (
	caLife  = 20 // years
	maxCSR  = 16 << 10
	backset = time.Hour // clocks of those who check may be behind
)

// CA issues the certificates of admins who come from elsewhere, and the hub's own for them
// and for NATS users. Each hub has one. An admin's certificate alone opens nothing: the
// state has to name it as well.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
	text string // PEM, with the private key
}

// maxCAFile bounds what is read of it.
const maxCAFile = 64 << 10

// OpenCA reads the CA in the file, or makes one.
func OpenCA(path string) (*CA, error) {
	b, err := durable.ReadFile(path, maxCAFile)
	if err == nil {
		ca, err := parseCA(string(b))
		if err != nil {
			return nil, fmt.Errorf("%s is no admin CA; restore it from a backup, or move it away: then every admin needs a new context", path) // never quotes what is in it
		}
		return ca, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("admin CA: %w; %s", err, cause.Cure(err, "restore it from a backup, or move it away: then every admin needs a new context"))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	der, err := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "causeway admin CA"}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(caLife, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, key.Public(), key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := certPEM(der) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	if err := durable.WriteFile(path, []byte(text)); err != nil {
		return nil, fmt.Errorf("admin CA: %w", err)
	}
	return parseCA(text)
}

func parseCA(text string) (*CA, error) {
	pair, err := tls.X509KeyPair([]byte(text), []byte(text))
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("no CA")
	}
	return &CA{pair.Leaf, key, text}, nil
}

// Expires is until when its certificate is good, and with it every one that it issued.
func (ca *CA) Expires() time.Time { return ca.cert.NotAfter }

// Secret is the CA as it is in its file, private key included.
func (ca *CA) Secret() string { return ca.text }

func certPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// sign fills in a serial number; without a parent the certificate signs itself.
func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = serial
	if parent == nil {
		parent = tmpl
	}
	return x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
}

// readCSR returns the key that a certificate is asked for, whose holder has shown
// that he has it. Nothing else of the request counts.
func readCSR(text string) (crypto.PublicKey, error) {
	bad := errors.New("csr: send a PKCS #10 request in PEM, with an ECDSA P-256 or Ed25519 key and a valid signature")
	if len(text) > maxCSR {
		return nil, bad
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, bad
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || req.CheckSignature() != nil {
		return nil, bad
	}
	switch k := req.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return k, nil
		}
	case ed25519.PublicKey:
		return k, nil
	}
	return nil, bad
}

// issue makes an admin's certificate. It can serve nobody as a server.
func (ca *CA) issue(name string, pub crypto.PublicKey, now, expires time.Time) (der []byte, err error) {
	return sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-backset), NotAfter: expires,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.cert, pub, ca.key)
}

// ServerTLS is what a server of this hub, whose public name or address is given, needs to be
// believed by whoever has the CA's certificate.
func (ca *CA) ServerTLS(public string) (*tls.Config, error) {
	cert, err := ca.serverCert(public)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}, nil
}

// serverCert makes the listener's own certificate, whose key is in memory alone.
func (ca *CA) serverCert(public string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{CommonName: "causeway-hub"}, DNSNames: []string{api.HubName}, NotBefore: ca.cert.NotBefore, NotAfter: ca.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if a, err := netip.ParseAddr(public); err == nil {
		tmpl.IPAddresses = append(tmpl.IPAddresses, a.AsSlice())
	} else if public != "" {
		tmpl.DNSNames = append(tmpl.DNSNames, public)
	}
	der, err := sign(tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key}, nil
}
