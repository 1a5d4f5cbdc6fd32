package main

import (
	"bytes"
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
address at which agents reach the hub, and print the next three commands. It can be run
again: what the file says already stays. Without --public-host no file is
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
	c.Flags().StringVar(&file, "config", defaultConfig, "configuration file to write")
	c.Flags().StringVar(&public, "public-host", "", "name or address at which agents reach the hub")
	return c
}

// prepare writes the configuration file and returns the hub's public host.
func prepare(file, public string) (string, error) {
	said, err := readSettings(file, false)
	if err != nil {
		return "", err
	}
	have, _ := said["public-host"].(string)
	switch {
	case have != "" && public != "" && have != public:
		return "", fmt.Errorf("public-host: %s says %q; change it there", file, have)
	case have != "":
		return have, nil
	case public == "":
		if public, err = hub.PublicHost(); err != nil {
			return "", err
		}
		return public + ", the first global address of this host; give --public-host for another", nil
	}
	if _, err := hub.New(hub.Config{PublicHost: public}); err != nil {
		return "", err
	}
	if err := hub.CheckPublicHost(public); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", fmt.Errorf("config: %w; run as root", err)
	}
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("config: %w", err)
	}
	line := fmt.Sprintf("public_host: %q\n", public)
	if len(text) == 0 {
		text = []byte("# Every key: docs/CONFIG.md.\n")
	} else if !bytes.HasSuffix(text, []byte("\n")) {
		text = append(text, '\n')
	}
	text = append(text, line...)
	// Whatever is there, such as the packages' example, has to go on making sense.
	if now, err := decodeSettings(file, text); err != nil || now["public-host"] != public {
		return "", fmt.Errorf("config: %s is there already; add to it: %s", file, line[:len(line)-1])
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return "", fmt.Errorf("config: %w; run as root", err)
	}
	return public, nil
}

func isService() bool {
	for _, p := range []string{unit, "/run/systemd/system"} {
		if _, err := os.Stat(p); err != nil {
			return false
		}
	}
	return true
}
