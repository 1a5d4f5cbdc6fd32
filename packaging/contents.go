package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// pkg is one package.
type pkg struct {
	name     string // causeway-agent
	short    string // agent: of its files
	programs []string
	units    []string
	about    string
	deb, rpm []string // what it depends on
	sysctl   string
}

var packages = []pkg{
	{
		name: "causeway-agent", short: "agent", programs: []string{"causeway-agent"}, units: []string{"causeway-agent.service", "causeway-agent-upgrade.path", "causeway-agent-upgrade.service", "causeway-agent-dns.path", "causeway-agent-dns.service"},
		about: "Joins this host to the other sites of a Causeway network.\nThe agent dials out to a hub; containers of all sites then reach each other over\nWireGuard, encrypted from host to host.",
		deb:   []string{"nftables", "systemd", "passwd"}, rpm: []string{"nftables", "systemd", "shadow-utils"},
	},
	{
		name: "causeway-hub", short: "hub", programs: []string{"causeway-hub", "causeway"},
		units: []string{"causeway-hub.service", "causeway-hub-https.socket", "causeway-hub-admin.socket"},
		about: "The cloud side of Causeway, and its admin CLI.\nControl plane, join authority and blind relay of WireGuard's ciphertext.",
		deb:   []string{"systemd", "passwd"}, rpm: []string{"systemd", "shadow-utils"}, sysctl: "60-causeway-hub.conf",
	},
}

const homepage = "https://causeway.invalid/"

// contents are the files of a package, and the drop-ins that it offers below
// /usr/share/doc.
func (r *release) contents(p pkg, bins map[string]string) (files.Contents, error) {
	var c files.Contents
	add := func(src, dst string, mode os.FileMode, typ string) {
		c = append(c, &files.Content{Source: src, Destination: dst, Type: typ,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: r.time}})
	}
	file := func(src, dst string) { add(src, dst, 0o644, files.TypeFile) }
	doc := "/usr/share/doc/" + p.name
	// rpm takes away only what a package names.
	for _, d := range []string{doc, doc + "/dropins", "/usr/share/fish", "/usr/share/fish/vendor_completions.d", "/usr/share/zsh", "/usr/share/zsh/vendor-completions",
		"/usr/share/bash-completion", "/usr/share/bash-completion/completions"} {
		add("", d, 0o755, files.TypeDir)
	}
	for _, prog := range p.programs {
		add(bins[prog], "/usr/bin/"+prog, 0o755, files.TypeFile)
		file(filepath.Join(r.docs, "completion/bash", prog), "/usr/share/bash-completion/completions/"+prog)
		file(filepath.Join(r.docs, "completion/zsh", prog), "/usr/share/zsh/vendor-completions/_"+prog)
		file(filepath.Join(r.docs, "completion/fish", prog), "/usr/share/fish/vendor_completions.d/"+prog+".fish")
		pages, err := filepath.Glob(filepath.Join(r.docs, "man", prog, "*.1"))
		if err != nil || len(pages) == 0 {
			return nil, fmt.Errorf("no manual pages of %s: %w", prog, err)
		}
		for _, page := range pages {
			file(page, "/usr/share/man/man1/"+filepath.Base(page))
		}
	}
	for _, u := range p.units {
		file("files/systemd/"+u, "/usr/lib/systemd/system/"+u)
	}
	if p.short == "agent" { // below which no hub takes it back
		add("", "/usr/lib/causeway-agent", 0o755, files.TypeDir)
		file(filepath.Join(r.docs, "version"), "/usr/lib/causeway-agent/version")
	}
	file("files/sysusers/"+p.name+".conf", "/usr/lib/sysusers.d/"+p.name+".conf")
	file("files/tmpfiles/"+p.name+".conf", "/usr/lib/tmpfiles.d/"+p.name+".conf")
	if p.sysctl != "" {
		file("files/sysctl/"+p.sysctl, "/usr/lib/sysctl.d/"+p.sysctl)
	}
	add("files/etc/"+p.short+".yaml", "/etc/causeway/"+p.short+".yaml", 0o644, files.TypeConfigNoReplace)
	dropins, err := filepath.Glob("files/dropins/" + p.name + "-*.conf")
	if err != nil {
		return nil, err
	}
	for _, d := range dropins {
		file(d, doc+"/dropins/"+strings.TrimPrefix(filepath.Base(d), p.name+"-"))
	}
	file(filepath.Join(r.root, "LICENSE"), doc+"/copyright")
	file(filepath.Join(r.docs, "licences", p.name), doc+"/THIRD-PARTY-LICENCES")
	file(filepath.Join(r.root, "docs/CONFIG.md"), doc+"/CONFIG.md")
	file(filepath.Join(r.root, "docs/SYSTEMD.md"), doc+"/SYSTEMD.md")
	file(filepath.Join(r.root, "docs/METRICS.md"), doc+"/METRICS.md")
	file(filepath.Join(r.root, "docs/LOGS.md"), doc+"/LOGS.md")
	if p.short == "hub" {
		add("", doc+"/monitoring", 0o755, files.TypeDir)
		for _, f := range []string{"alerts.yaml", "dashboard.json", "prometheus.yaml"} {
			file("monitoring/"+f, doc+"/monitoring/"+f)
		}
	}
	slices.SortFunc(c, func(a, b *files.Content) int { return strings.Compare(a.Destination, b.Destination) })
	return c, nil
}

// packageFile is the name of a package's file.
func (r *release) packageFile(p pkg, arch, kind string) string {
	return filepath.Join(r.out, fmt.Sprintf("%s_%s_%s.%s", p.name, r.version, arch, kind))
}

func (r *release) writePackage(p pkg, arch, kind string, bins map[string]string) error {
	c, err := r.contents(p, bins)
	if err != nil {
		return err
	}
	depends := p.deb
	if kind == "rpm" {
		depends = p.rpm
	}
	info := nfpm.WithDefaults(&nfpm.Info{
		Name: p.name, Arch: arch, Platform: "linux", Version: r.version, VersionSchema: "semver", Section: "net", Priority: "optional",
		Maintainer: "Causeway <causeway@localhost>", Description: p.about, Vendor: "Causeway", Homepage: homepage, License: "Apache-2.0", MTime: r.time,
		Overridables: nfpm.Overridables{Depends: depends, Contents: c, Scripts: nfpm.Scripts{
			PostInstall: "files/scripts/postinst-" + p.short, PreRemove: "files/scripts/prerm-" + p.short, PostRemove: "files/scripts/postrm-" + p.short,
		}, RPM: nfpm.RPM{BuildHost: "localhost", Summary: strings.SplitN(p.about, "\n", 2)[0]}},
	})
	if err := nfpm.PrepareForPackager(info, kind); err != nil {
		return fmt.Errorf("%s %s: %w", p.name, kind, err)
	}
	packager, err := nfpm.Get(kind)
	if err != nil {
		return err
	}
	path := r.packageFile(p, arch, kind)
	fmt.Println("write", filepath.Base(path))
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := packager.Package(info, f); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Close()
}
