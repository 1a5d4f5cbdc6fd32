package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"causeway/hub"
)

// unit is the service that the packages bring.
const unit = "/usr/lib/systemd/system/causeway-hub.service"

func initCommand() *cobra.Command {
	var file, public string
	c := &cobra.Command{
		Use: "init", Short: "Prepare a first hub and say what to do next", Args: cobra.NoArgs,
		Long: `Prepare this host for its first hub: write the configuration file with the name or
address at which agents reach the hub, and print the next three commands. A file that
is there stays as it is, so that it can be run again. Without --public-host no file is
written, and the hub tells agents the host's first global address.`,
		RunE: func(c *cobra.Command, _ []string) error {
			shown, err := prepare(file, public)
			if err != nil {
				return err
			}
			start := "causeway-hub run"
			if isService() {
				start = "systemctl enable --now causeway-hub-https.socket causeway-hub-admin.socket causeway-hub"
			}
			if file != defaultConfig {
				start = "causeway-hub run --config " + file
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), `agents will reach this hub at %s (UDP 51820 and TCP 443 unless configured otherwise)

1. start the hub:            %s
2. create a site:            causeway site create SITE
3. a token for each host:    causeway token create --site SITE
   and there, as root:       causeway-agent join TOKEN
`, shown, start)
			return err
		},
	}
	c.Flags().StringVar(&file, "config", defaultConfig, "configuration file to write, unless it exists")
	c.Flags().StringVar(&public, "public-host", "", "name or address at which agents reach the hub")
	return c
}

// prepare writes the configuration file and returns the hub's public host.
func prepare(file, public string) (string, error) {
	have, err := readSettings(file, false)
	if err != nil {
		return "", err
	}
	switch {
	case have.PublicHost != "" && public != "" && have.PublicHost != public:
		return "", fmt.Errorf("public-host: %s says %q; change it there", file, have.PublicHost)
	case have.PublicHost != "":
		public = have.PublicHost
	case public == "":
		if public, err = hub.PublicHost(); err != nil {
			return "", err
		}
		return public + ", the first global address of this host; give --public-host for another", nil
	}
	if _, err := hub.New(hub.Config{PublicHost: public}); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", fmt.Errorf("config: %w", err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		if have.PublicHost == "" {
			return "", fmt.Errorf("config: %s is there already; add the line 'public_host: %s' to it", file, public)
		}
		return public, nil
	}
	if err != nil {
		return "", fmt.Errorf("config: %w; run as root", err)
	}
	_, err = fmt.Fprintf(f, "# Every key: docs/CONFIG.md, or man causeway-hub-run.\npublic_host: %q\n", public)
	return public, errors.Join(err, f.Close())
}

func isService() bool {
	for _, p := range []string{unit, "/run/systemd/system"} {
		if _, err := os.Stat(p); err != nil {
			return false
		}
	}
	return true
}
