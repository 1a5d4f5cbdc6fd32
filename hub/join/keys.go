// Package join is the hub as join authority: its keys, the signed hub list,
// and the HTTPS endpoints at which a host redeems a token.
package join

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"causeway/internal/cause"
	"causeway/internal/durable"
	"causeway/internal/shortage"
	"causeway/protocol"
)

// Files of the data directory.
const (
	ClusterKeyFile = "cluster.key"
	HubKeyFile     = "hub.key"
	oldKeyFile     = "hub.key.old"
	certFile       = "tls.pem"
)

// maxKeyFile bounds what is read of one.
const maxKeyFile = 64 << 10

// Keys are the hub's private keys.
type Keys struct {
	Cluster protocol.ClusterPrivateKey // signs hub lists; to be backed up apart
	Hub     protocol.WireGuardPrivateKey
	// Old is the hub's key before Hub, good beside it until OldUntil.
	Old      protocol.WireGuardPrivateKey
	OldUntil time.Time
	// unpublished says that no hub list is known to name Hub, as no hub started since it was
	// made: what the last list names is Old or, after a crash, one of replaced.
	unpublished bool
	replaced    []protocol.WireGuardPublicKey
}

// hub lists the keys under which the hub is known.
func (k Keys) hub() []protocol.WireGuardPrivateKey {
	if k.Old.IsZero() {
		return []protocol.WireGuardPrivateKey{k.Hub}
	}
	return []protocol.WireGuardPrivateKey{k.Hub, k.Old}
}

// names reports whether a key in a hub list is this hub's.
func (k Keys) names(p protocol.WireGuardPublicKey) bool {
	return slices.Contains(k.replaced, p) || slices.ContainsFunc(k.hub(), func(x protocol.WireGuardPrivateKey) bool { return x.Public() == p })
}

// oldKey is the file of the hub's old key.
type oldKey struct {
	Key         string                        `json:"key"` // private
	Until       time.Time                     `json:"until"`
	Unpublished bool                          `json:"unpublished,omitempty"` // the key that came after it
	Replaced    []protocol.WireGuardPublicKey `json:"replaced,omitempty"`    // those that came after it and before the present one
}

// maxReplaced bounds how often a key is replaced that no hub started with.
const maxReplaced = 64

// RotateHubKey gives a hub that does not run a new WireGuard key. The one so far
// stays good for overlap, until the time that it returns: it is stored as the old one
// first, so that a crash leaves the hub with one of the two. A key that no hub started with
// is replaced: the old one is still that which agents know, and no longer good than was
// said before, as it may have been stolen.
func RotateHubKey(dir string, overlap time.Duration) (key protocol.WireGuardPublicKey, until time.Time, err error) {
	k, err := LoadKeys(dir, false)
	if err != nil {
		return key, until, err
	}
	next, err := protocol.NewWireGuardPrivateKey()
	if err != nil {
		return key, until, err
	}
	until = time.Now().Add(overlap).UTC()
	if !k.unpublished {
		k.Old, k.OldUntil, k.replaced = k.Hub, until, nil
	} else if k.replaced = append(k.replaced, k.Hub.Public()); len(k.replaced) > maxReplaced {
		return key, until, fmt.Errorf("the key was rotated %d times and the hub never started in between; start it first", maxReplaced)
	} else if until.Before(k.OldUntil) {
		k.OldUntil = until
	}
	k.unpublished = true
	if err := k.storeOld(dir); err != nil {
		return key, until, fmt.Errorf("store the old hub key: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, HubKeyFile), []byte(next.Secret()+"\n")); err != nil {
		return key, until, fmt.Errorf("store the new hub key: %w", err)
	}
	return next.Public(), k.OldUntil, nil
}

func (k *Keys) storeOld(dir string) error {
	b, err := json.Marshal(oldKey{k.Old.Secret(), k.OldUntil, k.unpublished, k.replaced})
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, oldKeyFile), append(b, '\n'))
}

// Published notes, on disk too, that a hub list names the hub's key.
func (k *Keys) Published(dir string) error {
	if !k.unpublished {
		return nil
	}
	k.unpublished, k.replaced = false, nil
	return k.storeOld(dir)
}

