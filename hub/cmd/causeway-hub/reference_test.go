package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"causeway/hub"
	"causeway/internal/docpage"
	"causeway/internal/flagenv"
)

func TestReference(t *testing.T) {
	var f flags
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.register(set)
	var b strings.Builder
	b.WriteString("| key | flag | environment | meaning | on SIGHUP |\n|---|---|---|---|---|\n")
	for _, k := range hub.Settings {
		flag := set.Lookup(k.Name)
		usage := flag.Usage
		if d := strings.Trim(flag.DefValue, "[]"); d != "" && d != "0" && !strings.Contains(usage, "(default") {
			usage += " (default: " + d + ")"
		}
		reload := "needs a restart"
		if k.Live {
			reload = "taken"
		}
		fmt.Fprintf(&b, "| `%s` | `--%s` | `%s` | %s | %s |\n", strings.ReplaceAll(k.Name, "-", "_"), k.Name, flagenv.Name(envPrefix, k.Name), usage, reload)
	}
	docpage.Check(t, "../../../docs/CONFIG.md", "hub", b.String())
}
