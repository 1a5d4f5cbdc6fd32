package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Users of the images: nobody's names elsewhere.
const (
	hubUser  = 65532
	rootUser = 0
)

// writeImage writes an OCI image layout with an image for each architecture:
// the static programs and nothing else. The agent's has no nft: mount the
// host's, or build on it (docs/SYSTEMD.md).
func (r *release) writeImage(p pkg, archs []string) error {
	// No "+": engines take the name for an image reference.
	dir := filepath.Join(r.out, fmt.Sprintf("%s_%s.oci", p.name, strings.ReplaceAll(r.version, "+", "-")))
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	fmt.Println("write", filepath.Base(dir))
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("write image layout: %w", err)
	}
	for _, arch := range archs {
		img, err := r.image(p, arch)
		if err != nil {
			return fmt.Errorf("image %s %s: %w", p.name, arch, err)
		}
		if err := path.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: arch})); err != nil {
			return fmt.Errorf("write image layout: %w", err)
		}
	}
	return nil
}

func (r *release) image(p pkg, arch string) (v1.Image, error) {
	b, err := r.layer(p, arch)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{Created: v1.Time{Time: r.time}, CreatedBy: "causeway-packaging"}}); err != nil {
		return nil, err
	}
	user := hubUser
	ports := map[string]struct{}{"51820/udp": {}, "443/tcp": {}}
	if p.short == "agent" {
		user, ports = rootUser, nil
	}
	c := &v1.ConfigFile{OS: "linux", Architecture: arch, Created: v1.Time{Time: r.time}}
	c.Config = v1.Config{
		Entrypoint: []string{"/usr/bin/" + p.name}, Cmd: []string{"run"}, User: fmt.Sprint(user), ExposedPorts: ports,
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Volumes: map[string]struct{}{"/var/lib/" + p.name: {}},
		Labels: map[string]string{"org.opencontainers.image.title": p.name, "org.opencontainers.image.version": r.version, "org.opencontainers.image.licenses": "Apache-2.0"},
	}
	have, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c.RootFS, c.History = have.RootFS, have.History
	return mutate.ConfigFile(img, c)
}

// layer is the root file system as a tar.
func (r *release) layer(p pkg, arch string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, mode int64, uid int, body []byte) error {
		h := &tar.Header{Name: name, Mode: mode, Uid: uid, Gid: uid, ModTime: r.time, Size: int64(len(body)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if body == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(body)
		return err
	}
	uid := hubUser
	if p.short == "agent" {
		uid = rootUser
	}
	for _, d := range []struct {
		name string
		mode int64
		uid  int
	}{{"etc/", 0o755, 0}, {"etc/causeway/", 0o755, 0}, {"run/", 0o755, 0}, {"run/causeway/", 0o755, uid}, {"tmp/", 0o1777, 0}, {"usr/", 0o755, 0}, {"usr/bin/", 0o755, 0},
		{"var/", 0o755, 0}, {"var/lib/", 0o755, 0}, {"var/lib/" + p.name + "/", 0o700, uid}} {
		if err := add(d.name, d.mode, d.uid, nil); err != nil {
			return nil, err
		}
	}
	passwd := fmt.Sprintf("root:x:0:0:root:/:/sbin/nologin\ncauseway:x:%d:%d:causeway:/:/sbin/nologin\n", hubUser, hubUser)
	if err := add("etc/passwd", 0o644, 0, []byte(passwd)); err != nil {
		return nil, err
	}
	for _, prog := range p.programs {
		body, err := os.ReadFile(filepath.Join(r.bin(arch), prog))
		if err != nil {
			return nil, err
		}
		if err := add("usr/bin/"+prog, 0o755, 0, body); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}