// loadOld reads the old key, if there is one. One whose time is over still says
// which hub of the list this is.
func (k *Keys) loadOld(dir string) error {
	path := filepath.Join(dir, oldKeyFile)
	b, err := durable.ReadFile(path, maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w; %s", err, cause.Cure(err, "remove it if every agent has connected since the rotation, or restore it from a backup"))
	}
	var f oldKey
	if err := json.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("%s is no file of an old key; remove it if every agent has connected since the rotation", path)
	}
	old, err := protocol.ParseWireGuardPrivateKey(f.Key)
	if err != nil {
		return fmt.Errorf("%s is no file of an old key; remove it if every agent has connected since the rotation", path)
	}
	if old != k.Hub {
		k.Old, k.OldUntil, k.unpublished, k.replaced = old, f.Until, f.Unpublished, f.Replaced
	}
	return nil
}

// DropOld forgets the old key, on disk too.
func (k *Keys) DropOld(dir string) error {
	k.Old, k.OldUntil, k.unpublished, k.replaced = protocol.WireGuardPrivateKey{}, time.Time{}, false, nil
	return durable.Remove(filepath.Join(dir, oldKeyFile))
}

// Have reports whether any key file is in dir.
func Have(dir string) bool {
	for _, f := range []string{ClusterKeyFile, HubKeyFile} {
		if _, err := os.Stat(filepath.Join(dir, f)); err == nil {
			return true
		}
	}
	return false
}

// LoadKeys reads the keys in dir and makes those that are missing, if it may.
func LoadKeys(dir string, create bool) (k Keys, err error) {
	k.Cluster, err = loadKey(filepath.Join(dir, ClusterKeyFile), create, protocol.ParseClusterPrivateKey, func() (string, error) {
		n, err := protocol.NewClusterPrivateKey()
		return n.Secret(), err
	})
	if err != nil {
		return Keys{}, fmt.Errorf("cluster key: %w", err)
	}
	k.Hub, err = loadKey(filepath.Join(dir, HubKeyFile), create, protocol.ParseWireGuardPrivateKey, func() (string, error) {
		n, err := protocol.NewWireGuardPrivateKey()
		return n.Secret(), err
	})
	if err != nil {
		return Keys{}, fmt.Errorf("hub key: %w", err)
	}
	if err := k.loadOld(dir); err != nil {
		return Keys{}, fmt.Errorf("old hub key: %w", err)
	}
	return k, nil
}

func loadKey[K any](path string, create bool, parse func(string) (K, error), make func() (string, error)) (k K, err error) {
	b, err := durable.ReadFile(path, maxKeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !create:
		return k, fmt.Errorf("%s is missing; restore it from a backup", path)
	case errors.Is(err, fs.ErrNotExist):
		text, err := make()
		if err != nil {
			return k, err
		}
		b = []byte(text + "\n")
		if err := durable.WriteFile(path, b); err != nil {
			return k, err
		}
	case err != nil:
		return k, fmt.Errorf("%w; %s", err, cause.Cure(err, "restore it from a backup"))
	}
	k, err = parse(strings.TrimSpace(string(b)))
	if err != nil {
		return k, fmt.Errorf("%s is no key file; restore it from a backup", path) // never quotes what is in it
	}
	return k, nil
}

// certificate loads the HTTPS certificate in dir, or makes one. It is
// transport only: nobody checks it, the token's pin authenticates the hub.
func certificate(dir string, now time.Time) (tls.Certificate, error) {
	path := filepath.Join(dir, certFile)
	b, err := durable.ReadFile(path, maxKeyFile)
	if shortage.Is(err) {
		return tls.Certificate{}, fmt.Errorf("https certificate: %w", err)
	}
	if c, err := tls.X509KeyPair(b, b); err == nil && now.Before(c.Leaf.NotAfter) {
		return c, nil
	}
	// Whatever else is there is of no use, and a new one is as good.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "causeway-hub"}, DNSNames: []string{"causeway-hub"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(20, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	kd, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	b = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})...)
	if err := durable.Replace(path, b); err != nil {
		return tls.Certificate{}, fmt.Errorf("https certificate: %w", err)
	}
	return tls.X509KeyPair(b, b)
}
