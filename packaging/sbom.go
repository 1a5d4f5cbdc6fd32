package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// modules lists the Go modules that are linked into the programs of a package.
func modules(p pkg, bins map[string]string) (list []module, goVersion string, err error) {
	seen := map[module]bool{}
	for _, prog := range p.programs {
		b, err := buildinfo.ReadFile(bins[prog])
		if err != nil {
			return nil, "", fmt.Errorf("read modules of %s: %w", prog, err)
		}
		goVersion = b.GoVersion
		for _, d := range b.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			m := module{d.Path, d.Version}
			if !seen[m] {
				seen[m] = true
				list = append(list, m)
			}
		}
	}
	slices.SortFunc(list, func(a, b module) int { return strings.Compare(a.path, b.path) })
	return list, goVersion, nil
}

type module struct{ path, version string }

// SPDX 2.3, https://spdx.github.io/spdx-spec/v2.3/: the part that is used.
type (
	spdxDocument struct {
		SPDXVersion       string             `json:"spdxVersion"`
		DataLicense       string             `json:"dataLicense"`
		SPDXID            string             `json:"SPDXID"`
		Name              string             `json:"name"`
		DocumentNamespace string             `json:"documentNamespace"`
		CreationInfo      spdxCreation       `json:"creationInfo"`
		Packages          []spdxPackage      `json:"packages"`
		Relationships     []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		SPDXID           string         `json:"SPDXID"`
		Name             string         `json:"name"`
		Version          string         `json:"versionInfo"`
		DownloadLocation string         `json:"downloadLocation"`
		FilesAnalyzed    bool           `json:"filesAnalyzed"`
		LicenseConcluded string         `json:"licenseConcluded"`
		LicenseDeclared  string         `json:"licenseDeclared"`
		Checksums        []spdxChecksum `json:"checksums,omitempty"`
		ExternalRefs     []spdxRef      `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

func (r *release) writeSBOM(p pkg, arch string, bins map[string]string) error {
	list, goVersion, err := modules(p, bins)
	if err != nil {
		return err
	}
	d := spdxDocument{SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT",
		Name: p.name + "-" + r.version + "-" + arch, DocumentNamespace: homepage + "spdx/" + p.name + "/" + r.version + "/" + arch,
		CreationInfo: spdxCreation{r.time.Format("2006-01-02T15:04:05Z"), []string{"Tool: causeway-packaging"}}}
	add := func(id, name, version, licence, purl string, sum string) {
		s := spdxPackage{SPDXID: "SPDXRef-" + id, Name: name, Version: version, DownloadLocation: "NOASSERTION", LicenseConcluded: licence, LicenseDeclared: licence}
		if purl != "" {
			s.ExternalRefs = []spdxRef{{"PACKAGE-MANAGER", "purl", purl}}
		}
		if sum != "" {
			s.Checksums = []spdxChecksum{{"SHA256", sum}}
		}
		d.Packages = append(d.Packages, s)
	}
	for _, prog := range p.programs {
		b, err := os.ReadFile(bins[prog])
		if err != nil {
			return err
		}
		add(prog, prog, r.version, "Apache-2.0", "", fmt.Sprintf("%x", sha256.Sum256(b)))
		d.Relationships = append(d.Relationships, spdxRelationship{"SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-" + prog})
	}
	main := "SPDXRef-" + p.programs[0]
	add("go", "stdlib", strings.TrimPrefix(goVersion, "go"), "BSD-3-Clause", "pkg:golang/stdlib@"+strings.TrimPrefix(goVersion, "go"), "")
	d.Relationships = append(d.Relationships, spdxRelationship{main, "DEPENDS_ON", "SPDXRef-go"})
	for i, m := range list {
		l, err := licenceOf(m)
		if err != nil {
			return err
		}
		id := fmt.Sprintf("module-%d", i)
		add(id, m.path, m.version, l.id, "pkg:golang/"+m.path+"@"+m.version, "")
		d.Relationships = append(d.Relationships, spdxRelationship{main, "DEPENDS_ON", "SPDXRef-" + id})
	}
	b, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.out, fmt.Sprintf("%s_%s_%s.spdx.json", p.name, r.version, arch)), append(b, '\n'))
}
