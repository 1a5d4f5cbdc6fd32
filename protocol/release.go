package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"golang.org/x/mod/semver"
)

// ReleaseNamespace is what signatures of a release are for ('ssh-keygen -Y sign -n').
const ReleaseNamespace = "causeway-release"

// Limits of a release.
const (
	MaxRelease      = 64 << 10  // its manifest
	MaxReleaseFile  = 128 << 20 // each of its programs
	maxReleaseFiles = 64
	maxVersion      = 64
)

// Release is the manifest of a release, which its signature is over: so what it
// says holds whoever hands it on.
type Release struct {
	Version string        `json:"version"`
	Minimum string        `json:"minimum"` // a host that had this release goes back to nothing older
	Files   []ReleaseFile `json:"files"`
}

// ReleaseFile is one program for one architecture, by Go's name of it.
type ReleaseFile struct {
	Name    string `json:"name"`
	Program string `json:"program"`
	Arch    string `json:"arch"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"` // hexadecimal
}

// ReleaseName is the file name of a version's manifest; its signature's ends with
// ReleaseSignature in addition.
func ReleaseName(version string) string { return "causeway_" + version + ".json" }

// ReleaseSignature ends the name of a signature.
const ReleaseSignature = ".sig"

// ParseRelease reads a manifest. Its signature is checked before, over the same bytes.
func ParseRelease(b []byte) (r Release, err error) {
	if len(b) > MaxRelease {
		return r, fmt.Errorf("a release's manifest is longer than %d bytes", MaxRelease)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&r); err != nil {
		return Release{}, fmt.Errorf("decode a release's manifest: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Release{}, errors.New("decode a release's manifest: something follows it")
	}
	if !ValidVersion(r.Version) || !ValidVersion(r.Minimum) {
		return Release{}, fmt.Errorf("a release's version %.80q or minimum %.80q is none by semver.org", r.Version, r.Minimum)
	}
	if CompareVersions(r.Minimum, r.Version) > 0 {
		return Release{}, fmt.Errorf("a release's minimum %s is above its version %s", r.Minimum, r.Version)
	}
	if len(r.Files) > maxReleaseFiles {
		return Release{}, fmt.Errorf("a release has more than %d files", maxReleaseFiles)
	}
	for _, f := range r.Files {
		if f.Name == "" || len(f.Name) > 255 || filepath.Base(f.Name) != f.Name || strings.HasPrefix(f.Name, ".") || f.Size <= 0 || f.Size > MaxReleaseFile || len(f.SHA256) != 64 {
			return Release{}, fmt.Errorf("a release's file %.80q has a name, size or checksum that cannot be", f.Name)
		}
	}
	return r, nil
}

// Find returns a program's file for an architecture.
func (r Release) Find(program, arch string) (ReleaseFile, bool) {
	for _, f := range r.Files {
		if f.Program == program && f.Arch == arch {
			return f, true
		}
	}
	return ReleaseFile{}, false
}

// ValidVersion reports whether v is a version by semver.org, and short.
func ValidVersion(v string) bool {
	return len(v) <= maxVersion && semver.IsValid("v"+v) && strings.Count(strings.SplitN(strings.SplitN(v, "-", 2)[0], "+", 2)[0], ".") == 2
}

// CompareVersions orders two valid versions by semver.org; build metadata counts last, as
// text, so that no two differ and are equal.
func CompareVersions(a, b string) int {
	if c := semver.Compare("v"+a, "v"+b); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}
