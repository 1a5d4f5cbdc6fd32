// Package flagenv is what the programs' flags have beyond pflag's: environment variables
// stand for them, as containers want it (a flag on the command line wins), and lengths of
// time take days.
package flagenv

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// Name is the variable of a flag: PREFIX_LISTEN_UDP for listen-udp.
func Name(prefix, flag string) string {
	return prefix + "_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Apply sets every flag of set that the command line left alone and whose
// variable is there and not empty. The error names the variable and not its value,
// which may be a secret.
func Apply(set *pflag.FlagSet, prefix string) (err error) {
	set.VisitAll(func(f *pflag.Flag) {
		name := Name(prefix, f.Name)
		v := os.Getenv(name)
		if err != nil || v == "" || f.Changed {
			return
		}
		if e := set.Set(f.Name, v); e != nil {
			err = fmt.Errorf("environment variable %s is no valid value of --%s; see --help", name, f.Name)
		}
	})
	return err
}
