package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"causeway/hub"
	"causeway/internal/docpage"
	"causeway/internal/flagenv"
	"causeway/internal/strictyaml"
)

func TestReference(t *testing.T) {
	var f flags
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.register(set)
	var b strings.Builder
	b.WriteString("| key | flag | environment | meaning | on SIGHUP |\n|---|---|---|---|---|\n")
	for _, k := range strictyaml.Reference(settings{}) {
		name := strings.ReplaceAll(k.Path, "_", "-")
		flag := set.Lookup(name)
		require.NotNil(t, flag, "a key without a flag: %s", k.Path)
		usage := flag.Usage
		if d := strings.Trim(flag.DefValue, "[]"); d != "" && d != "0" && !strings.Contains(usage, "(default") {
			usage += " (default: " + d + ")"
		}
		reload := "needs a restart"
		if slices.Contains(hub.Reloadable, name) {
			reload = "taken"
		}
		fmt.Fprintf(&b, "| `%s` | `--%s` | `%s` | %s | %s |\n", k.Path, name, flagenv.Name(envPrefix, name), usage, reload)
	}
	docpage.Check(t, "../../../docs/CONFIG.md", "hub", b.String())
}
