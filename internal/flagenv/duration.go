package flagenv

import (
	"time"

	"github.com/spf13/pflag"

	"causeway/protocol"
)

// DurationVar adds a flag like pflag's that takes days too, such as 30d.
func DurationVar(set *pflag.FlagSet, p *time.Duration, name string, value time.Duration, usage string) {
	*p = value
	set.Var((*protocol.Duration)(p), name, usage)
	if value == 0 {
		set.Lookup(name).DefValue = "" // none is shown
	}
}
