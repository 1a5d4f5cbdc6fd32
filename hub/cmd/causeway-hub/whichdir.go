package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// meantDir refuses the data directory of the default where the hub of this host has another one by
// its configuration: a command that changes a directory shall not take another hub's for it.
func meantDir(c *cobra.Command, dir string) error {
	if c.Flags().Changed("data-dir") {
		return nil
	}
	for _, x := range []struct{ where, dir string }{{"$" + envPrefix + "_DATA_DIR", os.Getenv(envPrefix + "_DATA_DIR")}, {configFile, configuredDir()}} {
		if x.dir != "" && filepath.Clean(x.dir) != filepath.Clean(dir) {
			return fmt.Errorf("%s says that the hub's data are in %s, and the default is %s: nothing was done; say which is meant with --data-dir", x.where, x.dir, dir)
		}
	}
	return nil
}

// configFile is the default configuration file; a test has its own.
var configFile = defaultConfig

// configuredDir is the data directory of the configuration file, empty if it names none. One that does
// not read is the start's to complain about.
func configuredDir() string {
	s, err := readSettings(configFile, false)
	if err != nil {
		return ""
	}
	dir, _ := s["data-dir"].(string)
	return dir
}
